"""`lorakit energy run | merge | calibrate`."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from lorakit.cli.energy import cool_down_s
from lorakit.cli.energy_doctor import CALIBRATE
from lorakit.power.calibration import calibration_file, load_calibration, machine_name
from tests.support.energy_command import CLI, close_gpus, energy, main
from tests.support.energy_world import FakeGpu, Profile, World


def test_run_passes_output_input_and_status_through(tmp_path):
    code = "import sys; print(sys.stdin.read().upper(), end=''); sys.exit(7)"
    done = energy("run", "--json", tmp_path / "r.json", "--", sys.executable, "-c", code, input="hello\n")
    assert done.returncode == 7
    assert done.stdout == "HELLO\n"
    assert "energy over" in done.stderr
    assert "meanwhile: other processes used" in done.stderr
    assert "measured in total: nothing" in done.stderr or "Wh" in done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["exit_status"] == 7
    assert result["command"][0] == sys.executable
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_run_leaves_stdout_alone_byte_for_byte_even_with_stderr_closed():
    code = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 1000)"
    for close_stderr in (False, True):
        done = subprocess.run(
            [*CLI, "run", "--", sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=None if close_stderr else subprocess.DEVNULL,
            preexec_fn=(lambda: os.close(2)) if close_stderr else None,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (0, bytes(range(256)) * 1000)


def test_run_leaves_ignored_signals_ignored_for_the_command():
    """As under nohup: the terminal's end must not end the training."""
    code = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    done = energy(
        "run", "--", sys.executable, "-c", code, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    assert done.stdout == "True\n"


COUNTS_INTERRUPTS = """
import pathlib, signal, sys, time
folder, count = pathlib.Path(sys.argv[1]), 0
def interrupted(*_):
    global count
    count += 1
signal.signal(signal.SIGINT, interrupted)
(folder / "up").touch()
end = time.monotonic() + 20
while not count and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.8)  # a second one would come now
(folder / "count").write_text(str(count))
sys.exit(3)
"""


SLOW_TO_PASS_ON = """
import os, sys, time
from lorakit.cli.__main__ import main
kill = os.kill
os.kill = lambda *arguments: (time.sleep(0.2), kill(*arguments))  # two that come at once would be one
sys.exit(main(["energy", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("sender", ["the terminal", "kill"])
def test_an_interrupt_reaches_the_command_once_whoever_sends_it(tmp_path, sender):
    """Ctrl-C goes to the whole foreground group, a kill to one process; under a terminal both must arrive, once."""
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # it is ignored where the tests run in the background
        command = [sys.executable, "-c", COUNTS_INTERRUPTS, str(tmp_path)]
        os.execv(sys.executable, [sys.executable, "-c", SLOW_TO_PASS_ON, "run", "--", *command])
    try:
        end = time.monotonic() + 30
        while not (tmp_path / "up").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        if sender == "kill":
            os.kill(child, signal.SIGINT)
        else:
            os.write(terminal, b"\x03")
        shown = read_all(terminal)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(terminal)
    assert (tmp_path / "count").read_text() == "1"
    assert status == 3
    assert b"energy over" in shown


def read_all(terminal):
    shown = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # EIO: nobody is left at the other end
            return shown
        if not part:
            return shown
        shown += part


def test_the_command_gets_the_signal_mask_and_actions_of_a_shell():
    code = (
        "import signal, sys; masked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "print(masked, signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    done = energy(
        "run", "--", sys.executable, "-c", code, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    assert done.stdout == "[] True\n"
    ignored = energy("run", "--", "sh", "-c", "grep SigIgn /proc/self/status").stdout.split()[1]
    assert int(ignored, 16) & 1 << (signal.SIGPIPE - 1) == 0  # Python itself ignores it


def test_run_works_where_children_are_reaped_by_the_system():
    done = energy("run", "--", "sh", "-c", "exit 6", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert done.returncode == 6


def test_run_passes_the_status_on_though_the_result_cannot_be_written(tmp_path):
    (tmp_path / "gone").mkdir()
    done = energy("run", "--json", tmp_path / "gone" / "r.json", "--", "sh", "-c", f"rmdir {tmp_path / 'gone'}; exit 5")
    assert done.returncode == 5
    assert "was not written: " in done.stderr


@pytest.mark.parametrize("step", ["start", "finish"])
def test_run_passes_the_status_on_though_the_meter_fails(tmp_path, capfd, monkeypatch, step):
    def fails(*_):
        raise PermissionError(13, "Permission denied", "sensor")

    monkeypatch.setattr(f"lorakit.energy.Session.{step}", fails)
    status = main(["run", "--json", str(tmp_path / "r.json"), "--", "sh", "-c", "echo it ran; exit 5"])
    out, err = capfd.readouterr()
    assert (status, out) == (5, "it ran\n")
    assert "note: the meter failed: PermissionError: [Errno 13] Permission denied: 'sensor'" in err
    record = json.loads((tmp_path / "r.json").read_text())
    assert (record["exit_status"], record["measured_kwh"], record["estimated_kwh"]) == (5, None, None)


def test_run_counts_the_childrens_cpu_time(tmp_path):
    busy = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    done = energy("run", "--json", tmp_path / "r.json", sys.executable, "-c", busy)
    assert done.returncode == 0
    result = json.loads((tmp_path / "r.json").read_text())
    machine_s = (
        os.cpu_count() * result["duration_s"]
    )  # an upper bound for the CPU time of the machine, whatever its load
    assert result["cpu"]["process_share"] * machine_s >= 0.45


def test_run_gives_a_signals_status_and_passes_signals_on(tmp_path):
    assert energy("run", "--", "sh", "-c", "kill -9 $$").returncode == 128 + 9
    marker = tmp_path / "up"
    child = "import signal, sys, time, pathlib\nsignal.signal(15, lambda *_: sys.exit(42))\n"
    child += f"pathlib.Path({str(marker)!r}).touch()\ntime.sleep(60)"
    process = subprocess.Popen([*CLI, "run", "--", sys.executable, "-c", child], stderr=subprocess.PIPE, text=True)
    while not marker.exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, report = process.communicate(timeout=30)
    assert process.returncode == 42
    assert "energy over" in report


def test_run_refuses_bad_input_in_one_line_before_it_runs_anything(tmp_path):
    script = tmp_path.parent / f"{tmp_path.name}.sh"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    for arguments, status, words in [
        (["run", "--", script], 127, "cannot be run: [Errno 2]"),
        (["run"], 2, "no command is given"),
        (
            ["run", "--json", "-", "--", "touch", tmp_path / "ran"],
            2,
            "standard output belongs to the command; give a file",
        ),
        (["run", "--json", tmp_path / "no" / "r.json", "--", "touch", tmp_path / "ran"], 2, "cannot be written"),
        (
            ["run", "--out", tmp_path / "no" / "e.jsonl", "--", "touch", tmp_path / "ran"],
            2,
            "give a file in a folder that",
        ),
        (["run", "--out", tmp_path, "--", "touch", tmp_path / "ran"], 2, "is a folder; give a file"),
        (["run", "--out", "/proc/e.jsonl", "--", "touch", tmp_path / "ran"], 2, "cannot be written"),
        (["run", "--", "no-such-command-here"], 127, "no-such-command-here: not found"),
        (["run", "--", tmp_path], 126, "permission denied"),
        (["merge", tmp_path / "none.jsonl"], 2, "No such file"),
    ]:
        done = energy(*arguments)
        assert done.returncode == status
        (line,) = done.stderr.splitlines()
        assert words in line
        assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def journal(world, path, seconds, boot="boot-1", **environ):
    (world.proc / "sys/kernel/random").mkdir(parents=True, exist_ok=True)
    (world.proc / "sys/kernel/random/boot_id").write_text(boot)
    with world.meter(out=path, environ=environ) as meter:
        world.clock.wall_s += seconds
        world.run(meter, seconds)
    return meter.reading


def test_merge_adds_runs_that_follow_each_other(world, tmp_path, capsys):
    first = journal(world, tmp_path / "1.jsonl", 10)
    second = journal(world, tmp_path / "2.jsonl", 20)
    assert main(["merge", *(str(tmp_path / f"{k}.jsonl") for k in (1, 2)), "--json", str(tmp_path / "sum.json")]) == 0
    total = json.loads((tmp_path / "sum.json").read_text())
    assert total["measured_kwh"] * 1e3 == pytest.approx(first.measured_wh + second.measured_wh)
    assert total["duration_s"] == pytest.approx(30)
    assert total["gpu"]["mean_w"] == pytest.approx(200, rel=0.01)
    assert total["complete"] is True
    assert "measured in total" in capsys.readouterr().out


def overlapping(world, tmp_path, **second):
    """Two meters at the same time: the second run starts and ends inside the first."""
    paths = [str(tmp_path / "1.jsonl"), str(tmp_path / "2.jsonl")]
    with world.meter(out=paths[0], environ={"CUDA_VISIBLE_DEVICES": "0"}) as meter:
        world.run(meter, 5)
        journal(world, paths[1], 10, **second)
    return paths


def test_merge_refuses_to_count_a_device_twice(world, tmp_path, capsys):
    (world.proc / "sys/kernel/random").mkdir(parents=True)
    (world.proc / "sys/kernel/random/boot_id").write_text("boot-1")
    paths = overlapping(world, tmp_path)
    assert main(["merge", *paths]) == 2
    assert "GPU-a of " in (error := capsys.readouterr().err)
    assert "over the same 10.0 s: merge only one of them" in error
    assert main(["merge", paths[0], paths[0]]) == 2


def test_merge_of_two_nodes_adds_equal_zone_names(world, tmp_path):
    (world.proc / "sys/kernel/random").mkdir(parents=True)
    (world.proc / "sys/kernel/random/boot_id").write_text("boot-1")
    paths = overlapping(world, tmp_path, boot="boot-2")  # another machine, whose package has the same name
    assert main(["merge", *paths, "--json", str(tmp_path / "sum.json")]) == 0
    total = json.loads((tmp_path / "sum.json").read_text())
    assert total["cpu"]["kwh"] * 3.6e6 == pytest.approx(50 * 15 + 50 * 10, abs=0.01)
    assert total["duration_s"] == 15


def test_merge_says_which_run_was_killed(world, tmp_path, capsys):
    journal(world, tmp_path / "1.jsonl", 10)
    lines = (tmp_path / "1.jsonl").read_text().splitlines(keepends=True)
    end = json.loads(lines[-1])
    (tmp_path / "1.jsonl").write_text(lines[0] + json.dumps({**end, "type": "reading"}) + "\n")
    assert main(["merge", str(tmp_path / "1.jsonl")]) == 0
    assert "incomplete: ended without its last line" in capsys.readouterr().out
    (tmp_path / "1.jsonl").write_text(lines[0])
    assert main(["merge", str(tmp_path / "1.jsonl")]) == 2
    assert "ended before its first reading; leave it out" in capsys.readouterr().err


def test_cli_needs_no_torch():
    code = "import sys\nfrom lorakit.cli.__main__ import main\nmain(['energy', 'run', '--', 'true'])\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL, env=os.environ)


def test_csv_on_a_file_system_without_locks_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert main(["run", "--csv", str(tmp_path / "e.csv"), "--", "touch", str(tmp_path / "ran")]) == 2
    assert "cannot be locked against other processes (No locks available); give a file on a local disk" in (
        capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


def test_run_writes_csv_and_prometheus_and_refuses_what_does_not_fit_before_it_runs(tmp_path):
    files = {flag: tmp_path / flag for flag in ("csv", "prometheus")}
    flags = [word for flag, path in files.items() for word in (f"--{flag}", path)]
    done = energy("run", *flags, "--", "true")
    assert done.returncode == 0
    assert files["csv"].read_text().count("\n") == 2
    assert "lorakit_duration_seconds " in files["prometheus"].read_text()
    files["csv"].write_text("a,b\n")
    done = energy("run", *flags, "--", "touch", tmp_path / "ran")
    assert (done.returncode, (tmp_path / "ran").exists()) == (2, False)
    assert "--csv" in done.stderr and len(done.stderr.splitlines()) == 1
    done = energy("run", "--sci", "5", "--", "touch", tmp_path / "ran")
    assert (done.returncode, (tmp_path / "ran").exists()) == (2, False)


def test_cool_down_ends_at_the_idle_power(tmp_path, monkeypatch):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 60.0), (40, 300.0), (100, 150.0), (105, 60.0)))])
    idle = {"GPU-a": (60.0, 0.5)}
    with world.meter(idle=idle) as meter:
        world.advance(40)
        world.run(meter, 60)
    monkeypatch.setattr("threading.Event.wait", lambda *_: world.advance(1))
    assert cool_down_s(meter, 30) == pytest.approx(6, abs=1)
    with world.meter(idle={"GPU-a": (30.0, 0.5)}) as meter:
        world.run(meter, 5)
    assert cool_down_s(meter, 5) is None


def test_calibrate_replaces_the_generic_estimate_and_refuses_nonsense(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert main(["calibrate", "--idle", "90", "--load", "50"]) == 2
    assert main(["calibrate", "--idle", "38", "--load", "92", "--error", "150"]) == 2
    assert "the meter's error of 150% and" in capsys.readouterr().err
    assert not (tmp_path / "config").exists()
    assert main(["calibrate", "--idle", "38", "38.4", "--load", "92"]) == 0
    assert "at half load between 63.5 and 94.3 W" in capsys.readouterr().out
    close_gpus(monkeypatch)
    main(["doctor", "--seconds", "0", "--powercap", str(tmp_path / "none")])
    out = capsys.readouterr().out
    assert "38.2 to 92 W for the whole machine by a wall-outlet meter" in out
    assert "estimates itself, as calibrated, between " in out
    assert CALIBRATE not in out and "what enables the CPU" not in out  # it has been followed


@pytest.mark.parametrize("watts", [["0.038", "0.092"], ["38000", "92000"], ["0", "92"], ["38", "9200000"]])
def test_calibrate_refuses_readings_in_another_unit(tmp_path, capsys, monkeypatch, watts):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert main(["calibrate", "--idle", watts[0], "--load", watts[1]]) == 2
    err = capsys.readouterr().err
    assert "is not what a computer draws; give W, from 0.5 to 20000 (1 kW is 1000 W)" in err
    assert len(err.splitlines()) == 1 and not (tmp_path / "config").exists()


def test_calibrate_says_how_to_go_back_and_that_works(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "a folder"))
    assert main(["calibrate", "--idle", "38", "--load", "92"]) == 0
    undo = capsys.readouterr().out.splitlines()[-1].partition(": ")[2]
    subprocess.run(undo, shell=True, check=True)
    assert load_calibration(calibration_file(os.environ), machine_name()) == (None, "")


@pytest.mark.parametrize("factor", ["0.4", "400000", "-1", "nan"])
def test_co2_in_another_unit_is_refused_before_anything_runs(tmp_path, capsys, factor):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--co2", factor, "--", "touch", str(tmp_path / "ran")])
    assert ended.value.code == 2 and not (tmp_path / "ran").exists()
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and ("(0.4 kg per kWh is 400), or 0" in err or "not a number" in err)
    for accepted in ("0", "400"):
        assert main(["run", "--co2", accepted, "--", "true"]) == 0


def test_two_flags_with_one_file_are_refused_and_none_is_lost(tmp_path, capsys):
    path = tmp_path / "energy"
    assert main(["run", "--json", str(path), "--out", f"{tmp_path}/../{tmp_path.name}/energy", "--", "true"]) == 2
    assert "--json and --out name the same file" in capsys.readouterr().err
    assert not path.exists()


def test_merge_of_what_is_no_journal_says_what_to_give(tmp_path, capsys):
    assert main(["run", "--json", str(tmp_path / "sum.json"), "--", "true"]) == 0
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "sum.json")]) == 2
    assert "give a file that `lorakit energy run --out` or EnergyMeter(out=...) wrote" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "nothing")]) == 2
    assert (
        capsys.readouterr().err == f"lorakit energy merge: error: {tmp_path / 'nothing'}: No such file or directory\n"
    )
