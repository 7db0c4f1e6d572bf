"""`lorakit train` as a user calls it, in this process, on the embedded base."""

import json
import subprocess
import sys

import pytest
import torch

from lorakit.cli.__main__ import main
from lorakit.report.page import make_page
from lorakit.report.runs import read_sources
from lorakit.report.tables import as_markdown
from lorakit.training import memory
from tests.support.reports import change
from tests.support.tiny import MINI, ROOT


def test_train_writes_what_the_other_commands_take(run):
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {"report.html", "comparison.json", "comparison.md", "comparison.png", "lora/adapter/lorakit.json"} < files
    assert {"full/model/model.safetensors", "full/model/tokenizer.json", "full/model/config.json"} < files
    assert {f"{mode}/{name}" for mode in ("full", "lora") for name in ("metrics.jsonl", "energy.jsonl")} < files
    record = json.loads((run / "comparison.json").read_text())
    assert record["command"].startswith("lorakit train --config ")
    full, lora = record["modes"]["full"], record["modes"]["lora"]
    assert (full["epochs"], full["batch_size"], full["learning_rate"], lora["adapter"]["r"]) == (2, 4, 1e-3, 4)
    assert lora["test"]["f1"] > 0.5  # otherwise the tests of evaluate and predict compare nothing


def test_only_the_top_layers_are_adapted_and_the_layers_below_are_cached(corpus, tmp_path):
    options = ["--target-modules", "query", "dense", "--layers-to-transform", "2", "3"]
    options += ["--cache-prefix", "--dropout", "0", "--epochs", "1"]
    base = ["train", "--model", str(MINI), "--dataset", str(corpus), "--mode", "lora", "--output-dir", str(tmp_path)]
    assert main([*base, *options]) == 0
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    kept = [line for line in lines if line["event"] == "cache_prefix"]
    assert [line["layers"] for line in kept] == [2]
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["modes"]["lora"]["adapter"]["layers_to_transform"] == [2, 3]


