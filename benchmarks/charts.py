"""Charts of a speed result, as PNG on a light background."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed to write a file

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator  # noqa: E402

from .pairs import Interval  # noqa: E402
from .tables import Line, mean_ratio  # noqa: E402

COLORS = {"inference": "#8ab6d6", "training": "#1f5f8b"}
TORCH_COLORS = {"inference": "#e3c9a8", "training": "#c08a4a"}
INK, GRID_INK = "#22303a", "#d8dee3"
STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID_INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
}


def by_mode(lines: list[Line]) -> dict[str, dict[str, Line]]:
    """Lines by mode and shape, in the order of the grid."""
    modes: dict[str, dict[str, Line]] = {}
    for line in lines:
        modes.setdefault(line.mode, {})[line.shape] = line
    return modes


def ratio_chart(lines: list[Line], path: Path, title: str, note: str) -> None:
    """How many times faster than torch: one bar per shape and mode, on a log scale, with 95% intervals.

    Args:
        lines: lines that share cell, dtype and thread count.
        path: the PNG to write.
        title: the chart's heading.
        note: machine and versions, in small print.
    """
    modes = by_mode(lines)
    shapes = list(dict.fromkeys(line.shape for line in lines))
    width = 0.8 / len(modes)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(11, 4.8), layout="constrained")
        for index, (mode, members) in enumerate(modes.items()):
            for shape, line in members.items():
                left = shapes.index(shape) + (index - (len(modes) - 1) / 2) * width
                _ratio_bar(axes, left, width * 0.94, line.ratio, COLORS[mode])
            name = f"{mode} (geometric mean {mean_ratio(list(members.values())):.1f}×)"
            axes.bar(0, 0, bottom=1, color=COLORS[mode], label=name)
        axes.axhline(1, color=INK, linewidth=1.2, zorder=4)
        axes.set_yscale("log")
        low = min(1, *(line.ratio.low for line in lines))
        high = max(line.ratio.high for line in lines)
        axes.set_ylim(low * (0.75 if low < 1 else 0.9), high * 1.35)
        axes.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50, 100]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        axes.set_ylabel("times as fast as torch.nn")
        _shape_axis(axes, shapes, note)
        _finish(figure, axes, path, title)


def _ratio_bar(axes: plt.Axes, left: float, width: float, ratio: Interval, color: str) -> None:
    # Bars stand on parity, so a slower shape hangs below the line.
    faster = ratio.median >= 1
    axes.bar(left, ratio.median - 1, width, bottom=1, color=color, zorder=2)
    axes.plot([left, left], [ratio.low, ratio.high], color=INK, linewidth=1, zorder=3)
    # Below parity a hundredth matters, above ten a tenth does not.
    decimals = 2 if not faster else 1 if ratio.median < 9.95 else 0
    axes.annotate(
        f"{ratio.median:.{decimals}f}",
        (left, ratio.high if faster else ratio.low),
        xytext=(0, 3 if faster else -10),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
    )


def share_chart(lines: list[Line], path: Path, title: str, note: str) -> None:
    """Share of the float32 multiply-add peak, rnn_ext beside torch; arguments as for `ratio_chart`."""
    modes = by_mode(lines)
    shapes = list(dict.fromkeys(line.shape for line in lines))
    width = 0.84 / (2 * len(modes))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(11, 4.8), layout="constrained")
        for index, (mode, members) in enumerate(modes.items()):
            for side, (name, color) in enumerate((("torch", TORCH_COLORS[mode]), ("rnn_ext", COLORS[mode]))):
                places = [place for place, shape in enumerate(shapes) if shape in members]
                offset = (2 * index + side + 0.5) * width - 0.42
                shares = [members[shapes[place]] for place in places]
                heights = [100 * (line.share if name == "rnn_ext" else line.torch_share) for line in shares]
                lefts = [place + offset for place in places]
                axes.bar(lefts, heights, width * 0.92, color=color, label=f"{name}, {mode}", zorder=2)
        axes.set_ylim(0, None)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        axes.set_ylabel("of the float32 multiply-add peak")
        _shape_axis(axes, shapes, note)
        _finish(figure, axes, path, title)


def _shape_axis(axes: plt.Axes, shapes: list[str], note: str) -> None:
    axes.set_xticks(range(len(shapes)), shapes, rotation=35, ha="right", rotation_mode="anchor", fontsize=8.5)
    axes.set_xlim(-0.6, len(shapes) - 0.4)
    axes.set_xlabel(f"batch × steps × input size × hidden size\n{note}", fontsize=9, linespacing=1.6)


def _finish(figure: plt.Figure, axes: plt.Axes, path: Path, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=12)
    # Above the axes, where no bar can reach.
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0.2)
    axes.grid(axis="y", color=GRID_INK, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
