"""`lorakit params`: how many parameters each kind of fine-tuning would train, from a model's configuration alone."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.adapters.adapter import lora_state
from lorakit.adapters.counting import count_parameters, peft_total
from lorakit.adapters.targets import find_head
from lorakit.cli.flags import check_writable, input_errors, lora_options
from lorakit.cli.json_output import write_json
from lorakit.lora import apply_lora
from lorakit.report.tables import WHY_PEFT_COUNTS_MORE, markdown_table

TASKS = {
    "token-classification": "AutoModelForTokenClassification",
    "sequence-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
}


def run_params(arguments: argparse.Namespace) -> int:
    """Count and show; returns the exit status."""
    with input_errors(arguments.parser):
        if arguments.json:
            check_writable(arguments.json.parent, "--json")
        record = count(arguments.model, arguments.task, arguments.num_labels, lora_options(arguments))
    write_json(record, arguments.json, as_text(record))
    return 0


def count(model: str, task: str, num_labels: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """Trainable and all parameters in full and with LoRA; no weight is read or made.

    Raises:
        ValueError: there is no configuration, or LoRA does not fit it.
    """
    full = shape_of(model, task, num_labels)
    total = count_parameters(full)
    # the way in which A and B begin changes no count, and needs weights
    adapted = apply_lora(full, **{**options, "init_lora_weights": True})
    lora, targets = count_parameters(adapted), lora_state(adapted).current.targets
    trained = [(name, p.numel()) for name, p in adapted.named_parameters() if p.requires_grad]
    updates = sum(n for name, n in trained if name.rpartition(".")[2] in ("lora_A", "lora_B", "lora_magnitude"))

    def inside(modules: Sequence[str]) -> int:
        return sum(n for name, n in trained if any(name.startswith(f"{module}.") for module in modules))

    head, whole = inside(find_head(adapted)), inside(lora_state(adapted).current.saved)
    return {
        "model": model,
        "task": task,
        "num_labels": full.config.num_labels if task != "causal-lm" else None,
        "full": {"trainable": total.total, "total": total.total},
        "lora": {
            **options,
            "trainable": lora.trainable,
            "total": lora.total,
            "layers": len(targets),
            "updates": updates,
            "head": head,
            "others_whole": whole - head,
            "biases": lora.trainable - updates - whole,
            "peft_total": peft_total(adapted),
        },
    }


def shape_of(source: str, task: str, num_labels: int | None) -> nn.Module:
    """A model without weights (on the meta device) from a folder with config.json, that file, or a hub id.

    Raises:
        ValueError: there is none, or it has no such head.
    """
    import transformers  # heavy

    path = Path(source)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if not path.exists() and looks_local:
        raise ValueError(f"there is no {source!r}; give a folder with config.json, or a hub id")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{source}: config.json is not there; give a model's folder, or a hub id")
    if num_labels is not None and num_labels < 1:
        raise ValueError(f"--num-labels is {num_labels}; it must be at least 1")
    labels = {} if num_labels is None else {"num_labels": num_labels}
    try:
        config = transformers.AutoConfig.from_pretrained(os.fspath(source), **labels)
        with torch.device("meta"):
            return getattr(transformers, TASKS[task]).from_config(config)
    except Exception as error:  # whatever the loader meets in a broken file or without a network
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"cannot build a {task} model from {source!r}: {reason}") from error


def as_text(record: dict[str, Any]) -> str:
    """The counts for people."""
    full, lora = record["full"], record["lora"]
    rows = [
        [name, f"{part['trainable']:,}", f"{part['total']:,}", f"{100 * part['trainable'] / part['total']:.4f} %"]
        for name, part in (("full", full), ("LoRA", lora))
    ]
    targets = lora["target_modules"] if isinstance(lora["target_modules"], str) else ", ".join(lora["target_modules"])
    others = f", {lora['others_whole']:,} in {', '.join(lora['modules_to_save'])}" if lora["others_whole"] else ""
    labels = f", {record['num_labels']} labels" if record["num_labels"] else ""
    return (
        f"{record['model']}: {record['task']}{labels}\n\n"
        f"{markdown_table(['fine-tuning', 'trainable', 'all', 'share'], rows)}\n\n"
        f"LoRA: r={lora['r']} on {lora['layers']} layers ({targets}), bias={lora['bias']}:"
        f" {lora['updates']:,} in updates, {lora['biases']:,} biases, {lora['head']:,} in the head"
        f"{others}\n"
        f"PEFT would print {lora['trainable']:,} of {lora['peft_total']:,}"
        + (f": {WHY_PEFT_COUNTS_MORE}\n" if lora["peft_total"] != lora["total"] else "\n")
    )
