"""Many adapters in compiled steps: the curves of eager steps, and nothing is compiled again when runs end and start."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lorakit
from lorakit import AdapterRun
from lorakit.data.adapter_rows import STEPS, one_of_few, plan_by_adapter
from lorakit.data.packing import Layout
from lorakit.training.identity import OtherRunError
from lorakit.training.stacked_parameters import StackedParameters
from tests.support.tiny import LABELS
from tests.support.toy import corpus_of, quick, read_log, step_lines, toy_data

DATA = toy_data(8, 5, 3)
DATA = replace(DATA, train=DATA.train[:2] * 5)  # two sentences: few shapes
CONFIG = quick(learning_rate=1e-3, batch_size=4, log_every=1, engine="compile", epochs=1)
RUNS = [  # two at a time; they end after other numbers of steps, and adapt other layers, some from other starts
    AdapterRun("plain", {"r": 2}, CONFIG),
    AdapterRun("query", {"r": 4, "target_modules": ["query"]}, replace(CONFIG, epochs=4)),
    AdapterRun("biased", {"r": 3, "bias": "all"}, replace(CONFIG, epochs=2, accumulate=2, batch_size=2, seed=3)),
    AdapterRun("own", {"r": 1}, replace(CONFIG, epochs=2), replace(DATA, labels=(*LABELS, "B-RNA", "I-RNA"))),
    AdapterRun("last", {"r": 2, "init_lora_weights": "pissa"}, replace(CONFIG, seed=1, epochs=2)),
]


def together(model, tokenizer, folder, runs=RUNS, data=DATA, **changes):
    runs = [replace(run, config=replace(run.config, output_dir=folder / run.name, **changes)) for run in runs]
    return lorakit.train_many(model, tokenizer, data, runs, at_once=2)


def compilations(folder, runs):
    """The shapes that were compiled, by the lines of each run."""
    lines = {run.name: [line for line in read_log(folder / run.name) if line["event"] == "compile"] for run in runs}
    return {name: [(line["rows"], line["width"]) for line in found] for name, found in lines.items()}


def assert_same_curves(one, other, runs):
    for run in runs:
        for field in ("loss", "grad_norm"):
            found, expected = ([line[field] for line in step_lines(folder / run.name)] for folder in (one, other))
            assert len(found) >= 3 and found == pytest.approx(expected, rel=1e-5 if field == "loss" else 1e-4), run.name


def test_compiled_steps_are_eager_ones_and_runs_that_come_and_go_compile_nothing(
    tiny_model, tokenizer, tmp_path, graphs
):
    for engine in ("eager", "compile"):
        results = together(tiny_model(num_hidden_layers=1), tokenizer, tmp_path / engine, engine=engine)
    assert_same_curves(tmp_path / "compile", tmp_path / "eager", RUNS)
    found = compilations(tmp_path / "compile", RUNS)
    shapes = {shape for each in found.values() for shape in each}
    steps = sum(result.steps for result in results.values())
    assert len(graphs) == len(shapes) < steps / 2, (found, steps)
    for name, each in found.items():
        assert len(set(each)) == len(each), name  # none twice
    total = sum(result.compile_seconds for result in results.values())
    logged = [line for run in RUNS for line in read_log(tmp_path / "compile" / run.name) if line["event"] == "compile"]
    assert total == pytest.approx(sum(line["seconds"] for line in logged)) and total > 0
    assert all(result.compile_seconds + result.train_seconds < result.duration_s for result in results.values())


def test_a_run_beside_others_is_what_it_is_alone_when_compiled(tiny_model, tokenizer, tmp_path, graphs):
    together(tiny_model(num_hidden_layers=1), tokenizer, tmp_path, RUNS[:2])
    for run in RUNS[:2]:
        model = lorakit.apply_lora(tiny_model(num_hidden_layers=1), **run.lora)
        lorakit.train(model, tokenizer, DATA, replace(run.config, output_dir=tmp_path / "alone" / run.name))
    assert_same_curves(tmp_path, tmp_path / "alone", RUNS[:2])


def test_compiled_runs_with_dropout_that_are_killed_continue_bit_for_bit(
    tiny_model, tokenizer, tmp_path, graphs, monkeypatch
):
    runs = [replace(RUNS[0], lora={"r": 2, "lora_dropout": 0.2}), RUNS[4]]

    def run(folder, **changes):
        model = tiny_model(num_hidden_layers=1, dropout=0.1)
        results = together(model, tokenizer, folder, runs, save_every=2, **changes)
        lines = {name: [(line["step"], line["loss"]) for line in step_lines(folder / name)] for name in results}
        return lines, {name: (result.test, result.history) for name, result in results.items()}

    expected, step, calls = run(tmp_path / "whole"), StackedParameters.step, iter(range(99))

    def die(*given):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return step(*given)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StackedParameters, "step", die)
        run(tmp_path / "killed")
    torch.manual_seed(999)  # a new process would not have these random numbers
    with pytest.raises(OtherRunError, match="engine = 'compile', now it is "):
        run(tmp_path / "killed", resume=True, engine="eager")
    assert run(tmp_path / "killed", resume=True) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's of itself
def test_torchs_own_compiler_gives_the_same_curves(tiny_model, tokenizer, tmp_path):
    """One shape of one layer: the compiler takes its time."""
    data = replace(DATA, train=DATA.train[:1] * 8, validation=(), test=())
    runs = [AdapterRun(name, {"r": r}, replace(CONFIG, epochs=3)) for name, r in (("two", 2), ("four", 4))]
    for engine in ("eager", "compile"):
        model = tiny_model(num_hidden_layers=1)
        together(model, tokenizer, tmp_path / engine, runs, data, engine=engine)
    assert_same_curves(tmp_path / "compile", tmp_path / "eager", runs)


def test_a_model_that_does_not_compile_into_one_graph_is_refused_and_stays(tiny_model, tokenizer, graphs):
    model = tiny_model(num_hidden_layers=1)
    model.classifier.register_forward_hook(lambda *_: torch._dynamo.graph_break())
    with pytest.raises(ValueError, match=r"RobertaFor.* does not compile into one graph \(.*; train it with engine"):
        lorakit.train_many(model, tokenizer, DATA, [AdapterRun("a", config=CONFIG)])
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(0, 4)), min_size=1, max_size=40), st.sampled_from([1, 32]))
def test_few_shapes_hold_every_sentence_once_in_a_row_of_its_run(drawn, unit):
    lengths, owners = (np.array(values) for values in zip(*drawn, strict=True))
    layout = Layout(first_position=0, pad_token_id=1, unit=unit)
    plan, rows = plan_by_adapter(corpus_of(lengths.tolist()), range(len(lengths)), owners, layout, few_shapes=True)
    height, width = plan.source.shape
    assert (height, width) == (one_of_few(height), unit * one_of_few(width // unit)) and len(rows) == height
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    window = np.append(np.repeat(np.arange(len(lengths)), lengths), -1)
    found = window[plan.source.numpy()]
    assert sorted(plan.source.numpy()[found >= 0].tolist()) == list(range(offsets[-1]))
    for row, owner in zip(found, rows, strict=True):
        assert {int(owners[number]) for number in row if number >= 0} <= {int(owner)}


@settings(max_examples=200)
@given(st.integers(1, 5000))
def test_there_are_eight_sizes_per_octave_and_none_adds_more_than_an_eighth(size):
    found = one_of_few(size)
    assert size <= found <= size * (1 + 1 / STEPS) and one_of_few(found) == found
    assert len({one_of_few(n) for n in range(size + 1, 2 * size + 1)}) <= STEPS + 1
