"""The drop-in contract: promises, each proven by tests, and the README's table of what these tests found.

    python -m tests.contract          # every promise on torch.nn and on rnn_ext, into the README; some minutes

A promise is a marker, @promise("Forward", "batch_first"), on every test that proves it. These tests hold each class of
ours against torch's. With RNN_EXT_TEST_SUBJECT=torch.nn in the environment torch's stands in the place of ours
(tests/subject.py), so that the same test tells what torch.nn does.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.subject import CELLS, LAYERS, SUBJECT_VARIABLE, Case, Layer

TESTS = Path(__file__).parent
README = TESTS.parent / "README.md"
HEADING = "## The contract"
SECTIONS = ("Base class", "Constructor", "Parameters", "Forward", "Autograd", "Around it")
LAYER_CLASSES, CELL_CLASSES = (list(dict.fromkeys(row.theirs.__name__ for row in rows)) for rows in (LAYERS, CELLS))
CLASSES = LAYER_CLASSES + CELL_CLASSES
SUBJECTS = ("torch.nn", "rnn_ext")

Results = dict[str, dict[str, bool]]  # promise -> class of torch.nn -> whether every test of it passed


def promise(section: str, text: str) -> pytest.MarkDecorator:
    """Marks a test as one that proves this promise; the table has a line for each text."""
    return pytest.mark.promise(section, text)


def promises() -> dict[str, list[str]]:
    """The promises of each section, found in the sources of the tests."""
    found: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for path in sorted(TESTS.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "promise":
                section, text = map(ast.literal_eval, node.args)
                if text not in found[section]:
                    found[section].append(text)
    return found


class Recorder:
    """A pytest plugin that notes for which classes the tests of a promise pass. A skipped test says nothing."""

    def __init__(self) -> None:
        self.results: Results = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call):
        report = yield
        if report.failed or (report.passed and report.when == "call"):
            for marker in item.iter_markers("promise"):
                classes = self.results.setdefault(marker.args[1], {})
                for name in classes_of(item):
                    classes[name] = classes.get(name, True) and report.passed
        return report


def classes_of(item: pytest.Item) -> Iterable[str]:
    """The class that a test is about: that of its row; without one, all of them."""
    callspec = getattr(item, "callspec", None)
    for value in callspec.params.values() if callspec else ():
        row = value.layer if isinstance(value, Case) else value
        if isinstance(row, Layer):
            return (row.theirs.__name__,)
    return CLASSES


def measure(subject: str) -> Results:
    """Runs every promise on the classes of `subject`, in another process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results.json")
        subprocess.run(
            [sys.executable, "-m", "tests.contract", "--record", str(path)],
            cwd=TESTS.parent,
            env={**os.environ, SUBJECT_VARIABLE: subject},
            check=True,
        )
        return json.loads(path.read_text())


def verdict(classes: dict[str, bool]) -> str:
    """A cell of the table: yes, no, or for which classes."""
    kept, broken = ([name for name in CLASSES if classes.get(name) is passed] for passed in (True, False))
    if not kept or not broken:
        return "yes" if kept else "no"
    if kept in (LAYER_CLASSES, CELL_CLASSES):
        return "layers only" if kept == LAYER_CLASSES else "cells only"
    return f"not {', '.join(broken)}" if len(broken) <= len(kept) else f"{', '.join(kept)} only"


def table(results: dict[str, Results]) -> list[str]:
    """The lines of the table, from the results of each subject."""
    lines = [f"| | {' | '.join(SUBJECTS)} |", f"|---|{'---|' * len(SUBJECTS)}"]
    for section, texts in promises().items():
        lines.append(f"| **{section}** |{' |' * len(SUBJECTS)}")
        lines += [f"| {text} | {' | '.join(verdict(results[s][text]) for s in SUBJECTS)} |" for text in texts]
    return lines


def readme_table() -> list[str]:
    """The lines of the table in the README."""
    section = README.read_text().split(f"{HEADING}\n")[1].split("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("|")]


def write(lines: list[str]) -> None:
    """Puts the lines in the place of the README's table."""
    README.write_text(README.read_text().replace("\n".join(readme_table()), "\n".join(lines)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs every promise and writes the README's table.")
    parser.add_argument("--record", metavar="FILE", help="only run them on one subject, and note the results there")
    path = parser.parse_args().record
    if path is None:
        write(table({subject: measure(subject) for subject in SUBJECTS}))
        return
    recorder = Recorder()
    options = ["-q", "--tb=line", "--run-slow", "-m", "promise", "-p", "no:cacheprovider"]
    pytest.main([*options, str(TESTS)], plugins=[recorder])
    Path(path).write_text(json.dumps(recorder.results, indent=1))


if __name__ == "__main__":
    main()
