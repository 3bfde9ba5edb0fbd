"""Large results ask the system for large pages; what it gives is its own choice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rnn_ext

pytestmark = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists() or not Path("/proc/self/smaps").exists(),
    reason="the system has no large pages",
)


def flags_at(address: int) -> list[str]:
    """What the system notes of the mapping that this address is in; hg: large pages were asked for."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "VmFlags:":
            return rest
    raise AssertionError(f"nothing is mapped at {address:x}")


def test_results_that_two_threads_take_from_the_system_are_those_of_one_thread():
    layer, x = rnn_ext.RNN(4, 4), torch.randn(2400, 1000, 4)
    outputs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.no_grad():
            outputs.append(layer(x)[0])
    assert torch.equal(*outputs)


@pytest.mark.parametrize("steps, asked", [(2400, True), (1800, False)], ids=["38 MB", "29 MB"])
def test_results_of_32_mb_and_more_ask_for_large_pages(steps, asked):
    with torch.no_grad():
        output, _ = rnn_ext.RNN(4, 4)(torch.zeros(steps, 1000, 4))
    middle = output.data_ptr() + output.nbytes // 2
    assert ("hg" in flags_at(middle)) is asked
