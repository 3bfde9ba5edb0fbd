"""What is timed: shapes, cells, and the contestants of one case with the check that they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

import rnn_ext

from . import onnx_peer

MODES = ("inference", "training")
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
# Largest difference accepted, ||a - b|| / ||b|| of each output and gradient: wide enough for another order of
# summation, far too narrow for a wrong formula.
AGREEMENT = {"float32": 1e-4, "float64": 1e-11, "bfloat16": 5e-2}


class Point(NamedTuple):
    """One shape: batch size, time steps, input size, hidden size."""

    batch: int
    steps: int
    input_size: int
    hidden_size: int

    def __str__(self) -> str:
        return "×".join(map(str, self))


GRID = [
    Point(*shape)
    for shape in (
        (1, 6, 5, 4),
        (2, 5, 4, 6),
        (16, 5, 1, 16),
        (100, 4, 1, 8),
        (32, 10, 1, 20),
        (1, 1, 256, 256),
        (1, 100, 64, 64),
        (1, 1000, 128, 128),
        (1, 200, 512, 512),
        (8, 100, 256, 256),
        (32, 100, 64, 64),
        (32, 100, 128, 128),
        (32, 100, 256, 256),
        (64, 100, 512, 512),
        (128, 50, 1024, 1024),
        (256, 128, 128, 128),
        (64, 1000, 64, 64),
    )
]


@dataclass(frozen=True)
class Cell:
    """What a --cell name stands for: both classes, gates sharing one product, the ONNX twin if any."""

    fused: type[torch.nn.RNNBase]
    builtin: type[torch.nn.RNNBase]
    gates: int
    onnx: Callable | None = None


CELLS = {
    "rnn": Cell(rnn_ext.RNN, torch.nn.RNN, gates=1, onnx=onnx_peer.contestant),
    "lstm": Cell(rnn_ext.LSTM, torch.nn.LSTM, gates=4),
    "gru": Cell(rnn_ext.GRU, torch.nn.GRU, gates=3),
}


class Case(NamedTuple):
    """One line of the benchmark."""

    cell: str
    point: Point
    mode: str
    threads: int
    dtype: str


def flop_count(point: Point, mode: str, gates: int = 1) -> int:
    """Floating-point operations of the matrix products of one call; a multiply-add counts as two.

    Forward: x W_ih^T and h W_hh^T, 2 T B gates H (I + H). Training adds as much again twice: once for the
    gradients of x and h, once for those of the weights.
    """
    batch, steps, input_size, hidden_size = point
    forward = 2 * steps * batch * gates * hidden_size * (input_size + hidden_size)
    return forward * {"inference": 1, "training": 3}[mode]


def training_step(module: torch.nn.Module, x: torch.Tensor, grad_y: torch.Tensor) -> Callable[[], None]:
    """A function that runs forward and backward, leaving fresh gradients in x and in every parameter."""
    leaves = [x, *module.parameters()]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        module(x)[0].backward(grad_y)

    return step


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||, and ||a|| where b is zero: at one step from a zero state W_hh has no gradient."""
    return ((a - b).norm() / (b.norm() if b.any() else 1)).item()


class Contest:
    """The contestants of one case: the same weights, input and output gradient for each.

    Attributes:
        functions: what is timed, by contestant name, "rnn_ext" and "torch" first.
        plan: the path that rnn_ext takes, as `rnn_ext.explain` tells it.
    """

    def __init__(self, case: Case) -> None:
        cell, point, dtype = CELLS[case.cell], case.point, DTYPES[case.dtype]
        torch.manual_seed(0)
        self.case = case
        builtin = cell.builtin(point.input_size, point.hidden_size, dtype=dtype)
        fused = cell.fused(point.input_size, point.hidden_size, dtype=dtype)
        fused.load_state_dict(builtin.state_dict())
        self.modules = {"rnn_ext": fused, "torch": builtin}
        x = torch.randn(point.steps, point.batch, point.input_size, dtype=dtype)
        self.inputs = {name: x.clone().requires_grad_(case.mode == "training") for name in self.modules}
        explanation = rnn_ext.explain(fused, self.inputs["rnn_ext"])
        self.plan = {key: getattr(explanation, key) for key in ("path", "plan", "reason", "isa", "threads")}
        self.functions: dict[str, Callable[[], object]] = {}
        if case.mode == "training":
            grad_y = torch.randn(point.steps, point.batch, point.hidden_size, dtype=dtype)
            for name, module in self.modules.items():
                self.functions[name] = training_step(module, self.inputs[name], grad_y)
        else:
            for name, module in self.modules.items():
                self.functions[name] = partial(module, self.inputs[name])
            if cell.onnx and onnx_peer.available() and case.dtype == "float32":
                self.functions["onnxruntime"] = cell.onnx(builtin, x, case.threads)

    def results(self, name: str) -> list[torch.Tensor]:
        """One call's results: y and the final states, or in training every gradient."""
        returned = self.functions[name]()
        if self.case.mode == "training":
            return [leaf.grad for leaf in (self.inputs[name], *self.modules[name].parameters())]
        if name == "onnxruntime":
            y, h_n = map(torch.from_numpy, returned)
            return [y.squeeze(1), h_n]
        y, states = returned
        return [y, *states] if isinstance(states, tuple) else [y, states]

    def disagreement(self) -> float:
        """The largest ||a - b|| / ||b|| of any contestant's result a against torch's b.

        Raises:
            RuntimeError: it is larger than AGREEMENT allows, or not a number.
        """
        with torch.set_grad_enabled(self.case.mode == "training"):
            expected = self.results("torch")
            worst = 0.0
            for name in self.functions:
                for ours, theirs in zip(self.results(name), expected, strict=True):
                    difference = relative_difference(ours.double(), theirs.double())
                    if not difference <= AGREEMENT[self.case.dtype]:
                        raise RuntimeError(f"{name} disagrees with torch by {difference:.1e} at {self.case}")
                    worst = max(worst, difference)
        return worst
