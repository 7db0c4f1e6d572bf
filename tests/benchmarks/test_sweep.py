"""The rank sweep around a stand-in for the example: the front, what is run again, what is refused, what is shown."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorakit.cli.flags import modes_of
from tests.report.test_page import RECORDED
from tests.support.tiny import ROOT

# What examples/bionlp.py does as a sweep sees it: its record with the command, or a failure; waits while "wait" exists.
STAND_IN = """
import json, os, shlex, sys, time
from pathlib import Path
words = sys.argv[1:]
value = lambda flag: words[words.index(flag) + 1] if flag in words else ""
with open("calls.txt", "a") as file:
    print(value("--output-dir"), file=file)
if value("--r") == "3":
    sys.exit("r is 3, which fails")
if value("--r") == "9":
    os.kill(os.getpid(), 9)
while Path("wait").exists():
    time.sleep(0.02)
record = json.loads(Path("recorded.json").read_text())
mode = record["modes"][value("--mode")]
mode["validation"]["f1"] += 0.001 * int(value("--seed")) + 0.01 * float(value("--learning-rate"))
if value("--mode") == "lora":
    mode["trainable_parameters"] *= int(value("--r"))
record["modes"] = {value("--mode"): mode}
record["command"] = shlex.join(["python", "examples/bionlp.py", *words])
(Path(value("--output-dir")) / "comparison.json").write_text(json.dumps(record))
"""
SMALL = ["--ranks", "2", "4", "--targets", "query,value", "--learning-rates", "1e-3", "--seeds", "0", "1"]


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """The module, whose example is the stand-in and whose folders are in tmp_path."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "sweep", raising=False)
    import provenance
    import sweep

    (tmp_path / "example.py").write_text(STAND_IN)
    (tmp_path / "recorded.json").write_bytes((RECORDED / "comparison.json").read_bytes())
    monkeypatch.setattr(sweep, "EXAMPLE", tmp_path / "example.py")
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sweep, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(provenance, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sweep, "settings_of", lambda arguments: {"example": arguments.example})
    return sweep


def calls(tmp_path):
    path = tmp_path / "calls.txt"
    return [os.path.basename(line) for line in path.read_text().split()] if path.exists() else []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_no_other_point_beats(points):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from sweep_report import pareto_front
    finally:
        sys.path.pop(0)

    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    found = pareto_front(points)
    assert sorted(found) == [i for i, p in enumerate(points) if not any(beats(other, p) for other in points)]
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


def test_every_cell_is_run_once_and_a_wider_grid_runs_what_is_new(sweep, tmp_path):
    assert sweep.main(SMALL) == 0
    first = calls(tmp_path)
    assert first[:3] == [  # the first seed of all before the second of any
        "full-rate0.001-seed0", "lora-query+value-r2-rate0.001-seed0", "lora-query+value-r4-rate0.001-seed0",
    ]  # fmt: skip
    assert len(first) == len(set(first)) == 6
    assert sweep.main(SMALL) == 0
    assert calls(tmp_path) == first
    assert sweep.main([*SMALL, "--ranks", "2", "4", "8"]) == 0
    assert calls(tmp_path)[6:] == [f"lora-query+value-r8-rate0.001-seed{seed}" for seed in (0, 1)]


