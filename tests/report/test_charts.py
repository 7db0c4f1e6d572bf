import copy
import json
import re
from dataclasses import replace

import pytest

from lorakit.report.charts import (
    energy_chart,
    f1_chart,
    longest,
    look,
    loss_chart,
    reliability_chart,
    thinned,
    top_of,
    type_chart,
)
from lorakit.report.page import make_page, write_page
from lorakit.report.runs import Run, read_sources
from lorakit.training.calibration_file import Calibration, save_calibration
from tests.support.reports import change, figures_of


def measured_gpu(run):
    """The run as a machine with a GPU's counter would have written it: 100 W."""
    for journal in run.glob("*/energy.jsonl"):
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        for line in lines:
            if "reading" in line:
                kwh = 100 * line["reading"]["duration_s"] / 3.6e6
                line["reading"]["gpu"] |= {"kwh": kwh, "mean_w": 100.0, "method": "counter", "source": "NVML"}
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def edit(record):
        for values in record["modes"].values():
            kwh = 100 * values["energy"]["duration_s"] / 3.6e6
            values["energy"]["gpu"] |= {"kwh": kwh, "mean_w": 100.0, "method": "counter", "source": "NVML"}
            values["energy"]["measured_kwh"] = kwh

    return change(run, edit)


def test_measured_is_solid_and_estimated_is_hatched_and_both_say_it_in_words(run):
    record = measured_gpu(run)
    chart = energy_chart(read_sources([run])[0].runs[0], 0, 3.0, 60.0)
    gpu, cpu, ram = re.findall(
        r'<g id="energy0-axes_\d">.*?(?=<g id="energy0-axes_|</g>\s*</g>\s*<defs>|$)', chart.svg, re.DOTALL
    )
    assert "GPU – measured" in gpu and "CPU – estimated" in cpu and "RAM – estimated" in ram
    assert "fill: url(#" not in gpu
    assert all("fill: url(#" in panel for panel in (cpu, ram))
    assert "stroke-dasharray" in cpu
    page = make_page(read_sources([run]))
    cells = figures_of(page, "energy-table")
    wanted = 1e3 * record["modes"]["full"]["energy"]["gpu"]["kwh"]
    assert cells["Energy (Wh): GPU"][0] == (wanted, f"{wanted:.3f} measured")
    assert cells["Energy (Wh): Total measured"][0][0] == pytest.approx(wanted)
    assert any(name.endswith("Wh measured") for name in figures_of(page, "cost-table"))


def test_a_long_run_is_thinned_to_its_width_and_keeps_both_ends(run):
    log = run / "full" / "metrics.jsonl"
    steps = [{"event": "step", "epoch": 1, "step": n, "loss": 1 / n} for n in range(1, 5001)]
    log.write_text("".join(json.dumps(line) + "\n" for line in steps) + log.read_text())
    assert thinned(range(5000), 300)[:2] + thinned(range(5000), 300)[-1:] == [0, 17, 4999]
    assert len(loss_chart(read_sources([run])[0].runs).svg) < 60_000


@pytest.mark.parametrize("losses", [(0.6, 1.2), (0.013, 0.017), (0.001, 2.0)])
def test_the_axis_of_the_loss_has_several_numbers_however_close_the_losses_are(run, losses):
    low, high = losses
    for log in run.glob("*/metrics.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for i, line in enumerate(lines):
            line["loss"] = high - (high - low) * i / len(lines)
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    svg = loss_chart(read_sources([run])[0].runs).svg
    numbers = [float(text) for text in re.findall(r"text-anchor: end[^>]*>([\d.]+)</text>", svg)]
    assert len([number for number in numbers if low / 1.2 <= number <= high * 1.2]) >= 3, numbers


def test_more_runs_than_colours_differ_in_their_dashes():
    assert len({str(look(number)) for number in range(16)}) == 16


def test_charts_of_nothing_are_none():
    nothing = Run("x", "", {})
    assert f1_chart([nothing]) is None
    assert energy_chart(nothing, 0, top_of([nothing]), longest([nothing])) is None


def axis_labels(svg):
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


def test_runs_side_by_side_have_one_time_axis(run):
    short, long = (
        replace(r, energy=tuple(replace(p, elapsed_s=k * p.elapsed_s) for p in r.energy))
        for k, r in zip((1, 400), read_sources([run])[0].runs, strict=True)
    )
    assert longest([short, long]) == long.energy[-1].elapsed_s > 7200
    axes = [axis_labels(energy_chart(one, 0, 3.0, longest([short, long])).svg) for one in (short, long)]
    assert "hours since the start" in axes[0] and "hours since the start" in axes[1]
    assert [t for t in axes[0] if re.fullmatch(r"[\d.]+", t)] == [t for t in axes[1] if re.fullmatch(r"[\d.]+", t)]
    alone = axis_labels(energy_chart(short, 0, 3.0, longest([short])).svg)
    assert "hours since the start" not in alone


def test_bars_show_how_many_entities_they_are_of(run):
    runs = read_sources([run])[0].runs
    chart = type_chart(runs, "validation")
    supports = {name: row["support"] for name, row in runs[0].scores("validation")["by_type"].items()}
    assert supports and {f"{name} ({count:,})" for name, count in supports.items()} <= set(axis_labels(chart.svg))
    one, other = (copy.deepcopy(dict(r.values)) for r in runs)
    name = next(iter(supports))
    other["validation"]["by_type"][name]["support"] += 1  # another corpus: no one number is right
    chart = type_chart([replace(runs[0], values=one), replace(runs[1], values=other)], "validation")
    assert name in axis_labels(chart.svg) and "In brackets" not in chart.description


def test_the_best_epoch_and_the_test_score_are_marked_and_said(run):
    runs = read_sources([run])[0].runs
    chart = f1_chart(runs)
    for one in runs:
        assert (one.label, str(one.values["best_epoch"]), "test", f"{one.scores('test')['f1']:.4f}") in chart.rows
    assert "A ring marks the best epoch" in chart.description and "A cross there" in chart.description
    unknown = [replace(one, values={}) for one in runs]
    assert "ring" not in f1_chart(unknown).description and len(f1_chart(unknown).svg) < len(chart.svg)


OUTCOMES = {"DNA": [(0.95, True), (0.97, True), (0.5, False)], "RNA": [(1.0, False), (0.55, True)]}


@pytest.fixture
def calibrated(run):
    """A recorded run whose LoRA adapter was calibrated."""
    adapter = run / "lora" / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    save_calibration(Calibration(1.25, OUTCOMES, "viterbi"), adapter)
    return run


def test_the_report_shows_it_for_the_run_that_was_calibrated(calibrated):
    page = write_page([calibrated]).read_text()
    figure = re.search(r'<figure class="panel" id="chart-reliability1">.*?</figure>', page, re.DOTALL)[0]
    assert "validation set (viterbi)" in figure and "temperature of 1.25" in figure
    rows = re.findall(r'class="name">(0\.[^<]*)</th><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td>', figure)
    assert rows == [("0.5–0.6", "2", "0.525", "0.500"), ("0.9–1.0", "3", "0.973", "0.667")]
    assert page.count('<figure class="panel" id="chart-reliability') == 1  # the full run was not


def test_a_run_that_was_not_calibrated_has_none(run):
    assert "chart-reliability" not in make_page(read_sources([run]))
    assert reliability_chart(Run("x", "", {}), 0) is None


def test_a_calibration_of_other_weights_is_refused_with_the_way_out(calibrated):
    (calibrated / "lora" / "adapter" / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(ValueError, match="belongs to other weights .* run lorakit calibrate again"):
        write_page([calibrated])
