"""What the checks of the data make of their figures."""

import pytest

from training.preflight.data_checks import Overlap, RowFigures, check_overlap, check_padding, check_row_targets

ROWS = RowFigures({0: 0.01, 1: 1.0, 2: 0.01, 3: 0.01}, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"matches": {0: 1.0, 1: 0.0, 2: 0.0, 3: 0.0}}, "the input itself"),
        ({"matches": {0: 0.0, 1: 0.1, 2: 0.0, 3: 1.0}}, "3 places on"),
        ({"matches": {0: 0.1, 1: 0.5, 2: 0.1, 3: 0.1}}, "only 50.0%"),
        ({"last_match": 0.5}, "the last target"),
        ({"from_corpus": 0.5}, "not those of the corpus"),
    ],
)
def test_wrong_targets(changes, words):
    check = check_row_targets(RowFigures(**(vars(ROWS) | changes)))
    assert check.level == "fail"
    assert words in check.text


def test_right_targets_and_full_rows():
    assert check_row_targets(ROWS) is None
    assert check_padding(ROWS).level == "pass"


def test_padding_that_does_not_count_only_wastes_time():
    assert check_padding(RowFigures(**(vars(ROWS) | {"padded_inputs": 0.35, "ignored_targets": 0.35}))).level == "warn"
    assert check_padding(RowFigures(**(vars(ROWS) | {"padded_targets": 0.35}))).level == "fail"


@pytest.mark.parametrize(("share", "level"), [(0.0, "pass"), (0.04, "pass"), (0.2, "warn"), (0.9, "fail")])
def test_overlaps(share, level):
    assert check_overlap(Overlap(share, 1000, 1.0)).level == level


def test_without_validation_text_nothing_is_compared():
    assert check_overlap(None).level == "warn"
