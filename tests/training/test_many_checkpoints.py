"""Runs that train together, killed at any moment, continue bit for bit; and each can be continued alone."""

import itertools
import json
import signal
import warnings
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import lorakit
from lorakit import AdapterRun
from lorakit.training import checkpoint, many
from lorakit.training.identity import OtherRunError
from lorakit.training.preemption import Preempted
from lorakit.training.stacked_parameters import StackedParameters
from tests.support.tiny import make_tiny_model
from tests.support.toy import quick, read_log, toy_data

DATA = toy_data(9, 4, 3)
RUNS = [  # the third and fourth wait for the first two, which end after two and three steps each of their epochs
    AdapterRun("short", {"r": 2}, quick(epochs=1, batch_size=5, log_every=3)),
    AdapterRun("long", {"r": 4, "lora_dropout": 0.2}, quick(epochs=2, batch_size=4, learning_rate=1e-3)),
    AdapterRun("biased", {"r": 1, "bias": "all"}, quick(epochs=1, batch_size=4, learning_rate=1e-3, patience=1)),
    AdapterRun("pissa", {"r": 2, "init_lora_weights": "pissa"}, quick(epochs=1, batch_size=3)),
]


def base(dropout=0.1):
    """One layer: what is tested here does not depend on how many there are."""
    return make_tiny_model(dropout=dropout, num_hidden_layers=1)


def together(tokenizer, folder, runs=RUNS, data=DATA, at_once=2, **changes):
    """The runs by train_many in a folder; all are saved after each step of the run "short"."""
    every = {"short": 1}
    runs = [
        replace(
            run,
            config=replace(run.config, output_dir=folder / run.name, save_every=every.get(run.name), **changes),
        )
        for run in runs
    ]
    return lorakit.train_many(base(), tokenizer, data, runs, at_once=at_once)


def outcome(folder, results):
    """All that a run leaves but times, by run: scores, log lines, sentences and the adapter's tensors."""
    timeless = ("wall_s", "tokens_per_s")
    found = {}
    for name, result in results.items():
        lines = [{key: x for key, x in line.items() if key not in timeless} for line in read_log(folder / name)]
        counted = replace(result, train_seconds=0.0, duration_s=0.0)
        sentences = json.loads((folder / name / "sentences.json").read_text())
        tensors = load_file(folder / name / "adapter" / "adapter_model.safetensors")
        found[name] = counted, lines, sentences, {key: tensor.tolist() for key, tensor in tensors.items()}
    return found


