"""Several processes do what one does. One torchrun of two gloo ranks (`two_ranks.py`) serves all tests here."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lorakit.adapters.storage import load_adapter
from lorakit.training.checkpoint import load_checkpoint
from tests.support import two_ranks
from tests.support.tiny import ROOT

CURVES = ["-".join(map(str, kind)) for kind in two_ranks.CURVES]
LORA = [name for name in CURVES if name.startswith("lora")]


def torchrun(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LORAKIT_TIMEOUT_S": "120"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-ranks")
    process = torchrun("--standalone", "--nproc-per-node=2", "-m", "tests.support.two_ranks", folder)
    _, err = process.communicate(timeout=400)
    assert (folder / "facts.json").exists(), err[-5000:]
    assert "exitcode: 9" in err, err[-5000:]  # the last part's
    return folder


@pytest.fixture(scope="module")
def facts(job):
    return json.loads((job / "facts.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same runs in one process, with the same sentences in a step."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, {
        (mode, accumulate): two_ranks.curve(folder, mode, strategy, accumulate)
        for mode, strategy, accumulate in two_ranks.CURVES
        if strategy == "ddp"
    }


def of_one(alone, name):
    mode, _, accumulate = name.split("-")
    folder, facts = alone
    return folder / f"{mode}-ddp-{accumulate}", facts[mode, int(accumulate)]


def losses(facts):
    return [line["loss"] for line in facts["log"] if line["event"] == "step"]


@pytest.mark.parametrize("name", CURVES)
def test_gradients_equal_those_of_one_process_with_uneven_words_and_under_accumulation(job, alone, name):
    expected = load_file(of_one(alone, name)[0] / "gradients.safetensors")
    found = load_file(job / name / "gradients.safetensors")
    assert found.keys() == expected.keys()
    size = max(float(gradient.abs().max()) for gradient in expected.values())
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6 * size, msg=key)


@pytest.mark.parametrize("name", CURVES)
def test_two_processes_train_as_one_with_twice_the_batch(job, facts, alone, name):
    folder, expected = of_one(alone, name)
    found = facts["curves"][0][name]
    assert losses(found) == pytest.approx(losses(expected), abs=1e-5)
    trained = load_file(job / name / "weights.safetensors")
    for key, value in load_file(folder / "weights.safetensors").items():
        # Adam's step has the size of the rate even for a gradient of rounding noise: a few values may differ, and all
        # of a bias that softmax does not see
        if key.endswith("key.bias"):
            continue
        far = (trained[key] - value).abs() > 1e-4
        assert far.float().mean() < 1e-3, key
        torch.testing.assert_close(trained[key], value, rtol=0, atol=2e-3)
    for key in ("steps", "epochs", "train_tokens", "skipped_steps"):
        assert found["result"][key] == expected["result"][key], key
    assert found["result"]["test"]["loss"] == pytest.approx(expected["result"]["test"]["loss"], abs=1e-4)
    assert found["result"]["validation"]["f1"] == pytest.approx(expected["result"]["validation"]["f1"], abs=1e-6)


@pytest.mark.parametrize("name", CURVES)
def test_ranks_end_with_the_same_weights_bit_for_bit(facts, name):
    first, second = (rank[name] for rank in facts["curves"])
    assert first["digest"] == second["digest"]
    assert first["result"] == second["result"]


def test_ranks_that_were_given_different_settings_are_all_told_before_the_first_step(job, facts):
    first, second = facts["mismatched"]
    assert first == second
    assert first["rate"] == (
        "the processes were given different settings: learning_rate is '0.01' on rank 0 and '0.5' on rank 1; start all"
        " with the same command"
    )
    for name, said in {"epochs": "epochs is '2' on", "r": "LoRA: r is 4 on", "corpus": "train set (hash) is"}.items():
        assert said in first[name]
    assert not (job / "mismatched").exists()


@pytest.mark.parametrize("name", CURVES)
def test_every_number_of_ranks_visits_the_same_sentences_in_the_same_steps(facts, alone, name):
    micros = int(name.rsplit("-", 1)[1])

    def by_step(*ranks):
        return [
            sorted(word for rank in ranks for batch in rank[start : start + micros] for word in batch)
            for start in range(0, len(ranks[0]), micros)
        ]

    assert by_step(*(rank[name]["seen"] for rank in facts["curves"])) == by_step(of_one(alone, name)[1]["seen"])


@pytest.mark.parametrize("name", [name for name in LORA if "ddp" in name])
def test_lora_exchanges_once_per_step_and_only_what_is_trained(facts, name):
    for rank in facts["curves"]:
        assert rank[name]["exchanged"] == [rank[name]["trained_bytes"]] * rank[name]["result"]["steps"]
        assert rank[name]["trained_bytes"] > 2**20  # more than DDP's usual first bucket
        assert rank[name]["costs more"] == [False, False]  # no broadcast of buffers, no search for unused parameters


def test_batches_in_parts_train_as_whole_ones_and_exchange_once_per_step(job, facts, alone):
    folder, expected = of_one(alone, "lora-ddp-1")
    gradients = load_file(job / "in-parts" / "lora-ddp-1" / "gradients.safetensors")
    for key, gradient in load_file(folder / "gradients.safetensors").items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-6, msg=key)
    ranks = [rank["ddp"] for rank in facts["in_parts"]]
    assert losses(ranks[0]) == pytest.approx(losses(expected), abs=1e-5)
    assert ranks[0]["digest"] == ranks[1]["digest"]
    for rank in ranks:
        steps = rank["result"]["steps"]
        assert len(rank["seen"]) == 2 * steps  # parts
        assert rank["exchanged"] == [rank["trained_bytes"]] * steps
    for rank in facts["in_parts"]:
        assert len(rank["fsdp"]["seen"]) == rank["fsdp"]["result"]["steps"]


@pytest.mark.parametrize("name", LORA)
def test_adapters_saved_and_merged_by_two_processes_are_those_of_one(job, facts, tiny_model, name):
    """A sharded model is saved, merged and unmerged as a whole one is."""
    trained, merged = load_file(job / name / "weights.safetensors"), load_file(job / name / "merged.safetensors")
    loaded = load_adapter(tiny_model(), job / name / "adapter")
    assert all(torch.equal(p, trained[key]) for key, p in loaded.named_parameters() if p.requires_grad)
    two_ranks.lorakit.merge_lora(loaded)
    for key, value in loaded.named_parameters():
        torch.testing.assert_close(merged[key], value, rtol=1e-6, atol=1e-6, msg=key)
    assert {rank[name]["unmerged"] for rank in facts["curves"]} == {facts["curves"][0][name]["digest"]}


def test_evaluation_counts_every_sentence_once_also_fewer_than_ranks(facts, tmp_path):
    expected = json.loads(json.dumps(two_ranks.evaluation(tmp_path)))
    assert facts["evaluation"][0] == facts["evaluation"][1]
    for name, scores in facts["evaluation"][0].items():
        assert scores.pop("loss") == pytest.approx(expected[name].pop("loss"), abs=1e-6)
        assert scores == expected[name]


def test_compiled_training_by_two_processes_is_that_of_one(facts, tmp_path):
    first, second = facts["compiled"]
    assert min(first["seconds"], second["seconds"]) > 0
    expected = losses(two_ranks.compiled(tmp_path))
    assert len(expected) == 3
    assert losses(first) == pytest.approx(expected, abs=1e-5)


def test_class_weights_of_two_processes_are_those_of_one(facts, tmp_path):
    expected = [line["loss"] for line in two_ranks.weighted(tmp_path) if line["event"] == "step"]
    assert len(expected) == 3
    for log in facts["weighted"]:
        assert [line["loss"] for line in log if line["event"] == "step"] == pytest.approx(expected, rel=1e-5)


def test_layers_that_never_run_are_left_out_and_two_processes_train_as_one(facts, tmp_path):
    expected = [line["loss"] for line in two_ranks.unused_layers(tmp_path) if line["event"] == "step"]
    assert len(expected) == 3
    for log in facts["unused_layers"]:
        assert [line["loss"] for line in log if line["event"] == "step"] == pytest.approx(expected, rel=1e-5)


def test_one_ranks_infinite_loss_is_skipped_by_both(facts):
    first, second = facts["not_a_number"]
    assert (first["skipped"], first["finite"]) == (1, True)
    assert first["digest"] == second["digest"]
    assert second["skipped"] == 1
    skipped = [line["skipped"] for line in first["log"] if line["event"] == "step"]
    assert skipped == [0, 0] + [1] * 10


@pytest.mark.parametrize("name", ["-".join(kind) for kind in two_ranks.RESUMES])
def test_a_killed_and_resumed_run_of_two_ranks_continues_bit_for_bit(facts, name):
    """With dropout, so every rank's random numbers must continue; killed twice, under DDP and FSDP2."""
    for uninterrupted, *killed, resumed in (rank[name] for rank in facts["resume"]):
        assert killed == [{}, {}]
        assert resumed == uninterrupted
    assert facts["resume"][0][name][0]["digest"] == facts["resume"][1][name][0]["digest"]


