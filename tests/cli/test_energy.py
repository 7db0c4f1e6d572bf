"""`lorakit energy run | doctor | merge`."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from lorakit.cli.__main__ import main as lorakit_main
from lorakit.power.nvml import SensorUnavailable
from tests.support.energy_world import FakeGpu, FakeZone, Profile, World, write_meminfo

CLI = [sys.executable, "-m", "lorakit.cli", "energy"]


def main(words):
    """`lorakit energy …` in this process; returns the exit status."""
    return lorakit_main(["energy", *words])


def energy(*arguments, **options):
    return subprocess.run([*CLI, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)


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


def test_doctor_says_what_is_missing_and_how_to_enable_it(tmp_path, capsys):
    status = main(["doctor", "--seconds", "0.1", "--powercap", str(tmp_path / "none")])
    out = capsys.readouterr().out
    assert "GPU  " in out
    assert "CPU  " in out
    assert "enable: " in out
    assert status == (0 if "measured: " in out else 1)


def absent(_root, _patch):
    pass


def masked(root, _patch):
    (root / "intel-rapl:0").symlink_to(root / "hidden")


def denied(root, patch):
    FakeZone(root, "intel-rapl:0", "package-0")
    FakeZone(root, "intel-rapl:0:0", "dram")
    real = os.open

    def opened(path, *arguments, **options):
        if str(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    patch.setattr(os, "open", opened)


@pytest.mark.parametrize(
    ("tree", "fix"),
    [
        (absent, "sudo modprobe intel_rapl_msr"),
        (masked, "docker run --security-opt systempaths=unconfined -v {root}:{root}:ro ..."),
        (denied, "sudo chmod a+r {root}/intel-rapl*/energy_uj"),
    ],
)
def test_doctor_gives_each_answer_the_command_that_fixes_it(tmp_path, capsys, monkeypatch, tree, fix):
    root, proc = tmp_path / "powercap", tmp_path / "proc"
    root.mkdir()
    proc.mkdir()
    (proc / "cpuinfo").write_text("flags : fpu sse2\n")
    (proc / "stat").write_text("cpu  100 0 0 99999 0 0 0 0 0 0\n")
    write_meminfo(proc)
    tree(root, monkeypatch)
    assert main(["doctor", "--seconds", "0", "--powercap", str(root), "--proc", str(proc)]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith(f"{tree.__name__}: ") for line in lines)
    assert f"enable: {fix.format(root=root)}" in lines


def test_doctor_says_what_would_help_a_gpu_that_is_not_seen(tmp_path, capsys, monkeypatch):
    def closed(_nvml=None):
        raise SensorUnavailable("NVML: Insufficient Permissions", "ask for the group of /dev/nvidiactl")

    monkeypatch.setattr("lorakit.cli.energy.open_nvml", closed)
    monkeypatch.setattr("lorakit.power.devices.open_nvml", closed)
    assert main(["doctor", "--seconds", "0", "--powercap", str(tmp_path)]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("GPU  unavailable: NVML: Insufficient Permissions")
    assert lines[1] == "enable: ask for the group of /dev/nvidiactl"


def test_doctor_finds_a_counter(tmp_path, capsys):
    zone = FakeZone(tmp_path, "intel-rapl:0", "package-0")
    FakeZone(tmp_path, "intel-rapl:0:0", "core")
    real = zone.file.read_text

    def move(*_):
        zone.file.write_text(f"{int(real()) + 100_000}\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("threading.Event.wait", move)
        assert main(["doctor", "--powercap", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "CPU  measured: " in out
    assert "counted: intel-rapl:0 package-0" in out
    assert "not counted: intel-rapl:0:0 core: part of package-0" in out
    assert "this CPU has no DRAM counter" in out


@pytest.fixture
def world(tmp_path):
    gpus = [FakeGpu(f"GPU-{name}", Profile((0, 100.0))) for name in "ab"]
    return World(tmp_path, gpus, [("intel-rapl:0", "package-0", Profile((0, 50.0)))])


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
    assert total["duration_s"] == 10  # by the wall clock, which moved only once


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