@pytest.fixture(scope="module")
def expected(tokenizer, tmp_path_factory):
    """What the runs leave that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return outcome(folder, together(tokenizer, folder))


@contextmanager
def killed(owner, name, call):
    """While active, the process dies at this call of a function; nothing is written after it."""
    original, numbers = getattr(owner, name), itertools.count(1)

    def die(*given, **options):
        if next(numbers) == call:
            raise KeyboardInterrupt
        return original(*given, **options)

    with mock.patch.object(owner, name, die), pytest.raises(KeyboardInterrupt):
        yield


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (StackedParameters, "step", 3),
        (StackedParameters, "step", 6),
        (many, "score_split", 2),  # one of two runs whose epochs end together has been scored
        (checkpoint, "save_file", 2),  # between the checkpoints of the first moment
        (many, "save_adapter", 2),  # a run has ended, and its checkpoint says so
    ],
)
def test_runs_that_are_killed_continue_bit_for_bit(tokenizer, tmp_path, expected, owner, name, call):
    with killed(owner, name, call):
        together(tokenizer, tmp_path)
    assert outcome(tmp_path, together(tokenizer, tmp_path, resume=True)) == expected


def test_runs_that_are_killed_again_and_again_continue_bit_for_bit(tokenizer, tmp_path, expected):
    with killed(StackedParameters, "step", 4):
        together(tokenizer, tmp_path)
    with killed(checkpoint, "save_file", 4):
        together(tokenizer, tmp_path, resume=True)
    assert outcome(tmp_path, together(tokenizer, tmp_path, resume=True)) == expected
    assert outcome(tmp_path, together(tokenizer, tmp_path, resume=True)) == expected  # finished: only scored again


@pytest.mark.parametrize(("owner", "name", "call"), [(StackedParameters, "step", 4), (many, "score_split", 1)])
def test_a_signal_saves_all_runs_between_two_steps_or_batches(tokenizer, tmp_path, expected, owner, name, call):
    original, numbers = getattr(owner, name), itertools.count(1)

    def told(*given):
        if next(numbers) == call:
            signal.raise_signal(signal.SIGTERM)
        return original(*given)

    with mock.patch.object(owner, name, told), pytest.raises(Preempted, match="stopped by SIGTERM; the state is in"):
        together(tokenizer, tmp_path)
    assert outcome(tmp_path, together(tokenizer, tmp_path, resume=True)) == expected


def test_a_damaged_checkpoint_sends_all_runs_back_to_the_moment_before(tokenizer, tmp_path, expected):
    with killed(StackedParameters, "step", 5):
        together(tokenizer, tmp_path)
    newest = max((tmp_path / "long" / "checkpoints").iterdir()) / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\0")
    with pytest.warns(UserWarning, match="a checkpoint of .*long.* is damaged .*; older ones are used"):
        results = together(tokenizer, tmp_path, resume=True)
    assert outcome(tmp_path, results) == expected


def test_other_settings_are_refused_by_the_name_of_the_run_and_the_files_stay(tokenizer, tmp_path):
    with killed(StackedParameters, "step", 4):
        together(tokenizer, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def changed(number, **settings):
        runs = list(RUNS)
        runs[number] = replace(runs[number], config=replace(runs[number].config, **settings))
        return runs

    fewer = replace(DATA, train=DATA.train[:-1])
    wider = [*RUNS[:3], replace(RUNS[3], lora={"r": 3})]
    for message, given in (
        (
            r"long: learning_rate = 0\.001, now it is 0\.5; resume with the former",
            {"runs": changed(1, learning_rate=0.5)},
        ),
        (r"short: epochs = 1, now it is 2", {"runs": changed(0, epochs=2)}),
        (r"pissa: LoRA's r = 2, now it is 3", {"runs": wider}),  # it has not started
        (r"short = 'among the runs', now it is 'not given'", {"runs": RUNS[1:]}),
        (r"at_once = 2, now it is 3", {"at_once": 3}),
        (r"training corpus \(hash\) = ", {"data": fewer}),
    ):
        with pytest.raises(OtherRunError, match=message):
            together(tokenizer, tmp_path, resume=True, **given)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_continues_alone_and_one_that_was_alone_does_not_continue_together(tokenizer, tmp_path):
    with killed(StackedParameters, "step", 5):
        together(tokenizer, tmp_path, RUNS[1:2])
    model = lorakit.apply_lora(base(), **RUNS[1].lora)
    config = replace(RUNS[1].config, output_dir=tmp_path / "long", resume=True)
    result = lorakit.train(model, tokenizer, DATA, config)
    assert (result.epochs, result.steps) == (2, 6)
    losses = [line["loss"] for line in read_log(tmp_path / "long") if line["event"] == "evaluation"]
    whole = together(tokenizer, tmp_path / "whole", RUNS[1:2])["long"]
    assert losses[0] == whole.history[0].loss  # the epoch before the kill, from the checkpoint
    assert losses[1] == pytest.approx(whole.history[1].loss, rel=0.2)  # other values are dropped
    with pytest.raises(OtherRunError, match="is that of a run alone; continue it with train, or start again"):
        together(tokenizer, tmp_path, RUNS[1:2], resume=True)


def test_checkpoints_that_are_not_of_one_moment_are_refused(tokenizer, tmp_path):
    with killed(StackedParameters, "step", 5):
        together(tokenizer, tmp_path)
    for path in (tmp_path / "long" / "checkpoints").iterdir():
        (path / "state.json").unlink()
    with pytest.raises(OtherRunError, match="are not of one moment, because some are missing or damaged; start again"):
        together(tokenizer, tmp_path, resume=True)


def test_a_run_that_diverges_ends_alone_with_one_line_and_stays_so_after_a_resume(tokenizer, tmp_path):
    """The others' steps beside it are the same bit for bit as beside a run that learns."""
    config = quick(epochs=6, batch_size=2, learning_rate=1e-3, log_every=5)
    good = AdapterRun("good", {"r": 2}, config)
    data = replace(DATA, train=toy_data(10, 0, 0).train)
    beside = [good, AdapterRun("other", {"r": 2}, config)]
    together(tokenizer, tmp_path / "sound", beside, data)
    bad = [good, AdapterRun("other", {"r": 2}, replace(config, learning_rate=1e38))]
    with pytest.warns(RuntimeWarning, match="run 'other': .*, so it ends here and the others continue") as told:
        with killed(StackedParameters, "step", 28):
            together(tokenizer, tmp_path / "bad", bad, data)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = together(tokenizer, tmp_path / "bad", bad, data, resume=True)
    assert results["other"].diverged and not results["good"].diverged
    assert (results["other"].steps, results["other"].test, results["good"].steps) == (results["other"].steps, None, 30)
    assert not (tmp_path / "bad" / "other" / "adapter").exists()
    lines = [
        [(line["step"], line["loss"]) for line in read_log(tmp_path / folder / "good") if line["event"] == "step"]
        for folder in ("sound", "bad")
    ]
    common = results["other"].steps // 5
    assert common >= 1 and lines[0][:common] == lines[1][:common]
    assert [loss for _, loss in lines[0]] == pytest.approx([loss for _, loss in lines[1]], rel=0.3)


