"""`lorakit energy` as its tests call it."""

import subprocess
import sys

from lorakit.cli.__main__ import main as lorakit_main
from lorakit.power.nvml import SensorUnavailable

CLI = [sys.executable, "-m", "lorakit.cli", "energy"]


def main(words):
    """`lorakit energy …` in this process; returns the exit status."""
    return lorakit_main(["energy", *words])


def energy(*arguments, **options):
    return subprocess.run([*CLI, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)


def close_gpus(monkeypatch, reason="NVML: not found", fix="there is no NVIDIA GPU on the PCI bus"):
    def closed(_nvml=None):
        raise SensorUnavailable(reason, fix)

    monkeypatch.setattr("lorakit.cli.energy_doctor.open_nvml", closed)
    monkeypatch.setattr("lorakit.power.devices.open_nvml", closed)
