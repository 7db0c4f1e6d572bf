"""What training needs in memory, against what it takes, and the refusal where two models do not fit."""

import numpy as np
import pytest
import torch

import lorakit
from lorakit.training import memory
from lorakit.training.memory import MemoryNeed, batch_tokens, check_memory, memory_need
from lorakit.training.optimizer import build_optimizer


def test_weights_gradients_moments_and_best_copy_are_counted_exactly(tiny_model):
    for model in (tiny_model(), lorakit.apply_lora(tiny_model(), r=4)):
        optimizer = build_optimizer(model, 1e-3, 0.0)
        model(torch.tensor([[5, 6, 7]]))[0].sum().backward()
        optimizer.step()
        trained = [p for p in model.parameters() if p.requires_grad]
        moments = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v.ndim)
        unused = [p for p in trained if p.grad is None]
        assert not unused
        need = memory_need(model, 100, 10, "fp32")
        assert need.weights == sum(p.nbytes for p in model.parameters())
        assert need.training == sum(p.grad.nbytes for p in trained) + moments + sum(p.nbytes for p in trained)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_activations_are_estimated_to_within_a_factor_of_two(tiny_model, mode):
    model = tiny_model(dropout=0.1, hidden_size=128, num_attention_heads=4, intermediate_size=512, num_hidden_layers=4)
    if mode == "lora":
        lorakit.apply_lora(model, r=4)
    weights, kept = {p.data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(torch.randint(4, 8000, (16, 32)))
    taken = sum(size for _, size in kept.values())
    assert 0.5 * taken < memory_need(model, 16 * 32, 32, "fp32").activations < 2 * taken


def test_a_frozen_base_is_cheap_beside_full_fine_tuning(tiny_model):
    full = memory_need(tiny_model(), 100, 10, "fp32")
    lora = memory_need(lorakit.apply_lora(tiny_model(), r=1), 100, 10, "fp32")
    assert lora.held < full.held / 3


def test_a_batch_is_larger_than_the_mean_one():
    lengths = np.array([10, 30] * 50)
    assert batch_tokens(lengths, 16) == 16 * 20 + 3 * 10 * 4
    drawn = np.random.default_rng(0).choice(lengths, (2000, 16)).sum(1)
    assert (drawn > batch_tokens(lengths, 16)).mean() < 0.005


NEEDS = {"full": MemoryNeed(2**30, 4 * 2**30, 2**29), "LoRA": MemoryNeed(2**30, 2**20, 2**28)}


def test_models_that_fit_are_accepted(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 6 * 2**30)
    check_memory(NEEDS, loaded=2**30, fix="do this")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message names the CPU")
def test_models_that_do_not_fit_are_refused_with_figures_and_the_fix(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 5 * 2**30)
    message = (
        r"2 models in training at the same time need about 5\.5 GiB more memory on the CPU \(full 5\.0, LoRA 1\.0,"
        r" activations 0\.5\), and 5\.0 GiB are free; do this$"
    )
    with pytest.raises(ValueError, match=message):
        check_memory(NEEDS, loaded=2**30, fix="do this")


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks on GPUs do not share one memory")
def test_ranks_of_a_node_share_its_memory(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 10 * 2**30)
    check_memory(NEEDS, loaded=2**30, fix="do this")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"11\.0 GiB more memory"):
        check_memory(NEEDS, loaded=2**30, fix="do this")