def test_a_run_whose_validation_loss_is_not_finite_ends_alone(tokenizer, tmp_path):
    score, calls = many.score_split, itertools.count(1)

    def broken(model, *given):
        scores, counts = score(model, *given)
        return (replace(scores, loss=float("nan")) if next(calls) == 2 else scores), counts

    runs = [AdapterRun(name, {"r": 1}, quick(batch_size=9)) for name in ("a", "b", "c")]
    with mock.patch.object(many, "score_split", broken):
        with pytest.warns(RuntimeWarning, match="run 'b': its validation loss is nan after epoch 1, so it ends here"):
            results = together(tokenizer, tmp_path, runs, at_once=2)
    assert [(result.epochs, result.diverged) for result in results.values()] == [(2, False), (1, True), (2, False)]
    assert results["b"].test is None and results["c"].test is not None


def test_a_checkpoint_has_the_names_and_values_of_a_run_alone(tokenizer, tmp_path):
    """Without dropout, after the same step."""
    run = AdapterRun("plain", {"r": 2, "bias": "lora_only"}, quick(epochs=1, batch_size=9, learning_rate=1e-3))
    runs = [replace(run, config=replace(run.config, output_dir=tmp_path / "plain")), AdapterRun("other", {"r": 5})]
    runs[1] = replace(runs[1], config=replace(run.config, output_dir=tmp_path / "other"))
    lorakit.train_many(base(dropout=0.0), tokenizer, DATA, runs)
    config = replace(run.config, output_dir=tmp_path / "alone")
    lorakit.train(lorakit.apply_lora(base(dropout=0.0), **run.lora), tokenizer, DATA, config)
    mine, alone = (checkpoint.load_checkpoint(tmp_path / name / "checkpoints") for name in ("plain", "alone"))
    assert mine.tensors.keys() == alone.tensors.keys()
    for name, tensor in alone.tensors.items():
        torch.testing.assert_close(mine.tensors[name], tensor, rtol=1e-3, atol=2e-4, msg=name)
    assert mine.state["run"] == alone.state["run"]
