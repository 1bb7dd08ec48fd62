"""Small runs with one planted fault each, examined blind by preflight and diagnose.py (docs/dev/planted-faults.md)."""
