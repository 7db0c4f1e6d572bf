"""A state that is loaded continues where the saved one was; the best epoch's weights come back."""

import random

import numpy as np
import pytest
import torch

from lorakit.training.optimizer import build_optimizer
from lorakit.training.state import SinceLog, TrainState, random_state, seed_everything, set_random_state


def state_of(model):
    return TrainState(model, build_optimizer(model, 0.1, 0.0), torch.amp.GradScaler("cpu", enabled=False))


def take_step(state, model):
    x = torch.randn(4, 3)
    loss = model(x).square().sum()
    loss.backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.count_step(loss.detach(), torch.tensor(False), tokens=5, computed_tokens=6)
    return float(loss.detach())


def test_a_loaded_state_takes_the_steps_that_the_saved_one_would_have_taken():
    model = torch.nn.Linear(3, 2)
    state = state_of(model)
    take_step(state, model)
    state.keep_if_best({"f1": 0.5, "loss": 1.0})
    saved = state.state_dict()
    tensors = {group: {n: v.clone() for n, v in saved[group].items()} for group in ("model", "best")}
    moments = {n: {k: v.clone() for k, v in kept.items()} for n, kept in saved["optimizer"].items()}
    expected = [take_step(state, model) for _ in range(3)]
    other = torch.nn.Linear(3, 2)
    resumed = state_of(other)
    resumed.load_state_dict({**saved, **tensors, "optimizer": moments})
    assert [take_step(resumed, other) for _ in range(3)] == expected
    assert resumed.counters == state.counters
    assert resumed.since_log.state_dict() == state.since_log.state_dict()
    assert resumed.counters.train_tokens == 20 and resumed.counters.computed_tokens == 24
    assert all(torch.equal(value, tensors["best"][name]) for name, value in resumed.best_weights.items())


@pytest.mark.parametrize(
    ("epochs", "best"),  # (F1, loss) of each
    [
        ([(0.2, 0.1), (0.7, 0.3), (0.7, 0.3), (0.1, 0.1)], 2),  # of two equal ones the first
        ([(0.0, 0.18), (0.0, 0.12), (0.0, 0.06), (0.0, 0.07)], 3),  # F1 is 0: the loss decides
        ([(0.7, 0.3), (0.7, 0.2), (0.6, 0.1)], 2),
        ([(0.0, 0.1), (0.1, 9.0)], 2),  # F1 comes first
        ([(0.5, float("nan")), (0.5, 2.0), (0.5, float("inf"))], 2),
        ([(0.0, 3.0), (0.5, float("nan")), (0.9, float("inf"))], 1),  # what computes nothing is never the best
    ],
)
def test_the_weights_of_the_best_epoch_come_back(epochs, best):
    model = torch.nn.Linear(3, 2)
    state = state_of(model)
    kept = None
    for epoch, (f1, loss) in enumerate(epochs, start=1):
        take_step(state, model)
        state.keep_if_best({"f1": f1, "loss": loss})
        if epoch == best:
            kept = model.weight.detach().clone()
        state.counters.next_epoch()
    assert state.counters.best_epoch == best
    state.restore_best()
    assert torch.equal(model.weight, kept)


def test_skipped_steps_count_neither_in_the_loss_nor_as_the_end_of_a_row():
    since = SinceLog(torch.device("cpu"))
    for loss, bad in ((2.0, False), (float("nan"), True), (float("inf"), True)):
        since.add(torch.tensor(loss), torch.tensor(bad), tokens=3)
    assert since.state_dict() == {"loss": 2.0, "skipped": 2.0, "in_a_row": 2.0, "tokens": 9, "steps": 3}
    since.add(torch.tensor(1.0), torch.tensor(False), tokens=3)
    assert float(since.in_a_row) == 0


def test_a_restarted_log_keeps_the_row_of_skipped_steps():
    state = state_of(torch.nn.Linear(3, 2))
    state.count_step(torch.tensor(float("nan")), torch.tensor(True), 1, 1)
    state.restart_log()
    assert state.since_log.state_dict() == {"loss": 0.0, "skipped": 0.0, "in_a_row": 1.0, "tokens": 0, "steps": 0}


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_every_generator_is_seeded_per_rank_and_restored():
    seed_everything(3, rank=0)
    first = draw()
    seed_everything(3, rank=1)
    assert all(a != b for a, b in zip(first, draw(), strict=True))
    np.random.standard_normal()  # leaves a second Gaussian number in NumPy's generator
    kept = random_state()
    expected = draw(), float(np.random.standard_normal())
    seed_everything(99, rank=0)
    set_random_state(kept)
    assert (draw(), float(np.random.standard_normal())) == expected


def test_a_state_of_another_number_of_ranks_leaves_the_generators_alone():
    state = state_of(torch.nn.Linear(3, 2))
    saved = state.state_dict()
    del saved["since_log"], saved["random"]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    state.load_state_dict(saved)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(autouse=True)
def generators_left_as_they_were():
    kept = random_state()
    yield
    set_random_state(kept)
