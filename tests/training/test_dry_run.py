"""A model that was run to find something out shows no trace of it, not even after an error."""

from types import SimpleNamespace

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


class Changing(torch.nn.Module):
    """Keeps what it saw in its first forward, as models do that choose an attention by the length of a row."""

    def __init__(self):
        super().__init__()
        self.kind, self.part, self.config = "sparse", torch.nn.Linear(2, 2), SimpleNamespace(kind="sparse")
        self.table = torch.nn.Buffer(torch.zeros(2))

    def forward(self, x):
        self.kind = self.config.kind = "full"
        self.part, self.table, self.seen = torch.nn.Identity(), torch.nn.Buffer(torch.ones(3)), len(x)
        return x


def test_flags_buffers_and_parts_that_a_forward_replaces_come_back_also_after_an_error():
    model = Changing()
    part, table = model.part, model.table
    hook = model.register_forward_hook(lambda *_: None)
    with pytest.raises(KeyError), dry_run(model):
        model(torch.zeros(2))
        assert model.kind == "full"
        raise KeyError
    assert (model.kind, model.config.kind, hasattr(model, "seen")) == ("sparse", "sparse", False)
    assert model.part is part and model.table is table
    hook.remove()
    assert not model._forward_hooks  # a handle still refers to the module's own dict


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
