"""The tables and the picture of throughput.py, from its summary alone."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from provenance import origin_lines
from systems import FAULTS, SYSTEMS

from lorakit.report.tables import markdown_table


def predictions(predicted: dict[str, dict[str, float]]) -> str:
    first = next(iter(predicted))
    unit = lambda row: row["flops"] / row["real"]  # noqa: E731
    rows = [
        [
            SYSTEMS[name][0],
            f"{row['padding']:.3f}",
            f"{row['flops'] / 1e9:,.3f}",
            f"{unit(row) / unit(predicted[first]):.3f}",
        ]
        for name, row in predicted.items()
    ]
    header = ["predicted, before any run", "padding", "GFLOP a step", f"work a real token / {SYSTEMS[first][0]}"]
    return markdown_table(header, rows)


def median_row(summary: dict[str, Any], name: str) -> dict[str, Any]:
    runs, counts = [part[name] for part in summary["rounds"]], summary["counts"][name]
    row = {
        key: statistics.median(run[key] for run in runs) for key in ("step_s", "tokens_per_s", "padding", "startup_s")
    }
    row |= {key: counts[key] for key in ("operators", "kernels")}
    row["computed_per_s"] = statistics.median(run["computed_tokens"] / run["timed_s"] for run in runs)
    row["gflop_per_s"] = statistics.median(run["flops"] / run["timed_s"] for run in runs) / 1e9
    # rid of the luck of which sentences met in the few timed batches
    row["tokens_per_s_at_mean_padding"] = row["computed_per_s"] / summary["predicted"][name]["padding"]
    for key in ("peak_bytes", "resident_peak_bytes"):
        known = [run[key] for run in runs if run[key] is not None]
        row[key] = max(known) if known else None
    for kind in ("measured", "estimated"):
        used = [(run["energy"][f"{kind}_kwh"], run["real_tokens"]) for run in runs]
        known = [kwh * 3.6e6 / (real / 1000) for kwh, real in used if kwh is not None]
        row[f"{kind}_j_per_1k"] = statistics.median(known) if known else None
    return row


def show(value: float | None, form: str = "{:,.2f}", scale: float = 1.0) -> str:
    return "–" if value is None else form.format(value / scale)


PAIRS = (  # title, quantity, of what over what, and the goal at roberta-base's shape on two CPU cores
    ("tokens/s, LoRA: lorakit / HF Trainer + PEFT", "tokens_per_s", "lorakit-lora", "trainer-peft", ">= 2.3"),
    ("tokens/s, LoRA: lorakit / accelerate + PEFT", "tokens_per_s", "lorakit-lora", "accelerate-peft", None),
    ("tokens/s, LoRA: lorakit / plain loop + PEFT", "tokens_per_s", "lorakit-lora", "loop-peft", None),
    ("tokens/s, full: lorakit / HF Trainer", "tokens_per_s", "lorakit-full", "trainer-full", ">= 2.2"),
    ("step time: lorakit LoRA / lorakit full", "step_s", "lorakit-lora", "lorakit-full", "<= 0.62"),
    ("step time: HF Trainer + PEFT / HF Trainer full", "step_s", "trainer-peft", "trainer-full", None),
    ("peak memory: lorakit LoRA / lorakit full", "peak_bytes", "lorakit-lora", "lorakit-full", "<= 0.45"),
    ("peak memory: lorakit LoRA / HF Trainer + PEFT", "peak_bytes", "lorakit-lora", "trainer-peft", None),
    ("measured energy a token: lorakit LoRA / full", "measured_j_per_1k", "lorakit-lora", "lorakit-full", None),
    ("estimated energy a token: lorakit LoRA / full", "estimated_j_per_1k", "lorakit-lora", "lorakit-full", None),
    (
        "estimated energy a token, LoRA: lorakit / HF Trainer",
        "estimated_j_per_1k",
        "lorakit-lora",
        "trainer-peft",
        None,
    ),
)

GPU_GOALS = {  # one H200 in bf16
    "tokens/s, LoRA: lorakit / HF Trainer + PEFT": ">= 6",
    "measured energy a token: lorakit LoRA / full": "<= 0.75",
}


def ratios(summary: dict[str, Any]) -> list[dict[str, Any]]:
    medians, predicted, found = summary["medians"], summary["predicted"], []
    for title, key, a, b, goal in PAIRS:
        if a not in medians or b not in medians or None in (medians[a][key], medians[b][key]):
            continue
        goal = GPU_GOALS.get(title) if summary["gpu"] else goal
        row = {"title": title, "measured": medians[a][key] / medians[b][key], "goal": goal}
        if key in ("tokens_per_s", "step_s"):
            rounds = [part[a][key] / part[b][key] for part in summary["rounds"]]
            work = predicted[b]["flops"] / predicted[a]["flops"]  # steps in the time of one, if only FLOPs counted
            real = predicted[a]["real"] / predicted[b]["real"]
            row |= {"measured": statistics.median(rounds), "rounds": rounds}
            row["predicted"] = work * real if key == "tokens_per_s" else 1 / work
            row["speed"] = medians[a]["gflop_per_s"] / medians[b]["gflop_per_s"]
            adjusted = "tokens_per_s_at_mean_padding"
            if key == "tokens_per_s":
                row["at_mean_padding"] = medians[a][adjusted] / medians[b][adjusted]
        found.append(row)
    return found


def report(summary: dict[str, Any]) -> str:
    medians, job, predicted = summary["medians"], summary["job"], summary["predicted"]
    rows = [
        [
            SYSTEMS[name][0],
            show(row["tokens_per_s"], "{:,.0f}"),
            show(row["tokens_per_s_at_mean_padding"], "{:,.0f}"),
            show(row["step_s"], "{:.3f}"),
            show(row["padding"], "{:.3f}"),
            show(row["operators"], "{:,.0f}"),
            show(row["kernels"], "{:,.0f}"),
            show(row["gflop_per_s"], "{:,.0f}"),
            show(row["peak_bytes"], "{:,.0f}", 2**20),
            show(row["resident_peak_bytes"], "{:,.0f}", 2**20),
            show(row["measured_j_per_1k"]),
            show(row["estimated_j_per_1k"]),
            show(row["startup_s"], "{:.1f}"),
        ]
        for name, row in medians.items()
    ]
    worst = max(abs(counted["counted_over_predicted_flops"] - 1) for counted in summary["counts"].values())
    header = ["median of the rounds", "real tokens/s", "at mean padding", "step (s)", "padding", "operators",
              "CUDA kernels", "GFLOP/s", "peak (MiB)", "whole process (MiB)", "measured J/1k tokens",
              "estimated J/1k tokens", "start-up (s)"]  # fmt: skip
    lines = [f"# Throughput: {job['shape']}'s shape, batch {job['batch_size']}, {job['precision']}", ""]
    lines += [predictions(predicted), "", markdown_table(header, rows), ""]
    goals = job["shape"] == "roberta-base"
    rows = [
        [
            row["title"],
            show(row.get("predicted"), "{:.3f}"),
            show(row["measured"], "{:.3f}"),
            show(row.get("at_mean_padding"), "{:.3f}"),
            ", ".join(f"{value:.3f}" for value in row.get("rounds", [])) or "–",
            show(row.get("speed"), "{:.3f}"),
            *([row["goal"] or "–"] if goals else []),
        ]
        for row in summary["ratios"]
    ]
    header = ["ratio", "predicted", "measured", "at mean padding", "of each round", "GFLOP/s ratio"]
    lines += [markdown_table(header + ["goal"] * goals, rows), "", *EXPLANATION, "", *kinds(summary), ""]
    lines += share(summary)
    lines += ["- " + FAULTS["trainer"] + "."]
    if summary["onednn"]:
        lines.append(
            "- lorakit computes float32 products by oneDNN on this CPU, the others by what torch calls itself (MKL);"
            " LORAKIT_ONEDNN=0 takes that difference away."
        )
    if not summary["gpu"]:
        lines.append(
            "- Packed sentences see themselves only; in float32 on a CPU lorakit computes no score between two of them,"
            " so its FLOPs hold fewer than rows and widths say."
        )
        parts = max(row["parts"] for row in predicted.values())  # more than one are lorakit's
        if parts > 1:
            lines.append(
                f"- There a batch goes through lorakit's model in {parts:.1f} parts on average, whose gradients add up:"
                " operators are those of all parts. Trainer does the like where it is told to"
                " (gradient_accumulation_steps); by default it does not."
            )
    lines += [
        f"- Dropout of the base {job['dropout']:g}, of LoRA {job['lora_dropout']:g}, in all systems; LoRA r={job['r']}"
        f" on {', '.join(job['target_modules'])}; {job['rounds']} rounds of {job['steps']} timed steps after"
        f" {job['warmup']}; {', '.join(str(next(iter(part.values()))['whole_tokens']) for part in summary['rounds'])}"
        " real tokens in each system's rounds, warm-up included.",
        "- Everything else is each system's own default: Trainer and lorakit clip gradients, the two loops do not;"
        " Trainer and lorakit use the fused AdamW, the two loops torch's default.",
        "- Peak: "
        + (
            "what torch allocated on the GPU."
            if summary["gpu"]
            else "the process's resident peak (VmHWM) in its first round, less what it held before it made its model"
            " (Python, the corpus, and the libraries, all of which the training of a tiny model has loaded); the whole"
            " process is beside it."
        ),
        "- Start-up is from the call to the end of the warm-up steps, making the model included; loading Python's"
        " libraries is not in it. Compilation, where it is on, is.",
        f"- Operators (those that make or write a tensor, not views) are counted in a run of their own, and its FLOPs"
        f" are the predicted ones but for {worst:.2g} of them at most.",
        "- A word has another number of the embedded tokenizer's subwords than of roberta-base's.",
        "",
        *origin_lines(summary),
    ]
    return "\n".join(lines) + "\n"


EXPLANATION = (
    "Predicted is the ratio of the work (FLOPs x padding) alone, over thousands of sentences; measured is the median",
    "of the rounds' own ratios. At mean padding, every system has the padding of those thousands of sentences instead",
    "of that of its few timed batches. What then still separates measured from predicted is how fast the work goes:",
    "above 1 in the column GFLOP/s ratio, the first of the pair does more FLOPs a second. What has no FLOPs is in",
    "there; the next table shows it.",
)


def kinds(summary: dict[str, Any]) -> list[str]:
    """Where a step's time goes, from a profiled step; only the CPU's time is the step's own."""
    if summary["gpu"]:
        return []
    rows, names = [], list(summary["medians"])
    spent = {name: summary["counts"][name]["seconds_by_kind_a_computed_token"] for name in names}
    for kind in next(iter(spent.values())):
        rows.append([kind, *(f"{1e6 * spent[name][kind]:,.1f}" for name in names)])
    rows.append(["all", *(f"{1e6 * sum(spent[name].values()):,.1f}" for name in names)])
    lines = [markdown_table(["µs a computed token, one profiled step", *(SYSTEMS[n][0] for n in names)], rows)]
    if {"lorakit-lora", "lorakit-full"} <= set(names):
        lora, full = spent["lorakit-lora"], spent["lorakit-full"]
        products, fixed = "matrix products", ("random numbers", "softmax, GELU, norms", "attention in one operator")
        rest = [sum(part[kind] for kind in fixed) for part in (lora, full)]
        lines += [
            "",
            f"LoRA beside full, both lorakit's: {lora[products] / full[products]:.3f} of the time in matrix products;"
            f" random numbers, softmax, GELU, norms and attention are {100 * rest[1] / sum(full.values()):.0f} % of the"
            f" full step and {rest[0] / rest[1]:.2f} of that in LoRA, for they do not depend on what is trained;"
            f" optimiser and clipping fall from {1e6 * full['optimiser and clipping']:,.1f} to"
            f" {1e6 * lora['optimiser and clipping']:,.1f} µs a token.",
        ]
    return lines