def test_table_figures_and_picture_are_the_cells(sweep, tmp_path, capsys):
    assert sweep.main([*SMALL, "--note", "A note."]) == 0
    text = (tmp_path / "results" / "sweep.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    recorded = json.loads((RECORDED / "comparison.json").read_text())["modes"]
    base = recorded["lora"]["validation"]["f1"] + 0.01 * 1e-3
    row = next(line for line in text.splitlines() if line.startswith("| LoRA"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:5] == ["LoRA", "query, value", "2", "0.001", f"{2 * recorded['lora']['trainable_parameters']:,}"]
    assert cells[5] == f"{base + 0.0005:.4f} ± 0.0007"  # the sd of two values 0.001 apart
    assert cells[8] == f"{1e3 * recorded['lora']['energy']['estimated_kwh']:.3f}"
    assert "Wh estimated (CPU + RAM)" in text and "Wh measured" not in text
    assert "A note." in text and "Failed: 0 of 6 cells." in text
    figures = json.loads((tmp_path / "results" / "sweep.json").read_text())
    assert [cell["seed"] for cell in figures["cells"]] == [0, 0, 0, 1, 1, 1]
    assert figures["cells"][1]["validation"]["f1"] == base
    assert all(cell["failed"] is None for cell in figures["cells"])
    assert (tmp_path / "results" / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_cell_is_noted_with_its_last_words_and_tried_again(sweep, tmp_path, capsys):
    ranks = ["--ranks", "3", "4", "9", "--seeds", "0"]
    assert sweep.main([*SMALL, *ranks]) == 1
    text = capsys.readouterr().out
    assert "Failed: 2 of 4 cells:" in text
    assert "- LoRA, query, value, r=3, rate 0.001, seed 0: status 1: r is 3, which fails" in text
    assert "r=9, rate 0.001, seed 0: killed by signal 9" in text
    failed = json.loads((tmp_path / "runs/sweep/lora-query+value-r3-rate0.001-seed0/failed.json").read_text())
    assert failed["error"] == "status 1: r is 3, which fails" and "--r 3" in failed["command"]
    (tmp_path / "example.py").write_text(STAND_IN.replace('== "3"', '== "no"').replace('== "9"', '== "no"'))
    assert sweep.main([*SMALL, *ranks]) == 0
    assert [name for name in calls(tmp_path)[4:] if "r4" in name or "full" in name] == []
    assert not list(tmp_path.rglob("failed.json"))


def test_nothing_is_written_where_every_cell_fails(sweep, tmp_path, capsys):
    assert sweep.main([*SMALL, "--ranks", "3", "--full-learning-rates", "--seeds", "0"]) == 1
    assert "all 1 cells failed, the first with status 1: r is 3" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def waited_for(what):
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def started(sweep, tmp_path):
    """A sweep in a process of its own, which waits in its third cell."""
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = {[str(ROOT / "benchmarks"), str(ROOT)]!r}
import provenance, sweep
here = Path({str(tmp_path)!r})
sweep.EXAMPLE, sweep.ROOT, sweep.RUNS = here / "example.py", here, here / "runs"
provenance.RESULTS = here / "results"
sweep.settings_of = lambda arguments: {{"example": arguments.example}}
sys.exit(sweep.main({SMALL!r}))
"""
    late = STAND_IN.replace(
        'Path("wait").exists()', 'Path("wait").exists() and len(open("calls.txt").readlines()) == 3'
    )
    (tmp_path / "example.py").write_text(late)
    (tmp_path / "wait").touch()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    waited_for(lambda: len(calls(tmp_path)) == 3 or process.poll() is not None)
    assert process.poll() is None
    return process


def test_a_killed_sweep_goes_on_where_it_was_once_its_last_cell_is_gone(sweep, tmp_path, capsys):
    process = started(sweep, tmp_path)
    process.kill()
    process.wait()
    before = calls(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        sweep.main(SMALL)  # the cell of the killed sweep is still at work
    assert "in use by another sweep, or by the last cell of one that was killed" in capsys.readouterr().err
    (tmp_path / "wait").unlink()
    waited_for(lambda: (tmp_path / "runs" / "sweep" / before[2] / "comparison.json").exists())
    waited_for(lambda: free(sweep, tmp_path))
    assert sweep.main(SMALL) == 0
    assert calls(tmp_path)[:3] == before
    assert len(set(calls(tmp_path))) == len(calls(tmp_path)) == 6


def free(sweep, tmp_path):
    try:
        with sweep.alone(tmp_path / "runs" / "sweep"):
            return True
    except ValueError:
        return False


def test_sigterm_takes_the_running_cell_along_and_it_begins_anew(sweep, tmp_path):
    process = started(sweep, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert free(sweep, tmp_path)  # the cell is gone
    (tmp_path / "wait").unlink()
    assert sweep.main(SMALL) == 0
    third = calls(tmp_path)[2]
    assert calls(tmp_path).count(third) == 2 and len(calls(tmp_path)) == 7


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--", "--epochs", "3"],
            "holds cells with example ['--epochs', '2'], now it is ['--epochs', '3']; give another",
        ),
        (["--scale", "2"], "is the result of 'python examples/bionlp.py --epochs 2 --mode lora"),
        (["--", "--learning=3"], "--learning=3 is set by the sweep itself; leave it out after --"),
        (["--", "--seed", "3"], "--seed is set by the sweep itself"),
        (["--ranks", "x"], "invalid int value: 'x'"),
    ],
)
def test_another_setting_under_the_same_name_is_refused_before_anything_runs(sweep, more, message, tmp_path, capsys):
    assert sweep.main([*SMALL, "--seeds", "0"]) == 0
    before = calls(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        sweep.main([*SMALL, "--ranks", "2", "4", "8", *more])
    assert message in capsys.readouterr().err
    assert calls(tmp_path) == before


def test_settings_know_what_is_in_the_files_and_the_example_takes_every_cell(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.delitem(sys.modules, "sweep", raising=False)
    import bionlp
    import sweep

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "train.conll").write_text("IL-2 B-DNA\n")
    axes = Namespace(
        ranks=[2], targets=[("query", "value")], learning_rates=[1e-3], full_learning_rates=[1e-4], seeds=[5]
    )
    arguments = Namespace(**vars(axes), example=["--dataset", str(corpus)], scale=2.0, name="x", grid=True)
    first = sweep.settings_of(arguments)
    (corpus / "train.conll").write_text("IL-2 B-protein\n")
    second = sweep.settings_of(arguments)
    assert {name for name in first if first[name] != second[name]} == {"corpus"}
    full, lora = (bionlp.parse(sweep.command_of(cell, arguments)[0]) for cell in sweep.grid(arguments))
    assert (full.mode, full.learning_rate, full.seed, full.dataset) == ("full", 1e-4, 5, [str(corpus)])
    assert (lora.mode, lora.r, lora.lora_alpha, lora.target_modules) == ("lora", 2, 4.0, ["query", "value"])
    assert str(lora.output_dir) == "runs/x/lora-query+value-r2-rate0.001-seed5"
    arguments.example += ["--modules-to-save", "word_embeddings", "--cache-prefix", "--epochs", "1"]
    full, lora = (bionlp.parse(sweep.command_of(cell, arguments)[0]) for cell in sweep.grid(arguments))
    assert (
        modes_of(full) == ("full",) and full.epochs == 1 and full.dataset == [str(corpus)]
    )  # LoRA's flags are refused
    assert lora.modules_to_save == ["word_embeddings"] and lora.cache_prefix and lora.epochs == 1


def test_only_energy_that_all_cells_have_is_compared(sweep):
    import sweep_report as report

    def outcome(gpu, cpu):
        def part(method):
            return {"method": method, "kwh": None if method == "unavailable" else 1.0}

        energy = {"gpu": part(gpu), "cpu": part(cpu), "ram": part("estimated"), "estimated_kwh": 1.0}
        energy["measured_kwh"] = 1.0 if "counter" in (gpu, cpu) else None
        cell = report.Cell(report.Configuration("full", 1e-3), 0)
        return report.Outcome(cell, "", {"modes": {"full": {"energy": energy}}})

    assert report.energy_kind([outcome("counter", "estimated")] * 2) == ("measured", "GPU")
    assert report.energy_kind([outcome("unavailable", "estimated")]) == ("estimated", "CPU + RAM")
    assert report.energy_kind([outcome("counter", "estimated"), outcome("unavailable", "estimated")]) == (
        "estimated", "CPU + RAM",
    )  # fmt: skip
    assert report.energy_kind([outcome("counter", "counter"), outcome("unavailable", "estimated")]) is None


def test_without_a_grid_the_example_runs_as_it_is_with_every_seed(sweep, tmp_path, capsys):
    late = STAND_IN.replace('mode = record["modes"][value("--mode")]\n', "").replace(
        'record["modes"] = {value("--mode"): mode}\n', ""
    )
    late = late.replace('mode["validation"]["f1"] +=', 'record["modes"]["lora"]["validation"]["f1"] +=')
    late = late.replace(' + 0.01 * float(value("--learning-rate"))', "").replace(
        'if value("--mode") == "lora":', "if False:"
    )
    (tmp_path / "example.py").write_text(late)
    assert (
        sweep.main(["--seeds", "0", "1", "--name", "twice", "--note", "A note.", "--", "--learning-rate", "1e-3"]) == 0
    )
    assert calls(tmp_path) == ["seed-0", "seed-1"]
    text = (tmp_path / "results" / "twice.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    recorded = json.loads((RECORDED / "comparison.json").read_text())["modes"]
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if "|" in line
    }
    full, lora = (recorded[mode]["validation"]["f1"] for mode in ("full", "lora"))
    assert rows["2 seeds, mean ± sd"] == ["full", "LoRA", "difference"]
    assert rows["validation F1"] == [
        f"{full:.4f}",
        f"{lora + 0.0005:.4f} ± 0.0007",
        f"{lora - full + 0.0005:+.4f} ± 0.0007",
    ]
    assert rows["GPU (Wh)"] == ["–", "–", "–"]
    assert "A note." in text and "Failed: 0 of 2 cells." in text
    assert "python examples/bionlp.py --learning-rate 1e-3 --seed 1 --output-dir runs/twice/seed-1" in text
    found = json.loads((tmp_path / "results" / "twice.json").read_text())
    assert [run["modes"]["lora"]["validation"]["f1"] for run in found["runs"]] == [lora, lora + 0.001]
    assert sweep.main(["--name", "twice", "--", "--learning-rate", "1e-3"]) == 0
    assert calls(tmp_path) == ["seed-0", "seed-1", "seed-2"]  # seed 2 is missing from the default


def test_a_seed_that_fails_is_listed_and_the_others_are_shown(sweep, tmp_path, capsys):
    (tmp_path / "example.py").write_text(STAND_IN.replace('value("--r") == "3"', 'value("--seed") == "1"'))
    assert sweep.main(["--name", "some", "--", "--mode", "full", "--learning-rate", "1e-3", "--r", "2"]) == 1
    text = capsys.readouterr().out
    assert "Failed: 1 of 3 cells:" in text and "- seed 1: status 1: r is 3, which fails" in text
    assert "| 2 seeds, mean ± sd" in text
