"""How many parameters each kind of fine-tuning trains: full, LoRA at r = 1…64 x targets x bias, DoRA; beside PEFT's.

  python benchmarks/parameters.py

Counting needs no weights: the model is roberta-base's shape with 11 labels on the meta device, so nothing is downloaded
and it takes seconds.
"""

import sys
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from jobs import SHAPES
from provenance import BenchmarkParser, write_results
from tables import table
from torch import nn
from transformers import RobertaConfig, RobertaForTokenClassification

from lorakit.adapters.adapter import lora_state
from lorakit.adapters.counting import count_parameters, peft_total
from lorakit.lora import apply_lora

LABELS = 11  # BioNLP2004: B and I of five types, and O
RANKS = (1, 2, 4, 8, 16, 32, 64)
BIASES = ("none", "lora_only", "all")
TARGETS: dict[str, list[str] | str] = {
    "query, value": ["query", "value"],
    "attention": ["query", "key", "value", "attention.output.dense"],
    "all linear": "all-linear",
}
STUDY = {"r": 16, "lora_alpha": 16, "target_modules": ["query", "value"], "bias": "all"}


def main(arguments: list[str] | None = None) -> int:
    parser = BenchmarkParser(prog="parameters.py", description=__doc__)
    parser.add_argument("--without-peft", action="store_true", help="do not run PEFT beside each count")
    options = parser.parse_args(arguments)
    with_peft = find_spec("peft") is not None and not options.without_peft
    found = {"schema": 2, "rows": measure(with_peft)}  # 1 had command, machine and versions in "environment"
    write_results(options, found, report, draw, "Trainable parameters by rank")
    return 0


def roberta_base() -> nn.Module:
    """roberta-base's shape, without weights."""
    config = RobertaConfig(**SHAPES["roberta-base"], max_position_embeddings=514, type_vocab_size=1, num_labels=LABELS)
    with torch.device("meta"):
        return RobertaForTokenClassification(config)


def count(options: dict[str, Any], with_peft: bool) -> dict[str, Any]:
    """lorakit's and PEFT's counts for the same arguments; PEFT's are None where it was not run.

    Raises:
        RuntimeError: PEFT's count differs from what lorakit says it is.
    """
    model = apply_lora(roberta_base(), **options)
    mine = count_parameters(model)
    theirs = peft_count(options) if with_peft else (None, None)
    if with_peft and theirs != (mine.trainable, peft_total(model)):
        raise RuntimeError(f"PEFT counts {theirs} for {options}, lorakit {mine.trainable, peft_total(model)}")
    return {
        "trainable": mine.trainable,
        "total": mine.total,
        "share": mine.share,
        "layers": len(lora_state(model).current.targets),
        "adapter_mb": 4 * mine.trainable / 1e6,  # float32 in the file
        "peft_trainable": theirs[0],
        "peft_total": theirs[1],
    }


def peft_count(options: dict[str, Any]) -> tuple[int, int]:
    """What PEFT itself prints as trainable and all params."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for a deprecated property
        config = peft.LoraConfig(**options, modules_to_save=["classifier"])
        return peft.get_peft_model(roberta_base(), config).get_nb_trainable_parameters()


def measure(with_peft: bool) -> list[dict[str, Any]]:
    """One row per way of fine-tuning, full fine-tuning first."""
    full = count_parameters(roberta_base())
    counts = {"trainable": full.trainable, "total": full.total, "share": 1.0, "layers": 0}
    peft = {"peft_trainable": None, "peft_total": None}
    about = {"method": "full", "targets": "everything", "r": None, "bias": "all"}
    rows = [{**about, **counts, "adapter_mb": 4 * full.trainable / 1e6, **peft}]
    for method, extra, biases in (("LoRA", {}, BIASES), ("DoRA", {"use_dora": True}, ("none",))):
        for targets, names in TARGETS.items():
            for bias in biases:
                for r in RANKS:
                    options = {"r": r, "lora_alpha": 16, "target_modules": names, "bias": bias, **extra}
                    about = {"method": method, "targets": targets, "r": r, "bias": bias}
                    rows.append(about | count(options, with_peft))
    return rows


def by_rank(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[int, dict[str, Any]]]:
    """The adapters' rows by (method, targets, bias), then by rank."""
    found: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in rows[1:]:
        found.setdefault((row["method"], row["targets"], row["bias"]), {})[row["r"]] = row
    return found


def report(summary: dict[str, Any]) -> list[str]:
    rows, study = summary["rows"], count(STUDY, with_peft=False)
    head = 768 * LABELS + LABELS
    kinds = [
        {"method": method, "targets": f"{targets} ({mine[RANKS[0]]['layers']})", "bias": bias, "by rank": mine}
        for (method, targets, bias), mine in by_rank(rows).items()
    ]
    ranks = [(f"r={r}", lambda kind, r=r: kind["by rank"][r]["trainable"], "{:,}") for r in RANKS]
    same = sum(row["peft_trainable"] is not None for row in rows)
    return [
        f"# Trainable parameters, roberta-base's shape with {LABELS} labels",
        "",
        f"The study's setting (r=16, query and value, bias all): **{study['trainable']:,} of {study['total']:,}** "
        f"({100 * study['share']:.4f} %). PEFT prints {study['trainable']:,} of {study['total'] + head:,}: it keeps an"
        f" untrained copy of the head (768 x {LABELS} + {LABELS}). 9,216 of the trained parameters are key biases,"
        " which change nothing because softmax is invariant to them.",
        "",
        f"Full fine-tuning trains all {rows[0]['trainable']:,}. Below, trainable parameters by rank.",
        "",
        table(kinds, ("method", "method", "{}"), ("targets (layers)", "targets", "{}"), ("bias", "bias", "{}"), *ranks),
        "",
        f"PEFT was run for {same} of the {len(rows) - 1} adapter rows; in all of them its trainable count is the same "
        f"and its total is larger by the head's copy, {head:,}."
        if same
        else "PEFT was not run: its counts were not checked.",
    ]


def draw(summary: dict[str, Any], figure: Any) -> None:
    """Trainable parameters by rank, a line per kind of targets, on logarithmic axes."""
    rows, kinds = summary["rows"], by_rank(summary["rows"])
    figure.set_size_inches(8, 5)
    axes = figure.subplots()
    for color, targets in zip(("C0", "C1", "C2"), TARGETS, strict=True):
        for method, bias, style in (("LoRA", "none", "-"), ("LoRA", "all", "--"), ("DoRA", "none", ":")):
            mine = kinds[method, targets, bias]
            label = f"{method}, {targets}" + ", bias all" * (bias == "all")
            axes.plot(list(mine), [row["trainable"] for row in mine.values()], style, color=color, label=label)
    axes.axhline(rows[0]["trainable"], color="black", linewidth=1)
    study = kinds["LoRA", "query, value", "all"][16]["trainable"]
    axes.plot(16, study, "ko")
    for text, place, offset in (
        ("full fine-tuning", (1, rows[0]["trainable"]), (0, -12)),
        (f"the study: {study:,}", (16, study), (6, -14)),
    ):
        axes.annotate(text, place, xytext=offset, textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="rank r", ylabel="trainable parameters")
    axes.set_xticks(RANKS, [str(r) for r in RANKS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))


if __name__ == "__main__":
    sys.exit(main())
