"""Checks before the hours are spent: a throw-away copy of the run is trained for some seconds and looked at."""
