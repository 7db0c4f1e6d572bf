"""`lorakit params`: how many parameters full fine-tuning and LoRA would train, from a model's configuration alone."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit._counts import counted
from lorakit._files import check_not_read
from lorakit.adapters.config import LoRAConfig
from lorakit.cli.config import add_config_flag
from lorakit.cli.flags import add_lora_flags, check_writable, lora_options
from lorakit.cli.json_output import add_json_flag, write_json
from lorakit.cli.parser import add_command, folder_or_id, input_errors

if TYPE_CHECKING:
    from torch import nn

TASKS = {
    "token-classification": "AutoModelForTokenClassification",
    "sequence-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
}
EXAMPLES = """
lorakit params roberta-base --num-labels 11 --r 16 --target-modules query value --bias all
lorakit params path/to/folder-with-config.json --r 8 --bias none
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add `params` to the commands."""
    about = "count what full fine-tuning and LoRA would train; needs a configuration, no weights"
    parser = add_command(commands, "params", about, EXAMPLES, run)
    add_config_flag(parser)
    add = parser.add_argument
    add("model", type=folder_or_id, metavar="MODEL", help="a folder with config.json, that file, or a hub id")
    about = "the model's head (default: %(default)s)"
    add("--task", choices=tuple(TASKS), default="token-classification", help=about)
    add("--num-labels", type=int, metavar="N", help="classes of the head (default: the configuration's)")
    add_lora_flags(parser)
    add_json_flag(parser)


def run(arguments: argparse.Namespace) -> int:
    """Count and print; returns the exit status."""
    with input_errors(arguments.parser):
        LoRAConfig(**lora_options(arguments))  # a bad flag is told before a base is looked for
        if arguments.json:
            check_writable(arguments.json.parent, "--json")
            check_not_read(arguments.json, [arguments.model], "--json")
        record = count(arguments.model, arguments.task, arguments.num_labels, lora_options(arguments))
    write_json(record, arguments.json, as_text(record))
    return 0


def count(model: str, task: str, num_labels: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """Count trainable and all parameters, in full and with LoRA, without reading or creating a weight.

    Raises:
        ValueError: There is no configuration, or LoRA does not fit it.
    """
    from lorakit.adapters.adapter import lora_state
    from lorakit.adapters.counting import count_parameters, peft_total
    from lorakit.adapters.targets import find_head
    from lorakit.lora import apply_lora

    full = shape_of(model, task, num_labels)
    total = count_parameters(full)
    adapted = apply_lora(full, **options)
    lora, targets = count_parameters(adapted), lora_state(adapted).current.targets
    trained = [(name, p.numel()) for name, p in adapted.named_parameters() if p.requires_grad]
    updates = sum(n for name, n in trained if name.rpartition(".")[2] in ("lora_A", "lora_B", "lora_magnitude"))

    def inside(modules: Sequence[str]) -> int:
        return sum(n for name, n in trained if any(name.startswith(f"{module}.") for module in modules))

    head, in_full = inside(find_head(adapted)), inside(lora_state(adapted).current.saved)
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
            "layer_names": list(dict.fromkeys(name.rpartition(".")[2] for name in targets)),
            "updates": updates,
            "head": head,
            "others_in_full": in_full - head,
            "biases": lora.trainable - updates - in_full,
            "peft_total": peft_total(adapted),
        },
    }


def shape_of(source: str, task: str, num_labels: int | None) -> "nn.Module":
    """A model without weights (on the meta device) from a folder with config.json, that file, or a hub id.

    Raises:
        ValueError: There is no configuration, or no model of this kind has such a head.
    """
    import torch
    import transformers

    from lorakit.training.quiet import quiet_transformers
    from lorakit.training.untrusted import NO_REMOTE_CODE, explained

    if not source:
        raise ValueError("the name of the model is empty; give a folder with config.json, or a hub id")
    path = Path(source)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1
    if not path.exists() and looks_local:
        raise ValueError(f"there is no {source!r}; give a folder with config.json, or a hub id")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{source}: it has no config.json; give a model's folder, or a hub id")
    if num_labels is not None and num_labels < 1:
        raise ValueError(f"--num-labels is {num_labels}; it must be at least 1")
    labels = {} if num_labels is None else {"num_labels": num_labels}
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(os.fspath(source), **NO_REMOTE_CODE, **labels)
        with torch.device("meta"):
            return getattr(transformers, TASKS[task]).from_config(config, **NO_REMOTE_CODE)
    except Exception as error:  # the loader raises many kinds for a broken file or a missing network
        reason = explained(error)[:300]
        raise ValueError(f"cannot build a {task} model from {source!r}: {reason}") from error


def as_text(record: dict[str, Any]) -> str:
    """The counts as a table, and what LoRA's count consists of."""
    from lorakit.report.tables import WHY_PEFT_COUNTS_MORE, markdown_table

    full, lora = record["full"], record["lora"]
    rows = [
        [name, f"{part['trainable']:,}", f"{part['total']:,}", f"{100 * part['trainable'] / part['total']:.4f} %"]
        for name, part in (("full", full), ("LoRA", lora))
    ]
    targets = lora["target_modules"] or lora["layer_names"]
    targets = targets if isinstance(targets, str) else ", ".join(targets)
    others = f", {lora['others_in_full']:,} in {', '.join(lora['modules_to_save'])}" if lora["others_in_full"] else ""
    labels = f", {counted(record['num_labels'], 'label')}" if record["num_labels"] else ""
    return (
        f"{record['model']}: {record['task']}{labels}\n\n"
        f"{markdown_table(['fine-tuning', 'trainable', 'all', 'share'], rows)}\n\n"
        f"LoRA: r={lora['r']} on {counted(lora['layers'], 'layer')} ({targets}), bias={lora['bias']}:"
        f" {lora['updates']:,} in updates, {counted(lora['biases'], 'bias', 'biases')}, {lora['head']:,} in the head"
        f"{others}\n"
        f"PEFT would print {lora['trainable']:,} of {lora['peft_total']:,}"
        + (f": {WHY_PEFT_COUNTS_MORE}\n" if lora["peft_total"] != lora["total"] else "\n")
    )
