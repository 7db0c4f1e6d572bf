"""The model card of a saved adapter."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from lorakit.adapters.adapter import Adapter


def model_card(
    model_class: str,
    base: str | None,
    adapter: Adapter,
    count: int,
    labels: list[str] | None = None,
    metrics: Any = None,
    energy: Any = None,
) -> str:
    """Write the model card: what the adapter is, how to load it, its labels, and the results given.

    Args:
        model_class: name of the adapted model's class.
        base: name or path of the base, if it has one.
        count: values that the adapter file holds.
        labels: in the order of the head's outputs.
        metrics, energy: name -> value; nested mappings or dataclasses.
    """
    config = adapter.config
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {base}"] if base else []),
        "tags: [lora, lorakit]",
        "---",
        "",
    ]
    lines += [f"# LoRA adapter for {model_class}", ""]
    lines += [
        f"{count:,} values: r={config.r}, lora_alpha={config.lora_alpha:g}, bias={config.bias}, "
        f"{len(adapter.targets)} layers adapted, trained in full: {', '.join(adapter.saved) or 'nothing'}.",
        "",
        "```python",
        'lorakit.load_adapter(base_model, "this folder")           # or',
        'peft.PeftModel.from_pretrained(base_model, "this folder")',
        "```",
    ]
    if labels:
        lines += ["", "## Labels", "", ", ".join(f"{i} {label}" for i, label in enumerate(labels))]
    for title, values in (("Metrics", metrics), ("Energy", energy)):
        rows = list(_flat(values))
        if rows:
            lines += ["", f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def _flat(values: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if is_dataclass(values):
        values = asdict(values)
    for name, value in (values or {}).items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else value
