"""CUDA graphs: the curve of plain training, one recording a shape, nothing disturbed by it, and who is refused.

What needs a GPU runs on the fake one, too (test_fake_gpu.py): random numbers go on from graph to graph as a GPU's do.
"""

import pytest
import torch

import lorakit
from lorakit.data import packing as batching
from lorakit.data.packing import COMPILED_UNIT, UNIT, TokenTable, layout_for, plan_batch
from lorakit.training import loop as training
from lorakit.training.evaluation import encode_tagged
from lorakit.training.graphs import StepGraphs
from lorakit.training.loss import LossSum
from tests.training.test_loop import data as data
from tests.training.test_loop import killed_after, quick, read_log, step_lines, weights

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CASES = {
    "lora": {},
    "full": {"mode": "full"},
    "bf16": {"precision": "bf16"},
    "fp16, two batches a step": {"precision": "fp16", "accumulate": 2, "batch_size": 4},
    "dropout": {"dropout": 0.2},
    "prefix": {"cache_prefix": True, "lora": {"layers_to_transform": [1]}},
}


@gpu
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_curve_is_that_of_the_same_batches_without_graphs(tiny_model, tokenizer, data, tmp_path, monkeypatch, case):
    """Random numbers included: a graph draws those that its operations would have drawn."""
    changes = {"precision": "fp32", "learning_rate": 3e-3, "log_every": 1, **case}
    mode, dropout, lora = changes.pop("mode", "lora"), changes.pop("dropout", 0.0), changes.pop("lora", {})
    few = training.training_layout
    curves, results = [], []
    for recorded in (False, True):
        layout_of = few if recorded else lambda *given, **how: few(*given, **{**how, "recorded": True})
        monkeypatch.setattr(training, "training_layout", layout_of)
        model = tiny_model(dropout=dropout)
        if mode == "lora":
            lorakit.apply_lora(model, r=4, lora_dropout=dropout, **lora)
        config = quick(output_dir=tmp_path / str(recorded), cuda_graphs=recorded, **changes)
        results.append(lorakit.train(model, tokenizer, data, config))
        curves.append([line["loss"] for line in step_lines(tmp_path / str(recorded))])
    assert len(curves[0]) == 24
    assert curves[1] == pytest.approx(curves[0], rel=1e-5 if changes["precision"] == "fp32" else 1e-2)
    recordings = [line for line in read_log(tmp_path / "True") if line["event"] == "compile"]
    assert len({(line["rows"], line["width"]) for line in recordings}) == len(recordings) <= 6
    assert all(line["width"] % UNIT == 0 for line in recordings)
    assert any(line["width"] % COMPILED_UNIT for line in recordings)  # no padding for the sake of fewer recordings
    plain, graphs = results
    assert plain.compile_seconds == 0 < graphs.compile_seconds
    assert graphs.compile_seconds == pytest.approx(sum(line["seconds"] for line in recordings))
    assert graphs.compile_seconds + graphs.train_seconds < graphs.duration_s
    assert (graphs.train_tokens, graphs.computed_tokens) == (plain.train_tokens, plain.computed_tokens)


@pytest.fixture
def recorder(tiny_model, tokenizer, data):
    """Graphs of a model with dropout, and two batches of one shape."""
    model = lorakit.apply_lora(tiny_model(dropout=0.3), r=4, lora_dropout=0.3).cuda().train()
    encoded, layout = encode_tagged(model, tokenizer, data.train), layout_for(model)
    loss, total = LossSum(model, layout), torch.zeros((), device="cuda")

    def contribute(batch, targets):
        share = loss(batch) / targets
        share.backward()
        return share.detach()

    trained = [p for p in model.parameters() if p.requires_grad]
    graphs = StepGraphs(model, TokenTable(encoded, layout, "cuda"), contribute, total, trained)
    few = batching.with_few_shapes(layout, encoded, 8, 64)
    return graphs, [plan_batch(encoded, range(start, start + 8), few) for start in (0, 8)]


