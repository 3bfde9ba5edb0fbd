"""Loss curves and sweeps as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.charts import GRID_INK, STYLE, plt

from .runner import Result

# torch lies broad and light underneath, so that a curve on top of it can be seen to lie on it.
LINES = {
    "torch": dict(color="#e3b878", linewidth=4),
    "rnn_ext": dict(color="#1f5f8b", linewidth=1.4),
    "numpy": dict(color="#5a8f5a", linewidth=1.2, linestyle="--"),
}
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


def sweep_chart(results: list[Result], title: str, path: Path) -> None:
    """Success measure and time in the recurrent layers over the values of the swept option."""
    option = results[0].swept
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
        for backend, style in LINES.items():
            done = [
                (result.options[option], result.runs[backend]) for result in results if backend in result.runs
            ]
            if not done:
                continue
            style = dict(style, marker="o", markersize=7 if backend == "torch" else 3.5)
            left.plot(
                [v for v, _ in done],
                [next(iter(run.scores.values())) for _, run in done],
                label=backend,
                **style,
            )
            timed = [(value, run.layers_s) for value, run in done if run.layers_s is not None]
            if timed:
                right.plot(*zip(*timed, strict=True), label=backend, **style)
        left.set_ylabel(next(name for run in results[0].runs.values() for name in run.scores))
        right.set_ylabel("seconds in the recurrent layers")
        right.set_yscale("log")
        right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        right.yaxis.set_major_formatter("{x:g}")
        right.yaxis.set_minor_locator(NullLocator())
        for axes in (left, right):
            axes.set_xlabel(option)
        finish(figure, [left, right], title, path)


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
