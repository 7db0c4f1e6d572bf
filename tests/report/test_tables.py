import json
import re

import pytest

from lorakit.cli.comparison import print_comparison
from lorakit.report.tables import STUDY, as_markdown, comparison_record, energy_table, markdown_table, write_comparison

SCORES = {
    "loss": 0.2, "precision": 0.7, "recall": 0.8, "f1": 0.746667, "accuracy": 0.95,
    "strict": {"precision": 0.69, "recall": 0.79, "f1": 0.736622, "support": 10}, "by_type": {},
}  # fmt: skip
UNKNOWN = {"kwh": None, "mean_w": None, "method": "unavailable", "source": "no NVML"}


def mode(f1=0.746667, ram=0.001, trained=100, adapter=None):
    return {
        "trainable_parameters": trained, "total_parameters": 1000, "epochs": 2, "best_epoch": 2, "seed": 0,
        "learning_rate": 1e-3, "batch_size": 32, "adapter": adapter, "steps": 10, "train_tokens": 10_000,
        "computed_tokens": 10_100, "train_seconds": 5.0, "train_tokens_per_s": 2000.0, "duration_s": 7.0,
        "validation": {**SCORES, "f1": f1}, "test": None,
        "history": [{"epoch": 1, "f1": 0.5}, {"epoch": 2, "f1": f1}],
        "energy": {
            "gpu": UNKNOWN, "cpu": {"kwh": 0.002, "mean_w": 20.0, "method": "counter", "source": "RAPL"},
            "ram": {"kwh": ram, "mean_w": 6.0, "method": "estimated", "source": "by GiB"},
            "measured_kwh": 0.002, "estimated_kwh": ram,
        },
    }  # fmt: skip


@pytest.fixture
def record():
    lora = mode(f1=0.736667, ram=0.0005, adapter={"r": 8, "peft_total_parameters": 1010})
    return comparison_record("python x.py", {"torch": "2"}, "m", "d", {"full": mode(trained=1000), "lora": lora})


def cells(table, name):
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_both_tables_show_each_mode_and_the_difference(record):
    text = as_markdown(record)
    assert cells(text, "F1") == ["0.746667", "0.736667", "-0.010000"]
    assert cells(text, "F1, strict IOB2") == ["0.736622", "0.736622", "+0.000000"]
    assert cells(text, "RAM (kWh)") == ["0.00100000", "0.00050000", "-0.00050000"]
    assert cells(text, "CPU power (W)") == ["20.00", "20.00", "+0.00"]


def test_unknown_is_a_dash_and_never_zero(record):
    assert cells(energy_table(record), "all GPUs (kWh)") == ["–", "–", "–"]


def test_measured_and_estimated_totals_stand_apart(record):
    assert cells(energy_table(record), "total measured (kWh)") == ["0.00200000", "0.00200000", "+0.00000000"]
    assert cells(energy_table(record), "total estimated (kWh)") == ["0.00100000", "0.00050000", "-0.00050000"]


def test_every_component_says_how_it_was_obtained(record):
    text = as_markdown(record)
    for line in ("- RAM: estimated (by GiB)", "- GPU: unavailable (no NVML)", "- CPU: counter (RAPL)"):
        assert line in text


def test_parameters_are_shown_with_pefts_count_and_why(record):
    text = as_markdown(record)
    assert "LoRA: 100 of 1,000 parameters are trained (10.0000 %)" in text
    assert "PEFT would print 100 of 1,010: it counts the untrained copy that it keeps of what is trained whole" in text


def test_one_mode_alone_has_no_difference(record):
    alone = {**record, "modes": {"lora": record["modes"]["lora"]}}
    assert cells(as_markdown(alone), "F1") == ["0.736667"]


def test_the_studys_own_columns_repeat_its_published_figures(record):
    record = comparison_record("c", {}, "m", "d", record["modes"], study=True)
    assert cells(as_markdown(record), "F1")[3:] == ["0.809050", "0.805224", "-0.003826"]
    assert cells(as_markdown(record), "RAM (kWh)")[3:] == ["0.59771000", "0.68735100", "+0.08964100"]
    assert cells(as_markdown(record), "GPU power (W)")[3:] == ["477.46", "476.03", "-1.43"]
    for values in STUDY.values():
        parts = sum(values["energy"][part]["kwh"] for part in ("ram", "gpu", "cpu"))
        total = values["energy"]["measured_kwh"] + values["energy"]["estimated_kwh"]
        assert parts == pytest.approx(total, abs=1e-9)


def test_the_files_are_written_whole(record, tmp_path):
    write_comparison(record, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "comparison.json", "comparison.md", "comparison.png",
    ]  # fmt: skip
    assert json.loads((tmp_path / "new" / "comparison.json").read_text()) == record
    assert (tmp_path / "new" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_left_behind_when_a_number_cannot_be_written(record, tmp_path):
    record["modes"]["full"]["train_seconds"] = float("nan")
    with pytest.raises(ValueError, match=re.escape("Out of range float values are not JSON compliant")):
        write_comparison(record, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_which_nothing_could_be_measured_is_still_drawn(record, tmp_path):
    for values in record["modes"].values():
        values["energy"] = dict.fromkeys(("gpu", "cpu", "ram"), UNKNOWN)
        values["energy"] |= {"measured_kwh": None, "estimated_kwh": None}
        values["history"] = []
    write_comparison(record, tmp_path)
    assert cells((tmp_path / "comparison.md").read_text(), "total measured (kWh)") == ["–", "–", "–"]


def test_tables_align_as_plain_text():
    assert markdown_table(["a", "long"], [["xyz", "1"]]) == "| a   | long |\n| --- | ---: |\n| xyz |    1 |"


def test_a_corpus_without_validation_and_test_set_is_said_to_score_nothing(record, tmp_path, capsys):
    print_comparison(record, tmp_path)
    assert "nothing was scored" not in capsys.readouterr().out
    for values in record["modes"].values():
        values["validation"] = None
    print_comparison(record, tmp_path)
    assert "no validation or test set, so nothing was scored; `lorakit evaluate`" in capsys.readouterr().out
