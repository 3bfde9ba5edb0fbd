"""The contestants of one case, and the check that they agree before anything is timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_ext

from . import onnx_peer
from .grids import GRIDS, Grid, Point

MODES = ("inference", "training")
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {"float32": torch.float32, "float64": torch.float64, **HALVES}
# Largest difference accepted, ||a - b|| / ||b|| of each output and gradient: wide enough for another order of
# summation (torch adds up gradients over the steps in the halves), far too narrow for a wrong formula.
AGREEMENT = {"float32": 1e-4, "float64": 1e-11, "bfloat16": 1e-1, "float16": 2e-2}


class Cell(NamedTuple):
    """What a --cell name stands for: the layer's class in torch.nn and in rnn_ext, and its gates."""

    layer: str
    gates: int

    def class_name(self, grid: Grid) -> str:
        """The class that a grid times: the layer, or the cell of a Python loop."""
        return f"{self.layer}Cell" if grid.call == "steps" else self.layer


CELLS = {"rnn": Cell("RNN", 1), "lstm": Cell("LSTM", 4), "gru": Cell("GRU", 3)}


class Case(NamedTuple):
    """One line of the benchmark."""

    cell: str
    point: Point
    mode: str
    threads: int
    dtype: str
    grid: str = "padded"

    def __str__(self) -> str:
        name = CELLS[self.cell].class_name(GRIDS[self.grid])
        return f"{self.grid}, {name} {self.point}, {self.mode}, {self.dtype}, {threads_text(self.threads)}"


def threads_text(threads: int) -> str:
    """The count with its noun: 1 thread, 2 threads."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


class Contestant(Protocol):
    """One side of a contest: `run` is timed; `results` are one call's outputs, in training all gradients."""

    def run(self) -> object: ...

    def results(self) -> list[torch.Tensor]: ...


def make_module(package: ModuleType, case: Case) -> torch.nn.Module:
    """The case's layer or cell out of torch.nn or rnn_ext."""
    grid, point = GRIDS[case.grid], case.point
    make = getattr(package, CELLS[case.cell].class_name(grid))
    if grid.call != "steps":
        make = partial(make, num_layers=grid.num_layers, bidirectional=grid.bidirectional)
    return make(point.input_size, point.hidden_size, dtype=DTYPES[case.dtype])


def arrange(x: torch.Tensor, case: Case, leaf: bool) -> Any:
    """x [T, B, features] as the grid takes it: padded, a PackedSequence, or a list of steps [B, features].

    The result has memory of its own. With `leaf` its tensors collect gradients.
    """
    grid = GRIDS[case.grid]
    if grid.call == "packed":
        packed = pack_padded_sequence(x, grid.lengths(case.point), enforce_sorted=False)
        return packed._replace(data=packed.data.requires_grad_(leaf))
    if grid.call == "steps":
        return [step.clone().requires_grad_(leaf) for step in x]
    return x.clone().requires_grad_(leaf)


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of numbers in what a layer or a loop takes or returns, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    return [tensor for part in value for tensor in tensors(part)]


