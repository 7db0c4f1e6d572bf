"""`lorakit energy doctor`: what this machine can measure, and what enables the rest."""

import json
import os
import time

import pytest

from lorakit.cli.energy_doctor import CALIBRATE, find_fixes, summarize
from lorakit.power.rapl_access import Access
from tests.support.energy_command import close_gpus, main
from tests.support.energy_world import OPEN, FakeZone, World, deny, write_meminfo


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
