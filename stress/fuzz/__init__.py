"""Fuzzing of everything that reads a file of the user's: see `python -m stress.fuzz --help`."""
