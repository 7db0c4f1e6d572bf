"""Whose turn it is, with runs that only count."""

from contextlib import contextmanager

import pytest

from lorakit.training.interleaving import TURNS, steps_per_turn, take_turns
from lorakit.training.preemption import Preempted


class Counting:
    """A run of so many steps, a few per turn, and then a test."""

    def __init__(self, total, per_turn=2, step=0, stopped_at=None):
        self.total, self.per_turn, self.step, self.stopped_at = total, per_turn, step, stopped_at
        self.result, self.folder, self.saves = None, f"folder of {total}", 0

    def advance(self):
        if self.step == self.total:
            self.result = "tested"
        self.step = min(self.total, self.step - self.step % self.per_turn + self.per_turn)
        if self.step == self.stopped_at:
            raise Preempted(15, self.folder)

    def save(self):
        self.saves += 1
        return True


def turns_of(runs):
    seen = []

    @contextmanager
    def turn(name):
        seen.append(name)
        yield

    take_turns(runs, turn)
    assert all(run.result for run in runs.values())
    return "".join(seen)


def test_every_other_round_is_in_reverse_order():
    assert turns_of({"a": Counting(6), "b": Counting(6)}) == "abbaabba"
    assert turns_of({"a": Counting(4), "b": Counting(4), "c": Counting(4)}) == "abccbaacb"  # a's test, and a new round


def test_the_run_that_is_behind_catches_up_first():
    assert turns_of({"a": Counting(8, step=5), "b": Counting(8)}) == "bbbaabba"


def test_a_run_that_stops_early_leaves_the_others_to_continue():
    assert turns_of({"a": Counting(2), "b": Counting(6)}) == "abbabb"


def test_a_signal_saves_the_waiting_runs_too_and_names_every_folder():
    runs = {"a": Counting(6, stopped_at=4), "b": Counting(8), "c": Counting(0)}
    with pytest.raises(Preempted, match="the state is in folder of 6 and folder of 8: ") as stopped:
        turns_of(runs)
    assert [run.saves for run in runs.values()] == [0, 1, 0] and stopped.value.saved


@pytest.mark.parametrize(("steps", "epochs"), [(500, 5), (20, 3), (3, 10), (1, 1), (1_000, 100), (41, 1)])
def test_a_run_has_enough_turns_or_one_per_step(steps, epochs):
    per_turn = steps_per_turn(steps, epochs)
    assert epochs * -(-steps // per_turn) >= min(TURNS, steps * epochs)
    assert per_turn == 1 or epochs * -(-steps // per_turn) <= 2 * TURNS + epochs
