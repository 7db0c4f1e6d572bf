"""comparison.png: F1 by epoch, trained parameters, speed and energy of each mode in one picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.report.comparison import NAMES
from lorakit.report.palette import PICTURE
from lorakit.report.tables import contention_notes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_comparison(record: Mapping[str, Any], path: Path) -> None:
    """Write a comparison's picture as PNG."""
    from matplotlib.figure import Figure  # slow to import, so only when a picture is drawn

    modes = record["modes"]
    figure = Figure(figsize=(10, 7), layout="constrained")
    figure.suptitle(f"{record['model']} on {record['dataset']}")
    (f1, parameters), (speed, energy) = figure.subplots(2, 2)
    _draw_f1(f1, modes)
    _draw_bars(parameters, modes, "trainable_parameters", "Trained parameters")
    _draw_bars(speed, modes, "train_tokens_per_s", "Training, real tokens per second")
    _draw_energy(energy, modes)
    notes = contention_notes({NAMES[mode]: values for mode, values in modes.items()})
    if notes:
        figure.supxlabel("\n".join(notes), fontsize="small")
    figure.savefig(path, dpi=110, format="png")


def _draw_f1(axes: "Axes", modes: Mapping[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    ends = {mode: values["history"][-1]["f1"] for mode, values in modes.items() if values["history"]}
    for mode, values in modes.items():
        epochs, f1 = [row["epoch"] for row in values["history"]], [row["f1"] for row in values["history"]]
        axes.plot(epochs, f1, "o-", color=PICTURE[mode], label=NAMES[mode])
        if f1:
            # both modes often end close together: the better one's number goes above its point, the other's below
            place = (6, 4 if mode == max(ends, key=ends.get) else -10)
            end = (epochs[-1], f1[-1])
            axes.annotate(f"{f1[-1]:.3f}", end, xytext=place, textcoords="offset points", color=PICTURE[mode])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.15, y=0.1)
    axes.set(title="Validation F1 (seqeval, default mode)", xlabel="epoch")
    if any(values["history"] for values in modes.values()):
        axes.legend()


def _draw_bars(axes: "Axes", modes: Mapping[str, Any], key: str, title: str) -> None:
    heights, colours = [values[key] for values in modes.values()], [PICTURE[mode] for mode in modes]
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
            color=PICTURE[part],
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
