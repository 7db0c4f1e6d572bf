"""The meter: windows, totals, and what is reported about them."""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lorakit
from lorakit.power.journal import read_journal
from lorakit.power.reading import Reading, sum_readings
from tests.support.energy_world import FakeGpu, Profile, World

GPU = Profile((0, 100.0), (7, 300.0), (20, 50.0))
CPU = Profile((0, 60.0), (11, 90.0))
DRAM = Profile((0, 12.0))
ZONES = [
    ("intel-rapl:0", "package-0", CPU),
    ("intel-rapl:0:0", "dram", DRAM),
]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, [FakeGpu("GPU-a", GPU)], ZONES)


def test_counters_give_the_true_energy_within_the_stated_error(world):
    world.advance(1)
    with world.meter() as meter:
        world.run(meter, 30)
    for part, profile in [(meter.reading.gpu, GPU), (meter.reading.cpu, CPU), (meter.reading.ram, DRAM)]:
        truth_wh = profile.between(1, 31) / 3600
        assert part.method == "counter"
        assert part.coverage == 1.0
        assert abs(part.wh - truth_wh) <= part.uncertainty_wh
    assert meter.reading.ram.wh * 3600 == pytest.approx(12 * 30, abs=1e-3)


def test_window_gets_its_own_part(world):
    with world.meter() as meter:
        world.run(meter, 3)
        with meter.window("epoch 1"):
            world.run(meter, 10)
        world.run(meter, 4)
    window = meter.windows["epoch 1"]
    assert isinstance(window, Reading)
    assert window.duration_s == 10
    assert window.cpu.wh * 3600 == pytest.approx(CPU.between(3, 13), abs=1e-3)


def test_windows_nest_by_path_and_repeated_ones_add_up(world):
    with world.meter() as meter, meter.window("train"):
        for _ in range(3):
            with meter.window("step"):
                world.run(meter, 2)
            world.run(meter, 1)
    assert list(meter.windows) == ["train", "train/step"]
    step = meter.windows["train/step"]
    assert (step.count, step.duration_s) == (3, 6)
    truth = CPU.between(0, 2) + CPU.between(3, 5) + CPU.between(6, 8)
    assert step.cpu.wh * 3600 == pytest.approx(truth, abs=1e-3)


def test_overlapping_windows_leave_the_later_names_alone(world):
    with world.meter() as meter:
        first, second = meter.window("a"), meter.window("b")
        first.__enter__()
        world.run(meter, 1)
        second.__enter__()
        world.run(meter, 2)
        first.__exit__(None, None, None)
        world.run(meter, 4)
        second.__exit__(None, None, None)
        with meter.window("c"):
            world.run(meter, 1)
    assert {name: window.duration_s for name, window in meter.windows.items()} == {"a": 3, "a/b": 6, "c": 1}


