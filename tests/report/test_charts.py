import json
import re

import pytest

from lorakit.report.charts import energy_chart, f1_chart, look, loss_chart, thinned, top_of
from lorakit.report.page import make_page
from lorakit.report.runs import Run, read_sources
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
    chart = energy_chart(read_sources([run])[0].runs[0], 0, 3.0)
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


def test_more_runs_than_colours_differ_in_their_dashes():
    assert len({str(look(number)) for number in range(16)}) == 16


def test_charts_of_nothing_are_none():
    nothing = Run("x", "", {})
    assert f1_chart([nothing]) is None
    assert energy_chart(nothing, 0, top_of([nothing])) is None
