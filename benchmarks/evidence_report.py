"""What evidence.py's cells say: the summary, the tables and the picture."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from evidence_cells import Cell, decoder
from provenance import energy_sources
from tables import mean_sd

from lorakit._counts import counted
from lorakit.report.statistics import Difference, compare_f1, mean_interval, ratio_interval, score_runs
from lorakit.report.tables import markdown_table
from lorakit.training.tuning import front as front_of

Record = dict[str, Any]
SPLIT_MODES = ("default", "strict")
ENOUGH_SEEDS = 3  # of both modes, for a decoder to be the summary's
GOAL = {"f1": -0.003, "operations": 0.45, "time": 0.65}


def summary_of(records: Sequence[Record]) -> Record:
    """Everything that the report shows; "summary" is LoRA against full fine-tuning in the final stage.

    Only runs of one base and one decoder are compared. The summary is of the base of the first record, and of the
    decoder with which full fine-tuning is best on validation, of those with enough seeds; its settings of LoRA and of
    full fine-tuning are those that are best on validation.
    """
    first, *others = by_base(records)
    chosen = chosen_pair(settings_of(first))
    summary = against(chosen["lora"], chosen["full"]) if chosen else None
    if summary:
        summary["better_full"] = better_full(first, chosen["full"][0]["cell"])
    return {
        "summary": summary,
        "by_type": by_type(chosen) if chosen else None,
        "settings": beside_full(settings_of(first)),
        "cells": without_sentences(first),
        "other_bases": [
            {"settings": beside_full(settings_of(cells)), "cells": without_sentences(cells)} for cells in others
        ],
    }


def without_sentences(records: Iterable[Record]) -> list[Record]:
    """The records without the counts of each test sentence."""
    return [{name: value for name, value in record.items() if name != "test_sentences"} for record in records]


def beside_full(settings: Sequence[list[Record]]) -> list[Record]:
    """Each setting beside full fine-tuning with its decoder, where there is that."""
    pairs = pairs_of(settings)
    return [
        against(runs, pairs[decoder(runs[0]["cell"])]["full"]) for runs in settings if decoder(runs[0]["cell"]) in pairs
    ]


def by_base(records: Iterable[Record]) -> list[list[Record]]:
    """The latest records of each base, in the order of their first ones; at least one list."""
    bases: dict[str, list[Record]] = {}
    for record in latest_of(records):
        bases.setdefault(record["cell"].get("model", ""), []).append(record)
    return list(bases.values()) or [[]]


def better_full(records: Iterable[Record], chosen: Cell) -> Record | None:
    """The best full fine-tuning of the whole corpus that ran alone, if it beats the chosen setting there on validation.

    Then the comparison is with full fine-tuning that was not tuned as well as it could be.
    """
    alone = [
        record
        for record in records
        if record["cell"]["mode"] == "full" and record["cell"]["sentences"] is None and not record["cell"]["test"]
        if "error" not in record
    ]

    def setting_of(cell: Cell) -> Cell:
        same = {name: value for name, value in cell.items() if name not in ("config", "test", "seed")}
        config = {name: value for name, value in cell.get("config", {}).items() if name != "decode"}
        return {**same, "config": config}

    same = [record for record in alone if setting_of(record["cell"]) == setting_of(chosen)]
    top = max(alone, key=lambda record: best(record)["f1"], default=None)
    if not same or best(top)["f1"] <= max(best(record)["f1"] for record in same):
        return None
    return {
        "cell": top["cell"],
        "validation_f1": best(top)["f1"],
        "chosen_validation_f1": max(best(record)["f1"] for record in same),
    }


def latest_of(records: Iterable[Record]) -> list[Record]:
    """One record a cell: a seed that was trained again replaces the old one."""
    return list({str(record["cell"]): record for record in records}.values())


def chosen_pair(settings: Iterable[list[Record]]) -> dict[str, list[Record]]:
    """The final runs by mode that the summary is of; empty where there are none of both modes."""

    def rank(pair: Mapping[str, list[Record]]) -> tuple[int, float]:
        return min(ENOUGH_SEEDS, *map(len, pair.values())), validation_f1(pair["full"])

    return max(pairs_of(settings).values(), key=rank, default={})


def pairs_of(settings: Iterable[list[Record]]) -> dict[str, dict[str, list[Record]]]:
    """By decoder the settings of LoRA and of full fine-tuning that are best on validation, where there are both."""
    found: dict[str, dict[str, list[Record]]] = {}
    for runs in sorted(settings, key=validation_f1, reverse=True):
        found.setdefault(decoder(runs[0]["cell"]), {}).setdefault(runs[0]["cell"]["mode"], runs)
    return {name: pair for name, pair in found.items() if len(pair) == 2}


def settings_of(records: Iterable[Record]) -> list[list[Record]]:
    """The final stage's runs of the same setting, by seed, that can be compared by sentence."""
    return by_setting(record for record in records if "error" not in record and "test_sentences" in record)


