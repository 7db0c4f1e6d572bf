"""benchmarks/provenance.py: what a result says of its command and machine, and the files it is written to."""

import argparse
import json
import sys

import pytest
import torch

from tests.support.tiny import ROOT


@pytest.fixture
def provenance(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import provenance

    return provenance


def test_the_parser_keeps_the_command_and_types_flags_by_their_defaults(provenance, monkeypatch):
    parser = provenance.BenchmarkParser(prog="some.py", description="words")
    parser.add_common(steps=3, lora_dropout=0.1, target_modules=["query", "value"], sentences=None)
    options = parser.parse_args(["--steps", "4", "--lora-dropout", "0", "--target-modules", "key", "--sentences", "5"])
    assert vars(options) == {
        "steps": 4,
        "lora_dropout": 0.0,
        "target_modules": ["key"],
        "sentences": 5,
        "name": "some",
        "output_dir": str(ROOT / "benchmarks" / "results"),
        "command": "python benchmarks/some.py --steps 4 --lora-dropout 0 --target-modules key --sentences 5",
    }
    monkeypatch.setattr(sys, "argv", ["some.py", "--name", "two words"])
    assert parser.parse_args().command == "python benchmarks/some.py --name 'two words'"
    assert "to time (default: 3)" in parser.format_help()


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "some"),
        (["--shape", "mini"], "some-mini"),
        (["--dropout", "0", "--shape", "tiny"], "some-tiny-no-dropout"),
        (["--dropout", "0", "--name", "mine"], "mine"),
    ],
)
def test_another_shape_and_no_dropout_do_not_overwrite_the_usual_result(provenance, words, name):
    parser = provenance.BenchmarkParser(prog="some.py", description="words")
    parser.add_common(shape="small", dropout=0.1)
    assert parser.parse_args(words).name == name


def test_the_machine_is_named_with_its_gpu_or_without(provenance, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ", no GPU, " in provenance.machine()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a fast card")
    assert ", a fast card, " in provenance.machine() and "no GPU" not in provenance.machine()


def test_a_result_is_written_with_its_origin_and_its_picture(provenance, tmp_path, capsys):
    options = argparse.Namespace(command="python benchmarks/some.py", name="some", output_dir=tmp_path / "new")
    drawn = []
    found = {"figure": 42}
    provenance.write_results(
        options, found, lambda s: [f"# {s['figure']}"], lambda s, figure: drawn.append(s), "a picture"
    )
    text = (tmp_path / "new" / "some.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    assert text.startswith("# 42\n\n![a picture](some.png)\n\nCommand: `python benchmarks/some.py`\n\nMachine: ")
    summary = json.loads((tmp_path / "new" / "some.json").read_text())
    assert list(summary) == ["schema", "command", "machine", "versions", "figure"]
    assert drawn == [summary]
    assert (tmp_path / "new" / "some.png").read_bytes().startswith(b"\x89PNG")


def test_a_package_that_is_not_installed_has_no_version(provenance, monkeypatch):
    def version(name):
        if name == "peft":
            raise provenance.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(provenance, "version", version)
    versions = provenance.origin("")["versions"]
    assert "peft" not in versions and versions["accelerate"] == "1" and "lorakit" in versions


def test_all_ways_of_obtaining_energy_are_listed(provenance):
    def reading(method):
        return {part: {"method": method, "source": "a source"} for part in ("gpu", "cpu", "ram")}

    lines = provenance.energy_sources([reading("counter"), reading("sampled"), reading("counter")])
    assert lines[0] == "- GPU: counter (a source); or sampled (a source)"


def test_mean_and_sd_of_few_equal_and_unknown_values(provenance):
    from tables import at, mean_sd, table

    assert mean_sd([1.0, 3.0], "{:.1f}") == "2.0 ± 1.4"
    assert mean_sd([1.0, 3.0], "{:,.1f}", sign=True) == "+2.0 ± 1.4"
    assert mean_sd([2.0, 2.0], "{:.1f}") == "2.0"
    assert mean_sd([2.0, None], "{:.1f}") == mean_sd([], "{:.1f}") == "–"
    records = [{"a": {"b": 2.0}}, {"a": {}}, {"a": None}, {}]
    assert [at("a", "b", scale=10)(record) for record in records] == [20.0, None, None, None]
    assert table(records[:2], ("value", at("a", "b"), "{:.2f}")).splitlines()[2:] == ["| 2.00  |", "| –     |"]


def test_kinds_take_turns_and_every_second_round_is_backwards(provenance):
    from timing import best_of, in_turns

    assert list(in_turns("abc", 2)) == [(0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a")]
    calls = []
    seconds, last = best_of(3, lambda: calls.append(1) or len(calls), warmup=2)
    assert seconds >= 0 and last == len(calls) == 5
