"""Loss curves and sweeps as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from benchmarks.charts import GRID_INK, STYLE, plt

from .runner import Result

# torch lies broad and light underneath, so that a curve on top of it can be seen to lie on it.
LINES = {
    "torch": dict(color="#e3b878", linewidth=4),
    "rnn_ext": dict(color="#1f5f8b", linewidth=1.4),
    "numpy": dict(color="#5a8f5a", linewidth=1.2, linestyle="--"),
}
CELL_COLORS = ["#1f5f8b", "#c0562f", "#5a8f5a", "#8a6fb0", "#b3912f", "#6b6b6b"]
LAYERS_TIME = "seconds in the recurrent layers"
POINTS = 400  # a longer curve is drawn as means over as many equal stretches


def loss_chart(result: Result, title: str, path: Path) -> None:
    """The loss of every update, one line per backend, on a log scale."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
        for backend, run in result.runs.items():
            if run.losses:
                parts = np.array_split(run.losses, min(POINTS, len(run.losses)))
                ends = np.cumsum([len(part) for part in parts])
                axes.plot(ends, [part.mean() for part in parts], label=backend, **LINES[backend])
        axes.set_yscale("log")
        axes.set_xlabel("updates")
        axes.set_ylabel("loss")
        finish(figure, [axes], title, path)


def sweep_chart(results: list[Result], title: str, path: Path, measure: str | None = None) -> None:
    """A measure of success over the values of the swept option, one line for each cell and backend.

    With a single cell, the time in the recurrent layers stands beside it. The measure is the first of the
    scores unless named.
    """
    option = results[0].swept
    measure = measure or next(name for run in results[0].runs.values() for name in run.scores)
    lines = grouped(results)
    styles = line_styles(list(lines))
    panels = {measure: lambda run: run.scores[measure]}
    if len({cell for cell, _ in lines}) == 1:
        panels[LAYERS_TIME] = lambda run: run.layers_s
    with plt.rc_context(STYLE):
        figure, (all_axes,) = plt.subplots(
            1, len(panels), figsize=(1.6 + 4.8 * len(panels), 3.8), squeeze=False, layout="constrained"
        )
        for axes, (name, value_of) in zip(all_axes, panels.items(), strict=True):
            for (cell, backend), members in lines.items():
                points = [(result.options[option], value_of(result.runs[backend])) for result in members]
                points = [(x, y) for x, y in points if y is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), marker="o", **styles[cell, backend])
            axes.set_xlabel(option)
            axes.set_ylabel(name)
            if all(isinstance(result.options[option], int) for result in results):
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if name == LAYERS_TIME:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_locator(NullLocator())
        finish(figure, list(all_axes), title, path)


def line_styles(keys: list[tuple[str, str]]) -> dict[tuple[str, str], dict]:
    """The line of each (cell, backend): the backend's stroke, and a colour for each of many cells."""
    cells, backends = (list(dict.fromkeys(names)) for names in zip(*keys))
    styles = {}
    for cell, backend in keys:
        style = dict(LINES[backend], label=backend, markersize=7 if backend == "torch" else 3.5)
        if len(cells) > 1:
            style["color"] = CELL_COLORS[cells.index(cell)]
            style["label"] = cell
            if len(backends) > 1:
                style["label"] = f"{cell}, {backend}"
                style["alpha"] = 0.35 if backend == "torch" else 1
        styles[cell, backend] = style
    return styles


def grouped(results: list[Result]) -> dict[tuple[str, str], list[Result]]:
    """The results by (cell, backend), torch first so that it lies underneath."""
    cells = dict.fromkeys(result.options["cell"] for result in results)
    groups = {
        (cell, backend): [r for r in results if r.options["cell"] == cell and backend in r.runs]
        for backend in LINES
        for cell in cells
    }
    return {key: members for key, members in groups.items() if members}


def finish(figure, all_axes, title: str, path: Path) -> None:
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, fontweight="bold")
    for axes in all_axes:
        axes.grid(color=GRID_INK, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