def by_setting(records: Iterable[Record]) -> list[list[Record]]:
    """Runs that differ only in their seed, by seed."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(str({**record["cell"], "seed": None}), []).append(record)
    return [sorted(runs, key=lambda run: run["cell"]["seed"]) for runs in found.values()]


def validation_f1(runs: Sequence[Record]) -> float:
    return fmean(best(run)["f1"] for run in runs)


def best(record: Record) -> Record:
    """The validation scores of the best epoch."""
    return record["validation"][record["best_epoch"] - 1]


def against(runs: Sequence[Record], full: Sequence[Record]) -> Record:
    """A setting beside full fine-tuning, over the seeds that both have.

    Differences are of F1; ratios are the setting's cost over full fine-tuning's: FLOPs up to the best epoch, and time
    of the whole run, evaluation included, of runs that took turns.
    """
    shared = sorted({run["cell"]["seed"] for run in runs} & {run["cell"]["seed"] for run in full})
    runs = [run for run in runs if run["cell"]["seed"] in shared]
    full = [run for run in full if run["cell"]["seed"] in shared]
    default, strict = (f1_difference(full, runs, mode) for mode in SPLIT_MODES)
    operations = fmean(r["flops_to_best_epoch"] for r in runs) / fmean(r["flops_to_best_epoch"] for r in full)
    turns = {a["cell"]["seed"] for a, b in zip(runs, full, strict=True) if took_turns(a, b)}
    seconds = [
        {seed: run["duration_s"] for run in side if (seed := run["cell"]["seed"]) in turns} for side in (full, runs)
    ]
    time = ratio_interval(*seconds) if turns else None
    validation = [best(a)["f1"] - best(b)["f1"] for a, b in zip(runs, full, strict=True)]
    return {
        "cell": {**runs[0]["cell"], "seed": None},
        "seeds": len(shared),
        "validation_f1": mean_interval([best(run)["f1"] for run in runs]).value,
        "validation_f1_difference": fmean(validation),
        "test_f1": fmean(run["test"]["f1"] for run in runs),
        "test_f1_difference": default.value,
        "test_f1_interval": [default.low, default.high],
        "test_f1_verdict": default.verdict,
        "strict_test_f1_difference": strict.value,
        "strict_test_f1_interval": [strict.low, strict.high],
        "operations_ratio": operations,
        "time_ratio": time.value if time else None,
        "time_ratio_interval": [time.low, time.high] if time else None,
        "goal": GOAL,
        "goal_reached": default.value >= GOAL["f1"]
        and operations <= GOAL["operations"]
        and time is not None
        and time.value <= GOAL["time"],
    }


def took_turns(a: Record, b: Record) -> bool:
    """Whether two runs of a seed took turns with each other: the load was then read once, before both began.

    A pair whose process was held back for a time, which its record says, counts as one that did not.
    """
    return a["in_turns_with"] > 0 and a["load_average_before"] == b["load_average_before"] and "held_back" not in a


def f1_difference(full: Sequence[Record], runs: Sequence[Record], mode: str) -> Difference:
    """The paired bootstrap of `lorakit compare`, on the counts that the cells hold."""
    both = [*full, *runs]
    counts = np.stack([table_of(run["test_sentences"][mode]) for run in both])
    seeds = [run["cell"]["seed"] for run in full]
    first = {seed: place for place, seed in enumerate(seeds)}
    second = {seed: place + len(seeds) for place, seed in enumerate(seeds)}
    return compare_f1(score_runs(counts), first, second)


def table_of(columns: Sequence[str]) -> np.ndarray:
    """Counts of shape (sentences, 3) from base-36 digits."""
    return np.array([[int(digit, 36) for digit in column] for column in columns]).T


def by_type(chosen: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, float]]:
    """Test F1 of each entity type, mean over the seeds that all settings have."""
    shared = set.intersection(*({run["cell"]["seed"] for run in runs} for runs in chosen.values()))
    found = {mode: [run["test"] for run in runs if run["cell"]["seed"] in shared] for mode, runs in chosen.items()}
    return {
        name: {mode: fmean(test["by_type"][name] for test in tests) for mode, tests in found.items()}
        for name in found["full"][0]["by_type"]
    }


# Tables --------------------------------------------------------------------------------------------------------------


def report(summary: Record) -> list[str]:
    """The lines of evidence.md."""
    cells = summary["cells"]
    lines = ["# LoRA against full fine-tuning on all-MiniLM-L6-v2 and BioNLP2004", ""]
    if summary["summary"]:
        lines += [*verdict(summary["summary"]), "", final_table(summary["settings"], cells), ""]
        lines += ["Test F1 of each entity type, mean over the seeds:", "", type_table(summary["by_type"]), ""]
    alone = [cell for cell in cells if "in_turns_with" not in cell]
    stages = (("Whole corpus, cells that ran alone", True), ("A part of the corpus, validation only", False))
    for title, whole in stages:
        some = [cell for cell in alone if (cell["cell"]["sentences"] is None) == whole]
        if some:
            lines += [f"## {title}", "", screen_table(some), ""]
    for other in summary["other_bases"]:
        lines += [f"## The final settings on another base: {other['cells'][0]['cell']['model']}", ""]
        lines += [final_table(other["settings"], other["cells"]), ""]
    found = [cell["energy"] for cell in cells if "energy" in cell]
    about = "Cells that took no turns ran on several machines, some beside other load, so their tokens/s and Wh are not"
    return [*lines, f"{about} comparable. Compare operations and CPU seconds.", "", *energy_sources(found)]


def verdict(found: Record) -> list[str]:
    """The summary in words."""
    low, high = found["test_f1_interval"]
    reached = "reached" if found["goal_reached"] else "missed"
    time = "its time is unknown, because these runs took no turns"
    if found["time_ratio"] is not None:
        time = f"at **{found['time_ratio']:.2f}** of its time in runs that took turns"
    return [
        f"LoRA's test F1 minus that of full fine-tuning, over {found['seeds']} seeds: "
        f"**{found['test_f1_difference']:+.4f}** (95 % interval {low:+.4f} to {high:+.4f}: "
        f"{found['test_f1_verdict']}), at **{found['operations_ratio']:.2f}** of its operations up to the best epoch; "
        f"{time}.",
        "",
        f"The goal was at least {GOAL['f1']:+.3f} at no more than {GOAL['operations']} of the operations and "
        f"{GOAL['time']} of the time: {reached}.",
        *doubt(found["better_full"]),
    ]


def doubt(better: Record | None) -> list[str]:
    """That full fine-tuning was not tuned as well as it could be, if so."""
    if better is None:
        return []
    cell = better["cell"]
    return [
        "",
        f"**But this full fine-tuning is not the best one.** On the whole corpus, alone (seed {cell['seed']},"
        f" {decoder(cell)} tags), a learning rate of {cell['learning_rate']:g}, batch {cell['batch_size']} and"
        f" {counted(cell['epochs'], 'epoch')} have a validation F1 of {better['validation_f1']:.4f}; the setting above"
        f" has {better['chosen_validation_f1']:.4f} there. The comparison has to be made with it.",
    ]


def final_table(settings: Sequence[Record], cells: Sequence[Record]) -> str:
    rows = []
    for found in sorted(settings, key=lambda found: -found["validation_f1"]):
        runs = [cell for cell in cells if {**cell["cell"], "seed": None} == found["cell"] and "error" not in cell]
        low, high = found["test_f1_interval"]
        is_full = found["cell"]["mode"] == "full"
        rows.append([
            *setting(found["cell"]),
            mean_sd([best(run)["f1"] for run in runs], "{:.4f}"),
            mean_sd([run["test"]["f1"] for run in runs], "{:.4f}"),
            mean_sd([run["test"]["strict_f1"] for run in runs], "{:.4f}"),
            "" if is_full else f"{found['test_f1_difference']:+.4f} ({low:+.4f} to {high:+.4f})",
            f"{runs[0]['trained_parameters']:,}",
            f"{fmean(run['flops_to_best_epoch'] for run in runs) / 1e12:.1f}",
            f"{found['operations_ratio']:.2f}",
            ratio(found["time_ratio"]),
            mean_sd([run["train_tokens_per_s"] for run in runs], "{:,.0f}"),
            known_wh(runs),
            str(found["seeds"]),
        ])  # fmt: skip
    header = [*SETTING, "validation F1", "test F1", "test F1, strict", "test F1 − full (95 %)", "trained",
              "TFLOPs to best epoch", "/ full", "time / full", "tokens/s", "Wh estimated", "seeds"]  # fmt: skip
    return markdown_table(header, rows)


def ratio(value: float | None) -> str:
    """A ratio of times, a dash where no pair took turns."""
    return "–" if value is None else f"{value:.2f}"


def known_wh(runs: Sequence[Record]) -> str:
    """The mean energy of the seeds whose energy is known, and how many these are if it is not all."""
    known = [run["energy"]["estimated_wh"] for run in runs if run["energy"]["estimated_wh"] is not None]
    some = f" ({counted(len(known), 'seed')})" if 0 < len(known) < len(runs) else ""
    return mean_sd(known or [None], "{:.2f}") + some


def type_table(types: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        [name, f"{f1['full']:.4f}", f"{f1['lora']:.4f}", f"{f1['lora'] - f1['full']:+.4f}"]
        for name, f1 in sorted(types.items())
    ]
    return markdown_table(["entity type", "full", "LoRA", "difference"], rows)


def screen_table(cells: Sequence[Record]) -> str:
    """One row a cell, the best first."""
    rows = []
    for record in sorted(cells, key=lambda record: -max((s["f1"] for s in record.get("validation", ())), default=0)):
        cell = record["cell"]
        named = [*setting(cell), str(cell["sentences"] or "all")]
        if "error" in record:
            rows.append([*named, str(cell["seed"]), record["error"].split(";")[0][:60], *[""] * 7])
            continue
        rows.append([
            *named, str(cell["seed"]), f"{best(record)['f1']:.4f}", f"{best(record)['strict_f1']:.4f}",
            f"{record['test']['f1']:.4f}" if record["test"] else "",
            f"{record['trained_parameters']:,}", f"{record['flops_to_best_epoch'] / 1e12:.1f}",
            f"{record['train_tokens_per_s']:,.0f}", f"{record['cpu_seconds']:.0f}" if "cpu_seconds" in record else "",
            mean_sd([record["energy"]["estimated_wh"]], "{:.2f}"),
        ])  # fmt: skip
    header = [
        *SETTING, "sentences", "seed", "validation F1", "strict", "test F1", "trained", "TFLOPs to best epoch",
        "tokens/s", "CPU s", "Wh estimated",
    ]  # fmt: skip
    return markdown_table(header, rows)


SETTING = ("mode", "targets", "r", "alpha", "start", "rate", "batch", "epochs", "also")


def setting(cell: Record) -> list[str]:
    """The columns that say what a cell trains."""
    options = dict(cell.get("lora", {}))
    targets = options.pop("target_modules", "")
    start = "rslora" if options.pop("use_rslora", False) else "plain" if options else ""
    start = options.pop("init_lora_weights", start)
    return [
        "LoRA" if cell["mode"] == "lora" else "full",
        targets if isinstance(targets, str) else ", ".join(targets),
        str(options.pop("r", "")),
        f"{options.pop('lora_alpha', 0):g}" if cell["mode"] == "lora" else "",
        start,
        f"{cell['learning_rate']:g}",
        str(cell["batch_size"]),
        str(cell["epochs"]),
        ", ".join(also(options, cell)),
    ]


def also(options: Mapping[str, Any], cell: Record) -> list[str]:
    """Settings without a column of their own."""
    named = {
        **options,
        **{key: cell[key] for key in ("token_rows", "dropout", "frozen") if key in cell},
        **cell.get("config", {}),
    }
    lists = {name: " + ".join(map(str, value)) for name, value in named.items() if isinstance(value, list)}
    return [f"{name} {value}" for name, value in {**named, **lists}.items()]


# Picture -------------------------------------------------------------------------------------------------------------


def draw(summary: Record, figure: Any) -> None:
    """F1 against operations and against Wh: validation above; test below, for the final stage."""
    cells = [cell for cell in summary["cells"] if "error" not in cell]
    screen = [cell for cell in cells if cell["cell"]["sentences"]]
    final = by_setting(cell for cell in cells if cell["cell"]["test"])
    figure.set_size_inches(11, 9)
    figure.suptitle("all-MiniLM-L6-v2 on BioNLP2004: F1 against operations and energy")
    top, bottom = figure.subplots(2, 2)
    for axes, name in zip(top, COSTS, strict=True):
        draw_points(axes, [[cell] for cell in screen], name, "validation")
        axes.set_title(f"{screen[0]['cell']['sentences']:,} sentences, one seed" if screen else "")
    for axes, name in zip(bottom, COSTS, strict=True):
        draw_points(axes, final, name, "test")
        axes.set_title(f"whole corpus, up to {max(map(len, final), default=0)} seeds; bars: lowest to highest seed")
    handles, labels = top[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


COSTS = {
    "TFLOPs to the best epoch": lambda cell: cell["flops_to_best_epoch"] / 1e12,
    "Wh, estimated (CPU + RAM)": lambda cell: cell["energy"]["estimated_wh"],
}


def draw_points(axes: Any, settings: Sequence[Sequence[Record]], name: str, split: str) -> None:
    """One mark per setting with a seed of known cost, a star for full fine-tuning, and the front that nothing beats."""

    def f1(cell: Record) -> float:
        return cell["test"]["f1"] if split == "test" else best(cell)["f1"]

    cost = COSTS[name]
    costs = [[cost(cell) for cell in runs if cost(cell) is not None] for runs in settings]
    settings = [runs for runs, known in zip(settings, costs, strict=True) if known]
    points = [(fmean(known), fmean(map(f1, runs))) for runs, known in zip(settings, filter(None, costs), strict=True)]
    front = [points[place] for place in front_of(points)]
    axes.plot(*zip(*front, strict=True) if front else ((), ()), color="0.75", drawstyle="steps-post", zorder=1,
              label="front")  # fmt: skip
    for (x, y), runs in zip(points, settings, strict=True):
        full = runs[0]["cell"]["mode"] == "full"
        spread = [[y - min(map(f1, runs))], [max(map(f1, runs)) - y]]
        axes.errorbar(x, y, spread, marker="*" if full else "o", markersize=13 if full else 6, color=colour(runs[0]),
                      markeredgecolor="white", elinewidth=0.8, linestyle="", label=family(runs[0]))  # fmt: skip
        if not full and (x, y) in front:
            axes.annotate(f"r={runs[0]['cell']['lora']['r']}", (x, y), xytext=(5, -9), textcoords="offset points",
                          fontsize=7)  # fmt: skip
    seen: set[str] = set()
    for handle in axes.containers:
        label = handle.get_label()
        handle.set_label("_" if label in seen else label)
        seen.add(label)
    axes.set(xlabel=name, ylabel=f"{split} F1 (seqeval, default mode)")
    axes.grid(alpha=0.3)


FAMILIES = {"full": "black", "full, partly frozen": "0.5", "LoRA": "C0", "LoRA, PiSSA start": "C1",
            "LoRA + other modules": "C2", "LoRA, some layers or targets": "C4"}  # fmt: skip


def family(record: Record) -> str:
    """What kind of setting a cell is, for its colour."""
    cell = record["cell"]
    options = cell.get("lora", {})
    if cell["mode"] == "full":
        return "full, partly frozen" if cell.get("frozen") else "full"
    if options.get("modules_to_save"):
        return "LoRA + other modules"
    if options.get("target_modules") != "all-linear" or options.get("layers_to_transform"):
        return "LoRA, some layers or targets"
    return "LoRA, PiSSA start" if options.get("init_lora_weights") else "LoRA"


def colour(record: Record) -> str:
    return FAMILIES[family(record)]
