"""Compiled and recorded training: the curve of eager training, one graph per shape, and its time counted separately.

What needs a GPU also runs on the fake one (test_fake_gpu.py): random numbers continue from graph to graph as on a GPU.
"""

from dataclasses import replace

import pytest
import torch

import lorakit
from lorakit.data.corpus import NerData
from lorakit.data.packing import TokenTable, plan_batch, with_few_shapes
from lorakit.training import graphs as graph_engines
from lorakit.training import loop
from lorakit.training.engine import ForwardBackward
from lorakit.training.evaluation import encode_tagged
from lorakit.training.graphs import CompiledEngine, CudaGraphEngine
from lorakit.training.layout import COMPILED_UNIT, UNIT, layout_for
from lorakit.training.precision import autocast_for
from tests.support.tiny import LABELS
from tests.support.toy import killed_after, quick, read_log, step_lines, toy_sentences, weights

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

CASES = {
    "lora": {},
    "full": {"mode": "full"},
    "bf16": {"precision": "bf16"},
    "fp16, two batches per step": {"precision": "fp16", "accumulate": 2, "batch_size": 4},
    "dropout": {"dropout": 0.2},
    "prefix": {"cache_prefix": True, "lora": {"layers_to_transform": [1]}},
}


def engine_of(engine, model, tokenizer, data, precision="fp32", device="cpu"):
    """A step engine, and the plans of two batches of one shape."""
    encoded, layout = encode_tagged(model, tokenizer, data.train), layout_for(model)
    scaler = torch.amp.GradScaler(device, enabled=False)
    forward_backward = ForwardBackward(model, layout, autocast_for(precision, torch.device(device))[0], scaler)
    few = with_few_shapes(layout, encoded, 8, 64)
    plans = [plan_batch(encoded, range(start, start + 8), few) for start in (0, 8)]
    return engine(forward_backward, TokenTable(encoded, layout, device)), plans


# torch.compile --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_the_compiled_curve_is_the_eager_one_with_one_graph_per_shape(
    tiny_model, tokenizer, data, tmp_path, graphs, mode
):
    curves, results = [], []
    for engine in ("eager", "compile"):
        model = tiny_model()
        if mode == "lora":
            lorakit.apply_lora(model, r=4, target_modules="all-linear", bias="all")
        folder = tmp_path / engine
        config = quick(learning_rate=3e-3, log_every=1, precision="fp32", output_dir=folder, engine=engine)
        results.append(lorakit.train(model, tokenizer, data, config))
        curves.append([line["loss"] for line in step_lines(folder)])
    assert len(curves[0]) == 24
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    compilations = [line for line in read_log(folder) if line["event"] == "compile"]
    assert len(graphs) == len({(line["rows"], line["width"]) for line in compilations}) == len(compilations) <= 4
    plain, compiled = results
    assert compiled.compile_seconds == pytest.approx(sum(line["seconds"] for line in compilations))
    assert compiled.compile_seconds + compiled.train_seconds < compiled.duration_s
    assert plain.compile_seconds == 0
    assert compiled.train_tokens == plain.train_tokens


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiling_leaves_gradients_and_random_numbers_alone(tiny_model, tokenizer, data, graphs, precision):
    model = lorakit.apply_lora(tiny_model(dropout=0.3), r=4, lora_dropout=0.3).train()
    engine, (plan, _) = engine_of(CompiledEngine, model, tokenizer, data, precision)
    trained = [p for p in model.parameters() if p.requires_grad]
    trained[0].grad = kept = torch.ones_like(trained[0])
    before = torch.get_rng_state()
    assert engine.prepare(plan, 10) > 0
    assert torch.equal(torch.get_rng_state(), before)
    assert trained[0].grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in trained[1:])
    assert engine.prepare(plan, 10) is None
    engine.run(plan, 10, last=True)
    first = float(engine.total)
    engine.run(plan, 10, last=True)
    assert float(engine.total) != 2 * first  # dropout draws again
    assert len(graphs) == 1


