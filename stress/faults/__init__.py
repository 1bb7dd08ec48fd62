"""Small trainings with one planted fault each, judged blind by preflight and by diagnose.py (docs/dev/planted-faults.md)."""
