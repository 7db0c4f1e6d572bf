"""What `lorakit energy run` prints and writes: SCI, CSV, Prometheus text."""

import csv
import json
import re
import subprocess

import pytest

from lorakit.cli.energy_report import CODECARBON, append_csv, check_csv, csv_row, prometheus, report
from lorakit.power.reading import Measurement, Reading
from lorakit.report.carbon import Carbon
from tests.support.energy_command import CLI, main
from tests.support.energy_world import FakeGpu, Profile, World


def test_an_estimate_has_a_value_between_its_ends_and_no_co2():
    part = Measurement("estimated", wh=5.0, mean_w=60.0, source="s", range_wh=(0.8, 7.9))
    none = Measurement("unavailable", source="no counter")
    text = report(Reading(none, part, none, duration_s=300.0), Carbon(400.0))
    assert "estimated besides: 5 Wh, plausible from 0.8 to 7.9 Wh" in text
    assert "CO2: none is given, because nothing was measured; `lorakit energy doctor` says" in text
    counted = Measurement("counter", wh=20.0, mean_w=240.0, source="s")
    text = report(Reading(counted, part, none, 300.0), Carbon(400.0))
    assert "CO2 of the measured part at 400 g/kWh: 0.008 kg" in text
    assert "CO2" not in report(Reading(none, part, none, 300.0))


def measured_reading():
    gpu = Measurement("counter", wh=200.0, mean_w=240.0, source="NVML", uncertainty_wh=0.5, devices=())
    cpu = Measurement("estimated", wh=50.0, mean_w=60.0, source="s", range_wh=(8.0, 79.0))
    return Reading(gpu, cpu, Measurement("unavailable", source="no counter"), duration_s=3000.0, process_share=0.5)


def test_sci_is_energy_times_intensity_plus_embodied_per_unit():
    text = report(measured_reading(), Carbon(400.0, embodied_g=20.0, units=1000.0))
    assert "measured in total: 200 Wh ± 0.5 Wh" in text
    assert "SCI (ISO 21031) of the measured part: 0.1 g of CO2 per unit = (80 g for energy + 20 g embodied)" in text
    for wrong in ({"units": 5.0}, {"grams_per_kwh": 1.0, "units": 5.0}, {"embodied_g": 3.0}):
        with pytest.raises(ValueError, match="units="):
            Carbon(**wrong)


@pytest.mark.parametrize("sensor", [True, False])
def test_the_json_of_a_run_holds_the_factors_and_what_they_give(tmp_path, monkeypatch, sensor):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 3600.0)), limit_w=4000.0)] if sensor else [])
    meter = world.meter()
    monkeypatch.setattr("lorakit.cli.energy.EnergyMeter", lambda *_, **__: meter)
    monkeypatch.setattr("lorakit.cli.energy.run_command", lambda _: world.run(meter, 100) or 0)
    flags = ["--co2", "400", "--embodied", "20", "--sci", "10", "--json", str(tmp_path / "run.json")]
    assert main(["run", *flags, "--", "true"]) == 0
    carbon = json.loads((tmp_path / "run.json").read_text())["carbon"]
    assert (carbon["co2_g_per_kwh"], carbon["embodied_g"], carbon["sci_units"]) == (400.0, 20.0, 10.0)
    if sensor:  # 0.1 kWh
        assert carbon["co2_g"] == pytest.approx(40, rel=0.01)
        assert carbon["sci_g_per_unit"] == pytest.approx((40 + 20) / 10, rel=0.01)
    else:
        assert (carbon["co2_g"], carbon["sci_g_per_unit"]) == (None, None)


def test_a_csv_row_is_made_for_csv_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lorakit.cli.energy.csv_row", lambda *_: {}["surprise"])
    assert main(["run", "--", "sh", "-c", "exit 3"]) == 3
    assert main(["run", "--csv", str(tmp_path / "e.csv"), "--", "sh", "-c", "exit 3"]) == 3
    assert "e.csv was not written: KeyError: 'surprise'" in capsys.readouterr().err