def loop(cell: torch.nn.Module, steps: list[torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
    """What people write around a cell: h of every step [B, H], and the last state."""
    outputs, state = [], None
    for x in steps:
        state = cell(x, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return outputs, state


# What of a call's result is differentiated.
ROOTS: dict[str, Callable] = {
    "padded": itemgetter(0),
    "packed": lambda result: result[0].data,
    "steps": itemgetter(0),
    "linear": itemgetter(0),
}


class Layer:
    """A module on one input.

    Args:
        module: a layer, or a cell for the grid of steps.
        x: input [T, B, I] in the dtype of the module.
        grad_y: gradient of the output [T, B, D*H].
        case: says how the module is called, and whether backward belongs to it.
    """

    def __init__(self, module: torch.nn.Module, x: torch.Tensor, grad_y: torch.Tensor, case: Case) -> None:
        call = GRIDS[case.grid].call
        self.module = module
        self.argument = arrange(x, case, leaf=case.mode == "training")
        self.leaves = [*tensors(self.argument), *module.parameters()]
        self._forward = partial(partial(loop, module) if call == "steps" else module, self.argument)
        self._roots = ROOTS[call]
        grad_roots = tensors(arrange(grad_y, case, leaf=False))
        self._grad_roots = grad_roots if call == "steps" else grad_roots[0]
        self._training = case.mode == "training"
        self.run = self._step if self._training else self._forward

    def _step(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None
        torch.autograd.backward(self._roots(self._forward()), self._grad_roots)

    def results(self) -> list[torch.Tensor]:
        returned = self.run()
        return [leaf.grad for leaf in self.leaves] if self._training else tensors(returned)


class TwoLinears:
    """Two `linear` calls on a layer's input, output gradient and parameters: the floor under a toy's time.

    They take the four parameters and do the layer's products without its recurrence: what is left is what
    Python, PyTorch and autograd ask of any such call.
    """

    def __init__(self, layer: Layer, grad_y: torch.Tensor) -> None:
        self._x, (self._w_ih, self._w_hh, self._b_ih, self._b_hh) = layer.argument, layer.module.parameters()
        self._h, self._leaves = grad_y.clone(), layer.leaves
        self._gradients = [torch.ones_like(y) for y in self._forward()]
        self.run = self._step if self._x.requires_grad else self._forward

    def _forward(self) -> list[torch.Tensor]:
        return [linear(self._x, self._w_ih, self._b_ih), linear(self._h, self._w_hh, self._b_hh)]

    def _step(self) -> None:
        for leaf in self._leaves:
            leaf.grad = None
        torch.autograd.backward(self._forward(), self._gradients)


class Disagreement(RuntimeError):
    """Contestants whose results differ: they are not timed."""


class Contest:
    """The contestants of one case: the same weights, input and output gradient for each.

    Attributes:
        contestants: by name, "rnn_ext" and "torch" first, which share their parameters; then "onnxruntime"
            where it can, and beside the halves "float32", which is rnn_ext in that dtype.
        floor: "two linears" for a toy; its results are its own, so that they are not compared.
        plan: the path that rnn_ext takes, as `rnn_ext.explain` tells it.
    """

    def __init__(self, case: Case) -> None:
        grid, point, dtype = GRIDS[case.grid], case.point, DTYPES[case.dtype]
        torch.manual_seed(0)
        self.case = case
        builtin, fused = make_module(torch.nn, case), make_module(rnn_ext, case)
        fused.load_state_dict(builtin.state_dict(keep_vars=True), assign=True)
        x = torch.randn(point.steps, point.batch, point.input_size).to(dtype)
        outputs = point.hidden_size * (2 if grid.bidirectional else 1)
        grad_y = torch.randn(point.steps, point.batch, outputs).to(dtype)
        ours = Layer(fused, x, grad_y, case)
        self.contestants: dict[str, Contestant] = {"rnn_ext": ours, "torch": Layer(builtin, x, grad_y, case)}
        if case.dtype in HALVES:
            twin = make_module(rnn_ext, case._replace(dtype="float32"))
            twin.load_state_dict(builtin.state_dict())
            self.contestants["float32"] = Layer(twin, x.float(), grad_y.float(), case)
        one_layer = grid.call == "padded" and grid.num_layers == 1 and case.dtype == "float32"
        if one_layer and case.mode == "inference" and onnx_peer.available():
            self.contestants["onnxruntime"] = onnx_peer.OnnxRuntime(builtin, x, case.threads)
        self.floor = {"two linears": TwoLinears(ours, grad_y)} if one_layer and point.toy else {}
        explanation = rnn_ext.explain(fused, ours.argument[0] if grid.call == "steps" else ours.argument)
        self.plan = {key: getattr(explanation, key) for key in ("path", "plan", "reason", "isa", "threads")}

    @property
    def functions(self) -> dict[str, Callable[[], object]]:
        """What is timed, by name."""
        return {name: contestant.run for name, contestant in {**self.contestants, **self.floor}.items()}

    def disagreement(self) -> float:
        """The largest ||a - b|| / ||b|| of any result a; b is torch's, or beside the halves float32's.

        Raises:
            Disagreement: it is larger than AGREEMENT allows, or not a number.
        """
        worst, reference = 0.0, "float32" if "float32" in self.contestants else "torch"
        with torch.set_grad_enabled(self.case.mode == "training"):
            expected = self.contestants[reference].results()
            for name, contestant in self.contestants.items():
                for a, b in zip(contestant.results(), expected, strict=True):
                    difference = relative_difference(a.double(), b.double())
                    if not difference <= AGREEMENT[self.case.dtype]:
                        told = f"{name} disagrees with {reference} by {difference:.1e}"
                        raise Disagreement(f"{self.case}: {told}")
                    worst = max(worst, difference)
            for contestant in self.floor.values():
                contestant.run()
        return worst


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||, and ||a|| where b is zero: at one step from a zero state W_hh has no gradient."""
    return ((a - b).norm() / (b.norm() if b.any() else 1)).item()
