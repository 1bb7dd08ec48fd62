"""How a result is printed."""

from training.preflight.report import Result


def test_a_line_of_the_terminal():
    assert Result("warn", "5 of 9", "look").line("overlap") == "  warn  overlap             5 of 9; look"