def test_killed_and_resumed_when_compiled_equals_never_stopped(tiny_model, tokenizer, data, tmp_path, graphs):
    def run(model, folder, stop_after=None, **changes):
        with killed_after(stop_after):
            config = quick(batch_size=16, save_every=2, output_dir=folder, engine="compile", **changes)
            return lorakit.train(model, tokenizer, data, config)

    def make():
        return lorakit.apply_lora(tiny_model(dropout=0.1, num_hidden_layers=1), r=4, lora_dropout=0.1)

    whole, part, resumed = make(), make(), make()
    expected = run(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(part, tmp_path / "parts", stop_after=4)
    torch.manual_seed(999)  # a new process would not have these random numbers
    result = run(resumed, tmp_path / "parts", resume=True)
    assert (result.test, result.history, result.steps) == (expected.test, expected.history, expected.steps)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    with pytest.raises(ValueError, match="engine = 'compile', now it is 'eager'"):
        lorakit.train(make(), tokenizer, data, quick(batch_size=16, output_dir=tmp_path / "parts", resume=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's of itself
def test_torchs_own_compiler_gives_the_same_curve(tiny_model, tokenizer, tmp_path):
    """One shape of one layer: the compiler takes its time."""
    sentences = toy_sentences(1, 0) * 16
    corpus, curves = NerData(sentences, (), (), LABELS, "one sentence"), []
    for engine in ("eager", "compile"):
        model = lorakit.apply_lora(tiny_model(num_hidden_layers=1), r=4)
        config = quick(learning_rate=3e-3, log_every=1, output_dir=tmp_path / engine, engine=engine)
        lorakit.train(model, tokenizer, corpus, replace(config, epochs=10))
        curves.append([line["loss"] for line in step_lines(tmp_path / engine)])
    assert len(curves[0]) == 20
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)


def test_a_model_that_does_not_compile_into_one_graph_is_refused(tiny_model, tokenizer, data, graphs):
    model = tiny_model()
    model.classifier.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    with pytest.raises(ValueError, match=r"RobertaFor.* does not compile into one graph \(.*; train it with engine"):
        lorakit.train(model, tokenizer, data, quick(engine="compile"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU needs no C++ compiler")
def test_a_missing_compiler_is_named_before_training(tiny_model, tokenizer, data, tmp_path, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler on the CPU, and there is none; install g\+\+"):
        lorakit.train(tiny_model(), tokenizer, data, quick(engine="compile", output_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


# CUDA graphs ----------------------------------------------------------------------------------------------------------


@gpu
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_curve_is_that_of_the_same_batches_without_graphs(tiny_model, tokenizer, data, tmp_path, monkeypatch, case):
    """Random numbers included: a graph draws those that its operations would have drawn."""
    changes = {"precision": "fp32", "learning_rate": 3e-3, "log_every": 1, **case}
    mode, dropout, lora = changes.pop("mode", "lora"), changes.pop("dropout", 0.0), changes.pop("lora", {})
    few = loop.training_layout
    monkeypatch.setattr(loop, "training_layout", lambda *given, **how: few(*given[:3], "cuda_graphs", **how))
    curves, results = [], []
    for engine in ("eager", "cuda_graphs"):
        model = tiny_model(dropout=dropout)
        if mode == "lora":
            lorakit.apply_lora(model, r=4, lora_dropout=dropout, **lora)
        config = quick(output_dir=tmp_path / engine, engine=engine, **changes)
        results.append(lorakit.train(model, tokenizer, data, config))
        curves.append([line["loss"] for line in step_lines(tmp_path / engine)])
    assert len(curves[0]) == 24
    assert curves[1] == pytest.approx(curves[0], rel=1e-5 if changes["precision"] == "fp32" else 1e-2)
    recordings = [line for line in read_log(tmp_path / "cuda_graphs") if line["event"] == "compile"]
    assert len({(line["rows"], line["width"]) for line in recordings}) == len(recordings) <= 6
    assert all(line["width"] % UNIT == 0 for line in recordings)
    assert any(line["width"] % COMPILED_UNIT for line in recordings)  # no padding just to record less
    plain, graphs = results
    assert plain.compile_seconds == 0 < graphs.compile_seconds
    assert graphs.compile_seconds == pytest.approx(sum(line["seconds"] for line in recordings))
    assert graphs.compile_seconds + graphs.train_seconds < graphs.duration_s
    assert (graphs.train_tokens, graphs.computed_tokens) == (plain.train_tokens, plain.computed_tokens)


@pytest.fixture
def recorder(tiny_model, tokenizer, data):
    """Graphs of a model with dropout, and two batches of one shape."""
    model = lorakit.apply_lora(tiny_model(dropout=0.3), r=4, lora_dropout=0.3).cuda().train()
    return engine_of(CudaGraphEngine, model, tokenizer, data, device="cuda")


@gpu
def test_a_recording_leaves_gradients_loss_and_random_numbers_alone(recorder):
    graphs, (plan, _) = recorder
    trained = graphs.forward_backward.trained
    trained[0].grad = kept = torch.ones_like(trained[0])
    graphs.total += 7
    before = torch.cuda.get_rng_state()
    assert graphs.prepare(plan, 10) > 0
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert graphs.total == 7
    assert trained[0].grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in trained[1:])
    assert graphs.prepare(plan, 10) is None


@gpu
def test_a_replay_adds_to_gradients_and_loss_and_draws_again(recorder):
    graphs, plans = recorder
    for plan in plans:
        graphs.prepare(plan, 10)
    assert len(graphs.ready) == 1
    losses, gradients, summed = [], [], graphs.forward_backward.model.classifier.weight.grad
    for plan in (plans[0], plans[0], plans[1]):
        before = float(graphs.total), summed.clone()
        graphs.run(plan, 10, last=True)
        losses.append(float(graphs.total) - before[0])
        gradients.append(summed - before[1])
    assert min(losses) > 0
    assert losses[0] != losses[1]  # dropout
    assert not torch.equal(gradients[0], gradients[1])
    torch.manual_seed(0)
    graphs.total.zero_()
    graphs.run(plans[0], 10, last=True)
    first = float(graphs.total)
    torch.manual_seed(0)
    graphs.run(plans[0], 20, last=True)  # of a step with twice the words
    assert float(graphs.total) - first == pytest.approx(first / 2, rel=1e-5)


@gpu
def test_killed_and_resumed_with_graphs_equals_never_stopped(tiny_model, tokenizer, data, tmp_path):
    def run(model, folder, stop_after=None, **changes):
        with killed_after(stop_after):
            config = quick(save_every=2, output_dir=folder, precision="fp32", **changes)
            return lorakit.train(model, tokenizer, data, config)

    def make():
        return lorakit.apply_lora(tiny_model(dropout=0.1), r=4, lora_dropout=0.1)

    whole, part, resumed = make(), make(), make()
    expected = run(whole, tmp_path / "whole", engine="cuda_graphs")
    with pytest.raises(KeyboardInterrupt):
        run(part, tmp_path / "parts", stop_after=15, engine="cuda_graphs")
    result = run(resumed, tmp_path / "parts", resume=True, engine="cuda_graphs")
    assert result.steps == expected.steps
    assert result.test.loss == pytest.approx(expected.test.loss, rel=1e-4)
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(resumed)[name], rtol=1e-3, atol=1e-5, msg=name)
    with pytest.raises(ValueError, match="engine = 'cuda_graphs', now it is 'eager'"):
        run(make(), tmp_path / "parts", resume=True)


@gpu
def test_a_model_that_makes_the_host_wait_is_refused(tiny_model, tokenizer, data):
    model = tiny_model()
    model.classifier.register_forward_hook(lambda module, given, output: output * float(output.sum().isfinite()))
    with pytest.raises(ValueError, match=r"RobertaFor.* cannot be recorded as a CUDA graph \(.*; train it with engine"):
        lorakit.train(model, tokenizer, data, quick(engine="cuda_graphs"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is for machines without a GPU")
def test_a_machine_without_a_gpu_is_refused_before_anything_is_written(tiny_model, tokenizer, data, tmp_path):
    with pytest.raises(ValueError, match="engine 'cuda_graphs' needs an NVIDIA GPU, and this process trains on cpu"):
        lorakit.train(tiny_model(), tokenizer, data, quick(engine="cuda_graphs", output_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused(tiny_model, tokenizer, data, monkeypatch):
    monkeypatch.setattr(graph_engines, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="engine 'cuda_graphs' needs a single process; train in one, or with"):
        lorakit.train(tiny_model(), tokenizer, data, quick(engine="cuda_graphs"))
