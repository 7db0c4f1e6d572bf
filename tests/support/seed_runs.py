"""An output folder of several seeds, made without training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorakit.power.contention import Contention
from lorakit.power.reading import Measurement, Reading
from lorakit.report.comparison import comparison_record
from lorakit.report.run_comparison import compare_runs
from lorakit.report.seeds import mean_modes
from tests.support.reports import change
from tests.support.sentence_runs import make_run

BUSY = Contention(duration_s=10.0, logical_cpus=2, own_cpu_s=8.0, others_cpu_s=8.0, machines=("boot",))


def reading(wh: float, contention: Contention | None = None) -> Reading:
    """An estimate of the CPU's energy over 10 s, and nothing else."""
    unknown = Measurement("unavailable", source="no sensor")
    cpu = Measurement("estimated", wh=wh, mean_w=360 * wh, source="by load", range_wh=(wh / 2, 2 * wh))
    quiet = replace(BUSY, others_cpu_s=0.0)
    return Reading(unknown, cpu, unknown, duration_s=10.0, contention=contention or quiet)


def make_seeds(
    folder: Path, shares: dict[str, float], seeds: int = 3, busy: int | None = None, margin: float | None = None
) -> Path:
    """What a command with --seeds leaves; during the seed `busy` others used the machine while LoRA was trained."""
    entries = []
    for seed in range(seeds):
        place = make_run(folder / f"seed-{seed}", shares, seed)

        def set_energy(record: dict[str, Any], seed: int = seed) -> None:
            for mode, values in record["modes"].items():
                contention = BUSY if (seed, mode) == (busy, "lora") else None
                values["compile_seconds"] = 0.0
                values["energy"] = reading(1.0 + seed, contention).to_json()

        modes = change(place, set_energy)["modes"]
        entries.append({"seed": seed, "folder": f"seed-{seed}", "modes": modes})
    record = comparison_record("c", {}, "base", "corpus", mean_modes(entries))
    places = [folder / entry["folder"] for entry in entries]
    record |= {"seeds": entries, "margin": margin, "comparison": compare_runs(places, "test", margin, one_side=True)}
    (folder / "comparison.json").write_text(json.dumps(record))
    return folder
