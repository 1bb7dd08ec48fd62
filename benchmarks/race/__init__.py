"""Time to the same loss: another trainer and ours, on the same cores, text and model shape."""
