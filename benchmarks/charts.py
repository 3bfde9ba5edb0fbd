"""Charts of a speed result, as PNG on a light background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed to write a file

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter  # noqa: E402

from .contest import CELLS, MODES  # noqa: E402
from .lines import Line, mean_ratio  # noqa: E402
from .pairs import Interval, median_interval  # noqa: E402
from .tables import NAMES  # noqa: E402

COLORS = {"inference": "#8ab6d6", "training": "#1f5f8b"}
TORCH_COLORS = {"inference": "#e3c9a8", "training": "#c08a4a"}
CELL_COLORS = {"rnn": "#1f5f8b", "lstm": "#c08a4a", "gru": "#6f9a6d"}
MARKERS = {"onnxruntime": "D", "float32": "s", "two linears": "_"}  # of the further contestants
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
Series = tuple[str, str, list[int], list[float]]  # of bars: label, color, places, heights


@contextmanager
def over_shapes(
    lines: Sequence[Line], panels: Sequence[str], path: Path, title: str, note: str
) -> Iterator[tuple[list[plt.Axes], dict[str, int]]]:
    """A figure of panels, one below the other, over the same shapes; writes it at the end.

    Args:
        lines: their shapes, in this order, stand along the x axis.
        panels: a heading for each panel.
        path: the PNG to write.
        title: the chart's heading.
        note: machine and versions, in small print.

    Yields:
        The panels' axes, and the place of each shape on the x axis.
    """
    shapes = list(dict.fromkeys(line.shape for line in lines))
    size = (max(10.5, 1.2 + 0.6 * len(shapes)), 1.6 + 3 * len(panels))
    with plt.rc_context(STYLE):
        figure, stacked = plt.subplots(
            len(panels), figsize=size, layout="constrained", sharex=True, squeeze=False
        )
        all_axes = list(stacked[:, 0])
        yield all_axes, {shape: place for place, shape in enumerate(shapes)}
        for axes, panel in zip(all_axes, panels, strict=True):
            axes.set_title(panel, loc="left", fontsize=11, fontweight="bold")
            finish(axes)
        look = {"rotation": 35, "ha": "right", "rotation_mode": "anchor", "fontsize": 8.5}
        axes.set_xticks(range(len(shapes)), shapes, **look)
        axes.set_xlim(-0.6, len(shapes) - 0.4)
        axes.set_xlabel(f"batch × steps × input size × hidden size\n{note}", fontsize=9, linespacing=1.6)
        write(figure, path, title)


def finish(axes: plt.Axes) -> None:
    """Legend, rules and frame."""
    # Above the axes, where no bar can reach.
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderpad=0.2, fontsize=8.5)
    axes.grid(axis="y", color=GRID_INK, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def write(figure: plt.Figure, path: Path, title: str) -> None:
    """Put the heading on a figure and write it."""
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def by_cell(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Lines by cell, in the order of CELLS."""
    found = {cell: [line for line in lines if line.cell == cell] for cell in CELLS}
    return {cell: members for cell, members in found.items() if members}


