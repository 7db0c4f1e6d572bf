"""`lorakit energy run | doctor | merge | calibrate`."""

import csv
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from lorakit.cli.__main__ import main as lorakit_main
from lorakit.cli.energy import cool_down_s
from lorakit.cli.energy_doctor import CALIBRATE, find_fixes, summarize
from lorakit.cli.energy_report import CODECARBON, Carbon, append_csv, check_csv, csv_row, prometheus, report
from lorakit.energy import EnergyMeter
from lorakit.power.calibration import calibration_file, load_calibration, machine_name
from lorakit.power.nvml import SensorUnavailable
from lorakit.power.rapl_access import Access
from lorakit.power.reading import Measurement, Reading
from tests.support.energy_world import OPEN, FakeGpu, FakeZone, Profile, World, deny, write_meminfo

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


@pytest.mark.parametrize("step", ["__enter__", "__exit__"])
def test_run_passes_the_status_on_though_the_meter_fails(tmp_path, capfd, monkeypatch, step):
    real = getattr(EnergyMeter, step)

    def fails(meter, *error):
        if step == "__exit__":
            real(meter, *error)  # else its thread stays for the tests that follow
        raise PermissionError(13, "Permission denied", "sensor")

    monkeypatch.setattr(EnergyMeter, step, fails)
    status = main(["run", "--json", str(tmp_path / "r.json"), "--", "sh", "-c", "echo it ran; exit 5"])
    out, err = capfd.readouterr()
    assert (status, out) == (5, "it ran\n")
    assert "the energy was not measured: PermissionError: [Errno 13] Permission denied: 'sensor'" in err
    assert not (tmp_path / "r.json").exists()


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


def close_gpus(monkeypatch, reason="NVML: not found", fix="there is no NVIDIA GPU on the PCI bus"):
    def closed(_nvml=None):
        raise SensorUnavailable(reason, fix)

    monkeypatch.setattr("lorakit.cli.energy_doctor.open_nvml", closed)
    monkeypatch.setattr("lorakit.power.devices.open_nvml", closed)


def test_doctor_says_what_would_help_a_gpu_that_is_not_seen(tmp_path, capsys, monkeypatch):
    close_gpus(monkeypatch, "NVML: Insufficient Permissions", "ask for the group of /dev/nvidiactl")
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


def test_doctor_names_a_counter_that_can_be_read_but_stands_still(tmp_path, capsys):
    FakeZone(tmp_path, "intel-rapl:0", "package-0")
    assert main(["doctor", "--seconds", "0.1", "--powercap", str(tmp_path)]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("broken: intel-rapl:0: counter stands still") for line in lines)
    assert "enable:" not in lines
    assert not any(line.startswith("measured: 1 package zone") for line in lines)


def test_doctor_ends_with_what_is_measured_how_well_and_the_best_command(tmp_path, capsys, monkeypatch):
    close_gpus(monkeypatch)
    zone = FakeZone(tmp_path, "intel-rapl:0", "package-0")

    def last_line():
        main(["doctor", "--seconds", "0.2", "--powercap", str(tmp_path)])
        return capsys.readouterr().out.splitlines()[-1]

    deny(monkeypatch)
    assert last_line().startswith("This machine measures no energy and estimates CPU and RAM between ")
    assert last_line().endswith(f"; what improves it most: sudo chmod a+r {tmp_path}/intel-rapl*/energy_uj")
    monkeypatch.setattr(os, "open", OPEN)
    real = zone.file.read_text

    def work(*_):
        time.sleep(0.05)
        zone.file.write_text(f"{int(real()) + 4_000_000}\n")

    monkeypatch.setattr("threading.Event.wait", work)
    line = last_line()
    assert line.startswith("This machine measures CPU (counter), to ±2% in windows of ")
    assert line.endswith(" W; nothing needs to be enabled")


def test_doctor_advises_a_wall_meter_where_no_command_helps(tmp_path, capsys, monkeypatch):
    close_gpus(monkeypatch)
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cpuinfo").write_text("flags : fpu hypervisor\n")
    (proc / "stat").write_text("cpu  100 0 0 99999 0 0 0 0 0 0\n")
    write_meminfo(proc)
    assert main(["doctor", "--seconds", "0", "--powercap", str(tmp_path / "none"), "--proc", str(proc)]) == 1
    assert capsys.readouterr().out.endswith(
        "; what improves it most: measure on the host, or, if this machine has its host to itself, lorakit energy "
        "calibrate --idle W --load W\n"
    )


