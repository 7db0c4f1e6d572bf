"""What a window gets of an interval; the laws over many intervals are in test_accumulator.py."""

import pytest

from lorakit.power.window_share import GAPS_KEPT, Gap, Interval, WindowShare


def share_of(opened, closed, interval, max_w=100.0):
    """A window that is open from `opened` to `closed` inside an interval that starts at 0."""
    share = WindowShare()
    share.mark_edge(+1, opened, 0.0)
    share.mark_edge(-1, closed, 0.0)
    share.advance(interval.seconds)
    share.add(interval, max_w, lag_j=0.0, reading_j=0.0)
    return share


def test_a_window_gets_its_share_of_time():
    share = share_of(2.0, 7.0, Interval(10.0, 600.0))
    assert (share.joules, share.covered_s, share.wanted_s) == (300.0, 5.0, 5.0)


@pytest.mark.parametrize(
    ("joules", "bound_j"),
    [(600.0, 200.0), (0.0, 0.0), (1000.0, 0.0), (100.0, 50.0)],
    ids=["the rest at most 100 W", "nothing to split", "full power all the time", "all of it or nothing"],
)
def test_the_split_is_bounded_by_energy_and_power_limit(joules, bound_j):
    """Of 10 s the window had 5, and the device draws at most 100 W."""
    assert share_of(2.0, 7.0, Interval(10.0, joules)).split_j == pytest.approx(bound_j)


def test_an_edge_at_the_intervals_start_leaves_nothing_to_split():
    share = WindowShare()
    share.mark_edge(+1, 0.0, 0.0)
    share.advance(10.0)
    share.add(Interval(10.0, 600.0), 100.0, lag_j=0.0, reading_j=3.0)
    assert (share.joules, share.split_j, share.turn_j) == (600.0, 0.0, 3.0)


def test_many_gaps_are_counted_and_the_first_are_listed():
    share = WindowShare(open=1)
    for second in range(GAPS_KEPT + 5):
        share.advance(second + 1.0)
        share.skip(Gap("x", second, 1.0, "none"), reading_j=0.0)
    assert (share.gap_count, len(share.gaps)) == (GAPS_KEPT + 5, GAPS_KEPT)
    assert (share.covered_s, share.wanted_s) == (0.0, GAPS_KEPT + 5)