@gpu
def test_a_recording_leaves_gradients_loss_and_random_numbers_alone(recorder):
    graphs, (plan, _) = recorder
    graphs.trained[0].grad = kept = torch.ones_like(graphs.trained[0])
    graphs.total += 7
    before = torch.cuda.get_rng_state()
    assert graphs.record(plan, 10) > 0
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert graphs.total == 7
    assert graphs.trained[0].grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in graphs.trained[1:])
    assert graphs.record(plan, 10) is None


@gpu
def test_a_replay_adds_to_gradients_and_loss_and_draws_anew(recorder):
    graphs, plans = recorder
    for plan in plans:
        graphs.record(plan, 10)
    assert len(graphs.recorded) == 1
    losses, gradients, summed = [], [], graphs.model.classifier.weight.grad
    for plan in (plans[0], plans[0], plans[1]):
        before = float(graphs.total), summed.clone()
        graphs.replay(plan, 10)
        losses.append(float(graphs.total) - before[0])
        gradients.append(summed - before[1])
    assert min(losses) > 0
    assert losses[0] != losses[1]  # dropout
    assert not torch.equal(gradients[0], gradients[1])
    torch.manual_seed(0)
    graphs.total.zero_()
    graphs.replay(plans[0], 10)
    first = float(graphs.total)
    torch.manual_seed(0)
    graphs.replay(plans[0], 20)  # of a step with twice the words
    assert float(graphs.total) - first == pytest.approx(first / 2, rel=1e-5)


@gpu
def test_killed_and_resumed_equals_never_stopped(tiny_model, tokenizer, data, tmp_path):
    def run(model, folder, stop_after=None, **changes):
        with killed_after(stop_after):
            config = quick(save_every=2, output_dir=folder, precision="fp32", **changes)
            return lorakit.train(model, tokenizer, data, config)

    def make():
        return lorakit.apply_lora(tiny_model(dropout=0.1), r=4, lora_dropout=0.1)

    whole, part, resumed = make(), make(), make()
    expected = run(whole, tmp_path / "whole", cuda_graphs=True)
    with pytest.raises(KeyboardInterrupt):
        run(part, tmp_path / "parts", stop_after=15, cuda_graphs=True)
    result = run(resumed, tmp_path / "parts", resume=True, cuda_graphs=True)
    assert result.steps == expected.steps
    assert result.test.loss == pytest.approx(expected.test.loss, rel=1e-4)
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(resumed)[name], rtol=1e-3, atol=1e-5, msg=name)
    with pytest.raises(ValueError, match="cuda_graphs = True, now it is False"):
        run(make(), tmp_path / "parts", resume=True)


@gpu
def test_a_model_that_makes_the_host_wait_is_refused(tiny_model, tokenizer, data):
    model = tiny_model()
    model.classifier.register_forward_hook(lambda module, given, output: output * float(output.sum().isfinite()))
    with pytest.raises(ValueError, match=r"RobertaFor.* cannot be recorded as a CUDA graph \(.*; train it without"):
        lorakit.train(model, tokenizer, data, quick(cuda_graphs=True))


@pytest.mark.parametrize("changes", [{"strategy": "fsdp"}, {"compile": True}, {"packing": False}])
def test_what_goes_not_with_graphs_is_refused(changes):
    with pytest.raises(ValueError, match="cuda_graphs does not go with strategy 'fsdp', packing=False or compile"):
        quick(cuda_graphs=True, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_a_machine_without_a_gpu_is_refused_before_anything_is_written(tiny_model, tokenizer, data, tmp_path):
    with pytest.raises(ValueError, match="cuda_graphs needs an NVIDIA GPU, and this process trains on cpu"):
        lorakit.train(tiny_model(), tokenizer, data, quick(cuda_graphs=True, output_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused(tiny_model, tokenizer, data, monkeypatch):
    monkeypatch.setattr(training, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="cuda_graphs is for one process; train in one, or with compile"):
        lorakit.train(tiny_model(), tokenizer, data, quick(cuda_graphs=True))