def test_doctor_says_that_one_of_two_packages_is_denied_and_how_to_enable_it(tmp_path, capsys, monkeypatch):
    close_gpus(monkeypatch)
    zones = [FakeZone(tmp_path, f"intel-rapl:{k}", f"package-{k}") for k in (0, 1)]
    deny(monkeypatch, ["*rapl:1/energy_uj"])
    monkeypatch.setattr("threading.Event.wait", lambda *_: zones[0].file.write_text("1100000\n"))
    assert main(["doctor", "--powercap", str(tmp_path)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    fix = f"sudo chmod a+r {tmp_path}/intel-rapl*/energy_uj"
    assert [line.strip() for line in lines if "enable" in line][0] == f"enable: {fix}"
    assert "     measured: 1 of 2 package zones" in lines
    assert "measures CPU (counter, 1 of 2 devices)" in last and last.endswith(f"; what improves it most: {fix}")


VM = "measure on the host, or, if this machine has its host to itself, " + CALIBRATE


@pytest.mark.parametrize(
    ("fix", "tree", "best"),
    [
        ("Jetson: NVML has no power reading for its GPU", "denied", "sudo chmod a+r {root}/intel-rapl*/energy_uj"),
        ("Jetson: NVML has no power reading for its GPU", "vm", VM),
        ("there is no NVIDIA GPU on the PCI bus", "vm", VM),
        ("pip install nvidia-ml-py if there is a GPU", "vm", VM),
        ("pip install nvidia-ml-py if there is a GPU", "denied", "sudo chmod a+r {root}/intel-rapl*/energy_uj"),
        ("pip install nvidia-ml-py", "denied", "pip install nvidia-ml-py"),
        ("pip install nvidia-ml-py", "vm", "pip install nvidia-ml-py"),
    ],
)
def test_doctors_last_sentence_names_what_improves_most_and_nothing_that_may_not_help(
    tmp_path, capsys, monkeypatch, fix, tree, best
):
    close_gpus(monkeypatch, "pynvml cannot be imported", fix)
    proc, root = tmp_path / "proc", tmp_path / "powercap"
    proc.mkdir()
    root.mkdir()
    (proc / "cpuinfo").write_text("flags : fpu hypervisor\n")
    (proc / "stat").write_text("cpu  100 0 0 99999 0 0 0 0 0 0\n")
    write_meminfo(proc)
    if tree == "denied":
        denied(root, monkeypatch)
    assert main(["doctor", "--seconds", "0", "--powercap", str(root), "--proc", str(proc)]) == 1
    text = capsys.readouterr().out
    assert text.endswith(f"; what improves it most: {best.format(root=root)}\n")
    assert fix in text and "enable: Jetson" not in text


def closed_dram(zone, patch):
    deny(patch, ["*rapl:0:2/energy_uj"])


def emptied_range(zone, _patch):
    (zone.path / "max_energy_range_uj").write_text("")


def frozen(_zone, _patch):
    pass


@pytest.mark.parametrize(
    ("fault", "advice", "best"),
    [
        (
            closed_dram,
            [
                "denied: {root}/intel-rapl:0:2/energy_uj may be read by root only (CVE-2020-8694), so RAM stays an "
                "estimate",
                "enable: sudo chmod a+r {root}/intel-rapl*/energy_uj",
            ],
            "what improves it most: sudo chmod a+r {root}/intel-rapl*/energy_uj",
        ),
        (
            emptied_range,
            [
                "broken: the counter of dram cannot be read: {root}/intel-rapl:0:2/max_energy_range_uj "
                "holds '', not a count of microjoules, so RAM stays an estimate; sudo dmesg | grep -i rapl shows what "
                "the driver says"
            ],
            "nothing needs to be enabled",
        ),
        (frozen, ["broken: intel-rapl:0:2: counter stands still"], "nothing needs to be enabled"),
    ],
)
def test_doctor_tells_a_dram_counter_that_is_not_read_from_none(tmp_path, capsys, monkeypatch, fault, advice, best):
    close_gpus(monkeypatch)
    package = FakeZone(tmp_path, "intel-rapl:0", "package-0")
    fault(FakeZone(tmp_path, "intel-rapl:0:2", "dram"), monkeypatch)

    def work(*_):
        time.sleep(0.1)  # long enough to tell a counter that stands still
        package.file.write_text("1100000\n")

    monkeypatch.setattr("threading.Event.wait", work)
    assert main(["doctor", "--powercap", str(tmp_path), "--json", str(tmp_path / "d.json")]) == 0
    text = capsys.readouterr().out
    record = json.loads((tmp_path / "d.json").read_text())
    lines = record["advice"]["ram"]
    assert len(lines) == len(advice)
    assert all(line.startswith(part.format(root=tmp_path)) for line, part in zip(lines, advice, strict=True))
    assert ("so RAM stays an estimate" in text) == (record["ram"]["method"] == "estimated") == (fault is not frozen)
    assert "no DRAM counter" not in text
    assert text.rstrip().endswith(best.format(root=tmp_path))


def test_doctor_counts_a_servers_own_meter_and_names_the_command_for_a_closed_gpu(tmp_path, monkeypatch):
    world = World(tmp_path)
    world.nvml.init_fault = 12
    for name, files in {
        "hwmon0": {"name": "power_meter", "power1_average": "350000000"},
        "hwmon1": {"name": "amdgpu", "power1_average": "50000000"},
    }.items():
        (tmp_path / "hwmon" / name).mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / "hwmon" / name / file).write_text(f"{text}\n")
    deny(monkeypatch, ["*/hwmon1/power1_average"])
    with world.meter() as meter:
        world.run(meter, 10, every_s=1.0)
    fixes = find_fixes(meter.reading, *[Access("absent", "no RAPL", "sudo modprobe intel_rapl_msr")] * 2)
    fix = f"sudo chmod a+r {tmp_path}/hwmon/hwmon1/power1_average"
    assert fixes["gpu"] == [f"enable: {fix}"]
    line = summarize(meter.reading, fixes)
    assert line.startswith(
        "This machine measures no energy of its parts, but the whole machine by its own power meter and estimates CPU"
    )
    assert line.endswith(f"; what improves it most: {fix}")


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


def test_doctor_gives_no_remedy_where_there_is_no_gpu_and_the_same_as_json(tmp_path, capsys, monkeypatch):
    close_gpus(monkeypatch)
    words = ["doctor", "--seconds", "0", "--powercap", str(tmp_path / "none")]
    status = main(words)
    text = capsys.readouterr().out
    assert "enable: there is no" not in text
    assert "enable: what enables the CPU, whose RAPL counts DRAM too" in text
    assert main([*words, "--json", "-"]) == status
    record = json.loads(capsys.readouterr().out)
    for lines in record["advice"].values():
        assert all(line in text for line in lines)
    assert record["advice"]["cpu"] and record["cpu"]["method"] in text
    assert record["measured_kwh"] is None if status else record["measured_kwh"] > 0


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


# ---- what a figure is for


def measured_reading():
    gpu = Measurement("counter", wh=200.0, mean_w=240.0, source="NVML", uncertainty_wh=0.5, devices=())
    cpu = Measurement("estimated", wh=50.0, mean_w=60.0, source="s", range_wh=(8.0, 79.0))
    return Reading(gpu, cpu, Measurement("unavailable", source="no counter"), duration_s=3000.0, process_share=0.5)


def test_sci_is_energy_times_intensity_plus_embodied_per_unit():
    text = report(measured_reading(), Carbon(400.0, embodied_g=20.0, units=1000.0))
    assert "measured in total: 200 Wh ± 0.5 Wh" in text
    assert "SCI (ISO 21031) of the measured part: 0.1 g of CO2 per unit = (80 g for energy + 20 g embodied)" in text
    for wrong in ({"units": 5.0}, {"grams_per_kwh": 1.0, "units": 5.0}, {"embodied_g": 3.0}):
        with pytest.raises(ValueError, match="--sci"):
            Carbon(**wrong)


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


def test_csv_on_a_file_system_without_locks_is_refused_before_anything_runs(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert main(["run", "--csv", str(tmp_path / "e.csv"), "--", "touch", str(tmp_path / "ran")]) == 2
    assert "cannot be locked against other processes (No locks available); give a file on a local disk" in (
        capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []


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
    text = prometheus(measured_reading())
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['lorakit_energy_joules{part="gpu",method="counter"}']) == 720_000
    assert float(samples['lorakit_energy_high_joules{part="cpu",method="estimated"}']) == 79 * 3600
    assert float(samples["lorakit_measured_energy_joules"]) == 720_000
    assert 'part="ram"' not in text
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) and text.endswith("\n")


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


# ---- what newcomers do


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


def test_doctor_refuses_a_proc_that_is_no_folder_and_names_what_an_empty_one_lacks(tmp_path, capsys, monkeypatch):
    close_gpus(monkeypatch)
    assert main(["doctor", "--proc", str(tmp_path / "none")]) == 2
    assert "is not a folder; give the kernel's /proc" in capsys.readouterr().err
    flags = ["--seconds", "0", "--powercap", str(tmp_path), "--proc", str(tmp_path)]
    assert main(["doctor", *flags]) == 1
    assert f"no estimate either: {tmp_path / 'stat'}: No such file or directory" in capsys.readouterr().out


def test_doctor_tells_a_file_under_dev_null_from_a_broken_counter(tmp_path, capsys, monkeypatch):
    """Container runtimes mask single files by mounting /dev/null over them: they can be read and hold nothing."""
    close_gpus(monkeypatch)
    zone = FakeZone(tmp_path / "powercap", "intel-rapl:0", "package-0")
    zone.file.write_text("")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    flags = ["--seconds", "0", "--powercap", str(tmp_path / "powercap"), "--proc", str(tmp_path / "proc")]
    assert main(["doctor", *flags]) == 1
    assert "     absent: the counter of package-0 cannot be read" in capsys.readouterr().out
    mounted = f"36 35 0:5 /null {zone.file} ro - devtmpfs devtmpfs rw\n"
    (tmp_path / "proc" / "self" / "mountinfo").write_text(mounted)
    assert main(["doctor", *flags]) == 1
    out = capsys.readouterr().out
    assert "     masked: the counter of package-0 cannot be read" in out
    assert f"enable: docker run --security-opt systempaths=unconfined -v {tmp_path / 'powercap'}:" in out


def test_a_reading_before_any_time_has_passed_can_be_printed(tmp_path):
    world = World(tmp_path, [FakeGpu("GPU-a", Profile((0, 100.0)))])
    with world.meter() as meter:
        text = report(meter.reading, Carbon(400.0))
    assert "RAM: 0 Wh, estimated (" in text and "None" not in text
    assert prometheus(meter.reading) and csv_row(meter.reading, "x", Carbon(400.0))


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
