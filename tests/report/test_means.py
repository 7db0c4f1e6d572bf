"""The mean of records, against the standard library and numbers worked out by hand."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.report.means import mean_of


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6))
def test_numbers_have_their_mean(values):
    assert mean_of(values) == pytest.approx(statistics.fmean(values), abs=1e-6)


def test_records_and_lists_are_averaged_part_by_part():
    first = {"f1": 0.5, "strict": {"f1": 0.25}, "history": [{"epoch": 1, "f1": 0.25}, {"epoch": 2, "f1": 0.5}]}
    second = {"f1": 0.75, "strict": {"f1": 0.5}, "history": [{"epoch": 1, "f1": 0.5}], "new": 1}
    assert mean_of([first, second]) == {
        "f1": 0.625,
        "strict": {"f1": 0.375},
        "history": [{"epoch": 1, "f1": 0.375}],  # to the last epoch that both have
    }


def test_equal_integers_stay_integers_and_what_has_no_mean_is_unknown():
    assert repr(mean_of([3, 3])) == "3" and mean_of([True, True]) is True
    assert mean_of([None, 0.5]) is None and mean_of(["a", "b"]) is None and mean_of(["a", "a"]) == "a"
