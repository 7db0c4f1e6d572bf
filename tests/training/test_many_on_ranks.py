"""Several adapters trained by two processes are each what `train` gives on two. One job of two gloo ranks serves all.

The job, with what each part does, is `tests.support.many_ranks`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
from safetensors.torch import load_file

import lorakit
from lorakit.training import many_checkpoints
from tests.support import many_ranks
from tests.support.many_ranks import RUNS
from tests.support.tiny import ROOT
from tests.support.toy import quick, toy_data

NAMES = [run.name for run in RUNS]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many-on-ranks")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    ranks = subprocess.Popen(
        [sys.executable, "-m", "tests.support.many_ranks", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MASTER_PORT": port, "LORAKIT_TIMEOUT_S": "120"},
        start_new_session=True,  # so that both ranks can be killed
    )
    try:
        output = ranks.communicate(timeout=900)[0]
    finally:
        if ranks.poll() is None:
            os.killpg(ranks.pid, signal.SIGKILL)
            ranks.wait()
    assert ranks.returncode == 0 and (folder / "facts.json").exists(), output[-5000:]
    return folder


@pytest.fixture(scope="module")
def facts(job):
    return json.loads((job / "facts.json").read_text())


@pytest.fixture(scope="module")
def equal(facts):
    """What the main rank knows of the runs together and alone."""
    return facts["equal"][0]


def of(lines, event):
    return [line for line in lines if line["event"] == event]


@pytest.mark.parametrize("name", NAMES)
def test_each_run_is_what_train_gives_on_as_many_processes(job, equal, name):
    mine, lone = equal["many"]["logs"][name], equal["lines"][name]
    for field, tolerance in (("loss", 1e-5), ("learning_rate", 1e-9), ("grad_norm", 1e-4)):
        found, expected = ([line[field] for line in of(lines, "step")][:30] for lines in (mine, lone))
        assert found == pytest.approx(expected, rel=tolerance), field
    result, expected = equal["many"]["results"][name], equal["alone"][name]
    for field in ("epochs", "steps", "best_epoch", "skipped_steps", "train_tokens"):
        assert result[field] == expected[field], field
    for split in ("validation", "test"):
        assert result[split]["loss"] == pytest.approx(expected[split]["loss"], rel=1e-4)
        assert result[split]["f1"] == pytest.approx(expected[split]["f1"])
    saved, wanted = (
        load_file(job / kind / name / "adapter" / "adapter_model.safetensors") for kind in ("many", "alone")
    )
    assert saved.keys() == wanted.keys()
    for key, tensor in wanted.items():
        # a key's bias moves all scores of a query alike: its gradient is rounding, of which AdamW makes steps
        if not key.endswith(("key.base_layer.bias", "key.bias")):
            assert float((saved[key] - tensor).abs().max()) <= 2e-4 + 1e-3 * float(tensor.abs().max()), key


@pytest.mark.parametrize("name", NAMES)
def test_the_gradients_of_a_run_are_those_of_train(job, name):
    """Tensor by tensor, of the first step; ranks have different numbers of words in it."""
    mine, lone = (load_file(job / f"{name}-{kind}.safetensors") for kind in ("many", "alone"))
    assert mine.keys() == lone.keys()
    size = max(float(grad.norm()) for grad in lone.values())
    for key, grad in lone.items():
        assert float((mine[key] - grad).norm()) <= 1e-5 * float(grad.norm()) + 1e-7 * size, key


def test_a_run_ends_with_its_patience_at_the_same_step_on_both_ranks(facts):
    first, second = (rank["many"]["results"]["plain"] for rank in facts["equal"])
    assert first == second and first["epochs"] < 9


def test_ranks_end_with_the_same_adapters_bit_for_bit(facts):
    first, second = facts["equal"]
    assert first["values"] == second["values"] and first["many"]["results"] == second["many"]["results"]


def test_the_ranks_exchange_one_matrix_per_step(equal):
    exchanged = [shape for shape in equal["exchanged"] if shape == "step" or shape[0] <= 2]
    steps = exchanged.count("step")
    assert exchanged[1::2] == ["step"] * steps and len(exchanged) == 2 * steps
    assert all(shape[0] in (1, 2) for shape in exchanged[::2])
    # two runs at a time: fewer than one after the other, and no fewer than half
    alone = sum(result["steps"] for result in equal["alone"].values())
    assert alone / 2 <= steps < alone


@pytest.mark.parametrize("kind", ["steps", "scoring"])
def test_runs_of_two_ranks_that_are_killed_continue_bit_for_bit(facts, kind):
    """With dropout, which every rank draws for itself."""
    for rank in facts["resume"]:
        assert rank[kind] == rank["whole"]
    assert facts["resume"][0]["whole"]["results"] == facts["resume"][1]["whole"]["results"]


def test_one_process_continues_what_two_left(job, facts):
    """With twice the sentences per batch, and without dropout."""

    def doubled(run):
        return replace(run, config=replace(run.config, batch_size=2 * run.config.batch_size))

    runs = [doubled(run) for run in RUNS[:2]]
    _, results = many_ranks.together(job, "two-then-one", runs, resume=True, save_every=2)
    for name, expected in facts["left_for_one"][0].items():
        found = many_ranks.facts_of(results[name])
        for field in ("steps", "epochs", "best_epoch", "train_tokens"):
            assert found[field] == expected[field], field
        assert found["validation"]["loss"] == pytest.approx(expected["validation"]["loss"], rel=1e-4)
    with pytest.raises(ValueError, match=r"plain: sentences per step .* = 4, now it is 2; resume with the former"):
        many_ranks.together(job, "two-then-one", RUNS[:2], resume=True, save_every=2)


@pytest.mark.parametrize("when", ["step", "validation"])
def test_one_rank_that_is_told_to_stop_stops_all_with_a_checkpoint_of_every_run(facts, when):
    for code, message, steps in (rank[when] for rank in facts["stop"]):
        assert code == 143 and "the state is in" in message
        assert len(set(steps)) == 1 and steps[0] in ((3, 4) if when == "step" else (4,))
    assert facts["stop"][0] == facts["stop"][1]


def test_one_ranks_infinite_loss_is_skipped_by_both_for_that_run_alone(facts):
    first, second = (rank["results"] for rank in facts["infinite"])
    assert first == second
    assert [first[name]["skipped_steps"] for name in ("good", "spoiled")] == [0, 1]


def test_a_run_that_diverges_ends_on_both_ranks_and_only_the_first_says_so(facts):
    first, second = facts["infinite"]
    assert first["results"]["bad"]["diverged"] and not first["results"]["good"]["diverged"]
    assert [message.split(":")[0] for message in first["warnings"]] == ["run 'bad'"] and second["warnings"] == []


def test_ranks_that_were_given_different_runs_are_all_told_before_the_first_step(job, facts):
    first, second = facts["mismatched"]
    assert first == second
    assert first["rate"] == (
        "the processes were given different settings: plain: learning_rate is '0.001' on rank 0 and '0.5' on rank 1;"
        " start all with the same command"
    )
    assert "own: validation set (hash) is" in first["corpus"]
    assert "pissa: LoRA's r is 3 on rank 0 and 9 on rank 1" in first["r"]
    assert "plain: log_every is '10' on" in first["log_every"]
    assert "runs is ['plain', 'uneven', 'own', 'pissa'] on rank 0 and" in first["fewer"]
    assert not (job / "mismatched").exists()


def test_a_search_on_two_processes_is_that_of_one_with_twice_the_batch(job, facts):
    first, second = facts["tuned"]
    if first is None:
        pytest.skip("Optuna is not installed")
    alone = many_ranks.tuned(job)
    assert first == second == alone and first["status"] == 0
    mine, expected = (json.loads((job / "tune" / ranks / "tuning.json").read_text()) for ranks in "21")
    assert [trial["name"] for trial in mine["trials"]] == [trial["name"] for trial in expected["trials"]]
    for one, other in zip(mine["trials"], expected["trials"], strict=True):
        for field in ("learning_rate", "r", "state", "epochs", "tokens", "operations"):
            assert one[field] == other[field], field
        assert one["f1"] == pytest.approx(other["f1"])
    assert [one["name"] for one in mine["finalists"]] == [one["name"] for one in expected["finalists"]]
    for one, other in zip(mine["finalists"], expected["finalists"], strict=True):
        assert one["f1"]["test"]["value"] == pytest.approx(other["f1"]["test"]["value"])


def test_a_rank_that_fails_ends_the_other_with_its_message(job, facts):
    assert (job / "raised-1").read_text() == "ValueError: on purpose"
    told = (job / "raised-0").read_text()
    assert told.startswith("RuntimeError: rank 0 of 2 lost rank 1, which ended with ValueError: on purpose")


def test_ranks_that_see_different_folders_are_told_so(tokenizer, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(many_checkpoints, "gather_bytes", lambda mine: [b"3", mine])
    run = lorakit.AdapterRun("a", config=quick(output_dir=tmp_path, resume=True))
    with pytest.raises(
        ValueError, match=r"different checkpoints of the runs a: .* moments \[3, 0\]; .* all nodes share"
    ):
        lorakit.train_many(tiny_model(), tokenizer, toy_data(4, 2, 0), [run])


def test_what_needs_another_strategy_is_refused_by_name(tokenizer, tiny_model):
    run = lorakit.AdapterRun("a", config=quick(strategy="fsdp"))
    with pytest.raises(ValueError, match="run 'a': strategy='fsdp' cannot be batched .* leave it at 'ddp'"):
        lorakit.train_many(tiny_model(), tokenizer, toy_data(4, 2, 0), [run])
