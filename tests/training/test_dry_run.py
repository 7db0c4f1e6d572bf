"""A model that was run to find something out shows no trace of it, not even after an error."""

import pytest
import torch

from lorakit.training.dry_run import dry_run, dry_run_backward, keep_modes


def network():
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))


def test_modes_come_back_also_after_an_error():
    model = network().train()
    model[1].eval()
    with pytest.raises(KeyError), keep_modes(model):
        model.eval()
        raise KeyError
    assert [module.training for module in model] == [True, False, True]


def test_buffers_and_random_numbers_come_back():
    model = network().train()
    buffers, state = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state()
    with dry_run(model):
        model(torch.randn(4, 3))
        assert not all(map(torch.equal, model.buffers(), buffers))
    assert all(map(torch.equal, model.buffers(), buffers))
    assert torch.equal(torch.get_rng_state(), state)


def test_gradients_come_back_and_new_ones_are_zero():
    model, calls = torch.nn.Linear(3, 2), []
    model.weight.grad = kept = torch.ones_like(model.weight)

    def run():
        calls.append(model.weight.grad)
        model(torch.randn(4, 3)).sum().backward()

    dry_run_backward(model, list(model.parameters()), run, times=3)
    assert calls == [None] * 3
    assert model.weight.grad is kept and torch.equal(kept, torch.ones_like(kept))
    assert torch.equal(model.bias.grad, torch.zeros(2))
