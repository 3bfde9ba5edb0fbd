"""Tests on the emulated kernels: the device that they see, and what they compare with."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_ext import _C, ops, reference
from tests import cuda_emulator
from tests.subject import GRU, LAYERS, LSTM, PROJECTED, RELU, TANH, Case, named_outputs  # noqa: F401  for tests
from tests.tolerances import assert_close

KINDS = ["stepwise", "grid", "cluster", "library"]
HALVES = [torch.bfloat16, torch.float16]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


def each_layer_and_kind(kinds):
    """A projection runs step by step alone."""
    pairs = [(layer, kind) for layer in LAYERS for kind in kinds]
    pairs = [(layer, kind) for layer, kind in pairs if not layer.projected or kind in ("stepwise", "library")]
    return pytest.mark.parametrize("layer, kind", pairs, ids=str)


class Emulator:
    """The device that the operators see."""

    def __init__(self, library, monkeypatch) -> None:
        self.library, self.monkeypatch = library, monkeypatch
        self.device()
        self.order(0)

    def device(
        self,
        multiprocessors: int = 6,
        shared_bytes: int = 64 << 10,
        cluster_blocks: int = 4,
        workspace_bytes: int = 1 << 30,
        at_once: int = 1 << 20,
        refuses: bool = False,
        threads: int = 64,
        has_code: bool = True,
    ) -> None:
        """workspace_bytes: for a chunk of steps; at_once: blocks that the device says can be alive; refuses: launches
        of blocks that wait for each other; threads: of a block; has_code: whether the kernels were built for it."""
        chip = (multiprocessors, shared_bytes, cluster_blocks)
        self.library.emulator_limits(*chip, ctypes.c_int64(workspace_bytes), at_once, refuses, threads, has_code)

    def order(self, order: int) -> None:
        """In which order threads run between two barriers: 0 ascending, 1 descending, 2 shuffled."""
        self.library.emulator_order(order)

    def plan(self, kind: str, product: str = "") -> None:
        self.monkeypatch.setenv("RNN_EXT_CUDA_PLAN", kind)
        self.monkeypatch.setenv("RNN_EXT_CUDA_PRODUCT", product)

    @property
    def launches(self) -> int:
        return self.library.emulator_launches()


@pytest.fixture(scope="session")
def sources():
    if not (cuda_emulator.ROOT / "csrc").exists():
        pytest.skip("the sources of the kernels are not beside these tests")


@pytest.fixture(scope="session")
def emulator_library(sources):
    return cuda_emulator.library()


@pytest.fixture
def emulator(emulator_library, monkeypatch):
    """The layers of this test run on the emulated kernels."""
    emulated = torch.ops.rnn_ext_emulated
    monkeypatch.setattr(ops, "_forward_op", emulated.rnn_forward.default)
    monkeypatch.setattr(ops, "_backward_op", emulated.rnn_backward.default)
    for name in ("plain_call", "forward", "backward", "gradients"):  # past the operators, for tensors on the CPU
        monkeypatch.setattr(_C, name, lambda *args: NotImplemented)
    monkeypatch.delenv("RNN_EXT_CUDA_PLAN", raising=False)
    monkeypatch.delenv("RNN_EXT_CUDA_PRODUCT", raising=False)
    return Emulator(emulator_library, monkeypatch)


def plan(mode, T, B, H, storage_bytes, proj_size=0, invariant=False):
    return torch.ops.rnn_ext_emulated.cuda_plan(mode, T, B, H, proj_size, 1, storage_bytes, 0, invariant)


def reference_cell(layer):
    if layer.ours.__name__ == "RNN":
        name = layer.options["nonlinearity"]
        return reference.RNNCell(reference.tanh if name == "tanh" else reference.relu)
    return {"LSTM": reference.LSTMCell, "GRU": reference.GRUCell}[layer.ours.__name__]()


def lengths_of(ragged: bool, time: int, batch: int) -> list[int]:
    return [1 + (3 * b + 1) % time for b in range(batch)] if ragged else [time] * batch


def assert_equals_reference(emulator, layer, hidden_size, batch, dtype, ragged, bidirectional=True, num_layers=1):
    """Output, final states and all gradients against backpropagation through time in float64."""
    time, input_size = 5, 3
    torch.manual_seed(hidden_size + batch)
    module = layer.make_ours(input_size, hidden_size, num_layers, bidirectional=bidirectional, dtype=dtype)
    rows = num_layers * (2 if bidirectional else 1)
    x = torch.randn(time, batch, input_size, dtype=dtype, requires_grad=True)
    shapes = layer.state_shapes(rows, batch, hidden_size)
    states = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    lengths = lengths_of(ragged, time, batch)
    before = emulator.launches
    if ragged:
        packed, final = module(pack_padded_sequence(x, lengths, enforce_sorted=False), layer.state(*states))
        y = pad_packed_sequence(packed, total_length=time)[0]
    else:
        y, final = module(x, layer.state(*states))
    outputs = list(named_outputs((y, final)).values())
    d_outputs = [torch.randn_like(out) for out in outputs]
    torch.autograd.backward(outputs, d_outputs)
    assert emulator.launches > before + 1, "torch's own operator ran instead of the kernels"

    def exact(t):
        return t.detach().double().numpy()

    params = {name: exact(weight) for name, weight in module.named_parameters()}
    start = tuple(exact(s) for s in states)
    y_ref, final_ref, tape = reference.forward(reference_cell(layer), exact(x), params, start, lengths)
    d_y, *d_final = (exact(d) for d in d_outputs)
    inside = np.arange(time)[:, None] < np.array(lengths)
    dx, d_start, d_params = reference.backward(tape, d_y * inside[..., None], tuple(d_final))

    for actual, expected in zip(outputs, [y_ref, *final_ref], strict=True):
        assert_close(actual, expected, dtype=dtype)
    gradients = [(x.grad, dx), *zip((s.grad for s in states), d_start, strict=True)]
    gradients += [(weight.grad, d_params[name]) for name, weight in module.named_parameters()]
    for actual, expected in gradients:
        assert_close(actual, expected, dtype=dtype, scale=max(1.0, np.abs(expected).max(initial=0.0)))


def results_of(case: Case) -> dict[str, torch.Tensor]:
    outputs, gradients = case.run_ours()
    return {**outputs, **{f"d{name}": gradient for name, gradient in gradients.items()}}
