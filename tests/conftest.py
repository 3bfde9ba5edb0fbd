"""Markers, the choice of slow tests, and settings that every test shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.cuda_emulator.device import emulator, emulator_library, sources  # noqa: F401  fixtures

# Derandomized: the same examples in every run. More of them: pytest --hypothesis-profile=thorough.
COMMON = dict(derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)
settings.register_profile("quick", max_examples=300, **COMMON)
settings.register_profile("thorough", max_examples=3000, **COMMON)
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "sanitize: drives the kernels at small sizes; fast enough under sanitizers"
    )
    config.addinivalue_line("markers", "slow: runs only with --run-slow")
    config.addinivalue_line("markers", "promise(section, text): proves a line of the README's table")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--run-slow"):
        slow = [item for item in items if "slow" in item.keywords]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if "slow" not in item.keywords]


@pytest.fixture(autouse=True)
def same_start_for_every_test():
    """Seeds the generator, and puts the number of threads and the grad mode back afterwards."""
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_grad_enabled(grad)


@pytest.fixture
def note_calls(monkeypatch):
    """note_calls(owner, *names): the names of these functions of `owner`, in the order in which they are called."""

    def start(owner, *names):
        calls = []

        def noted(name, function):
            def call(*args):
                calls.append(name)
                return function(*args)

            return call

        for name in names:
            monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
        return calls

    return start
