import math
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.training.preemption import Meetings, Preempted, StopAgreement, StopRequest


class Rank:
    """A rank with its own clock, which runs as the others' do but started at another time."""

    def __init__(self, world, offset):
        self.meetings = Meetings(clock=lambda: world.now + offset)


class World:
    """Ranks in lock-step, as an exchange of gradients keeps them; time passes when they say so."""

    def __init__(self, ranks):
        self.now, self.step, self.met = 0.0, 0, []
        self.ranks = [Rank(self, 1000.0 * number) for number in range(ranks)]
        self.resume()

    def resume(self):
        for rank in self.ranks:
            rank.meetings.resume(self.step)

    def run_step(self, seconds, log_every):
        """Take a step; returns whether the ranks met after it, as in `Session.after_step`."""
        self.now, self.step = self.now + seconds, self.step + 1
        due = {self.step == rank.meetings.next_step for rank in self.ranks}
        assert len(due) == 1, "the ranks do not agree on when to meet, and would wait for each other for ever"
        if due == {False} and self.step % log_every:
            return False
        elapsed_s = sum(rank.meetings.elapsed_s() for rank in self.ranks) / len(self.ranks)
        for rank in self.ranks:
            rank.meetings.met(self.step, elapsed_s)
        self.met.append(self.now)
        return True


step_seconds = st.floats(math.log(0.001), math.log(5.0)).map(math.exp)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    typical=step_seconds,
    factors=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=20),
    asked_at=st.floats(0.0, 12.0),
    log_every=st.sampled_from([1, 10, 10**9]),
    evaluation_s=st.floats(0.0, 60.0),
    ranks=st.integers(2, 3),
)
def test_a_stop_is_agreed_in_time_whether_steps_take_a_millisecond_or_five_seconds(
    typical, factors, asked_at, log_every, evaluation_s, ranks
):
    """Steps may differ by a factor of four; five of the ten seconds are left for the checkpoint."""
    world = World(ranks)
    world.now += evaluation_s  # in which the ranks ask each other after every batch
    world.resume()
    asked_at += world.now
    while not (
        world.run_step(min(5.0, max(0.001, typical * factors[world.step % len(factors)])), log_every)
        and asked_at <= world.now
    ):
        pass
    assert world.now - asked_at <= 5.0


@settings(deadline=None, derandomize=True, max_examples=30)
@given(seconds=step_seconds)
def test_ranks_do_not_meet_more_often_than_it_takes(seconds):
    world = World(2)
    while world.now < 12.0:
        world.run_step(seconds, 10**9)
    late = [after - before for before, after in zip(world.met[2:], world.met[3:], strict=False)]
    assert all(0.5 <= pause or seconds > pause - 1e-9 for pause in late)


def test_the_first_signal_is_noted_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.number == 0
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_ctrl_c_acts_as_usual():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.number == signal.SIGINT


def test_nothing_is_caught_where_it_is_turned_off():
    with StopRequest(active=False), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_single_process_agrees_with_itself_at_once():
    stop = StopRequest()
    agreement = StopAgreement(stop, torch.device("cpu"))
    agreement.resume(0)
    assert not (agreement.is_agreed() or agreement.ask_all() or agreement.is_due(1))
    assert agreement.meet(1, torch.tensor(2.5)) == 2.5
    stop.number = signal.SIGINT
    assert agreement.is_agreed() and agreement.ask_all() and agreement.signal == signal.SIGINT


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_exit_status_is_that_of_the_signal(number, status):
    stopped = Preempted(number, "runs/x/checkpoints")
    assert stopped.code == status
    assert str(stopped).endswith("the state is in runs/x/checkpoints: run the same again with resume=True to continue")
    assert "could not be saved, only an older one may be in runs/x" in str(Preempted(number, "runs/x", saved=False))
