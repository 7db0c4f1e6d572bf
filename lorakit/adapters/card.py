"""The model card of a saved adapter."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from torch import nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.peft_format import base_name, to_peft


def card(model: nn.Module, adapter: Adapter, labels: list[str] | None, metrics: Any, energy: Any) -> str:
    """The model card: what it is, how to load it, its labels, and the results given."""
    config, base = adapter.config, base_name(model)
    count = sum(t.numel() for t in to_peft(model, adapter).values())
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {base}"] if base else []),
        "tags: [lora, lorakit]",
        "---",
        "",
    ]
    lines += [f"# LoRA adapter for {type(model).__name__}", ""]
    lines += [
        f"{count:,} values: r={config.r}, lora_alpha={config.lora_alpha:g}, bias={config.bias}, "
        f"{len(adapter.targets)} layers adapted, trained whole: {', '.join(adapter.saved) or 'nothing'}.",
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
