"""How many parameters each kind of fine-tuning trains: full, LoRA at r = 1…64 x targets x bias, DoRA; beside PEFT's.

    python benchmarks/parameters.py

Counts need no weights: the model is roberta-base's shape with 11 labels on the meta device (nothing to fetch, seconds).
The table goes to benchmarks/results/parameters.md, every figure to parameters.json, the picture to parameters.png.
"""

import argparse
import json
import platform
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import RobertaConfig, RobertaForTokenClassification

from lorakit.adapters.adapter import lora_state
from lorakit.adapters.counting import count_parameters, peft_total
from lorakit.lora import apply_lora

RESULTS = Path(__file__).parent / "results"
LABELS = 11  # BioNLP2004: B and I of five types, and O
RANKS = (1, 2, 4, 8, 16, 32, 64)
BIASES = ("none", "lora_only", "all")
TARGETS: dict[str, list[str] | str] = {
    "query, value": ["query", "value"],
    "attention": ["query", "key", "value", "attention.output.dense"],
    "all linear": "all-linear",
}
STUDY = {"r": 16, "lora_alpha": 16, "target_modules": ["query", "value"], "bias": "all"}


def roberta_base() -> nn.Module:
    """roberta-base's shape, without weights."""
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=LABELS)
    with torch.device("meta"):
        return RobertaForTokenClassification(config)


def count(options: dict[str, Any], with_peft: bool) -> dict[str, Any]:
    """lorakit's and PEFT's counts for the same arguments; PEFT's are None where it was not run.

    Raises:
        RuntimeError: PEFT's count is not what lorakit says that it is.
    """
    model = apply_lora(roberta_base(), **options)
    mine = count_parameters(model)
    theirs = peft_count(options) if with_peft else (None, None)
    if with_peft and theirs != (mine.trainable, peft_total(model)):
        raise RuntimeError(f"PEFT counts {theirs} for {options}, lorakit {mine.trainable, peft_total(model)}")
    values = [p.numel() for p in model.parameters() if p.requires_grad]
    return {
        "trainable": mine.trainable,
        "total": mine.total,
        "share": mine.share,
        "layers": len(lora_state(model).current.targets),
        "adapter_mb": 4 * sum(values) / 1e6,  # float32 in the file
        "peft_trainable": theirs[0],
        "peft_total": theirs[1],
    }


