"""The README of an export: what it is, the lines that use it, its proof, its scores and what training it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorakit.adapters.card import in_markdown, in_yaml, is_hub_id
from lorakit.data.tags import types_of_labels

LIBRARIES = {"hf": "transformers", "onnx": "onnx", "spacy": "spacy", "peft": "peft"}


@dataclass(frozen=True)
class Origin:
    """Where an export comes from.

    Args:
        source: the adapter or model, as the user named it.
        base: the name of the model it was trained on; None where no file says.
        dataset: what it was trained on; None where no file says.
        command: of the training; None where no file says.
        scores: "validation" and "test" -> precision, recall, f1, as in comparison.json.
        energy: as in comparison.json.
    """

    source: str
    base: str | None = None
    dataset: str | None = None
    command: str | None = None
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    energy: Mapping[str, Any] = field(default_factory=dict)


def export_card(
    target: str, labels: Sequence[str], origin: Origin, usage: str, proof: Sequence[str], longer: str = ""
) -> str:
    """The text of README.md, with the metadata that a hub reads.

    Args:
        target: one of LIBRARIES.
        labels: of the model's classes.
        origin: of the export.
        usage: Python that runs in the export's folder, without a fence.
        proof: sentences about what was compared.
        longer: Markdown that says what those lines do with a text that is longer than the model's window.
    """
    lines = ["---", f"library_name: {LIBRARIES[target]}", "pipeline_tag: token-classification"]
    lines += [f"base_model: {in_yaml(origin.base)}"] if origin.base and is_hub_id(origin.base) else []
    lines += ["tags: [lorakit, token-classification, named-entity-recognition]", "---", ""]
    lines += [f"# Named entities: {', '.join(map(in_markdown, types_of_labels(labels)))}", ""]
    lines += [
        "```python",
        usage.strip(),
        "```",
        "",
        *([longer, ""] if longer else []),
        "## Proof",
        "",
        *(in_markdown(line) + "\n" for line in proof),
    ]
    lines += ["## Labels", "", ", ".join(f"{i} {in_markdown(label)}" for i, label in enumerate(labels)), ""]
    lines += ["## Training", ""]
    facts = (("exported from", origin.source), ("base", origin.base), ("data", origin.dataset))
    lines += [f"- {name}: {in_markdown(value)}" for name, value in (*facts, ("command", origin.command)) if value]
    lines += _scores(origin.scores) + _energy(origin.energy)
    return "\n".join(lines).rstrip() + "\n"


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [
        f"| {split} | {row['precision']:.4f} | {row['recall']:.4f} | {row['f1']:.4f} | {row['strict']['f1']:.4f} |"
        for split, row in scores.items()
        if row
    ]
    head = ["", "## Scores", "", "| | precision | recall | F1 | strict F1 |", "|---|---|---|---|---|"]
    return [*head, *rows] if rows else []


def _energy(energy: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name.upper()} | {1000 * part['kwh']:.3g} Wh | {part['method']} |"
        for name, part in energy.items()
        if isinstance(part, Mapping) and part.get("kwh") is not None
    ]
    return ["", "## Energy of training", "", "| | | |", "|---|---|---|", *rows] if rows else []
