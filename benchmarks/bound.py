"""The least time that a call can take on this machine, by rates that were measured beside it: what a ratio may reach.

A float32 call that multiplies and adds takes no less than the sum of
  - what Python, PyTorch and autograd ask of any call: two calls of `linear` on one number,
  - the products that all steps share, at the multiply-add peak,
  - the recurrent products, at that peak too; or, where a step has few rows, reading W_hh anew for each of them, at the
    rate at which each thread reads its share of it, over and over.
The cell, what backward needs of forward, and waiting for one another count as nothing.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TypedDict

import torch

import rnn_ext

from .contest import CELLS, Case, Layer, TwoLinears, make_module
from .grids import GRIDS, Point
from .pairs import time_block

ONE = Point(1, 1, 1, 1)
PROBE_SECONDS = 0.005
FLOAT_BYTES = 4


class Facts(TypedDict):
    """What a bound needs beside the multiply-add peak: seconds of any call, and GB/s of reading W_hh on all threads."""

    call_seconds: float
    read_gbytes: float


def weight_bytes(cell: str, point: Point) -> int:
    """Bytes of one layer's W_hh in float32."""
    return CELLS[cell].gates * point.hidden_size**2 * FLOAT_BYTES


def measure(case: Case) -> Facts:
    """The rates beside a case, on as many threads as it has."""
    share = weight_bytes(case.cell, case.point) // case.threads
    one, number = case._replace(cell="rnn", point=ONE, grid="padded", dtype="float32"), torch.ones(1, 1, 1)
    return {
        "call_seconds": least_of_calls(TwoLinears(Layer(make_module(rnn_ext, one), number, number, one), number).run),
        "read_gbytes": rnn_ext._C.read_rate(PROBE_SECONDS, case.threads, share),
    }


def least_of_calls(call, rounds: int = 5, calls: int = 20, clock=time.perf_counter) -> float:
    """Seconds of a call in the best of some rounds; the median of a round is its time."""
    return min(median(time_block(call, 1, clock) for _ in range(calls)) for _ in range(rounds))


def seconds(cell: str, grid_name: str, point: Point, mode: str, facts: Facts, peak_gflops: float) -> float:
    """The bound of a case, in seconds.

    Args:
        cell, grid_name, point, mode: of the case, as in a speed record.
        facts: what `measure` found.
        peak_gflops: the multiply-add peak on the threads of the case.
    """
    grid, gates = GRIDS[grid_name], CELLS[cell].gates
    loops = grid.num_layers * (2 if grid.bidirectional else 1)
    passes = {"inference": 1, "training": 2}[mode]  # through the recurrence: backward has one of its own
    lengths = grid.lengths(point)
    recurrent = 2 * int(lengths.sum()) * loops * passes * gates * point.hidden_size**2
    shared = grid.flops(point, mode, gates) - recurrent
    read = int(lengths.max()) * loops * passes * weight_bytes(cell, point) / facts["read_gbytes"]
    return facts["call_seconds"] + (shared / peak_gflops + max(recurrent / peak_gflops, read)) / 1e9
