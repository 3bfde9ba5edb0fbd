"""The operator of every cell against the NumPy reference, on every plan: what a new cell is tried with first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

import rnn_ext
from rnn_ext import _C, ops, reference
from rnn_ext.explain import PLANS as EXPLAINED
from tests.tolerances import assert_close

# By the name in `csrc/cells/cell.h`.
CELLS = {
    "RNN_TANH": reference.RNNCell(),
    "RNN_RELU": reference.RNNCell(reference.relu),
    "LSTM": reference.LSTMCell(),
    "GRU": reference.GRUCell(),
}
INPUT_SIZE = 6


class Sizes(NamedTuple):
    time: int
    batch: int
    hidden_size: int
    num_layers: int = 1
    directions: int = 1
    threads: int = 2


# A call of each plan, by the plan's name.
PLANS = {
    "unpacked": Sizes(2, 2, 33),
    "one step": Sizes(1, 20, 70),
    "serial": Sizes(12, 20, 70, threads=1),
    "by sequence": Sizes(12, 20, 5),
    "batch split": Sizes(12, 20, 130),
    "hidden split": Sizes(12, 2, 260),
    "pipeline": Sizes(200, 2, 48),
    "layer wavefront": Sizes(96, 2, 40, num_layers=3),
    "direction split": Sizes(24, 2, 100, directions=2),
    "direction and batch split": Sizes(12, 20, 70, directions=2, threads=4),
    "direction and hidden split": Sizes(12, 2, 260, directions=2, threads=4),
}


@pytest.fixture(autouse=True)
def by_multiply_adds():
    """Plans go by the way to multiply, too."""
    before = rnn_ext.float32_product()
    rnn_ext.set_float32_product("fma")
    yield
    rnn_ext.set_float32_product(before)


def test_every_cell_has_a_reference():
    assert CELLS.keys() == ops.FACTS.keys()
    assert all((cell.gates, cell.states) == ops.FACTS[mode][:2] for mode, cell in CELLS.items())


def test_every_plan_is_tried():
    assert PLANS.keys() == EXPLAINED.keys()


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.sanitize), torch.float64], ids=str)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("mode", CELLS)
def test_the_operator_computes_what_the_reference_does(mode, plan, dtype):
    """Output, final states and all gradients."""
    time, batch, hidden_size, num_layers, directions, threads = PLANS[plan]
    torch.set_num_threads(threads)
    sizes = (time, batch, [], INPUT_SIZE, hidden_size, 0, num_layers, directions)
    assert _C.plan(mode, *sizes, str(dtype).removeprefix("torch."), threads, False, False)[0] == plan

    cell, rng = CELLS[mode], np.random.default_rng(1)

    def numbers(*shape):
        return torch.tensor(rng.uniform(-1, 1, shape)).to(dtype)

    shapes = reference.loop.param_shapes(cell, INPUT_SIZE, hidden_size, num_layers, directions)
    weights = {name: numbers(*shape) / hidden_size**0.5 for name, shape in shapes.items()}
    of_states = (num_layers * directions, batch, hidden_size)
    x, dy = numbers(time, batch, INPUT_SIZE), numbers(time, batch, directions * hidden_size)
    initial, d_final = ([numbers(*of_states) for _ in range(cell.states)] for _ in range(2))

    def as_float64(tensors):
        return tuple(t.double().numpy() for t in tensors)

    params = dict(zip(weights, as_float64(weights.values())))
    y, final, tape = reference.forward(cell, *as_float64([x]), params, as_float64(initial))
    dx, d_initial, d_params = reference.backward(tape, *as_float64([dy]), as_float64(d_final))

    stack = ops.Stack(mode, num_layers, directions == 2, rnn_ext.is_batch_invariant())
    h_0, c_0, *_ = *initial, None
    dh_n, dc_n, *_ = *d_final, None
    outputs = ops.forward(x, h_0, c_0, list(weights.values()), None, [], stack, True)
    found, saved = outputs[: 1 + cell.states], outputs[1 + cell.states :]
    needs = (True, True, cell.states > 1, True)
    gradients = ops.backward(x, h_0, list(weights.values()), None, [], found[0], saved, dy, dh_n, dc_n, stack, needs)
    for actual, expected in zip(found, [y, *final], strict=True):
        assert_close(actual, expected, dtype)
    for actual, expected in zip(gradients, [dx, *d_initial, *d_params.values()], strict=True):
        assert_close(actual, expected, dtype, scale=max(1.0, np.abs(expected).max()))
