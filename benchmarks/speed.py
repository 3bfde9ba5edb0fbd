"""`python -m benchmarks speed`: rnn_ext against torch.nn over a grid of shapes, in interleaved pairs."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import machine, tables
from .contest import CELLS, DTYPES, GRID, MODES, Case, Contest, Point, flop_count
from .pairs import interleave, ratio_interval

FORMAT = 1  # raised when the JSON changes shape
FOLDER = Path("build/bench")  # for results, unless told otherwise
Record = dict[str, Any]  # what goes into JSON


def measure(case: Case, budget: float) -> Record:
    """Check one case, then time it for about `budget` seconds; returns its JSON record."""
    torch.set_num_threads(case.threads)
    contest = Contest(case)
    disagreement = contest.disagreement()
    with torch.set_grad_enabled(case.mode == "training"), machine.Neighbours() as neighbours:
        seconds = interleave(contest.functions, budget)
    return {
        "cell": case.cell,
        "point": list(case.point),
        "mode": case.mode,
        "threads": case.threads,
        "dtype": case.dtype,
        "flops": flop_count(case.point, case.mode, CELLS[case.cell].gates),
        "plan": contest.plan,
        "disagreement": disagreement,
        "neighbours": round(neighbours.share, 3),
        "seconds": rounded(seconds),
    }


def measure_linear(cell: str, mode: str, dtype: str, lengths: Iterable[int], budget: float) -> Record:
    """Time rnn_ext alone at B = 1, I = H = 64, one thread, several lengths in turns; returns a JSON record.

    Every timed block walks the same number of steps, so no length has a steadier clock than another.
    """
    torch.set_num_threads(1)
    lengths = sorted(lengths)
    functions = {}
    for steps in lengths:
        contest = Contest(Case(cell, Point(1, steps, 64, 64), mode, 1, dtype))
        if steps == lengths[0]:
            contest.disagreement()
        functions[str(steps)] = contest.functions["rnn_ext"]
    with torch.set_grad_enabled(mode == "training"), machine.Neighbours() as neighbours:
        for function in functions.values():
            function()
        seconds = interleave(functions, budget, {str(steps): lengths[-1] // steps for steps in lengths})
    return {
        "cell": cell,
        "mode": mode,
        "dtype": dtype,
        "threads": 1,
        "neighbours": round(neighbours.share, 3),
        "seconds": rounded(seconds),
    }


def rounded(seconds: Mapping[str, Iterable[float]]) -> dict[str, list[float]]:
    """Times to five significant digits: more than a clock tells, and half the size of the file."""
    return {name: [float(f"{value:.5g}") for value in values] for name, values in seconds.items()}


def parse_point(text: str) -> Point:
    """A point from its place in GRID ("6") or its sizes ("1x100x64x64", or with commas)."""
    sizes = [int(part) for part in text.replace("×", "x").replace(",", "x").split("x")]
    if len(sizes) == 1:
        return GRID[sizes[0]]
    return Point(*sizes)


def parser() -> argparse.ArgumentParser:
    """The options of `speed`."""
    options = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    add = options.add_argument
    add("--cell", nargs="+", choices=CELLS, default=["rnn"])
    add(
        "--points",
        nargs="+",
        type=parse_point,
        metavar="BxTxIxH",
        help="shapes, or places in the grid from 0",
    )
    add("--threads", nargs="+", type=int, help="thread counts (default: 1 and torch's own)")
    add("--mode", nargs="+", choices=MODES, default=list(MODES))
    add("--dtype", choices=DTYPES, default="float32")
    add("--budget", type=float, help="seconds for each line (default 4; with --linear 20)")
    add("--quick", action="store_true", help="all threads only, half a second for each line")
    add("--linear", action="store_true", help="measure nanoseconds per step over the length instead")
    add("--lengths", nargs="+", type=int, default=[1_000, 10_000, 100_000], help="for --linear")
    add("--json", type=Path, metavar="FILE", help="for facts and raw times (default in build/bench)")
    return options


def run(args: argparse.Namespace) -> Record:
    """Measure what the options ask for; returns the whole result as it goes into JSON."""
    threads = sorted(set(args.threads or ([] if args.quick else [1]) + [machine.all_threads()]))
    budget = args.budget
    if budget is None:
        budget = 20 if args.linear else 0.5 if args.quick else 4
    result: Record = {
        "kind": "speed",
        "format": FORMAT,
        "machine": machine.facts(),
        "budget_seconds": budget,
        "fma_peak_gflops": {},
        "speed": [],
        "linear": [],
    }
    if args.linear:
        for cell, mode in tqdm(list(product(args.cell, args.mode)), desc="linear", unit="mode"):
            result["linear"].append(measure_linear(cell, mode, args.dtype, args.lengths, budget))
            save(result, args.json)
        return result
    grid = product(args.cell, args.points or GRID, threads, args.mode)
    cases = [Case(cell, point, mode, count, args.dtype) for cell, point, count, mode in grid]
    progress = tqdm(cases, desc="speed", unit="line")
    for case in progress:
        # Beside every line: the best sample is the peak, and all of them show whether the machine held still.
        peaks = result["fma_peak_gflops"].setdefault(str(case.threads), [])
        peaks.append(machine.fma_peak(case.threads))
        record = measure(case, budget)
        result["speed"].append(record)
        ratio = ratio_interval(record["seconds"]["torch"], record["seconds"]["rnn_ext"])
        progress.set_postfix_str(f"{case.point} {case.mode}, {tables.threads_text(case.threads)}: {ratio.median:.2f}x")
        save(result, args.json)
    return result


def save(result: Record, path: Path) -> None:
    """Write the result so far, so that an interrupted run is not lost; a list of numbers takes one line."""
    text = json.dumps(result, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"\[[^][{}\"]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, and write JSON."""
    args = parser().parse_args(argv)
    args.json = args.json or FOLDER / ("linear.json" if args.linear else "speed.json")
    print(tables.text(run(args)))
    print(f"\nwrote {args.json}")
    return 0
