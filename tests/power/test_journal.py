"""The file that survives the process, and the sum of several runs."""

import json
import multiprocessing
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.power.journal import Journal, merge_runs, read_journal
from tests.support.energy_world import FakeGpu, Profile, World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))], [("intel-rapl:0", "package-0", Profile((0, 50.0)))])


def run(world, meter, seconds):
    """Let time pass with the sampler at work, which also writes."""
    for _ in range(seconds // 5):
        world.advance(5)
        meter.sample()


def test_finished_run_is_complete(world, tmp_path):
    path = tmp_path / "run.jsonl"
    with world.meter(out=path) as meter, meter.window("epoch 1"):
        run(world, meter, 30)
    (found,) = read_journal(path)
    assert found.complete
    assert found.error is None
    assert found.reading == json.loads(json.dumps(meter.reading.to_json()))
    assert found.windows == {"epoch 1": json.loads(json.dumps(meter.windows["epoch 1"].to_json()))}
    assert found.start["pid"] == os.getpid()


def test_every_prefix_of_the_file_gives_the_energy_so_far(world, tmp_path):
    path = tmp_path / "run.jsonl"
    with world.meter(out=path, out_every_s=10) as meter:
        with meter.window("epoch 1"):
            run(world, meter, 30)
        run(world, meter, 30)
    text = path.read_bytes()
    wh = []
    for length in range(text.index(b"\n") + 1, len(text) - 1, 97):
        path.write_bytes(text[:length])
        (found,) = read_journal(path)
        assert not found.complete
        wh.append(0.0 if found.reading is None else found.reading["measured_kwh"] * 1e3)
    assert wh == sorted(wh)
    assert wh[-1] * 3600 == pytest.approx(150 * 60, abs=0.01)
    assert found.windows["epoch 1"]["measured_kwh"] * 3.6e6 == pytest.approx(150 * 30, abs=0.01)


def test_two_runs_may_share_a_file(world, tmp_path):
    path = tmp_path / "run.jsonl"
    for seconds in (10, 20):
        world.clock.now += 1
        with world.meter(out=path) as meter:
            run(world, meter, seconds)
    assert [found.reading["duration_s"] for found in read_journal(path)] == [10, 20]


def test_queued_lines_come_before_the_next_and_the_last_line_replaces_them(tmp_path):
    journal = Journal(tmp_path / "j", "r")
    journal.queue("window", {"name": "a"})
    assert not (tmp_path / "j").exists()
    journal.write("reading", {})
    journal.queue("window", {"name": "b"})
    journal.write("end", {})
    lines = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert [line["type"] for line in lines] == ["window", "reading", "end"]


def test_line_after_a_cut_one_stands_alone(tmp_path, monkeypatch, caplog):
    journal = Journal(tmp_path / "j", "r")
    real = os.write
    journal.write("start", {"host": "h", "boot_id": "b", "pid": 1, "boottime_s": 0.0, "wall_s": 0.0})
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:20]))  # the disk is nearly full
    journal.write("reading", {"reading": {}, "boottime_s": 1, "wall_s": 1})
    monkeypatch.undo()
    journal.write("reading", {"reading": {"n": 2}, "boottime_s": 2, "wall_s": 2})
    (found,) = read_journal(tmp_path / "j")
    assert found.reading == {"n": 2}
    assert caplog.text.count("the disk is full") == 1


def test_full_or_read_only_disk_costs_one_warning(world, tmp_path, monkeypatch, caplog):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    with world.meter(out=tmp_path / "run.jsonl", out_every_s=5) as meter:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            run(world, meter, 60)
    assert meter.reading.gpu.wh * 3600 == pytest.approx(6000, abs=0.01)
    assert caplog.text.count("No space left on device") == 1
    with world.meter(out=tmp_path / "missing" / "run.jsonl") as meter:
        run(world, meter, 10)
    assert "No such file or directory" in caplog.text


def test_failed_block_is_reported(world, tmp_path):
    with pytest.raises(ZeroDivisionError), world.meter(out=tmp_path / "j") as meter:
        run(world, meter, 10)
        _ = 1 / 0
    (found,) = read_journal(tmp_path / "j")
    assert (found.complete, found.error) == (True, "ZeroDivisionError")


def test_forked_child_writes_nothing(tmp_path):
    journal = Journal(tmp_path / "j", "r")
    child = os.fork()
    if child == 0:
        journal.write("reading", {"reading": {}})
        os._exit(0)
    os.waitpid(child, 0)
    assert not (tmp_path / "j").exists()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x").write_text('{"a": 1}\nnot json\n[3]\n')
    with pytest.raises(ValueError, match="holds no energy readings"):
        read_journal(tmp_path / "x")


def write_many(path, name):
    journal = Journal(path, name)
    for count in range(100):
        journal.write("reading", {"reading": {"n": count, "filling": name * 2000}, "boottime_s": 1, "wall_s": 1})


def test_processes_that_append_at_once_cut_no_line(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(tmp_path / "j", name)) for name in "abcd"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted((run.run, run.reading["n"]) for run in read_journal(tmp_path / "j")) == [(n, 99) for n in "abcd"]
    assert len((tmp_path / "j").read_text().splitlines()) == 400


@settings(deadline=None, max_examples=60, derandomize=True)
@given(data=st.data())
def test_damaged_journal_is_one_clear_error(tmp_path_factory, data):
    """Any key of any line, at the top or in the reading, missing or of the wrong type: a ValueError or a valid sum."""
    folder = tmp_path_factory.mktemp("j")
    world = World(folder, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    with world.meter(out=folder / "j") as meter:
        world.run(meter, 10)
    lines = [json.loads(line) for line in (folder / "j").read_text().splitlines()]
    part = data.draw(st.sampled_from(lines))
    if "reading" in part and data.draw(st.booleans()):
        part = part["reading"]
    key = data.draw(st.sampled_from(sorted(part)))
    if data.draw(st.booleans()):
        del part[key]
    else:
        part[key] = data.draw(st.sampled_from([None, 3, "x", [], {}, [3], {"x": 1}]))
    (folder / "j").write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        merge_runs([(folder / "j", run) for run in read_journal(folder / "j")])
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("jump_s", [86_400, -86_400])
def test_a_clock_that_is_set_between_two_runs_changes_no_duration_or_power(tmp_path, world, jump_s):
    path = tmp_path / "run.jsonl"
    for _ in range(2):
        with world.meter(out=path) as meter:
            run(world, meter, 30)
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    second = lines[-1]["run"]
    for line in lines:
        if line["run"] == second and "wall_s" in line:
            line["wall_s"] += jump_s
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    total = merge_runs([(path, part) for part in read_journal(path)])
    assert total.duration_s == pytest.approx(60)
    assert total.gpu.mean_w == pytest.approx(100, rel=0.02)
