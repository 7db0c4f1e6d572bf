import math

from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.training.preemption import Meetings


class Rank:
    """A rank on a clock of its own, which runs as the others' but started at another time."""

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
        """Take a step; whether the ranks met after it, as `training.train_epoch` lets them."""
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
    """Steps may differ by a factor of four; five of the ten seconds stay for the checkpoint."""
    world = World(ranks)
    world.now += evaluation_s  # in which ranks ask each other after every batch
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
