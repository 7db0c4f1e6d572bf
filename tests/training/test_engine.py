"""A batch adds its share of the step's mean loss and gradient, however the step is cut."""

from contextlib import nullcontext

import pytest
import torch

from lorakit.data.packing import TokenTable, plan_batch
from lorakit.training.engine import EagerEngine, ForwardBackward
from lorakit.training.evaluation import encode_tagged
from lorakit.training.layout import layout_for
from lorakit.training.loop import build_engine


@pytest.fixture
def engine_of(tiny_model, tokenizer, data):
    def make(name="eager"):
        model = tiny_model()
        encoded, layout = encode_tagged(model, tokenizer, data.train), layout_for(model)
        forward_backward = ForwardBackward(model, layout, nullcontext, torch.amp.GradScaler("cpu", enabled=False))
        return build_engine(name, forward_backward, TokenTable(encoded, layout)), encoded, layout

    return make


def test_two_batches_add_up_to_the_one_of_both(engine_of):
    results = []
    for cut in ([range(8)], [range(3), range(3, 8)]):
        engine, encoded, layout = engine_of()
        plans = [plan_batch(encoded, windows, layout) for windows in cut]
        for plan in plans:
            assert engine.prepare(plan, 20) is None
            engine.run(plan, 20, last=plan is plans[-1])
        results.append((engine.total, [p.grad for p in engine.forward_backward.trained]))
    (whole, gradients), (parts, summed) = results
    torch.testing.assert_close(parts, whole)
    for a, b in zip(gradients, summed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_loss_and_gradient_are_divided_by_the_words_of_the_step(engine_of):
    totals = []
    for targets in (10, 20):
        engine, encoded, layout = engine_of()
        engine.run(plan_batch(encoded, range(4), layout), targets, last=True)
        totals.append((float(engine.total), float(engine.forward_backward.trained[-1].grad.abs().sum())))
    assert totals[0] == pytest.approx([2 * value for value in totals[1]], rel=1e-5)


def test_a_batch_of_weight_zero_adds_nothing(engine_of):
    engine, encoded, layout = engine_of()
    engine.run(plan_batch(encoded, [0], layout, counts=False), 10, last=True)
    assert engine.total == 0
    assert all(not p.grad.any() for p in engine.forward_backward.trained if p.grad is not None)


def test_the_eager_engine_is_the_usual_one_and_drops_gradients(engine_of):
    engine, _, _ = engine_of("eager")
    assert type(engine) is EagerEngine and engine.drops_gradients
