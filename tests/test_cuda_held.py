"""W_hh held for a whole launch in registers, and in shared memory what does not fit there, under the emulator."""

from __future__ import annotations

import re

import pytest
import torch

import rnn_ext
from tests.covering import each_meeting
from tests.cuda_emulator.device import GRU, HALVES, LSTM, TANH, assert_equals_reference, plan, results_of
from tests.subject import Case

FRAGMENT_DTYPES = [torch.float32, *HALVES]
REGISTERS = 512  # bytes of W that a thread keeps


def kibibytes(text: str) -> list[int]:
    """Forward and backward: shared memory of a block that W takes beside the registers."""
    found = [re.search(r"registers(?: and (\d+) KiB)?", half) for half in text.split(";")]
    assert all(found), text
    return [int(match[1] or 0) for match in found if match]


@each_meeting(
    size=[("LSTM", 64), ("LSTM", 67), ("GRU", 88), ("RNN_TANH", 256)], dtype=FRAGMENT_DTYPES, threads=[32, 96, 256]
)
def test_no_bit_depends_on_where_the_weights_lie(emulator, size, dtype, threads):
    """Among them: odd sizes, weights at odd addresses, warps with several jobs and with none."""
    mode, hidden_size = size
    emulator.device(multiprocessors=2, shared_bytes=227 << 10, threads=threads)
    layer = {"LSTM": LSTM, "GRU": GRU, "RNN_TANH": TANH}[mode]
    layout = "offset" if mode == "GRU" else "contiguous"
    case = Case(layer, 3, hidden_size, dtype=dtype, form="sorted", lengths=(3, 3, 2, 2, 1), layout=layout)
    found = []
    for product in ("fragments", "held"):
        emulator.plan("grid", product)
        text = plan(mode, 3, 5, hidden_size, dtype.itemsize)
        assert ("registers" in text) == (product == "held")
        if threads == 32:
            assert product == "fragments" or max(kibibytes(text)) > 0
        found.append(results_of(case))
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], expected), name


@pytest.mark.sanitize
@each_meeting(layer=[LSTM, GRU], size=[("grid", 3, 99), ("grid", 20, 98), ("cluster", 11, 104)], dtype=FRAGMENT_DTYPES)
def test_weights_in_both_places_equal_the_reference(emulator, layer, size, dtype):
    kind, batch, hidden_size = size
    emulator.device(multiprocessors=3, cluster_blocks=3, shared_bytes=227 << 10, threads=32)
    emulator.plan(kind, "held")
    assert min(kibibytes(plan(layer.ours.__name__, 5, batch, hidden_size, dtype.itemsize))) > 0
    assert_equals_reference(emulator, layer, hidden_size, batch, dtype, batch == 11, bidirectional=False)


@pytest.mark.parametrize("dtype", FRAGMENT_DTYPES, ids=str)
def test_batch_invariant_with_weights_in_both_places(emulator, dtype):
    emulator.device(cluster_blocks=3, shared_bytes=227 << 10, threads=32)
    emulator.plan("cluster")
    assert min(kibibytes(plan("LSTM", 4, 19, 72, dtype.itemsize, invariant=True))) > 0
    module, x = LSTM.make_ours(5, 72, dtype=dtype), torch.randn(4, 19, 5, dtype=dtype)

    def run(x):
        x = x.clone().requires_grad_()
        y = module(x)[0]
        return y, torch.autograd.grad(y.double().square().sum(), x)[0]

    with rnn_ext.batch_invariant():
        together = run(x)
        for b in (0, 7, 18):
            for all_of_them, alone in zip(together, run(x[:, b : b + 1])):
                assert torch.equal(all_of_them[:, b], alone[:, 0])


@pytest.mark.parametrize(
    "mode, hidden_size, storage_bytes, kind, blocks",
    [
        ("LSTM", 512, 2, "clusters", "16 blocks of 32"),
        ("LSTM", 768, 2, "clusters", "16 blocks of 48"),
        ("RNN_TANH", 1024, 2, "clusters", "16 blocks of 64"),
        ("LSTM", 2048, 2, "persistent grid", "128 blocks of 16"),
        ("LSTM", 1024, 4, "persistent grid", "64 blocks of 16"),
    ],
)
def test_a_block_holds_what_shared_memory_and_registers_hold(emulator, mode, hidden_size, storage_bytes, kind, blocks):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16, threads=256)
    text = plan(mode, 500, 16, hidden_size, storage_bytes)
    assert text.count(kind) == text.count(blocks) == text.count("tensor cores") == 2, text
    gates = 4 if mode == "LSTM" else 1
    weights = gates * hidden_size**2 * storage_bytes // int(blocks.split()[0])
    for shared in kibibytes(text):  # nothing is there twice, and no more than a few registers stay empty
        least = max(weights - 256 * REGISTERS, 0)
        assert least <= shared << 10 <= least * 1.04


def test_shared_memory_alone_would_not_hold_them(emulator):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16, threads=256)
    emulator.plan("cluster", "fragments")
    assert plan("LSTM", 500, 16, 768, 2) == "forward none; backward none"
    emulator.plan("grid", "fragments")
    assert plan("LSTM", 500, 16, 2048, 2) == "forward none; backward none"


def test_what_does_not_fit_a_block_is_no_plan(emulator):
    """Registers do not count where they are already full."""
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16, threads=256)
    emulator.plan("grid")
    assert "none" not in plan("LSTM", 500, 1, 2048, 2)
    assert plan("LSTM", 500, 1, 3072, 2) == "forward none; backward none"
    emulator.device(multiprocessors=132, shared_bytes=128 << 10, cluster_blocks=16, threads=256)
    assert plan("LSTM", 500, 1, 2048, 2) == "forward none; backward none"