def test_csv_has_codecarbons_columns_and_says_what_is_estimated(tmp_path):
    path = tmp_path / "emissions.csv"
    for _ in range(2):
        append_csv(path, csv_row(measured_reading(), "train.py", Carbon(400.0)))
    check_csv(path)
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 2 and list(rows[0])[:38] == CODECARBON
    row = rows[0]
    assert (row["gpu_energy"], row["cpu_energy"], row["ram_energy"]) == ("0.2", "0.05", "")
    assert (float(row["energy_consumed"]), float(row["measured_energy"])) == (0.25, 0.2)
    assert (row["gpu_method"], row["cpu_method"], row["ram_method"]) == ("counter", "estimated", "unavailable")
    assert float(row["emissions"]) == pytest.approx(0.08)
    path.write_text("timestamp,other\n")
    with pytest.raises(ValueError, match="has other columns than lorakit's; give another file"):
        check_csv(path)


def test_two_runs_that_end_together_both_have_their_row(tmp_path):
    path = tmp_path / "emissions.csv"
    runs = [subprocess.Popen([*CLI, "run", "--csv", str(path), "--", "true"], stderr=subprocess.DEVNULL) for _ in "123"]
    assert [run.wait(timeout=120) for run in runs] == [0, 0, 0]
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [row["project_name"] for row in rows] == ["true"] * 3
    assert len({row["run_id"] for row in rows}) == 3


def test_a_csv_that_another_program_wrote_meanwhile_is_left_alone(tmp_path, capsys):
    path = tmp_path / "e.csv"
    assert main(["run", "--csv", str(path), "--", "sh", "-c", f"echo a,b > {path}; exit 3"]) == 3
    assert "was not written: --csv" in capsys.readouterr().err
    assert path.read_text() == "a,b\n"


def test_codecarbon_has_these_columns():
    """The oracle is CodeCarbon's own record, where it is installed."""
    module = pytest.importorskip("codecarbon.output_methods.emissions_data")
    assert list(module.EmissionsData.__dataclass_fields__) == CODECARBON


def test_prometheus_text_is_a_sample_per_part():
    text = prometheus(measured_reading(), Carbon(400.0, embodied_g=20.0, units=1000.0))
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['lorakit_energy_joules{part="gpu",method="counter"}']) == 720_000
    assert float(samples['lorakit_energy_high_joules{part="cpu",method="estimated"}']) == 79 * 3600
    assert float(samples["lorakit_measured_energy_joules"]) == 720_000
    assert float(samples["lorakit_co2_grams"]) == pytest.approx(80)
    assert float(samples["lorakit_sci_grams_per_unit"]) == pytest.approx((80 + 20) / 1000)
    assert not re.search("co2|sci", prometheus(measured_reading(), Carbon()))
    assert 'part="ram"' not in text
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) and text.endswith("\n")


def test_a_reading_before_any_time_has_passed_can_be_printed(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    with world.meter() as meter:
        text = report(meter.reading, Carbon(400.0))
    assert "RAM: 0 Wh, estimated (" in text and "None" not in text
    assert prometheus(meter.reading, Carbon(400.0)) and csv_row(meter.reading, "x", Carbon(400.0))


def test_a_suspension_is_said_and_a_clock_that_steps_back_hides_none(tmp_path):
    world = World(tmp_path, zones=[("intel-rapl:0", "package-0", Profile((0, 100.0)))])
    with world.meter() as meter:
        world.run(meter, 30)
        world.clock.asleep_s -= 500  # a virtual machine was restored
        world.run(meter, 30)
        assert meter.reading.suspended_s == 0
        world.clock.asleep_s += 100
        world.run(meter, 30)
    assert meter.reading.suspended_s == pytest.approx(100)
    assert [gap["reason"] for gap in meter.reading.cpu.gaps] == ["the machine was suspended for 100 s"]
    assert report(meter.reading).startswith("energy over 90.0 s, without 100 s of suspension\n")