def test_a_full_disk_of_the_main_rank_is_reported_once_and_training_continues(facts):
    first, second = (rank["full"] for rank in facts["disk"])
    assert [message.split(" (")[0] for message in first["problems"]] == [
        "the checkpoint of step 6 could not be written"  # after the step, and after the epoch that it ends
    ] * 2
    assert first["warnings"] == first["problems"] and second["warnings"] == []
    assert {rank["while full"] for rank in facts["disk"]} == {4}  # the one before was whole all the time
    assert first["checkpoints"] == ["step-00000012", "step-00000012.01"]
    assert {rank[name]["digest"] for rank in facts["disk"] for name in ("fine", "full", "read-only")} == {
        first["digest"]
    }


def test_a_read_only_disk_is_reported_and_training_continues(facts):
    first, second = (rank["read-only"] for rank in facts["disk"])
    assert len(first["problems"]) == 10 and all("could not be written" in message for message in first["problems"])
    assert first["warnings"] == first["problems"] and second["warnings"] == []
    assert first["checkpoints"] == []


@pytest.mark.parametrize("when", ["training", "evaluation"])
def test_one_rank_that_is_told_to_stop_stops_all_with_a_checkpoint(facts, when):
    for code, message, step in (rank[f"stop-{when}"] for rank in facts["stop"]):
        assert code == 143
        assert "the state is in" in message
        assert step in ((2, 3) if when == "training" else (3,))


