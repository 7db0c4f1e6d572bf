#!/bin/sh
# Zeus counts a laptop's psys as one more CPU, so its package is in the CPU energy twice, and the platform with it.
#
# One would guess: cpu_energy of ZeusMonitor holds a number for each CPU package ("If None, all CPU packages will be
# used"), and their sum is what the CPUs drew. RAPL's psys is the whole platform: it contains the packages and the
# DRAM, and the kernel lists it beside the packages as intel-rapl:1, on most Intel laptops since Skylake.
#
# Seen with zeus 0.16.0: every folder intel-rapl:N is a CPU, whatever its file `name` says. A package of 20 J whose
# psys shows 38 J gives cpu_energy={0: 20, 1: 38}.
#
# Who is hurt: everybody who adds up cpu_energy on such a machine; with cpu_indices=[0] the number is right.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet zeus==0.16.0
cat > "$folder/psys.py" <<'PYTHON'
import sys
from pathlib import Path

import zeus.device.cpu.rapl as rapl
from zeus.monitor import ZeusMonitor

TREE = Path(sys.argv[1])
JOULES = {"intel-rapl:0": ("package-0", 20), "intel-rapl:1": ("psys", 38)}


def show(seconds):
    for zone, (name, watts) in JOULES.items():
        (TREE / zone).mkdir(parents=True, exist_ok=True)
        (TREE / zone / "name").write_text(f"{name}\n")
        (TREE / zone / "max_energy_range_uj").write_text("262143328850\n")
        (TREE / zone / "energy_uj").write_text(f"{1_000_000_000 + seconds * watts * 1_000_000}\n")


def main():
    rapl.RAPL_DIR = str(TREE)
    show(0)
    monitor = ZeusMonitor()
    monitor.begin_window("one second", sync_execution=False)
    show(1)
    found = monitor.end_window("one second", sync_execution=False)
    joules = {cpu: round(energy) for cpu, energy in found.cpu_energy.items()}
    print(f"package 20 J, psys 38 J (with the package in it): cpu_energy={joules}, together {sum(joules.values())} J")
    assert joules == {0: 20, 1: 38}, "the behaviour has changed"
    print("as described")


if __name__ == "__main__":  # Zeus starts a process per zone
    main()
PYTHON
"$folder/venv/bin/python" "$folder/psys.py" "$folder/powercap"
