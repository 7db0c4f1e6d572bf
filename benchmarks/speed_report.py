"""The tables of throughput.py, made from its summary alone."""

import statistics
from typing import Any

from jobs import OTHER_SHAPES
from systems import SYSTEMS
from tables import at, table

PAIRS = (  # title, quantity, of which system over which, and the goal for roberta-base's shape on two CPU cores
    ("tokens/s, LoRA: lorakit / HF Trainer + PEFT", "tokens_per_s", "lorakit-lora", "trainer-peft", ">= 2.3"),
    ("tokens/CPU second, LoRA: lorakit / Trainer + PEFT", "tokens_per_cpu_s", "lorakit-lora", "trainer-peft", None),
    ("tokens/s, LoRA: lorakit / accelerate + PEFT", "tokens_per_s", "lorakit-lora", "accelerate-peft", None),
    ("tokens/s, LoRA: lorakit / plain loop + PEFT", "tokens_per_s", "lorakit-lora", "loop-peft", None),
    ("tokens/s, full: lorakit / HF Trainer", "tokens_per_s", "lorakit-full", "trainer-full", ">= 2.2"),
    ("step time: lorakit LoRA / lorakit full", "step_s", "lorakit-lora", "lorakit-full", "<= 0.62"),
    ("step time: HF Trainer + PEFT / HF Trainer full", "step_s", "trainer-peft", "trainer-full", None),
    ("peak memory: lorakit LoRA / lorakit full", "peak_bytes", "lorakit-lora", "lorakit-full", "<= 0.45"),
    ("peak memory: lorakit LoRA / HF Trainer + PEFT", "peak_bytes", "lorakit-lora", "trainer-peft", None),
    ("measured energy per token: lorakit LoRA / full", "measured_j_per_1k", "lorakit-lora", "lorakit-full", None),
    ("estimated energy per token: lorakit LoRA / full", "estimated_j_per_1k", "lorakit-lora", "lorakit-full", None),
    ("estimated energy per token, LoRA: lorakit / Trainer", "estimated_j_per_1k", "lorakit-lora", "trainer-peft", None),
)
GPU_GOALS = {  # one H200 in bf16
    "tokens/s, LoRA: lorakit / HF Trainer + PEFT": ">= 6",
    "measured energy per token: lorakit LoRA / full": "<= 0.75",
}

OTHER_GOALS = {"tokens/s, LoRA: lorakit / HF Trainer + PEFT": ">= 2.5"}  # modernbert-base, deberta-v3-base

MEASURED = (
    "Measured is the median of the rounds' ratios. At mean padding gives every system the padding of thousands of"
    " sentences instead of that of its few timed batches."
)
PREDICTED = (
    "Predicted is the ratio of the work alone (FLOPs x padding) over thousands of sentences. Measured is the median"
    " of the rounds' ratios. At mean padding gives every system the padding of those thousands of sentences instead"
    " of that of its few timed batches. The remaining difference between measured and predicted is how fast the"
    " work is done: where the GFLOP/s ratio is above 1, the first system does more FLOPs per second. That includes"
    " time without any FLOPs."
)


def predictions(predicted: dict[str, dict[str, float]]) -> str:
    first = next(iter(predicted))
    known = predicted[first]["flops"] is not None
    base = predicted[first]["flops"] / predicted[first]["real"] if known else None

    def relative(row: dict[str, Any]) -> float | None:
        return row["flops"] / row["real"] / base if known else None

    return table(
        [{**row, "system": SYSTEMS[name][0]} for name, row in predicted.items()],
        ("predicted, before any run", "system", "{}"),
        ("padding", "padding", "{:.3f}"),
        ("GFLOP per step", at("flops", scale=1e-9), "{:,.3f}"),
        (f"work per real token / {SYSTEMS[first][0]}", relative, "{:.3f}"),
    )


