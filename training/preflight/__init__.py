"""Checks of a run before its first step.

A check is a function `check_...` that turns figures into a `Result`. runner.py takes the figures in the order in which
one trial engine can give them, and adds each result to the report under the check's id.
"""
