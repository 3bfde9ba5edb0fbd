"""`python -m benchmarks speed`: rnn_ext against torch.nn over grids of shapes, in interleaved pairs."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from tqdm import tqdm

from . import bound, machine, memory, tables
from .contest import CELLS, DTYPES, MODES, Case, Contest, Disagreement
from .grids import GRIDS, Point
from .pairs import Rounds, interleave, ratio_interval

FORMAT = 1  # raised when the JSON changes shape
FOLDER = Path("build/bench")  # for results, unless told otherwise
Record = dict[str, Any]  # what goes into JSON


def measure(case: Case, budget: float, steady: machine.Steady, with_memory: bool = True) -> Record:
    """Check one case, then time it for about `budget` seconds; returns its JSON record."""
    torch.set_num_threads(case.threads)
    contest = Contest(case)
    disagreement = contest.disagreement()
    barrier = [machine.barrier_ns(case.threads)] if case.threads > 1 else []
    with torch.set_grad_enabled(case.mode == "training"), machine.Neighbours() as neighbours:
        rounds = interleave(contest.functions, budget, None, machine.amx_probe(case.threads), steady)
        allowed = bound.measure(case) if case.dtype == "float32" else None
    if barrier:
        barrier.append(machine.barrier_ns(case.threads))
    with_memory = with_memory and case.mode == "training" and memory.available()
    return {
        "grid": case.grid,
        "cell": case.cell,
        "point": list(case.point),
        "mode": case.mode,
        "threads": case.threads,
        "dtype": case.dtype,
        "flops": GRIDS[case.grid].flops(case.point, case.mode, CELLS[case.cell].gates),
        "plan": contest.plan,
        "disagreement": disagreement,
        "memory": peaks(contest) if with_memory else {},
        "bound": allowed,
        "amx_gflops": [rounded(reading) for reading in rounds.probe],
        "barrier_ns": [rounded(reading) for reading in barrier],
        "neighbours": round(neighbours.share, 3),
        "unsteady": rounds.unsteady,
        **times(rounds),
    }


def peaks(contest: Contest) -> dict[str, int]:
    """Peak memory of one training step, in bytes, its gradients included."""
    found = {}
    for name in ("rnn_ext", "torch"):
        contestant = contest.contestants[name]
        for leaf in contestant.leaves:
            leaf.grad = None
        found[name] = memory.peak_bytes(contestant.run)
    return found


def measure_linear(cell: str, mode: str, dtype: str, points: Iterable[Point], budget: float) -> Record:
    """Time rnn_ext alone on one thread, at shapes that differ in length, in turns; returns a JSON record.

    Every timed block walks the same number of steps, so no length has a steadier clock than another. The
    process keeps its memory, so that no length pays for page faults that another is spared.
    """
    torch.set_num_threads(1)
    keep_memory()
    points = sorted(points)
    longest, functions, repeats = points[-1].steps, {}, {}
    for point in points:
        contest = Contest(Case(cell, point, mode, 1, dtype, "linear"))
        if point is points[0]:
            contest.disagreement()
        functions[str(point.steps)] = contest.functions["rnn_ext"]
        repeats[str(point.steps)] = longest // point.steps
    with torch.set_grad_enabled(mode == "training"), machine.Neighbours() as neighbours:
        for function in functions.values():
            function()
        rounds = interleave(functions, budget, repeats)
    return {
        "cell": cell,
        "sizes": [points[0].batch, points[0].input_size, points[0].hidden_size],
        "mode": mode,
        "dtype": dtype,
        "threads": 1,
        "neighbours": round(neighbours.share, 3),
        **times(rounds),
    }


def keep_memory() -> bool:
    """machine.keep_memory, and a word where it does not work."""
    kept = machine.keep_memory()
    if not kept:
        print("malloc does not take the setting that keeps memory: look at the page faults beside the times")
    return kept


def rounded(value: float) -> float:
    """Five significant digits: more than a clock tells, and half the size of the file."""
    return float(f"{value:.5g}")


def times(rounds: Rounds) -> Record:
    """The part of a record that holds times, by contestant."""
    return {
        "faults": {name: round(count, 1) for name, count in rounds.faults.items()},
        "seconds": {name: [rounded(value) for value in values] for name, values in rounds.seconds.items()},
    }


def parse_point(text: str) -> Point | int:
    """A shape ("1x100x64x64", or with commas), or its place in the grid from 0 ("6")."""
    sizes = [int(part) for part in text.replace("×", "x").replace(",", "x").split("x")]
    return sizes[0] if len(sizes) == 1 else Point(*sizes)


def listing() -> str:
    """The grids, for people."""
    parts = []
    for name, grid in GRIDS.items():
        shapes = ", ".join(map(str, grid.points))
        parts.append(
            f"{name}: {grid.purpose}\n{fill(shapes, 100, initial_indent='  ', subsequent_indent='  ')}"
        )
    return "\n".join([*parts, "Shapes are batch × steps × input size × hidden size."])


def parser() -> argparse.ArgumentParser:
    """The options of `speed`."""
    options = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    add = options.add_argument
    add("--list", action="store_true", help="the grids and their shapes, and stop")
    add("--grid", nargs="+", choices=GRIDS, default=["padded"])
    add("--cell", nargs="+", type=str.lower, choices=CELLS, default=["rnn"])
    add(
        "--points",
        nargs="+",
        type=parse_point,
        metavar="BxTxIxH",
        help="shapes, or places in the grid from 0",
    )
    add("--threads", nargs="+", type=int, help="thread counts (default: 1 and torch's own)")
    add("--mode", nargs="+", choices=MODES, default=list(MODES))
    add("--dtype", choices=DTYPES, help="default: the grid's own")
    add("--budget", type=float, help="seconds for each line (default 4; for the grid linear 20)")
    add("--quick", action="store_true", help="all threads only, half a second for each line, no memory")
    add(
        "--keep-memory",
        action="store_true",
        help="no memory goes back to the system between calls, so that times hold no page faults",
    )
    add("--json", type=Path, metavar="FILE", help="for facts and raw times (default in build/bench)")
    return options


def chosen_points(args: argparse.Namespace, grid: str) -> list[Point]:
    """The shapes to time in one grid.

    Raises:
        ValueError: a place that the grid does not have, or shapes that differ in more than their steps where
            the cost over the length is asked for.
    """
    own = GRIDS[grid].points
    for point in args.points or ():
        if isinstance(point, int) and not 0 <= point < len(own):
            raise ValueError(f"--points {point}: the grid {grid} has the places 0 to {len(own) - 1}")
    chosen = [own[point] if isinstance(point, int) else point for point in args.points or own]
    if GRIDS[grid].call == "linear" and len({point._replace(steps=1) for point in chosen}) > 1:
        raise ValueError(f"--grid {grid}: expected --points that differ in their steps alone")
    return chosen


def run(args: argparse.Namespace) -> Record:
    """Measure what the options ask for; returns the whole result as it goes into JSON."""
    threads = sorted(set(args.threads or ([] if args.quick else [1]) + [machine.all_threads()]))
    kept = keep_memory() if args.keep_memory else False
    result: Record = {
        "kind": "speed",
        "format": FORMAT,
        "machine": machine.facts() | {"memory_kept": kept},
        "budget_seconds": args.budget if args.budget is not None else 0.5 if args.quick else 4,
        "fma_peak_gflops": {},
        "speed": [],
        "linear": [],
        "refused": [],
    }
    grids = [name for name in args.grid if GRIDS[name].call != "linear"]
    run_pairs(args, grids, threads, result)
    if "linear" in args.grid:  # last: it keeps the memory of the process
        run_linear(args, result)
    return result


def run_pairs(args: argparse.Namespace, grids: list[str], threads: list[int], result: Record) -> None:
    """Measure grids against torch.nn, saving after each line; where results disagree nothing is timed."""
    cases = [
        Case(cell, point, mode, count, args.dtype or GRIDS[grid].dtype, grid)
        for grid in grids
        for cell, point, count, mode in product(args.cell, chosen_points(args, grid), threads, args.mode)
    ]
    steady = {count: machine.Steady(count) for count in threads if cases}
    progress = tqdm(cases, desc="speed", unit="line", disable=not cases)
    for case in progress:
        # Beside every line: the best sample is the peak, and all of them show whether the machine held still.
        samples = result["fma_peak_gflops"].setdefault(str(case.threads), [])
        samples.append(machine.fma_peak(case.threads))
        try:
            record = measure(case, result["budget_seconds"], steady[case.threads], not args.quick)
        except Disagreement as error:  # told at the end: it must not cost the rest of a long run
            result["refused"].append(str(error))
        else:
            result["speed"].append(record)
            ratio = ratio_interval(record["seconds"]["torch"], record["seconds"]["rnn_ext"])
            progress.set_postfix_str(f"{case}: {ratio.median:.2f}x")
        save(result, args.json)


def run_linear(args: argparse.Namespace, result: Record) -> None:
    """Measure the cost over the length, saving after each cell and mode."""
    budget = args.budget if args.budget is not None else 20
    dtype = args.dtype or GRIDS["linear"].dtype
    for cell, mode in tqdm(list(product(args.cell, args.mode)), desc="linear", unit="mode"):
        points = chosen_points(args, "linear")
        result["linear"].append(measure_linear(cell, mode, dtype, points, budget))
        save(result, args.json)


def save(result: Record, path: Path) -> None:
    """Write the result so far, so that an interrupted run is not lost; a list of numbers takes one line."""
    text = json.dumps(result, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(re.sub(r"\[[^][{}\"]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, and write JSON; 1 if contestants disagreed somewhere."""
    options = parser()
    args = options.parse_args(argv)
    if args.list:
        print(listing())
        return 0
    try:
        for grid in args.grid:
            chosen_points(args, grid)
    except ValueError as error:
        options.error(str(error))
    args.json = args.json or FOLDER / f"{'-'.join([*args.grid, *args.cell])}.json"
    result = run(args)
    print(tables.text(result))
    print(f"\nwrote {args.json}")
    return 1 if result["refused"] else 0