def test_a_module_trained_in_full_is_in_the_adapter(corpus, tmp_path, capsys):
    """Its weights change, are saved, and are loaded again."""
    options = ["--modules-to-save", "word_embeddings", "--r", "2", "--epochs", "1"]
    assert main(["train", "--model", str(MINI), "--dataset", str(corpus), *options, "--output-dir", str(tmp_path)]) == 0
    wanted = json.loads((tmp_path / "comparison.json").read_text())["modes"]["lora"]
    assert wanted["adapter"]["modules_to_save"] == ["word_embeddings"]
    assert wanted["trainable_parameters"] > 8192 * 256
    adapter = ["--adapter", str(tmp_path / "adapter"), "--dataset", str(corpus), "--json", "-"]
    capsys.readouterr()
    assert main(["evaluate", *adapter]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(wanted["test"]["loss"], rel=1e-6)


def small(corpus, folder, *more):
    base = ["train", "--model", MINI, "--dataset", corpus, "--mode", "both", "--epochs", 1, "--batch-size", 8]
    return [str(argument) for argument in (*base, "--output-dir", folder, *more)]


def test_both_modes_take_turns_unless_told_otherwise_with_the_same_result(corpus, tmp_path, capsys):
    records = []
    for name, more in (("turns", []), ("one-by-one", ["--sequential"])):
        assert main(small(corpus, tmp_path / name, *more)) == 0
        records.append(json.loads((tmp_path / name / "comparison.json").read_text()))
        assert ("The models were trained in turns" in capsys.readouterr().out) is not bool(more)
    assert [record["interleaved"] for record in records] == [True, False]
    for mode in ("full", "lora"):
        turns, alone = (record["modes"][mode] for record in records)
        for name in ("validation", "test", "history", "steps", "train_tokens", "best_epoch"):
            assert turns[name] == alone[name]
        assert 0 < turns["energy"]["cpu"]["process_share"] <= 1
    kept = ["lora/adapter/adapter_model.safetensors", "full/model/model.safetensors"]
    for name in kept:
        assert (tmp_path / "turns" / name).read_bytes() == (tmp_path / "one-by-one" / name).read_bytes()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "cuda_graphs"], "this process trains on cpu; use --engine eager or compile"),
        (["--device", "cuda"], "--device cuda: torch finds no GPU here; leave --device out, or use --device cpu"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(flags, message, refuses):
    refuses(["train", "--model", MINI, "--dataset", "CORPUS", *flags], message)


def test_the_upper_layers_of_the_default_targets_on_the_chosen_device(corpus, tmp_path, monkeypatch):
    """--device cpu wins over a GPU that is there, in every part of the run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    arguments = ["train", "--model", MINI, "--dataset", corpus, "--epochs", 1, "--layers-to-transform", 3]
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    assert main([str(word) for word in (*arguments, "--device", "cpu", "--output-dir", tmp_path)]) == 0
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["environment"]["device"].startswith("CPU")
    assert record["modes"]["lora"]["adapter"]["layers_to_transform"] == [3]


def test_a_single_mode_is_not_interleaved(corpus, tmp_path):
    arguments = small(corpus, tmp_path)
    arguments[arguments.index("both")] = "lora"
    assert main(arguments) == 0
    assert json.loads((tmp_path / "comparison.json").read_text())["interleaved"] is False


def test_two_models_without_memory_for_them_are_refused_and_one_by_one_runs(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_memory", lambda: 2**20)
    with pytest.raises(SystemExit, match="2"):
        main(small(corpus, tmp_path / "x"))
    error = capsys.readouterr().err
    assert "2 models in training at the same time need about 0.1 GiB more memory" in error
    assert error.endswith("; train one after the other with --sequential\n") and len(error.splitlines()) == 1
    assert not (tmp_path / "x").exists()
    assert main(small(corpus, tmp_path / "x", "--sequential")) == 0


def test_what_cannot_be_paused_needs_one_by_one(refuses):
    base = ["train", "--model", MINI, "--dataset", "CORPUS", "--mode", "both"]
    refuses(
        [*base, "--engine", "compile"], "--engine eager and --strategy ddp; train one after the other with --sequential"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "the following arguments are required: --model, --dataset"),
        (["train", "--model", "./nowhere", "--dataset", "CORPUS"], "there is no model folder './nowhere'"),
        (["train", "--model", MINI, "--dataset", "./nowhere"], "nowhere"),
        (
            ["train", "--model", MINI, "--dataset", "CORPUS", "--dropout", "1"],
            "dropout is 1.0; it must be from 0 to below",
        ),
        (
            ["train", "--model", MINI, "--dataset", "CORPUS", "--r", "100000"],
            "--r is 100000, and no weight of this base",
        ),
        (["train", "--model", MINI, "--dataset", "CORPUS", "--r", "0"], "r must be an integer of at least 1"),
        (["train", "--model", MINI, "--dataset", "CORPUS", "--accumulate", "0"], "accumulate is 0"),
        (["train", "--model", MINI, "--dataset", "CORPUS", "--output-dir", "CORPUS/test.json/x"], "cannot be written"),
        (["train", "--epoch", "3"], "lorakit train: error: "),
        (["train", "--model", MINI, "--dataset", "CORPUS", "--seed", "-1"], "seed is -1; it must be an integer from 0"),
        (["train", "--model", MINI, "--dataset", "CORPUS", "--strategy", "fsdp"], "torchrun, or use --strategy ddp"),
        (
            ["train", "--model", MINI, "--dataset", "CORPUS", "--layers-to-transform", "9"],
            "--layers-to-transform 9 matches no layer",
        ),
        (
            ["train", "--model", MINI, "--dataset", "CORPUS", "--cache-prefix", "--bias", "all"],
            "(--bias none or lora_only, and leave it out of --modules-to-save)",
        ),
        (
            ["train", "--model", MINI, "--dataset", "CORPUS", "--cache-prefix"],
            "layer 0 is trained, so no layer is constant; train the top layers only, with --layers-to-transform 2 3",
        ),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(arguments, message, refuses):
    refuses(arguments, message)


BEFORE_THE_FIRST_STEP = """
import sys
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer
base, corpus, out = sys.argv[1:]
AutoModelForTokenClassification.from_pretrained(base)
AutoTokenizer.from_pretrained(base)(["a"], is_split_into_words=True)
needed = set(sys.modules)

from lorakit.cli.__main__ import main
from lorakit.training.loop import Trainer
from lorakit.data import encoding

class FirstStep(BaseException): pass

def begin(*given):
    raise FirstStep

def count(encode):
    def counted(*given):
        encoded.append(len(given[1]))
        return encode(*given)
    return counted

encoded = []
import lorakit.training.evaluation as evaluation
evaluation.encode, Trainer.train_step = count(evaluation.encode), begin
try:
    main(["train", "--model", base, "--dataset", corpus, "--output-dir", out])
except FirstStep:
    ours = {"lorakit", *sys.stdlib_module_names}
    loaded = {name for name in set(sys.modules) - needed if name.split(".")[0] not in ours}
    print(sorted(loaded), encoded)
"""


def test_before_the_first_step_only_torch_and_transformers_are_loaded_and_the_corpus_is_encoded_once(tmp_path):
    """Most of a run's start is imports: 3 of 4 CPU seconds with the embedded base."""
    arguments = [str(MINI), str(ROOT / "examples" / "conll"), str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_THE_FIRST_STEP, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "['torch.distributed.fsdp.sharded_grad_scaler'] [84]\n", done.stderr


def test_a_run_that_was_given_the_factors_has_the_sci_in_its_record_tables_and_page(corpus, tmp_path, capsys):
    command = ["train", "--model", str(MINI), "--dataset", str(corpus), "--epochs", "1", "--r", "2"]
    command += ["--output-dir", str(tmp_path / "new"), "--sci", "10"]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "--sci needs a number above 0 and your own factors: --co2 400" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main([*command, "--co2", "400", "--embodied", "20"]) == 0
    made = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert (made["co2_g_per_kwh"], made["embodied_g"], made["sci_units"]) == (400.0, 20.0, 10.0)
    energy = made["modes"]["lora"]["energy"]
    measured = energy["measured_kwh"]
    assert energy["sci_g_per_unit"] == (None if measured is None else pytest.approx((400 * measured + 20) / 10))
    change(tmp_path / "new", lambda record: record["modes"]["lora"]["energy"].update(measured_kwh=0.2))
    record = json.loads((tmp_path / "new" / "comparison.json").read_text())
    sci = "SCI (ISO 21031) of the measured part: 10 g of CO2 per unit = (80 g for energy + 20 g embodied) / 10 units"
    assert sci in as_markdown(record) and sci in make_page(read_sources([tmp_path / "new"]))