def by_mode(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Lines by mode, inference first."""
    found = {mode: [line for line in lines if line.mode == mode] for mode in MODES}
    return {mode: members for mode, members in found.items() if members}


def ratio_chart(lines: Sequence[Line], path: Path, title: str, note: str) -> None:
    """How many times as fast as torch: a panel per cell, a bar per shape and mode with its 95% interval.

    Marks show the same against the further contestants.

    Args:
        lines: lines that share grid, dtype and thread count.
        path, title, note: as for `over_shapes`.
    """
    cells = by_cell(lines)
    panels = [members[0].class_name for members in cells.values()]
    with over_shapes(lines, panels, path, title, note) as (all_axes, places):
        for axes, members in zip(all_axes, cells.values(), strict=True):
            _ratio_panel(axes, members, places)


def _ratio_panel(axes: plt.Axes, lines: list[Line], places: dict[str, int]) -> None:
    modes = by_mode(lines)
    width = min(0.8 / len(modes), 0.3)
    for index, (mode, members) in enumerate(modes.items()):
        for line in members:
            left = places[line.shape] + (index - (len(modes) - 1) / 2) * width
            _ratio_bar(axes, left, width * 0.94, line.ratio, COLORS[mode])
            for name, other in line.others.items():
                axes.plot(left, other.ratio.median, MARKERS[name], color=INK, markersize=4, zorder=5)
        label = f"{mode} (geometric mean {mean_ratio(members):.1f}×)"
        axes.bar(0, 0, bottom=1, color=COLORS[mode], label=label)
    for name in dict.fromkeys(name for line in lines for name in line.others):
        axes.plot([], [], MARKERS[name], color=INK, markersize=4, label=f"against {NAMES.get(name, name)}")
    others = [other.ratio.median for line in lines for other in line.others.values()]
    low = min(1, *(line.ratio.low for line in lines), *others)
    high = max(1, *(line.ratio.high for line in lines), *others)
    axes.axhline(1, color=INK, linewidth=1.2, zorder=4)
    axes.set_yscale("log")
    axes.set_ylim(low * (0.75 if low < 1 else 0.9), high * 1.35)
    axes.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}×"))
    axes.set_ylabel("times as fast as torch.nn")


def _ratio_bar(axes: plt.Axes, left: float, width: float, ratio: Interval, color: str) -> None:
    # Bars stand on parity, so a slower shape hangs below the line.
    faster = ratio.median >= 1
    axes.bar(left, ratio.median - 1, width, bottom=1, color=color, zorder=2)
    axes.plot([left, left], [ratio.low, ratio.high], color=INK, linewidth=1, zorder=3)
    # Below parity a hundredth matters, above ten a tenth does not.
    decimals = 2 if not faster else 1 if ratio.median < 9.95 else 0
    place = (left, ratio.high if faster else ratio.low)
    _note(axes, f"{ratio.median:.{decimals}f}", place, 3 if faster else -10)


def _note(axes: plt.Axes, text: str, place: tuple[float, float], points_above: int) -> None:
    look = {"xytext": (0, points_above), "textcoords": "offset points", "ha": "center", "fontsize": 7.5}
    axes.annotate(text, place, **look)


def share_chart(lines: Sequence[Line], path: Path, title: str, note: str) -> None:
    """Share of the float32 multiply-add peak, rnn_ext beside torch; arguments as for `ratio_chart`."""
    cells = by_cell(lines)
    panels = [members[0].class_name for members in cells.values()]
    with over_shapes(lines, panels, path, title, note) as (all_axes, places):
        for axes, members in zip(all_axes, cells.values(), strict=True):
            series: list[Series] = []
            for mode, of_mode in by_mode(members).items():
                lefts = [places[line.shape] for line in of_mode]
                theirs, ours = [line.torch_share for line in of_mode], [line.share for line in of_mode]
                series.append((f"torch, {mode}", TORCH_COLORS[mode], lefts, theirs))
                series.append((f"rnn_ext, {mode}", COLORS[mode], lefts, ours))
            side_by_side(axes, series)
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.set_ylabel("of the multiply-add peak")


def memory_chart(lines: Sequence[Line], path: Path, title: str, note: str) -> None:
    """Peak memory over torch's, a bar per shape and cell; arguments as for `ratio_chart`, all with memory."""
    with over_shapes(lines, [""], path, title, note) as ([axes], places):
        cells = by_cell(lines).items()
        side_by_side(
            axes,
            [
                (
                    members[0].class_name,
                    CELL_COLORS[cell],
                    [places[line.shape] for line in members],
                    [line.memory_ratio for line in members],
                )
                for cell, members in cells
            ],
        )
        for bars in axes.containers:
            for bar in bars:
                _note(
                    axes, f"{bar.get_height():.2f}", (bar.get_x() + bar.get_width() / 2, bar.get_height()), 3
                )
        axes.axhline(1, color=INK, linewidth=1.2, zorder=1)
        axes.set_ylabel("of torch.nn's peak memory")


def side_by_side(axes: plt.Axes, series: list[Series]) -> None:
    """Bars in groups, one group at each place, on an axis from zero."""
    width = min(0.84 / len(series), 0.3)
    for index, (label, color, places, heights) in enumerate(series):
        lefts = [place + (index - (len(series) - 1) / 2) * width for place in places]
        axes.bar(lefts, heights, width * 0.92, color=color, label=label, zorder=2)
    axes.set_ylim(0, None)


def linear_chart(records: Sequence[dict], path: Path, title: str, note: str) -> None:
    """Nanoseconds per step over the length, a curve for each cell and mode, with 95% intervals.

    Args:
        records: of one table.
        path, title, note: as for `over_shapes`.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
        for record in records:
            lengths = sorted(map(int, record["seconds"]))
            costs = [
                median_interval([1e9 * seconds / length for seconds in record["seconds"][str(length)]])
                for length in lengths
            ]
            medians = [cost.median for cost in costs]
            reach = [[cost.median - cost.low for cost in costs], [cost.high - cost.median for cost in costs]]
            line = "-" if record["mode"] == "training" else "--"
            look = {"color": CELL_COLORS[record["cell"]], "marker": "o", "linestyle": line}
            axes.errorbar(
                lengths, medians, reach, label=f"{record['cell'].upper()}, {record['mode']}", **look
            )
        axes.set_xscale("log")
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(0, None)
        axes.set_ylabel("nanoseconds per step")
        axes.set_xlabel(f"steps\n{note}", fontsize=9, linespacing=1.6)
        finish(axes)
        write(figure, path, title)
