"""Results as text: one row per task, the two torch backends side by side; NumPy in a table of its own."""

from __future__ import annotations

from tabulate import tabulate

from .runner import Result, Run

PAIR = ("torch", "rnn_ext")
DASH = "–"


def text(results: list[Result], style: str = "simple") -> str:
    """All tables of these results, in a format that tabulate knows."""
    parts = []
    if any(backend in result.runs for result in results for backend in PAIR):
        parts.append(pair_table(results, style))
    if any("numpy" in result.runs for result in results):
        parts.append("On the NumPy reference\n\n" + numpy_table(results, style))
    return "\n\n".join(parts)


def pair_table(results: list[Result], style: str) -> str:
    """Final loss, success measure and time of torch and rnn_ext; ratios are torch / rnn_ext."""
    headers = [
        "\ntask",
        "final loss\ntorch",
        "\nrnn_ext",
        "success\nmeasure",
        "\ntorch",
        "\nrnn_ext",
        "\nreached",
    ]
    for first in ("seconds", "in layers"):
        headers += [f"{first}\ntorch", "\nrnn_ext", "\nratio"]
    headers.append("curves\napart")
    rows = []
    for result in results:
        runs = [result.runs.get(backend) for backend in PAIR]
        trained = [run for run in runs if run]
        if not trained:
            continue
        rows.append(
            [label(result), *(number(run and run.final_loss) for run in runs)]
            + [measure_name(trained[0]), *(measure(run) for run in runs), reached(result)]
            + [*(seconds(run and run.wall_s) for run in runs), ratio(result.wall_ratio)]
            + [*(seconds(run and run.layers_s) for run in runs), ratio(result.layers_ratio)]
            + [disagreement(result)]
        )
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=["left"] + ["right"] * 13)


def numpy_table(results: list[Result], style: str) -> str:
    """What the reference reaches; a dash for the loss where it only measures trained weights."""
    rows = []
    for result in results:
        if run := result.runs.get("numpy"):
            loss = number(run.final_loss) if run.losses else DASH
            yes = "yes" if run.reached else "no"
            rows.append([label(result), loss, measure_name(run), measure(run), yes, seconds(run.wall_s)])
    headers = ["task", "final loss", "success measure", "", "reached", "seconds"]
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=["left"] + ["right"] * 5)


def label(result: Result) -> str:
    """The task's name, with the cell where it was chosen and the swept option where there is one."""
    cell = f", {result.options['cell']}" if result.cell_chosen else ""
    return result.task + cell + (f", {result.swept} {result.options[result.swept]}" if result.swept else "")


def measure_name(run: Run) -> str:
    return next(iter(run.scores))


def measure(run: Run | None) -> str:
    return f"{next(iter(run.scores.values())):.3g}" if run else DASH


def reached(result: Result) -> str:
    """Whether the goal was reached, by name where the two differ."""
    answers = {
        backend: "yes" if run.reached else "no" for backend, run in result.runs.items() if backend in PAIR
    }
    if len(set(answers.values())) == 1:
        return next(iter(answers.values()))
    return ", ".join(f"{backend} {answer}" for backend, answer in answers.items())


def disagreement(result: Result) -> str:
    """The loss curves' largest relative difference, marked where it is more than allowed."""
    if result.disagreement is None:
        return DASH
    return f"{result.disagreement:.0e}" + ("" if result.agrees else f" > {result.agreement_bound:.0e}")


def number(value: float | None) -> str:
    return DASH if value is None else f"{value:.4g}"


def seconds(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def ratio(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"
