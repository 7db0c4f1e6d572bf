import json

import pytest

from lorakit.report.carbon import Carbon
from lorakit.report.comparison import SCHEMA, STUDY, as_json, comparison_record, read_comparison


def test_a_record_is_read_as_it_was_written(record, tmp_path):
    (tmp_path / "comparison.json").write_text(as_json(record))
    assert read_comparison(tmp_path / "comparison.json") == record
    assert record["schema"] == SCHEMA == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "comparison.json is not JSON"),
        ("[]", r"is not a comparison of schema 1 \(its schema is None\)"),
        ('{"schema": 2, "modes": {}}', r"is not a comparison of schema 1 \(its schema is 2\)"),
        ('{"schema": 1}', "is not a comparison of schema 1"),
    ],
)
def test_what_is_not_a_comparison_is_refused(text, message, tmp_path):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_comparison(tmp_path / "comparison.json")


def test_the_studys_figures_are_added_where_asked_for_and_their_parts_give_their_total():
    assert "study" not in comparison_record("c", {}, "m", "d", {})
    study = json.loads(as_json(comparison_record("c", {}, "m", "d", {}, study=True)))["study"]
    assert study == STUDY
    for values in study.values():
        parts = sum(values["energy"][part]["kwh"] for part in ("ram", "gpu", "cpu"))
        total = values["energy"]["measured_kwh"] + values["energy"]["estimated_kwh"]
        assert parts == pytest.approx(total, abs=1e-9)


def test_a_number_that_is_not_finite_is_null(record):
    diverged = {**record, "modes": {"lora": {"loss": float("nan"), "history": [{"loss": float("inf"), "f1": 0.5}]}}}
    written = json.loads(as_json(diverged))
    assert written["modes"] == {"lora": {"loss": None, "history": [{"loss": None, "f1": 0.5}]}}


def test_the_record_gives_the_co2_of_what_was_measured():
    modes = {"full": {"energy": {"measured_kwh": 0.2}}, "lora": {"energy": {"measured_kwh": None}}}
    found = comparison_record("c", {}, "m", "d", modes, carbon=Carbon(400.0))["modes"]
    assert [values["energy"]["co2_g"] for values in found.values()] == [80.0, None]
    assert "co2_g" not in comparison_record("c", {}, "m", "d", modes)["modes"]["full"]["energy"]
