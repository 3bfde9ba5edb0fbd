"""The check on a GPU goes on after what hangs or crashes, and where it ended."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

gpu_check = pytest.importorskip("benchmarks.gpu_check", reason="the benchmarks are not beside these tests")

# Points one after the other: the second hangs, the third crashes.
WORKER = """
import os, sys, time
from pathlib import Path
from benchmarks.gpu_journal import Journal
journal = Journal(Path(sys.argv[1]))
for point in ("first", "hangs", "crashes", "last"):
    if point in journal.known():
        continue
    journal.write(point, "begins")
    if point == "hangs":
        time.sleep(60)
    if point == "crashes":
        os.abort()
    journal.write(point, "passed")
"""


def test_a_point_that_hangs_or_crashes_is_written_down_and_the_next_one_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "PATIENCE", 1.5)
    journal = gpu_check.Journal(tmp_path / "points.jsonl")
    gpu_check.watch([sys.executable, "-c", WORKER], journal, time.monotonic() + 60)
    assert journal.states() == {"first": "passed", "hangs": "hangs", "crashes": "crashed", "last": "passed"}


def test_what_the_time_cuts_off_is_tried_again(tmp_path, monkeypatch):
    journal = gpu_check.Journal(tmp_path / "points.jsonl")
    journal.write("first", "begins")
    assert journal.known() == {"first"}
    journal.end_unfinished("cut off")
    assert journal.known() == set()


def test_the_gpu_tests_are_written_down_one_by_one(tmp_path):
    journal = gpu_check.Journal(tmp_path / "tests.jsonl")
    command = [sys.executable, "-m", "benchmarks.gpu_tests", str(journal.path), "0"]
    for count in (1, 2):  # the time is up at once: one test each
        subprocess.run(command, cwd=gpu_check.ROOT, check=True, capture_output=True, timeout=120)
        assert len(journal.known()) == count
