from lorakit.cli.comparison import print_comparison
from lorakit.report.comparison import comparison_record
from lorakit.report.tables import (
    METRICS,
    as_markdown,
    energy_notes,
    energy_table,
    markdown_table,
    metric,
    metrics_table,
)
from tests.support.reports import CROWDED, SCORES, crowd


def cells(table, name):
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def with_test_set(record, f1):
    for values in record["modes"].values():
        values["test"] = {**SCORES, "f1": f1}
    return record


def test_validation_and_test_are_side_by_side_with_the_difference_of_each(record):
    table = metrics_table(with_test_set(record, f1=0.5))
    columns = ["validation full", "LoRA", "difference", "test full", "LoRA", "difference"]
    assert cells(table, "metric") == columns
    assert cells(table, "F1") == ["0.746667", "0.736667", "-0.010000", "0.500000", "0.500000", "+0.000000"]
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [name for name, _ in METRICS]


def test_a_split_that_one_mode_lacks_is_a_dash(record):
    with_test_set(record, f1=0.5)["modes"]["full"]["test"] = None
    assert cells(metrics_table(record), "F1")[3:] == ["–", "0.500000", "–"]


def test_a_score_that_an_older_record_lacks_is_none():
    assert metric({"f1": 0.5}, ("strict", "f1")) is metric(None, ("f1",)) is None
    assert metric(SCORES, ("strict", "f1")) == 0.736622


def test_both_tables_show_each_mode_and_the_difference(record):
    text = as_markdown(record)
    assert cells(text, "F1") == ["0.746667", "0.736667", "-0.010000"]
    assert cells(text, "F1, strict IOB2") == ["0.736622", "0.736622", "+0.000000"]
    assert cells(text, "RAM (Wh)") == ["1.00000", "0.50000", "-0.50000"]
    assert cells(text, "CPU power (W)") == ["20.00", "20.00", "+0.00"]


def test_no_zero_is_negative(record):
    record["modes"]["lora"]["energy"]["cpu"]["mean_w"] = 19.999
    assert cells(as_markdown(record), "CPU power (W)") == ["20.00", "20.00", "+0.00"]


def test_unknown_is_a_dash_and_never_zero(record):
    assert cells(energy_table(record), "all GPUs (Wh)") == ["–", "–", "–"]


def test_measured_and_estimated_totals_are_separate(record):
    assert cells(energy_table(record), "total measured (Wh)") == ["2.00000", "2.00000", "+0.00000"]
    assert cells(energy_table(record), "total estimated (Wh)") == ["1.00000", "0.50000", "-0.50000"]


def test_every_component_says_how_it_was_obtained(record):
    text = as_markdown(record)
    for line in ("- RAM: estimated (by GiB)", "- GPU: unavailable (no NVML)", "- CPU: counter (RAPL)"):
        assert line in text


def test_parameters_are_shown_with_pefts_count_and_why(record):
    text = as_markdown(record)
    assert "LoRA: 100 of 1,000 parameters are trained (10.0000 %)" in text
    assert (
        "PEFT would print 100 of 1,010: it counts the untrained copy that it keeps of modules trained in full" in text
    )


def test_one_mode_alone_has_no_difference(record):
    alone = {**record, "modes": {"lora": record["modes"]["lora"]}}
    assert cells(as_markdown(alone), "F1") == ["0.736667"]


def test_the_studys_own_columns_repeat_its_published_figures(record):
    record = comparison_record("c", {}, "m", "d", record["modes"], study=True)
    assert cells(as_markdown(record), "F1")[3:] == ["0.809050", "0.805224", "-0.003826"]
    assert cells(as_markdown(record), "RAM (Wh)")[3:] == ["597.71000", "687.35100", "+89.64100"]
    assert cells(as_markdown(record), "GPU power (W)")[3:] == ["477.46", "476.03", "-1.43"]


def test_differences_of_times_and_energies_are_marked_if_others_used_the_machine_and_scores_are_not(record):
    text = as_markdown(crowd(record))
    assert cells(text, "CPU power (W)") == ["20.00", "20.00", "+0.00*"]
    assert cells(text, "training (s)") == ["5.0", "5.0", "+0.0*"]
    assert cells(text, "all GPUs (Wh)") == ["–", "–", "–"]
    assert cells(text, "F1") == ["0.746667", "0.736667", "-0.010000"]
    assert f"\n- LoRA*: {CROWDED['note']}\n- full: " in text and "\n- RAM: estimated" in text
    assert "full*" not in text


def test_the_terminal_marks_them_too_and_the_study_is_not_marked(record, tmp_path, capsys):
    record = comparison_record("c", {}, "m", "d", crowd(record, "full")["modes"], study=True)
    print_comparison(record, tmp_path)
    shown = capsys.readouterr().out
    assert cells(shown, "CPU power (W)")[2:] == ["+0.00*", "42.50", "42.50", "+0.00"]
    assert f"\n- full*: {CROWDED['note']}\n" in shown


def test_a_quiet_machine_leaves_no_mark(record):
    for values in record["modes"].values():
        values["energy"]["contention"] = {"share": 0.01, "note": None}
    assert "*" not in energy_table(record) + "".join(energy_notes(record))


def test_tables_align_as_plain_text():
    assert markdown_table(["a", "long"], [["xyz", "1"]]) == "| a   | long |\n| --- | ---: |\n| xyz |    1 |"


def test_a_corpus_without_validation_and_test_set_is_said_to_score_nothing(record, tmp_path, capsys):
    print_comparison(record, tmp_path)
    assert "nothing was scored" not in capsys.readouterr().out
    for values in record["modes"].values():
        values["validation"] = None
    print_comparison(record, tmp_path)
    assert "no validation or test set, so nothing was scored; `lorakit evaluate`" in capsys.readouterr().out


def test_rates_and_settings_of_each_mode_are_in_the_file_and_on_the_console(record, tmp_path, capsys):
    record["modes"]["full"]["learning_rate"] = 5e-5
    record["modes"]["lora"]["module_learning_rates"] = {"lora_B": 8e-3}
    adapter = {"r": 8, "target_modules": ["query", "value"], "init_lora_weights": True, "peft_total_parameters": 1010}
    record["modes"]["lora"]["adapter"] = adapter
    print_comparison(record, tmp_path)
    for text in (as_markdown(record), capsys.readouterr().out):
        assert cells(text, "learning rate") == ["5e-05", "0.001"]
        assert cells(text, "rates of modules") == ["–", "lora_B=0.008"]
        assert cells(text, "best epoch") == ["2", "2"]
        assert cells(text, "target_modules") == ["–", "query value"]
        assert cells(text, "init_lora_weights") == ["–", "kaiming"]  # as --init-lora-weights calls it
        assert "| peft_total" not in text


def test_names_are_escaped(record):
    text = as_markdown({**record, "model": "a|<img>\n# b", "command": "lorakit train --model 'a`b'"})
    assert text.startswith("# a\\|\\<img\\> \\# b on ")
    assert "Command: `` lorakit train --model 'a`b' ``" in text
    assert markdown_table(["x", "F1"], [["a|b<i>", "1"]]).splitlines()[2] == "| a\\|b\\<i> |  1 |"
