"""comparison.png: F1 by epoch, trained parameters, speed and energy of each mode in one picture."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit._counts import counted
from lorakit.report.comparison import NAMES, as_json
from lorakit.report.palette import LIGHT
from lorakit.report.tables import contention_notes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_comparison(record: Mapping[str, Any], path: Path) -> None:
    """Write a comparison's picture as PNG."""
    from matplotlib.figure import Figure  # slow to import, so only when a picture is drawn

    modes = record["modes"]
    figure = Figure(figsize=(10, 7), layout="constrained")
    seeds = f" ({counted(len(record['seeds']), 'seed')}: mean F1, total energy)" if "seeds" in record else ""
    title = f"{record['model']} on {record['dataset']}{seeds}".encode(errors="backslashreplace").decode()
    figure.suptitle(title, parse_math=False)  # a folder's name may hold $ and bytes that are not UTF-8
    (f1, parameters), (speed, energy) = figure.subplots(2, 2)
    _draw_f1(f1, modes, "seeds" in record)
    _draw_bars(parameters, modes, "trainable_parameters", "Trained parameters")
    _draw_bars(speed, modes, "train_tokens_per_s", "Training, real tokens per second")
    _draw_energy(energy, modes)
    notes = contention_notes({NAMES[mode]: values for mode, values in modes.items()})
    if notes:
        figure.supxlabel("\n".join(notes), fontsize="small")
    figure.savefig(path, dpi=110, format="png", metadata={"Comment": record_digest(record)})


def record_digest(record: Mapping[str, Any]) -> str:
    """The PNG comment of a record's picture, by which a picture of another record can be told."""
    return f"sha256 {hashlib.sha256(as_json(record).encode()).hexdigest()}"


def _draw_f1(axes: "Axes", modes: Mapping[str, Any], several: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    for mode, values in modes.items():
        colour, rows = _colours(modes)[mode], values["history"]
        if not rows:
            continue
        best = next((row for row in rows if row["epoch"] == values.get("best_epoch") and not several), None)
        # the numbers are in the legend: beside the points those of two modes would overlap, or leave the frame
        name = f"{NAMES[mode]}: validation {(best or rows[-1])['f1']:.3f}"
        axes.plot([row["epoch"] for row in rows], [row["f1"] for row in rows], "o-", color=colour, label=name)
        if best:  # over seeds there is no one epoch
            axes.plot(
                best["epoch"], best["f1"], "o", color=colour, markersize=13, markerfacecolor="none", markeredgewidth=1.5
            )
        if values["test"]:
            f1 = values["test"]["f1"]
            at = best or rows[-1]
            style = {"color": colour, "markersize": 9, "markeredgewidth": 2.2, "linestyle": ""}
            axes.plot(at["epoch"], f1, "x", **style, label=f"{NAMES[mode]}: test {f1:.3f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.1, y=0.15)
    axes.set(title="F1 (seqeval, default mode)" + ("" if several else "; ring: best epoch"), xlabel="epoch")
    if any(values["history"] for values in modes.values()):
        axes.legend(loc="best", fontsize="small")


def _colours(modes: Mapping[str, Any]) -> dict[str, str]:
    """The colour of each mode, which is that of its run on the page."""
    return {mode: LIGHT[f"run{i}"] for i, mode in enumerate(modes, start=1)}


def _draw_bars(axes: "Axes", modes: Mapping[str, Any], key: str, title: str) -> None:
    heights, colours = [values[key] for values in modes.values()], list(_colours(modes).values())
    bars = axes.bar([NAMES[mode] for mode in modes], heights, color=colours)
    axes.bar_label(bars, fmt="{:,.0f}")
    axes.set_title(title)
    axes.margins(y=0.15)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _draw_energy(axes: "Axes", modes: Mapping[str, Any]) -> None:
    """Stacked by component; estimates are hatched."""
    bottom = [0.0] * len(modes)
    for part in ("gpu", "cpu", "ram"):
        parts = [values["energy"][part] for values in modes.values()]
        heights = [1000 * (values["kwh"] or 0.0) for values in parts]  # kWh -> Wh; an unknown component is not drawn
        if not any(heights):
            continue
        axes.bar(
            [NAMES[mode] for mode in modes],
            heights,
            bottom=bottom,
            color=LIGHT[part],
            hatch=["//" if values["method"] == "estimated" else "" for values in parts],
            edgecolor="white",
            label=f"{part.upper()}, {parts[0]['method']}",
        )
        bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    axes.set(title="Energy of the run, evaluation included", ylabel="Wh")
    axes.margins(y=0.25)
    if any(bottom):
        axes.legend(loc="upper right", ncols=3, fontsize="small")
    else:
        axes.text(0.5, 0.5, "nothing could be measured", ha="center", transform=axes.transAxes)
