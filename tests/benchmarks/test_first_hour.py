"""The table of the first hour: every row is as it should be, rows are judged, and named tests exist."""

import json
import re

import pytest
import yaml

from tests.support.tiny import ROOT

LISTED = yaml.safe_load((ROOT / "benchmarks" / "first_hour.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import first_hour

    return first_hour


@pytest.fixture
def judged(benchmark, tmp_path):
    """What the benchmark says of a command in a folder with one file."""
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "here").touch()

    def run(*commands, **wanted):
        row = {"part": "", "tried": "", "then": "", "run": commands, "status": 2, "says": ": error: ", "never": "x^"}
        return benchmark.tried(row | wanted, tmp_path / "prepared", tmp_path / "row")

    return run


@pytest.mark.parametrize(("file", "named"), LISTED["tests"].items())
def test_every_test_that_the_table_names_exists(file, named):
    text = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert [name for _, _, name in named if f"def test_{name}(" not in text] == []


def test_the_published_table_has_every_row_and_none_is_wrong():
    found = json.loads((ROOT / "benchmarks" / "results" / "first_hour.json").read_text(encoding="utf-8"))
    listed = [(part, row["tried"], row["run"]) for part, rows in LISTED["rows"].items() for row in rows]
    assert [(row["part"], row["tried"], row["run"]) for row in found["rows"]] == listed
    assert [row["tried"] for row in found["rows"] if not row["right"]] == []


@pytest.mark.parametrize(
    "row", [row for row in LISTED["rows"]["Mistakes in files and flags"] if len(row["run"][0]) < 20]
)
def test_rows_that_need_no_files_are_right(judged, row):
    found = judged(*row["run"], **{key: row[key] for key in ("status", "says") if key in row})
    assert found["right"], found


def test_another_status_line_or_word_is_wrong(judged, benchmark):
    program = "python: import sys; print('epoch 1'); print('a: error: b'); sys.exit(2)"
    found = judged(program)
    assert (found["right"], found["status"], found["now"]) == (True, 2, "a: error: b")
    assert not judged(program, status=0)["right"]
    assert not judged(program, says="nothing")["right"]
    assert not judged(program, never="b$")["right"]
    assert not judged(program.replace("sys.exit", "print('more'); sys.exit"))["right"]


def test_rows_of_an_earlier_table_are_kept_where_they_are_the_same(benchmark, tmp_path):
    row = {"part": "a", "tried": "b", "run": ["c"], "right": True}
    (tmp_path / "t.json").write_text(json.dumps({"rows": [row]}))
    kept = benchmark.kept_rows(tmp_path / "t.json")
    assert kept.get(benchmark.key({**row, "says": "x"})) == row
    assert kept.get(benchmark.key({**row, "run": ["d"]})) is None
    assert benchmark.kept_rows(tmp_path / "none.json") == {}


def test_commands_share_a_folder_that_is_gone_afterwards(judged, tmp_path):
    found = judged(
        "python: Path('made').touch()", "python: print(sorted(p.name for p in Path().iterdir()))", status=0, says="here"
    )
    assert (found["right"], found["now"]) == (True, "['here', 'made']")
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_a_program_that_raises_shows_its_error(judged):
    assert re.match("ValueError: no$", judged("python: raise ValueError('no')", status=1, says="^ValueError")["now"])
