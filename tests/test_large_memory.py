"""Large results ask the system for large pages, what it gives is its own choice; and memory stays between calls."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

import rnn_ext
from tests.subject import run_python

with_large_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists() or not Path("/proc/self/smaps").exists(),
    reason="the system has no large pages",
)
TORCH_TELLS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
keeps_memory = pytest.mark.skipif(
    sys.platform != "linux" or not TORCH_TELLS, reason="torch 2.10 does not tell that a tensor is no longer needed"
)
MB = 1024 * 1024
# A tape of four numbers a unit, 16 units: so many rows are 64 MB.
ROWS, UNITS = 64 * MB // (4 * 4 * 16), 16


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


@with_large_pages
@pytest.mark.parametrize("steps, asked", [(2400, True), (1800, False)], ids=["38 MB", "29 MB"])
def test_results_of_32_mb_and_more_ask_for_large_pages(steps, asked):
    with torch.no_grad():
        output, _ = rnn_ext.RNN(4, 4)(torch.zeros(steps, 1000, 4))
    middle = output.data_ptr() + output.nbytes // 2
    assert ("hg" in flags_at(middle)) is asked


@pytest.fixture(autouse=True)
def nothing_kept():
    rnn_ext.release_memory()
    yield
    rnn_ext.release_memory()


def call(rows: int = ROWS, seed: int = 0):
    """A call whose tape has so many rows: its module, input and output."""
    torch.manual_seed(seed)
    module, x = rnn_ext.GRU(3, UNITS), torch.randn(rows // 1024, 1024, 3)
    return module, x, module(x)[0]


def gradients(module, x, y) -> list[torch.Tensor]:
    module.zero_grad()
    y.square().sum().backward()
    return [y.detach(), *(w.grad.clone() for w in module.parameters())]


def assert_equal(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.sanitize
@keeps_memory
def test_what_backward_has_used_is_kept_once_and_used_again():
    one = gradients(*call())
    assert_equal(gradients(*call()), one)
    assert 64 * MB <= rnn_ext.release_memory() <= 66 * MB
    assert rnn_ext.release_memory() == 0


@keeps_memory
def test_what_is_in_kept_memory_does_not_matter():
    expected = gradients(*call())
    module, x, _ = call()
    gradients(module, x, module(torch.full_like(x, float("nan")))[0])
    assert_equal(gradients(*call()), expected)


@keeps_memory
def test_no_more_is_kept_than_was_in_use_at_once():
    for rows in (ROWS, ROWS // 2, 3 * ROWS // 2, ROWS, ROWS * 5 // 4):
        gradients(*call(rows))
    assert rnn_ext.release_memory() <= 3 * 64 * MB // 2 + 2 * MB
    both = [call(seed=seed) for seed in (0, 1)]
    for one in both:
        gradients(*one)
    assert 128 * MB <= rnn_ext.release_memory() <= 132 * MB


@keeps_memory
def test_calls_whose_backward_is_to_come_have_memory_of_their_own():
    alone = [gradients(*call(seed=seed)) for seed in (0, 1, 2)]
    together = [call(seed=seed) for seed in (0, 1, 2)]
    for expected, one in zip(alone, together):
        assert_equal(gradients(*one), expected)
    module, x, y = call()
    y.square().sum().backward(retain_graph=True)
    gradients(*call(seed=1))
    assert_equal(gradients(module, x, y), alone[0])


@keeps_memory
def test_a_saved_tensor_that_somebody_holds_is_not_used_again():
    held = []
    with saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        gradients(*call())
    tape = max(held, key=lambda t: t.nbytes)
    before = tape.clone()
    gradients(*call(seed=1))
    assert torch.equal(tape, before)


@pytest.mark.sanitize
@keeps_memory
def test_several_threads_keep_memory_apart():
    alone = [gradients(*call(seed=seed)) for seed in range(3)]
    made = [call(seed=seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            again = pool.map(lambda one: gradients(one[0], one[1], one[0](one[1])[0]), made)
            for expected, found in zip(alone, again):
                assert_equal(found, expected)


@keeps_memory
def test_a_forked_process_has_memory_of_its_own():
    code = """
import os, torch, rnn_ext
torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
module, x = rnn_ext.GRU(3, 16), torch.randn(512, 1024, 3)
def run():
    y = module(x)[0]
    y.sum().backward()
    return y
before = run().detach()
if (child := os.fork()) == 0:
    os._exit(0 if torch.equal(run(), before) and rnn_ext.release_memory() > 0 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(run(), before) and rnn_ext.release_memory() > 0
"""
    run_python(code)


@keeps_memory
def test_a_workspace_is_kept():
    layer, x = rnn_ext.RNN(2048, 2048), torch.zeros(1, 64, 2048)
    with torch.no_grad():
        layer(x.expand(2, -1, -1))
    assert rnn_ext.release_memory() >= 2 * 2048 * 2048 * 4
