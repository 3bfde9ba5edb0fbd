"""The GPU tests, as far as they have not run yet: python -m benchmarks.gpu_tests JOURNAL SECONDS. See gpu_check."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_journal import Journal

ROOT = Path(__file__).resolve().parents[1]


class Recorder:
    """Leaves out what the journal has, writes down what happens, and stops when the time is up."""

    def __init__(self, journal: Journal, seconds: float) -> None:
        self.journal, self.end = journal, time.monotonic() + seconds
        self.reports: list[pytest.TestReport] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = self.journal.known()
        items[:] = [item for item in items if item.nodeid not in known]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.reports = []
        self.journal.write(nodeid, "begins")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        outcomes = [report.outcome for report in self.reports]
        state = next((outcome for outcome in ("failed", "skipped") if outcome in outcomes), "passed")
        text = "\n".join(report.longreprtext[-1500:] for report in self.reports if report.outcome != "passed")
        self.journal.write(nodeid, state, seconds=sum(report.duration for report in self.reports), text=text)

    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        if time.monotonic() > self.end:
            item.session.shouldstop = "time is up"


if __name__ == "__main__":
    recorder = Recorder(Journal(Path(sys.argv[1])), float(sys.argv[2]))
    files = sorted(str(path) for path in (ROOT / "tests").glob("test_cuda_gpu*.py"))
    pytest.main(["-q", "--rootdir", str(ROOT), *files], plugins=[recorder])