def median_row(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """Medians over the rounds; of memory the maximum."""
    runs, counts = [part[name] for part in summary["rounds"]], summary["counts"][name]
    row = {
        key: statistics.median(run[key] for run in runs)
        for key in ("step_s", "tokens_per_s", "tokens_per_cpu_s", "padding", "startup_s")
    }
    row |= {key: counts[key] for key in ("operators", "kernels")}
    row["computed_per_s"] = statistics.median(run["computed_tokens"] / run["timed_s"] for run in runs)
    known = all(run["flops"] is not None for run in runs)
    row["gflop_per_s"] = statistics.median(run["flops"] / run["timed_s"] for run in runs) / 1e9 if known else None
    # without the luck of which sentences shared the few timed batches
    row["tokens_per_s_at_mean_padding"] = row["computed_per_s"] / summary["predicted"][name]["padding"]
    for key in ("peak_bytes", "resident_peak_bytes"):
        row[key] = max((run[key] for run in runs if run[key] is not None), default=None)
    for kind in ("measured", "estimated"):
        used = [(run["energy"][f"{kind}_kwh"], run["real_tokens"]) for run in runs]
        known = [kwh * 3.6e6 / (real / 1000) for kwh, real in used if kwh is not None]
        row[f"{kind}_j_per_1k"] = statistics.median(known) if known else None
    return row


def ratios(summary: dict[str, Any]) -> list[dict[str, Any]]:
    medians, predicted, found = summary["medians"], summary["predicted"], []
    for title, key, a, b, goal in PAIRS:
        if a not in medians or b not in medians or None in (medians[a][key], medians[b][key]):
            continue
        shape = summary["job"]["shape"]
        goal = GPU_GOALS.get(title) if summary["gpu"] else OTHER_GOALS.get(title) if shape in OTHER_SHAPES else goal
        row = {"title": title, "measured": medians[a][key] / medians[b][key], "goal": goal}
        if key in ("tokens_per_s", "tokens_per_cpu_s", "step_s"):
            rounds = [part[a][key] / part[b][key] for part in summary["rounds"]]
            row |= {"measured": statistics.median(rounds), "rounds": rounds}
            if predicted[a]["flops"] is not None:
                work = predicted[b]["flops"] / predicted[a]["flops"]  # steps in the time of one, if only FLOPs counted
                real = predicted[a]["real"] / predicted[b]["real"]
                row["predicted"] = 1 / work if key == "step_s" else work * real
                row["speed"] = medians[a]["gflop_per_s"] / medians[b]["gflop_per_s"]
            adjusted = "tokens_per_s_at_mean_padding"
            if key == "tokens_per_s":
                row["at_mean_padding"] = medians[a][adjusted] / medians[b][adjusted]
        found.append(row)
    return found


def report(summary: dict[str, Any]) -> list[str]:
    job = summary["job"]
    measured = table(
        [{**row, "system": SYSTEMS[name][0]} for name, row in summary["medians"].items()],
        ("median of the rounds", "system", "{}"),
        ("real tokens/s", "tokens_per_s", "{:,.0f}"),
        ("at mean padding", "tokens_per_s_at_mean_padding", "{:,.0f}"),
        ("per CPU second", at("tokens_per_cpu_s"), "{:,.0f}"),
        ("step (s)", "step_s", "{:.3f}"),
        ("padding", "padding", "{:.3f}"),
        ("operators", "operators", "{:,.0f}"),
        ("CUDA kernels", "kernels", "{:,.0f}"),
        ("GFLOP/s", "gflop_per_s", "{:,.0f}"),
        ("peak (MiB)", at("peak_bytes", scale=2**-20), "{:,.0f}"),
        ("whole process (MiB)", at("resident_peak_bytes", scale=2**-20), "{:,.0f}"),
        ("measured J/1k tokens", "measured_j_per_1k", "{:,.2f}"),
        ("estimated J/1k tokens", "estimated_j_per_1k", "{:,.2f}"),
        ("start-up (s)", "startup_s", "{:.1f}"),
    )
    compared = table(
        summary["ratios"],
        ("ratio", "title", "{}"),
        ("predicted", at("predicted"), "{:.3f}"),
        ("measured", "measured", "{:.3f}"),
        ("at mean padding", at("at_mean_padding"), "{:.3f}"),
        ("of each round", lambda row: ", ".join(f"{ratio:.3f}" for ratio in row.get("rounds", [])) or None, "{}"),
        ("GFLOP/s ratio", at("speed"), "{:.3f}"),
        *[("goal", "goal", "{}")] * (job["shape"] in ("roberta-base", *OTHER_SHAPES)),
    )
    explained = PREDICTED if job["shape"] not in OTHER_SHAPES else MEASURED
    return [
        f"# Throughput: {job['shape']}'s shape, batch {job['batch_size']}, {job['precision']}",
        "",
        predictions(summary["predicted"]),
        "",
        measured,
        "",
        compared,
        "",
        explained,
        "",
        *notes(summary),
    ]


def notes(summary: dict[str, Any]) -> list[str]:
    """How the figures were obtained, and what the systems do differently."""
    job = summary["job"]
    whole = ", ".join(str(next(iter(part.values()))["whole_tokens"]) for part in summary["rounds"])
    lines = [
        "Trainer multiplies this head's loss and gradients by accumulation x processes (transformers#47688). Both are 1"
        " here, so its losses are right."
    ]
    if summary["onednn"]:
        lines.append(
            "On this CPU lorakit computes float32 matmuls with oneDNN, the others with torch's default (MKL);"
            " LORAKIT_ONEDNN=0 removes that difference."
        )
    if not summary["gpu"]:
        lines.append(
            "In float32 and bfloat16 on a CPU lorakit computes no attention scores between packed sentences, so its"
            " FLOPs are fewer than rows and widths suggest."
        )
        parts = max(row["parts"] for row in summary["predicted"].values())
        if parts > 1:  # lorakit's
            lines.append(
                f"There a batch passes through lorakit's model in {parts:.1f} parts on average, whose gradients add up;"
                " its operators are those of all parts. Trainer does this only with gradient_accumulation_steps."
            )
    lines += [
        f"Dropout {job['dropout']:g} in the base and {job['lora_dropout']:g} in LoRA, in all systems; LoRA r={job['r']}"
        f" on {', '.join(job['target_modules'])}; {job['rounds']} rounds of {job['steps']} timed steps after"
        f" {job['warmup']}; {whole} real tokens per system in the rounds, warm-up included.",
        "Everything else is each system's default: Trainer and lorakit clip gradients and use the fused AdamW, the two"
        " loops do not clip and use torch's default AdamW.",
        "Peak: what torch allocated on the GPU."
        if summary["gpu"]
        else "Peak: the process's resident peak (VmHWM) in its first round minus what it held before it built its model"
        " (Python, the corpus and the libraries, all loaded by training a tiny model). Whole process: with all that.",
        "Start-up is the time from the call to the end of the warm-up steps. It includes building the model and any"
        " compilation, but not importing Python's libraries.",
        "CPU seconds are those of the system's own threads. On a machine that does other work at the same time, tokens"
        " per CPU second say more than tokens/s.",
        *counted(summary),
        f"The embedded tokenizer splits words differently than {job['shape']}'s.",
    ]
    if job["shape"] in OTHER_SHAPES:
        lines.append("FLOPs are predicted, and counted, for RoBERTa's family only.")
        if OTHER_SHAPES[job["shape"]].cut:
            lines.append(f"The model has the tokenizer's 8,192 word embeddings; {job['shape']} itself has more.")
    return [f"- {line}" for line in lines]


def counted(summary: dict[str, Any]) -> list[str]:
    """How operators were counted, and how exact the predicted FLOPs are; nothing where nothing was counted."""
    found = [row["counted_over_predicted_flops"] for row in summary["counts"].values()]
    if None in found:
        return []
    worst = max(abs(ratio - 1) for ratio in found)
    return [
        "Operators (those that make or write a tensor, not views) are counted in a separate run, whose FLOPs differ"
        f" from the predicted ones by at most {worst:.2g} of their size."
    ]