def peft_count(options: dict[str, Any]) -> tuple[int, int]:
    """What PEFT itself prints as trainable and all params."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers for a property that is deprecated
        config = peft.LoraConfig(**options, modules_to_save=["classifier"])
        return peft.get_peft_model(roberta_base(), config).get_nb_trainable_parameters()


def measure(with_peft: bool) -> list[dict[str, Any]]:
    """One row per way of fine-tuning."""
    full = count_parameters(roberta_base())
    rows = [
        {
            "method": "full",
            "targets": "everything",
            "r": None,
            "bias": "all",
            "trainable": full.trainable,
            "total": full.total,
            "share": 1.0,
            "layers": 0,
            "adapter_mb": 4 * full.trainable / 1e6,
            "peft_trainable": None,
            "peft_total": None,
        }
    ]
    for method, extra, biases in (("LoRA", {}, BIASES), ("DoRA", {"use_dora": True}, ("none",))):
        for targets, names in TARGETS.items():
            for bias in biases:
                for r in RANKS:
                    options = {"r": r, "lora_alpha": 16, "target_modules": names, "bias": bias, **extra}
                    about = {"method": method, "targets": targets, "r": r, "bias": bias}
                    rows.append(about | count(options, with_peft))
    return rows


def table(rows: list[dict[str, Any]], environment: dict[str, str]) -> str:
    """The report in Markdown."""
    study = count(STUDY, with_peft=False)
    lines = [
        f"# Trainable parameters, roberta-base's shape with {LABELS} labels",
        "",
        f"`{environment['command']}` · " + " · ".join(f"{k} {v}" for k, v in environment.items() if k != "command"),
        "",
        f"The study's setting (r=16, query and value, bias all): **{study['trainable']:,} of {study['total']:,}** "
        f"({100 * study['share']:.4f} %). PEFT prints {study['trainable']:,} of "
        f"{study['total'] + 768 * LABELS + LABELS:,}: it keeps an untrained copy of the head (768 x {LABELS} + "
        f"{LABELS}). Of the trained, 9,216 are key biases, to which softmax is invariant: they change nothing.",
        "",
        f"Full fine-tuning trains all {rows[0]['trainable']:,}. Below, trainable parameters by rank.",
        "",
        "| method | targets (layers) | bias | " + " | ".join(f"r={r}" for r in RANKS) + " |",
        "|---|---|---|" + "--:|" * len(RANKS),
    ]
    kinds = dict.fromkeys((row["method"], row["targets"], row["bias"]) for row in rows[1:])
    for method, targets, bias in kinds:
        mine = [row for row in rows if (row["method"], row["targets"], row["bias"]) == (method, targets, bias)]
        cells = " | ".join(f"{row['trainable']:,}" for row in mine)
        lines.append(f"| {method} | {targets} ({mine[0]['layers']}) | {bias} | {cells} |")
    same = [row for row in rows if row["peft_trainable"] is not None]
    lines += [
        "",
        f"PEFT was run for {len(same)} of the {len(rows) - 1} adapter rows; its trainable count is equal in all, "
        "and its total is larger by the head's copy, 8,459, in all."
        if same
        else "PEFT was not run: its counts were not checked.",
        "",
        "![trainable parameters by rank](parameters.png)",
    ]
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Trainable parameters by rank, a line per kind of targets, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for color, targets in zip(("C0", "C1", "C2"), TARGETS, strict=True):
        for method, bias, style in (("LoRA", "none", "-"), ("LoRA", "all", "--"), ("DoRA", "none", ":")):
            mine = [row for row in rows if (row["method"], row["targets"], row["bias"]) == (method, targets, bias)]
            label = f"{method}, {targets}" + (", bias all" if bias == "all" else "")
            axes.plot([row["r"] for row in mine], [row["trainable"] for row in mine], style, color=color, label=label)
    axes.axhline(rows[0]["trainable"], color="black", linewidth=1)
    axes.annotate("full fine-tuning", (1, rows[0]["trainable"]), xytext=(0, -12), textcoords="offset points")
    study = next(
        r for r in rows if (r["method"], r["targets"], r["bias"], r["r"]) == ("LoRA", "query, value", "all", 16)
    )
    axes.plot(study["r"], study["trainable"], "ko")
    axes.annotate(
        f"the study: {study['trainable']:,}",
        (study["r"], study["trainable"]),
        xytext=(6, -14),
        textcoords="offset points",
    )
    axes.set(xscale="log", yscale="log", xlabel="rank r", ylabel="trainable parameters")
    axes.set_xticks(RANKS, [str(r) for r in RANKS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Count, write table, picture and figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=RESULTS, help="default: benchmarks/results")
    parser.add_argument("--without-peft", action="store_true", help="do not run PEFT beside each count")
    options = parser.parse_args(arguments)
    try:
        import peft

        versions = {"peft": peft.__version__}
    except ImportError:
        versions = {}
    with_peft = bool(versions) and not options.without_peft
    environment = {
        "command": "python benchmarks/parameters.py" + (" --without-peft" if options.without_peft else ""),
        "torch": re.sub(r"\+.*", "", torch.__version__),
        **(versions if with_peft else {}),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, meta device",
    }
    rows = measure(with_peft)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    text = table(rows, environment)
    (options.output_dir / "parameters.md").write_text(text, encoding="utf-8")
    figures = {"schema": 1, "environment": environment, "rows": rows}
    (options.output_dir / "parameters.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    draw(rows, options.output_dir / "parameters.png")
    print(text)


if __name__ == "__main__":
    main()
