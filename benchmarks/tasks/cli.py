"""Choose tasks, train them, print one table, write JSON and charts.

One option of a task may have several values, and --cell too: every combination is trained.
The chart of the window sweep, DIR/counting_ones-window.png:

  python -m benchmarks tasks --task counting_ones --backend rnn_ext \\
      --cell RNN LSTM GRU delay --window 2 3 4 5 6 7 8 --charts DIR
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch

from . import tables
from .backends import BACKENDS
from .problem import Task
from .registry import TASKS
from .runner import Result, check_trained, run_task

OPTIONS = {
    "hidden": int,
    "lr": float,
    "sequences": int,
    "length": int,
    "window": int,
    "layers": int,
    "epochs": int,
}
CELLS = list(dict.fromkeys(cell for task in TASKS.values() for cell in task.cells))


def cell_name(text: str) -> str:
    """A cell's name as the tasks have it, whatever the case of its letters."""
    by_lower = {cell.lower(): cell for cell in CELLS}
    if text.lower() not in by_lower:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(CELLS)})")
    return by_lower[text.lower()]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="the tasks and their options, and stop")
    parser.add_argument(
        "--task", action="append", choices=TASKS, metavar="NAME", help="repeatable; all if not given"
    )
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="repeatable; all if not given")
    parser.add_argument(
        "--cell",
        nargs="+",
        type=cell_name,
        metavar="NAME",
        help=f"of {', '.join(CELLS)}; each task has its own",
    )
    parser.add_argument("--seed", type=int, help="each task has its own")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--threads", type=int, help="torch's own choice if not given")
    parser.add_argument("--quick", action="store_true", help="fewer epochs where a task takes long")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results, loss curves included")
    parser.add_argument(
        "--charts", type=Path, metavar="DIR", help="write the loss curves, and a chart of a sweep"
    )
    options = parser.add_argument_group(
        "options of the tasks", "one of them may have several values: a sweep"
    )
    for name, kind in OPTIONS.items():
        options.add_argument(f"--{name}", type=kind, nargs="+", metavar="N")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; 1 if the loss curves of torch and rnn_ext part sooner than they may, else 0."""
    arguments = parser()
    args = arguments.parse_args(argv)
    if args.list:
        print(listing())
        return 0
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    swept = [name for name, values in given.items() if len(values) > 1]
    if len(swept) > 1:
        arguments.error(f"a sweep takes one option with several values, got {' and '.join(swept)}")
    given |= {"cell": args.cell} if args.cell else {}
    chosen = [TASKS[name] for name in args.task or TASKS]
    try:
        for task in chosen:  # all of them before the first is trained
            check_trained(task, args.backend or BACKENDS)
            for options in combinations(given):
                task.check(**options)
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        results = [
            result for task in chosen for result in run(task, given, swept[0] if swept else None, args)
        ]
    except ValueError as error:
        arguments.error(str(error))
    print("\n" + tables.text(results))
    if args.json:
        write_json(results, args.json)
    if args.charts:
        draw(results, args.charts)
    parted = [tables.label(result) for result in results if not result.agrees]
    if parted:
        print(f"\nThe loss curves of torch and rnn_ext part too soon: {', '.join(parted)}")
    return 1 if parted else 0


def combinations(given: dict[str, list]) -> list[dict[str, Any]]:
    """Every choice of one value for each option."""
    return [dict(zip(given, values)) for values in product(*given.values())]


def run(task: Task, given: dict[str, list], swept: str | None, args: argparse.Namespace) -> list[Result]:
    """A result for each combination of the given values."""
    results = []
    for options in combinations(given):
        quick = task.quick if args.quick else {}
        result = run_task(task, args.backend or BACKENDS, args.seed, args.dtype, **{**quick, **options})
        result.swept, result.cell_chosen = swept, bool(args.cell)
        results.append(result)
    return results


def listing() -> str:
    """Every task: what it is, when it counts as reached, on what it runs, with which options."""
    lines = []
    for task in TASKS.values():
        numpy = " (numpy forward only)" if "numpy" in task.backends and task.numpy == "forward" else ""
        lines += [
            f"{task.name}  [{task.id}]  {task.title}",
            f"    reached when: {task.reached_when}",
            f"    backends: {', '.join(task.backends)}{numpy}; seed {task.seed}",
            f"    cells: {', '.join(task.cells)}",
            f"    {', '.join(f'{name} {value}' for name, value in task.options.items())}",
        ]
    return "\n".join(lines)


def write_json(results: list[Result], path: Path) -> None:
    """All results with the machine's facts."""
    from benchmarks.machine import facts

    document = {
        "kind": "tasks",
        "machine": facts(),
        "threads": torch.get_num_threads(),
        "results": [result.as_json() for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1))


def draw(results: list[Result], folder: Path) -> None:
    """TASK.png for each task, TASK-CELL.png where the cell was chosen, TASK-OPTION.png for a sweep."""
    from . import charts

    for name in dict.fromkeys(result.task for result in results):
        same = [result for result in results if result.task == name]
        title = f"{name}: {TASKS[name].title}"
        if same[0].swept:
            charts.sweep_chart(same, title, folder / f"{name}-{same[0].swept}.png", TASKS[name].charted)
            continue
        for result in same:
            cell = f"-{result.options['cell']}" if result.cell_chosen else ""
            charts.loss_chart(result, title, folder / f"{name}{cell}.png")