def share(summary: dict[str, Any]) -> list[str]:
    evaluation, lines = summary["evaluation"], []
    if evaluation is None:
        return lines
    for name in ("lorakit-full", "lorakit-lora"):
        if name not in summary["medians"]:
            continue
        training = evaluation["train_tokens"] / summary["medians"][name]["tokens_per_s"]
        own = evaluation["forward_s"] + evaluation["scoring_s"]
        lines.append(
            f"- {SYSTEMS[name][0]}: evaluation is {100 * own / (training + own):.2f} % of an epoch, scoring"
            f" {100 * evaluation['scoring_s'] / (training + own):.3f} % ({evaluation['forward_s']:.1f} s and"
            f" {1000 * evaluation['scoring_s']:.1f} ms beside {training:,.0f} s; scaled by tokens from the timed steps"
            f" and {evaluation['timed_sentences']} sentences)"
        )
    return lines


def draw(summary: dict[str, Any], path: Path) -> None:
    """Speed with every round's point, padding, operators and, where it is known, memory."""
    names, medians = list(summary["medians"]), summary["medians"]
    titles = [SYSTEMS[name][0] for name in names]
    colours = ["#dd8452" if SYSTEMS[name][2] == "lora" else "#4c72b0" for name in names]
    panels = [
        ("tokens_per_s", "real tokens/s", 1),
        ("padding", "computed / real tokens", 1),
        ("operators", "operators a step", 1),
        ("peak_bytes", "peak memory (MiB)", 2**20),
    ]
    panels = [panel for panel in panels if None not in (medians[name][panel[0]] for name in names)]
    figure = Figure(figsize=(3.4 * len(panels) + 1, 3.6), layout="constrained")
    for axes, (key, title, scale) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        bars = axes.barh(titles, [medians[name][key] / scale for name in names], color=colours)
        gap = 14 if key == "tokens_per_s" else 2  # points: the rounds' dots lie there
        axes.bar_label(bars, fmt="{:,.3g}" if key == "padding" else "{:,.0f}", padding=gap)
        axes.margins(x=0.3)
        axes.set_title(title)
        if key == "tokens_per_s":
            for number, name in enumerate(names):
                points = [part[name][key] for part in summary["rounds"]]
                axes.plot(points, [number] * len(points), "k.", markersize=4)
    figure.axes[0].invert_yaxis()
    job = summary["job"]
    figure.suptitle(f"{job['shape']}'s shape, batch {job['batch_size']}, {job['precision']}; orange: LoRA, blue: full")
    figure.savefig(path, dpi=110)
