"""`--json`: a record in a file, or alone on standard output."""

import argparse
import json
from pathlib import Path

import pytest

from lorakit.cli.json_output import add_json_flag, write_json

RECORD = {"name": "IL-2 é", "loss": 0.5}


def test_the_text_is_printed_and_the_record_written_where_a_file_is_given(tmp_path, capsys):
    write_json(RECORD, None, "a table\n")
    write_json(RECORD, tmp_path / "new" / "scores.json", "a table\n")
    assert capsys.readouterr().out == "a table\na table\n"
    assert json.loads((tmp_path / "new" / "scores.json").read_text(encoding="utf-8")) == RECORD


def test_a_hyphen_prints_the_record_alone(capsys):
    write_json(RECORD, Path("-"), "a table\n")
    assert json.loads(capsys.readouterr().out) == RECORD


def test_a_value_that_json_does_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write_json({"loss": float("nan")}, tmp_path / "x.json", "")
    assert not (tmp_path / "x.json").exists()


def test_the_flag_gives_a_path():
    parser = argparse.ArgumentParser()
    add_json_flag(parser)
    assert parser.parse_args(["--json", "x.json"]).json == Path("x.json")
