"""The model card of a saved adapter: a part of README.md that lorakit writes; the rest is the user's."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from lorakit._counts import counted
from lorakit.adapters.adapter import Adapter

BEGIN, END = "<!-- written by lorakit: changes between these lines are lost -->", "<!-- end -->"


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
    saved = ", ".join(map(in_markdown, adapter.saved)) or "nothing"
    place = f" on {in_markdown(base)}" if base and not is_hub_id(base) else ""
    rows = "".join(f"; {counted(len(tokens), 'row')} of {in_markdown(name)}" for name, tokens in adapter.rows.items())
    lines = [
        "---",
        "library_name: peft",
        *([f"base_model: {in_yaml(base)}"] if base and is_hub_id(base) else []),
        "tags: [lora, lorakit]",
        "---",
        "",
    ]
    lines += [BEGIN, f"# LoRA adapter for {model_class}", ""]
    lines += [
        f"{counted(count, 'value')}{place}: r={config.r}, lora_alpha={config.lora_alpha:g}, bias={config.bias}, "
        f"{counted(len(adapter.targets), 'layer')} adapted, trained in full: {saved}{rows}.",
        "",
        "```python",
        'lorakit.load_adapter(base_model, "this folder")           # or',
        'peft.PeftModel.from_pretrained(base_model, "this folder")',
        "```",
    ]
    if labels:
        lines += ["", "## Labels", "", ", ".join(f"{i} {in_markdown(label)}" for i, label in enumerate(labels))]
    for title, values in (("Metrics", metrics), ("Energy", energy)):
        rows = [f"| {in_markdown(name)} | {in_markdown(value)} |" for name, value in _flat(values)]
        if rows:
            lines += ["", f"## {title}", "", "| | |", "|---|---|", *rows]
    return "\n".join([*lines, END]) + "\n"


def is_hub_id(base: str) -> bool:
    """Whether others can load the base by this name; a hub refuses a card that names a folder."""
    return bool(re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", base, re.ASCII)) and not Path(base).exists()


def in_markdown(value: Any) -> str:
    """A name as Markdown shows it: markup, HTML, table cells and line ends in it have no effect."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*\[\]<>|&!#]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def in_yaml(text: str) -> str:
    """A name as a YAML value: plain where that is safe, otherwise in double quotes."""
    plain = re.fullmatch(r"[A-Za-z0-9/.][\w./-]*", text, re.ASCII) and not re.fullmatch(r"[\d.]+", text)
    return text if plain else json.dumps(text)


def into_readme(readme: str, card: str) -> str:
    """Put a new card into a README.md that exists: its text and its metadata stay.

    Args:
        readme: the present file; an earlier card in it is replaced, otherwise the new one goes to the end.
        card: from `model_card`.
    """
    (ours, block), (theirs, text) = _front_matter(card), _front_matter(readme)
    known = {line.partition(":")[0] for line in theirs}
    front = [*theirs, *(line for line in ours if line.partition(":")[0] not in known)]
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        body = before + block.strip() + after
    else:
        body = f"{text.rstrip()}\n\n{block.lstrip()}" if text.strip() else block
    return "\n".join(["---", *front, "---", ""]) + ("" if body.startswith("\n") else "\n") + body


def text_of_others(readme: str) -> str:
    """The text of a README.md around lorakit's part; its metadata is left out."""
    before, begin, rest = _front_matter(readme)[1].partition(BEGIN)
    _, end, after = rest.partition(END)
    return (before + after if begin and end else before + begin + rest).strip()


def _front_matter(text: str) -> tuple[list[str], str]:
    """The lines of a card's metadata, and its text."""
    lines = text.split("\n")
    if lines[0].strip() != "---" or "---" not in [line.strip() for line in lines[1:]]:
        return [], text
    end = [line.strip() for line in lines].index("---", 1)
    return lines[1:end], "\n".join(lines[end + 1 :])


def _flat(values: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if is_dataclass(values):
        values = asdict(values)
    for name, value in (values or {}).items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", f"{value:.6g}" if isinstance(value, float) else value
