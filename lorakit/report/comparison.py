"""comparison.json: what each mode of a run trained, scored and cost; the tables and pictures are made from it alone.

New keys may be added; renaming one needs a higher SCHEMA.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.report.carbon import Carbon

SCHEMA = 1
NAMES = {"full": "full", "lora": "LoRA"}  # the modes, for people

STUDY: dict[str, Any] = {
    # roberta-base on the hub's BioNLP2004, 8 x V100, ten epochs, validation set; energy by CodeCarbon 2.x, of which the
    # GPU row is measured and the RAM and CPU rows are constants times time
    "full": {
        "trainable_parameters": None,
        "validation": {
            "loss": 0.158031,
            "precision": 0.791423,
            "recall": 0.827481,
            "f1": 0.809050,
            "accuracy": 0.950083,
        },
        "energy": {
            "ram": {"kwh": 0.597710, "mean_w": 188.9085144996643, "method": "estimated"},
            "gpu": {"kwh": 1.585529, "mean_w": 477.46172772572896, "method": "counter"},
            "cpu": {"kwh": 0.134576, "mean_w": 42.5, "method": "estimated"},
            "measured_kwh": 1.585529,
            "estimated_kwh": 0.732286,
        },
    },
    "lora": {
        "trainable_parameters": 700427,
        "validation": {
            "loss": 0.151547,
            "precision": 0.784485,
            "recall": 0.827120,
            "f1": 0.805224,
            "accuracy": 0.949415,
        },
        "energy": {
            "ram": {"kwh": 0.687351, "mean_w": 188.9085144996643, "method": "estimated"},
            "gpu": {"kwh": 1.874576, "mean_w": 476.03178951650114, "method": "counter"},
            "cpu": {"kwh": 0.154766, "mean_w": 42.5, "method": "estimated"},
            "measured_kwh": 1.874576,
            "estimated_kwh": 0.842117,
        },
    },
}


def comparison_record(
    command: str,
    environment: Mapping[str, Any],
    model: str,
    dataset: str,
    modes: Mapping[str, Any],
    study: bool = False,
    interleaved: bool = False,
    settings: Mapping[str, Any] | None = None,
    carbon: Carbon | None = None,
    reading: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make the content of comparison.json.

    Args:
        command: the command line that made the run.
        environment: versions and device, by name.
        model: the base model's folder or id.
        dataset: the corpus' folder or id.
        modes: `output.mode_record`'s result for "full" and "lora", or for one of them.
        study: add the figures that the study published.
        interleaved: the modes were trained in turns, not one after the other.
        settings: what the runs depend on besides the seed, as JSON values by name.
        carbon: the user's factors, by which the record and the tables give the CO2, and the SCI, of what was measured.
        reading: how the corpus was read, where that is not the default.
    """
    factors = carbon.recorded if carbon else {}
    if factors:
        modes = {name: _with_co2(values, carbon) for name, values in modes.items()}
    return {
        "schema": SCHEMA,
        "command": command,
        "environment": dict(environment),
        "model": model,
        "dataset": dataset,
        "interleaved": interleaved,
        "modes": dict(modes),
        **({"reading": dict(reading)} if reading else {}),
        **({"settings": dict(settings)} if settings else {}),
        **factors,
        **({"study": STUDY} if study else {}),
    }


def _with_co2(values: Mapping[str, Any], carbon: Carbon) -> dict[str, Any]:
    """A mode's record with the CO2 of what was measured, g, and the SCI if it is asked for; null if nothing was."""
    energy = values["energy"]
    found = {"co2_g": carbon.grams(energy["measured_kwh"])}
    if carbon.units is not None:
        found["sci_g_per_unit"] = carbon.sci_g(energy["measured_kwh"])
    return {**values, "energy": {**energy, **found}}


def comparison_split(modes: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The split on which modes are compared: test if all were scored on it, else validation; None without any."""
    for split in ("test", "validation"):
        if modes and all(values.get(split) for values in modes.values()):
            return split
    return None


def contention_note(values: Mapping[str, Any]) -> str | None:
    """What spoils the times and energies of a mode's record, in words; None if nothing does or it is not recorded."""
    return ((values.get("energy") or {}).get("contention") or {}).get("note")


def as_json(record: Mapping[str, Any]) -> str:
    """The text of comparison.json; a number that is not finite, as the loss of a run that diverged, is null."""
    return json.dumps(finite(record), indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """A JSON value with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_comparison(path: Path) -> dict[str, Any]:
    """Read a comparison.json.

    Raises:
        ValueError: it is not JSON, or not a comparison of this schema.
        OSError: it cannot be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or not isinstance(record.get("modes"), dict):
        schema = record.get("schema") if isinstance(record, dict) else None
        raise ValueError(f"{path} is not a comparison of schema {SCHEMA} (its schema is {schema!r})")
    return record
