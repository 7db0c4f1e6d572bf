#!/bin/sh
# carbontracker counts one GPU's energy where there are several: it takes the mean over the devices instead of the sum.
#
# One would guess: two GPUs of 100 W each for 4 s are 800 J (times carbontracker's factor for the data centre, its PUE of
# 1.58), and eight GPUs 3,200 J. The log lists them all as found.
#
# Seen with carbontracker 2.4.7: one, two and eight GPUs of 100 W give the same 400 J. Component.collect_power_usage
# extends one flat list by the powers of all devices (`self.power_usages[-1] += self.handler.power_usage()`), and
# Component.energy_usage takes np.mean(power, axis=0), the mean over time and over devices at once. The same holds for
# the packages and DRAM domains of RAPL: a server of two sockets with DRAM is shown at a quarter.
#
# Who is hurt: everybody with more than one GPU, or with a CPU whose DRAM is measured too: the energy and the CO2 that
# are reported are too low by the number of devices.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet carbontracker==2.4.7
"$folder/venv/bin/python" - <<'PYTHON'
import time

import pynvml
from carbontracker import constants
from carbontracker.tracker import CarbonTracker

WATTS, SECONDS, gpus = 100, 4, 1
pynvml.nvmlInit = pynvml.nvmlShutdown = lambda: None
pynvml.nvmlDeviceGetCount = lambda: gpus
pynvml.nvmlDeviceGetHandleByIndex = lambda index: index
pynvml.nvmlDeviceGetName = lambda handle: f"GPU {handle}"
pynvml.nvmlDeviceGetPowerUsage = lambda handle: WATTS * 1000  # mW

watts = {}
for gpus in (1, 2, 8):
    tracker = CarbonTracker(epochs=2, epochs_before_pred=2, components="gpu", verbose=0)
    tracker.epoch_start()
    time.sleep(SECONDS)
    tracker.epoch_end()
    thread = tracker.tracker
    (kwh,), (seconds,) = thread.total_energy_per_epoch() / constants.PUE_2023, thread.epoch_times
    watts[gpus] = kwh * 3.6e6 / seconds
    print(f"{gpus} GPUs of {WATTS} W: {watts[gpus]:.1f} W on average")
assert all(abs(found - WATTS) < 1 for found in watts.values()), "the behaviour has changed"
print("as described")
PYTHON
