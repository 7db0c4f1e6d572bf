"""`lorakit report` as a user calls it, on a recorded run."""

import re
import shutil
from pathlib import Path

import pytest

from lorakit.cli.__main__ import main
from tests.support.reports import RECORDED, figures_of


def status_of(arguments):
    try:
        return main(arguments)
    except SystemExit as ended:
        return ended.code


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(RECORDED, tmp_path / "bionlp"))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda folder: None, ["nowhere"], "there is no folder"),
        (lambda folder: None, ["."], "holds neither comparison.json nor metrics.jsonl"),
        (lambda folder: (folder / "comparison.json").write_text("{"), ["."], "comparison.json is not JSON"),
        (
            lambda folder: (folder / "comparison.json").write_text('{"schema": 2}'),
            ["."],
            "of schema 1 .its schema is 2",
        ),
        (lambda folder: (folder / "comparison.json").write_text("[]"), ["."], "is not a comparison of schema 1"),
        (lambda folder: None, [str(RECORDED), str(RECORDED)], "a run is named twice"),
        (lambda folder: None, [str(RECORDED), "--label", "a", "--label", "b"], "2 labels were given for 1 run"),
        (lambda folder: None, [str(RECORDED), "--output", "no/where.html"], "cannot be written to no/where.html"),
    ],
)
def test_what_cannot_be_reported_is_one_line_status_2_and_leaves_nothing(
    make, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert status_of(["report", *arguments]) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err), printed.err
    assert printed.err.startswith("lorakit report: error: ") and len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_writes_where_it_says(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"written: {run / 'report.html'}\n"
    assert main(["report", str(run), str(run / "lora"), "--label", "a", "--label", "b", "--f1", "0.5", "0.99"]) == 0
    page = (tmp_path / "report.html").read_text()
    rows = figures_of(page, "cost-table")
    assert {name.split(":")[0] for name in rows} == {"F1 0.5000", "F1 0.9900"}
    assert rows["F1 0.9900: Epoch"] == [(None, "not reached")] * 3
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(run), "--f1", "85"])
    assert "85 is not an F1 above 0 and up to 1" in capsys.readouterr().err