def test_all_ranks_report_that_a_stopped_runs_state_could_not_be_saved(facts):
    for code, message, step in (rank["stop-read-only"] for rank in facts["stop"]):
        assert (code, step) == (143, None)
        assert "the state could not be saved" in message


def test_one_ranks_lack_of_memory_names_rank_and_knob_and_keeps_the_newest_checkpoint(job, facts):
    first, second = facts["out_of_memory"]
    assert second["error"] == "MemoryError"
    assert "out of memory on rank 1 in step 5 with" in second["message"]
    assert "run the same again with batch_size=4, accumulate=2 and resume=True" in second["message"]
    assert first["error"] == "RuntimeError"
    assert "rank 0 of 2 lost rank 1, which ended with MemoryError: out of memory on rank 1" in first["message"]
    assert load_checkpoint(job / "memory" / "checkpoints").state["step"] == 4


def test_each_rank_names_the_parameters_without_gradient_before_ddp_stops(facts):
    messages = [(mine["error"], mine["message"]) for mine in facts["no_gradient"]]
    assert messages[0] == messages[1]
    assert messages[0][0] == "NoGradientError"
    assert "2 of 8 trained parameters got no gradient in the first step" in messages[0][1]


def test_a_rank_that_raises_does_not_leave_the_other_hanging(facts):
    first, second = facts["raises"]
    assert (second["error"], second["message"]) == ("ValueError", "on purpose")
    assert first["error"] == "RuntimeError"
    assert "rank 0 of 2 lost rank 1, which ended with ValueError: on purpose" in first["message"]


def test_a_rank_that_hangs_is_named_once_the_time_is_up(job, facts):
    first, second = facts["hangs"]
    assert "rank 0 of 2 lost rank 1, which died or hangs; its own exchange failed" in first["message"]
    assert 8 <= first["after_s"] < 60  # LORAKIT_TIMEOUT_S is 8 there, and 120 otherwise
    assert second["error"] == "RuntimeError"  # when it woke up
    assert load_checkpoint(job / "hangs" / "checkpoints").state["step"] == 2


def test_a_rank_that_dies_is_named(job, facts):
    (first,) = facts["dies"]
    assert "rank 0 of 2 lost rank 1, which died or hangs; its own exchange failed" in first["message"]
    assert load_checkpoint(job / "dies" / "checkpoints").state["step"] == 2


def test_two_nodes_of_one_process_train_as_one_node_of_two(facts, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
    agents = [
        torchrun(
            *options, "--rdzv-id=test", "--local-addr=127.0.0.1", "-m", "tests.support.two_ranks", tmp_path, "one_curve"
        )
        for _ in range(2)
    ]
    for agent in agents:
        _, err = agent.communicate(timeout=200)
        assert agent.returncode == 0, err[-3000:]
    found = json.loads((tmp_path / "facts.json").read_text())["one_curve"]
    assert found == [rank[CURVES[0]] for rank in facts["curves"]]


def test_models_that_take_turns_on_two_ranks_equal_those_trained_alone(facts):
    for mine in facts["in_turns"]:
        assert mine["in turns"] == mine["alone"]
    assert facts["in_turns"][0]["in turns"]["full"][1] != []  # the first rank's log
