"""`python -m benchmarks demo`: known numbers, the small tasks and a quick speed grid, in a few minutes."""

from __future__ import annotations

import argparse
import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from . import report, speed, tables
from .tasks import cli as tasks
from .tasks import tables as task_tables
from .tasks.registry import TASKS
from .tasks.runner import Result, run_task

KNOWN_NUMBERS = Path(__file__).parents[1] / "tests" / "test_known_numbers.py"
FOLDER = Path("build/demo")
TASK_IDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "C1")
BACKENDS = ("torch", "rnn_ext")


class Tally:
    """A pytest plugin that counts the tests that pass."""

    passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.passed += report.when == "call" and report.passed


def known_numbers() -> bool:
    """Run the tests of the examples A1 to A7 and say in a line that they pass, or show pytest's output."""
    tally, output = Tally(), io.StringIO()
    with redirect_stdout(output):
        status = pytest.main(["-q", "-p", "no:cacheprovider", str(KNOWN_NUMBERS)], plugins=[tally])
    if status == pytest.ExitCode.OK:
        print(f"Known numbers, A1 to A7: all {tally.passed} checks pass.\n")
    else:
        print(output.getvalue())
    return status == pytest.ExitCode.OK


def train(out: Path) -> list[Result]:
    """Train the tasks that both backends have; writes their JSON and loss curves into `out`."""
    chosen = [task for task in TASKS.values() if task.id in TASK_IDS and set(BACKENDS) <= set(task.backends)]
    results = [run_task(task, BACKENDS) for task in chosen]
    tasks.write_json(results, out / "tasks.json")
    tasks.draw(results, out)
    return results


def main(argv: list[str] | None = None) -> int:
    """Run it all; 1 if a known number is wrong, or a loss curve of rnn_ext parts from torch's."""
    options = argparse.ArgumentParser(prog="python -m benchmarks demo", description=__doc__)
    options.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help="default: %(default)s")
    out = options.parse_args(argv).out

    if not known_numbers():
        return 1
    results = train(out)
    grid = speed.run(speed.parser().parse_args(["--quick", "--json", str(out / "speed.json")]))
    report.draw(grid, "speed", out)

    print(f"\n{task_tables.text(results)}\n")
    print(f"{tables.means_table(tables.lines(grid), 'simple')}\n")
    print(f"{report.setting(grid)}. {tables.disturbance(grid)}")
    print(f"Loss curves, speed charts and JSON are in {out}.")
    return 0 if all(result.agrees for result in results) else 1