def test_measured_total_holds_no_estimate(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", GPU)])
    with world.meter() as meter:
        world.run(meter, 10)
    reading = meter.reading
    assert (reading.gpu.method, reading.cpu.method, reading.ram.method) == ("counter", "estimated", "estimated")
    assert reading.measured_wh == reading.gpu.wh
    assert reading.estimated_wh == pytest.approx(reading.cpu.wh + reading.ram.wh)
    low, high = reading.estimated_range_wh
    assert low < reading.estimated_wh < high


def test_no_sensor_gives_null_and_labelled_ranges(tmp_path):
    world = World(tmp_path)
    world.nvml.init_fault = 12
    with world.meter() as meter:
        world.run(meter, 3600, every_s=60)
    reading = meter.reading
    assert reading.gpu.wh is None
    assert reading.gpu.method == "unavailable"
    assert "NVML error 12" in reading.gpu.source
    assert reading.measured_wh is None
    assert reading.ram.range_wh == pytest.approx((3.2, 12.8))  # 32 GiB at 0.1 to 0.4 W for an hour
    assert reading.to_json()["gpu"]["kwh"] is None
    assert reading.to_json()["measured_kwh"] is None


def test_reading_is_there_while_the_block_runs(world):
    with world.meter() as meter:
        world.run(meter, 10)
        assert meter.reading.cpu.wh * 3600 == pytest.approx(600, abs=1e-3)
        assert meter.reading.duration_s == 10
        world.run(meter, 1)
    assert meter.reading.cpu.wh * 3600 == pytest.approx(660, abs=1e-3)


def test_mean_power_is_energy_over_duration(world):
    with world.meter() as meter:
        for seconds in (0.5, 20, 1, 7.3):  # unequal intervals, a short one first
            world.run(meter, seconds, every_s=seconds)
    for part in (meter.reading.gpu, meter.reading.cpu, meter.reading.ram):
        assert part.mean_w == pytest.approx(part.wh * 3600 / meter.reading.duration_s)


def test_power_of_the_last_interval_needs_no_sensor_call(world):
    with world.meter() as meter:
        assert meter.power_w() is None
        world.run(meter, 5)
        calls = len(world.nvml.calls)
        assert meter.power_w() == pytest.approx(100 + 60 + 12, rel=0.01)
        assert len(world.nvml.calls) == calls


def test_power_is_unknown_where_nothing_is_measured(tmp_path):
    world = World(tmp_path)
    with world.meter() as meter:
        world.run(meter, 10)
        assert meter.power_w() is None


def test_json_has_the_keys_of_the_comparison_and_no_number_without_method(world):
    with world.meter() as meter:
        world.run(meter, 10)
    data = json.loads(json.dumps(meter.reading.to_json(), allow_nan=False))
    assert {"gpu", "cpu", "ram", "measured_kwh", "estimated_kwh", "duration_s"} <= set(data)
    for kind in ("gpu", "cpu", "ram"):
        assert {"kwh", "mean_w", "method", "source"} <= set(data[kind])
        assert data[kind]["method"] == "counter"
    assert data["measured_kwh"] == pytest.approx(sum(data[kind]["kwh"] for kind in ("gpu", "cpu", "ram")))
    assert data["estimated_kwh"] is None


def numbers(data):
    """Every part of the JSON that has an energy."""
    if isinstance(data, dict):
        if "kwh" in data:
            yield data
        for value in data.values():
            yield from numbers(value)
    elif isinstance(data, list):
        for value in data:
            yield from numbers(value)


@pytest.mark.parametrize("faults", [{}, {"nvmlDeviceGetTotalEnergyConsumption": 3}, {"*": 15}])
@pytest.mark.parametrize("zones", [ZONES, ZONES[:1], []])
def test_every_number_in_the_json_has_its_method_and_unknown_is_null(tmp_path, faults, zones):
    world = World(tmp_path, [FakeGpu("GPU-a", GPU), FakeGpu("GPU-b", GPU)], zones)
    world.nvml.gpus[0].faults = faults
    with world.meter() as meter:
        world.run(meter, 10)
    parts = list(numbers(meter.reading.to_json()))
    assert len(parts) >= 4
    for part in parts:
        assert part["method"] in ("counter", "sampled", "estimated", "unavailable")
        assert (part["kwh"] is None) == (part["method"] == "unavailable")
        assert part["source"]
    assert Reading.from_json(meter.reading.to_json()).to_json() == meter.reading.to_json()


def test_meter_works_on_this_machine_whatever_it_has():
    with lorakit.EnergyMeter() as meter, meter.window("all"):
        pass
    assert {meter.reading.gpu.method, meter.reading.cpu.method} <= {"counter", "sampled", "estimated", "unavailable"}
    json.dumps(meter.reading.to_json(), allow_nan=False)
    assert str(meter.reading).startswith("GPU: ")


def test_energy_is_imported_and_used_without_torch():
    code = (
        "import sys, lorakit.energy as e\nwith e.EnergyMeter() as m: pass\nm.reading\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_meter_opens_no_connection_and_starts_no_process():
    code = (
        "import sys, lorakit.energy as e\nseen = []\nsys.addaudithook(lambda event, _: seen.append(event))\n"
        "with e.EnergyMeter() as m, m.window('w'): pass\nm.reading\n"
        "foreign = [event for event in seen if event.split('.')[0] in ('socket', 'subprocess', 'urllib')"
        " or event in ('os.fork', 'os.exec', 'os.posix_spawn', 'os.system')]\nassert not foreign, foreign"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_use_is_a_plain_error(world):
    meter = world.meter()
    with pytest.raises(RuntimeError, match="has not run yet"):
        _ = meter.reading
    with pytest.raises(RuntimeError, match="'early' was opened outside"), meter.window("early"):
        pass
    with meter, pytest.raises(ValueError, match="must not be empty or contain a '/', got 'a/b'"), meter.window("a/b"):
        pass
    with pytest.raises(RuntimeError, match="used already"), meter:
        pass
    with pytest.raises(ValueError, match="period_s=0 is not above 0"):
        world.meter(period_s=0)


happenings = st.one_of(
    st.tuples(st.just("pass"), st.floats(0.01, 8)),
    st.tuples(
        st.sampled_from(["sample", "window", "gpu fails", "gpu works", "driver reload", "suspend"]), st.just(0.0)
    ),
)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    gpu=st.lists(st.tuples(st.floats(0.05, 20), st.floats(5, 400)), min_size=1, max_size=8),
    cpu=st.lists(st.tuples(st.floats(0.05, 20), st.floats(5, 400)), min_size=1, max_size=8),
    tick_s=st.sampled_from([0.02, 0.1]),
    story=st.lists(happenings, max_size=25),
)
def test_whatever_happens_the_report_is_within_its_own_bounds(gpu, cpu, tick_s, story):
    """Truth lies within the uncertainty, plus what the power limit allows in the time that is reported as a gap."""

    def profile(steps):
        starts = [sum(width for width, _ in steps[:index]) for index in range(len(steps))]
        return Profile(*[(start, watts) for start, (_, watts) in zip(starts, steps, strict=True)])

    profiles = {"gpu": profile(gpu), "cpu": profile(cpu)}
    with TemporaryDirectory() as folder:
        zone = ("intel-rapl:0", "package-0", profiles["cpu"], {"max_range": 65_532_610_987, "start_uj": 65_532_000_000})
        world = World(Path(folder), [FakeGpu("GPU-a", profiles["gpu"], tick_s=tick_s, start_mj=9_000_000_000)], [zone])
        spans, window = [], None
        with world.meter() as meter:
            for what, seconds in [*story, ("pass", 5.0)]:
                if what == "pass":
                    world.advance(seconds)
                elif what == "sample":
                    meter.sample()
                elif what == "window" and window is None:
                    window, opened = meter.window("w"), world.time
                    window.__enter__()
                elif what == "window":
                    window.__exit__(None, None, None)
                    window = None
                    spans.append((opened, world.time))
                elif what == "driver reload":
                    world.nvml.gpus[0].counter_shift_mj -= 200_000_000  # more than any energy between
                elif what == "suspend":
                    world.clock.asleep_s += 60
                else:
                    world.nvml.gpus[0].faults = {"*": 999} if what == "gpu fails" else {}
            world.nvml.gpus[0].faults = {}
            if window is not None:
                window.__exit__(None, None, None)
                spans.append((opened, world.time))
        for reading, times in [(meter.reading, [(0, world.time)]), *((w, spans) for w in meter.windows.values())]:
            for kind, limit_w in [("gpu", 500.0), ("cpu", 1000.0)]:
                part, wanted_s = getattr(reading, kind), sum(end - start for start, end in times)
                truth_wh = sum(profiles[kind].between(*span) for span in times) / 3600
                if part.wh is None:
                    assert part.method == "unavailable"
                    continue
                assert part.wh >= 0
                assert 0 < part.coverage <= 1
                gap_wh = limit_w * (1 - part.coverage) * wanted_s / 3600
                assert part.wh <= truth_wh + part.uncertainty_wh + 1e-6
                assert part.wh >= truth_wh - part.uncertainty_wh - gap_wh - 1e-6
                if not {what for what, _ in story} & {"gpu fails", "driver reload", "suspend"}:
                    assert part.coverage == 1.0


@pytest.mark.parametrize("search", ["list_gpus", "find_zones", "find_hwmon", "diagnose", "_estimate_ram"])
def test_a_search_for_sensors_that_fails_is_a_note_and_the_work_goes_on(tmp_path, monkeypatch, search):
    def fails(*_):
        raise PermissionError(13, "Permission denied", "/sys/somewhere")

    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    monkeypatch.setattr(f"lorakit.power.devices.{search}", fails)
    with world.meter(out=tmp_path / "energy.jsonl") as meter:
        world.run(meter, 10)
    reading = meter.reading
    assert (reading.measured_wh, reading.estimated_wh, reading.duration_s) == (None, None, 10.0)
    why = "the search for sensors failed: PermissionError: [Errno 13] Permission denied: '/sys/somewhere'"
    assert {reading.gpu.source, reading.cpu.source, reading.ram.source} == {why}
    assert any(note.startswith(why) for note in reading.notes)


@pytest.mark.parametrize(
    "step",
    [
        "__init__",
        "measure_idle",
        "start",
        "open_window",
        "close_window",
        "refresh",
        "reading",
        "windows",
        "end",
        "finish",
    ],
)
def test_a_meter_that_fails_costs_the_energy_and_never_the_work(tmp_path, monkeypatch, caplog, step):
    """Whatever fails, the block runs to its end, and its times are right."""
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    done = []

    def fails(*_, **__):
        raise ZeroDivisionError("a surprise")

    monkeypatch.setattr(f"lorakit.energy.Session.{step}", fails)
    with world.meter(out=tmp_path / "energy.jsonl", idle_s=0.0 if step != "measure_idle" else 1.0) as meter:
        for name in ("one", "two"):
            with meter.window(name):
                world.advance(5)
            done.append(name)
        world.advance(5)
        meter.power_w(), meter.steadiness, meter.course
    reading, windows = meter.reading, meter.windows
    assert done == list(windows) == ["one", "two"]
    assert [part.duration_s for part in (reading, *windows.values())] == pytest.approx([15, 5, 5])
    assert (reading.measured_wh, reading.estimated_wh, windows["one"].measured_wh) == (None, None, None)
    assert reading.gpu.source == "the failed meter: ZeroDivisionError: a surprise"
    assert reading.notes == ("the meter failed: ZeroDivisionError: a surprise",)
    assert len(caplog.records) == 1 and "the work continues" in caplog.text
    assert world.nvml.sessions == 0


def test_the_error_of_the_work_passes_though_the_meter_fails_too(tmp_path, monkeypatch):
    world = World(tmp_path)
    monkeypatch.setattr("lorakit.energy.Session.finish", lambda *_: 1 / 0)
    with pytest.raises(KeyError, match="the work's"), world.meter() as meter:
        raise KeyError("the work's")
    assert meter.reading.errors == 1


def test_the_journal_of_a_meter_that_failed_ends_without_energy(tmp_path):
    """Otherwise a resumed run would take what was read before the failure for all of it."""
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    with world.meter(out=tmp_path / "energy.jsonl", out_every_s=1.0) as meter:
        world.run(meter, 30)
        meter._session.end = lambda **_: 1 / 0
    (run,) = read_journal(tmp_path / "energy.jsonl")
    assert run.complete and run.reading["measured_kwh"] is None
    (tmp_path / "again").mkdir()
    with World(tmp_path / "again", [FakeGpu("GPU-a", Profile((0, 100.0)))]).meter() as other:
        other._machine.clock.now += 10
    total = sum_readings([Reading.from_json(run.reading), other.reading])
    assert total.gpu.device_coverage == 0.5 and total.measured_wh == other.reading.measured_wh


def test_a_device_with_a_surprise_costs_its_own_reading_alone(tmp_path):
    world = World(tmp_path, [FakeGpu(name, Profile((0, 50.0))) for name in ("GPU-a", "GPU-b")])
    with world.meter() as meter:
        broken = meter._session.accumulator.devices[0].source
        broken.read = lambda: 1 / 0
        world.run(meter, 30)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(50 * 30, abs=10)
    assert "ZeroDivisionError: division by zero" in str(meter.reading.gpu.devices[0])


def test_who_else_uses_the_machine_may_stay_unknown(tmp_path, monkeypatch):
    def fails(*_):
        raise PermissionError(13, "Permission denied", "/proc/7")

    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    world.nvml.gpus[0].processes = [7]
    monkeypatch.setattr("lorakit.power.devices._strangers", fails)
    with world.meter() as meter:
        world.run(meter, 30)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(3000, abs=40)
    assert meter.reading.contention.gpu_processes is None
    (note,) = meter.reading.notes
    assert note.startswith("who else used the machine is not fully known: PermissionError: ")
