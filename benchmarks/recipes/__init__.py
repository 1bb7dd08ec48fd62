"""Which recipe for which size and length? Sweeps at sizes that a CPU trains, and a law to extend them by."""
