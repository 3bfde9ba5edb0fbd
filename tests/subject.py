"""What is under test: layers and cells beside the torch modules that they replace, and one call of one."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_ext
from tests.tolerances import assert_all_close


@dataclass(frozen=True)
class Layer:
    """A layer or cell, what it replaces in torch, its constructor arguments in this row, the states it carries."""

    ours: type[nn.Module]
    theirs: type[nn.Module]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    states: tuple[str, ...] = ("h",)
    projected: bool = False  # whether h is projected, to two thirds of the hidden size; one unit is too few

    def __str__(self) -> str:
        parts = [self.ours.__name__, *map(str, self.options.values())]
        return "-".join([*parts, "projected"] if self.projected else parts)

    __repr__ = __str__

    @property
    def is_cell(self) -> bool:
        return issubclass(self.theirs, nn.RNNCellBase)

    @property
    def path(self) -> str:
        """The dotted name of our class, for code that runs in another process."""
        return f"{self.ours.__module__}.{self.ours.__qualname__}"

    def output_size(self, hidden_size: int) -> int:
        """The size of h."""
        return 2 * hidden_size // 3 if self.projected and hidden_size > 1 else hidden_size

    def make(self, cls: type[nn.Module], *args, **kwargs):
        hidden_size = kwargs["hidden_size"] if "hidden_size" in kwargs else args[1]
        output_size = self.output_size(hidden_size)
        projection = {"proj_size": output_size} if output_size != hidden_size else {}
        return cls(*args, **{**self.options, **projection, **kwargs})

    def make_ours(self, *args, **kwargs):
        return self.make(self.ours, *args, **kwargs)

    def make_theirs(self, *args, **kwargs):
        return self.make(self.theirs, *args, **kwargs)

    def make_both(self, *args, **kwargs):
        """Ours and theirs with the same weights."""
        ours, theirs = self.make_ours(*args, **kwargs), self.make_theirs(*args, **kwargs)
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs

    def state(self, *tensors: Tensor):
        """The tensors in the form in which the layer takes them as hx."""
        return tensors[0] if len(self.states) == 1 else tensors

    def state_shapes(self, *shape: int) -> list[tuple[int, ...]]:
        """The shape of each state, given that of one of hidden size."""
        *rows, hidden_size = shape
        return [(*rows, self.output_size(hidden_size) if s == "h" else hidden_size) for s in self.states]

    def random_input(self, features: int, batch: int = 2, time: int = 5, **options) -> Tensor:
        """[T, B, I], for a cell [B, I]."""
        return torch.randn((batch, features) if self.is_cell else (time, batch, features), **options)

    def total(self, result) -> Tensor:
        """A loss in which every output counts."""
        return sum(output.float().square().sum() for output in self.named_outputs(result).values())

    def named_outputs(self, result) -> dict[str, Tensor]:
        """y (a layer's, the data of a PackedSequence), h_n and, where there is one, c_n."""
        return named_outputs((None, result)) if self.is_cell else named_outputs(result)


# A new layer or cell joins every test of its kind by a row here. Tests that need one row of a class take the last.
LAYERS = [
    Layer(rnn_ext.RNN, nn.RNN, {"nonlinearity": "tanh"}),
    Layer(rnn_ext.RNN, nn.RNN, {"nonlinearity": "relu"}),
    Layer(rnn_ext.LSTM, nn.LSTM, states=("h", "c"), projected=True),
    Layer(rnn_ext.LSTM, nn.LSTM, states=("h", "c")),
    Layer(rnn_ext.GRU, nn.GRU),
]
CELLS = [
    Layer(rnn_ext.RNNCell, nn.RNNCell, {"nonlinearity": "tanh"}),
    Layer(rnn_ext.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
    Layer(rnn_ext.LSTMCell, nn.LSTMCell, states=("h", "c")),
    Layer(rnn_ext.GRUCell, nn.GRUCell),
]

# The subject of the tests may be torch.nn itself: then what they tell is what torch does (tests/contract.py).
SUBJECT_VARIABLE = "RNN_EXT_TEST_SUBJECT"
if os.environ.get(SUBJECT_VARIABLE) == "torch.nn":
    LAYERS, CELLS = ([replace(row, ours=row.theirs) for row in rows] for rows in (LAYERS, CELLS))

# For what one row alone is enough, or is about.
TANH, RELU, PROJECTED, LSTM, GRU, *_ = LAYERS

each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)

# Ways to copy a module with all that it holds.
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: _through_a_file(module),
    "double and back": lambda module: copy.deepcopy(module).double().float(),
}


def _through_a_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)

# The dtypes that have kernels; the halves are stored so and computed in float32.
HALVES = [torch.bfloat16, torch.float16]
DTYPES = [torch.float32, torch.float64, *HALVES]


def run_python(code: str, **environment: str) -> str:
    """Runs code in another process that sees the same packages; it must end well. Returns what it prints."""
    folders = [str(Path(rnn_ext.__file__).parents[1]), str(Path(__file__).parents[1])]
    path = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stderr}"
    return result.stdout.strip()


def named_outputs(result) -> dict[str, Tensor]:
    """y (the data of a PackedSequence), h_n and, where the layer has one, c_n. A cell has no y: then it is None."""
    y, state = result
    state = (state,) if isinstance(state, Tensor) else state
    output = {} if y is None else {"y": y.data if isinstance(y, PackedSequence) else y}
    return {**output, **dict(zip(("h_n", "c_n"), state))}


def gradients_of(module: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters())))


def lay_out(values: Tensor, layout: str) -> Tensor:
    """The same values in another layout of memory: contiguous, gaps, transposed or offset (off alignment)."""
    if layout == "gaps":
        return torch.stack([values, torch.full_like(values, float("nan"))], dim=-1)[..., 0]
    if layout == "transposed":
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "offset":
        return torch.cat([values.new_full((1,), float("nan")), values.flatten()])[1:].view(values.shape)
    assert layout == "contiguous", layout
    return values


# Inputs [T, B, 5] whose rows share memory: the shape of that memory, and the view of it.
OVERLAPPING = {
    "one row for all": ((5,), lambda t: t.expand(4, 3, 5)),
    "the same at every step": ((3, 5), lambda t: t.expand(4, 3, 5)),
    "the same for every sequence": ((4, 1, 5), lambda t: t.expand(4, 3, 5)),
    "one step": ((1, 1, 5), lambda t: t.expand(1, 3, 5)),
    "one sequence": ((1, 1, 5), lambda t: t.expand(4, 1, 5)),
    "windows along time": ((9,), lambda t: t.unfold(0, 5, 1)[:, None]),
    "windows as a batch": ((9,), lambda t: t.unfold(0, 5, 1)[None]),
}
each_overlap = pytest.mark.parametrize("shape, view", OVERLAPPING.values(), ids=OVERLAPPING)


def assert_parity_on_a_view(layer: Layer, shape: tuple[int, ...], view) -> None:
    """Output and gradients, that of the viewed memory too, are torch's."""
    memory, found = torch.randn(shape), []
    for module in layer.make_both(5, 7):
        leaf = memory.clone().requires_grad_()
        y = module(view(leaf))[0]
        y.square().sum().backward()
        found.append([y, leaf.grad, *(w.grad for w in module.parameters())])
    assert_all_close(*found)


@dataclass(frozen=True)
class Case:
    """One call: constructor arguments, input, what asks for gradients and which outputs are used.

    A cell's lengths are all one, its form is "batched" or "unbatched", and of the constructor it takes sizes, bias and
    dtype.
    """

    layer: Layer = LAYERS[0]
    input_size: int = 5
    hidden_size: int = 7
    num_layers: int = 1
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    training: bool = True
    dtype: torch.dtype = torch.float32
    form: str = "batched"  # or "unbatched", "sorted", "unsorted"; the last two are packed
    lengths: tuple[int, ...] = (6, 6, 6)  # one per sequence, all equal unless packed
    given_state: bool = True
    layout: str = "contiguous"  # of the input, the state, the weights and the gradients of the outputs
    wanted: frozenset[str] | None = None  # names among `inputs`; None is all of them
    used: tuple[str, ...] = ("y", "h_n")
    seed: int = 0

    @property
    def kinked(self) -> bool:
        """Whether the derivative of the nonlinearity jumps, so that a rounding error can change it by one."""
        return self.layer.options.get("nonlinearity") == "relu"

    def __str__(self) -> str:
        size = f"{len(self.lengths)}x{max(self.lengths, default=0)}x{self.input_size}x{self.hidden_size}"
        return f"{self.layer}-{self.form}-{size}-{self.num_layers}-{self.dtype}"

    def scale(self, name: str, gradient: Tensor) -> float:
        """The size of the numbers that this gradient is made of, as `assert_close` takes it.

        A weight's is a sum over all steps of all sequences, in which much may cancel.
        """
        terms = 1 if name == "x" or name.endswith("_0") else sum(self.lengths)
        return max(1.0, terms**0.5, gradient.abs().max().item() if gradient.numel() else 0.0)

    @property
    def packed(self) -> bool:
        return self.form in ("sorted", "unsorted")

    def make(self, cls: type[nn.Module]) -> nn.Module:
        stack = {} if self.layer.is_cell else {
            "num_layers": self.num_layers, "batch_first": self.batch_first, "dropout": self.dropout,
            "bidirectional": self.bidirectional,
        }  # fmt: skip
        options = {"bias": self.bias, "dtype": self.dtype, **stack}
        return self.layer.make(cls, self.input_size, self.hidden_size, **options).train(self.training)

    def random(self, name: str, shape: Sequence[int], bound: float | None = None) -> Tensor:
        """Normal numbers, or uniform ones within the bound, by name and seed, in the dtype of the case."""
        generator = torch.Generator().manual_seed(crc32(f"{name} {self.seed}".encode()))
        values = torch.empty(tuple(shape), dtype=torch.float64)
        if bound is None:
            return values.normal_(generator=generator).to(self.dtype)
        return values.uniform_(-bound, bound, generator=generator).to(self.dtype)

    def input(self) -> Tensor | PackedSequence:
        time, batch = max(self.lengths, default=1), len(self.lengths)
        if self.layer.is_cell:
            assert time == 1 and not self.packed
            return self.random("x", (self.input_size,) if self.form == "unbatched" else (batch, self.input_size))
        if self.form == "unbatched":
            return self.random("x", (time, self.input_size))
        x = self.random("x", (time, batch, self.input_size))
        if self.packed:
            return pack_padded_sequence(x, list(self.lengths), enforce_sorted=self.form == "sorted")
        return x.transpose(0, 1).contiguous() if self.batch_first else x

    def state(self) -> dict[str, Tensor]:
        """h_0 and, where the layer has one, c_0."""
        rows = () if self.layer.is_cell else (self.num_layers * (2 if self.bidirectional else 1),)
        batch = () if self.form == "unbatched" else (len(self.lengths),)
        shapes = dict(zip(self.layer.states, self.layer.state_shapes(*rows, *batch, self.hidden_size)))
        names = self.layer.states if self.given_state else ()
        return {f"{name}_0": self.random(f"{name}_0", shapes[name]) for name in names}

    def run(self, cls: type[nn.Module], dtype: torch.dtype | None = None) -> tuple[dict, dict]:
        """Outputs and gradients by name; computed in `dtype`, from numbers of the dtype of the case."""
        module = self.make(cls).to(dtype or self.dtype)
        bound = self.hidden_size**-0.5
        packed = x = self.input()
        sources = {"x": x.data if self.packed else x, **self.state()}
        for name, weight in module.named_parameters():
            sources[name] = self.random(name, weight.shape, bound)

        leaves = {}
        for name, values in sources.items():
            leaf = lay_out(values.to(dtype or self.dtype), self.layout).detach()
            leaf.requires_grad_(self.wanted is None or name in self.wanted)
            leaves[name] = leaf
            if name in module._parameters:
                setattr(module, name, nn.Parameter(leaf, requires_grad=leaf.requires_grad))
                leaves[name] = getattr(module, name)

        x = packed._replace(data=leaves["x"]) if self.packed else leaves["x"]
        hx = self.layer.state(*(leaves[name] for name in self.state())) if self.given_state else None
        torch.manual_seed(self.seed)
        outputs = self.layer.named_outputs(module(x, hx))

        wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        if not wanted:
            assert not any(output.requires_grad for output in outputs.values())
            return outputs, {}
        used = {name: outputs[name] for name in self.used if name in outputs}
        grads = [self.random(f"d{name}", output.shape).to(output.dtype) for name, output in used.items()]
        torch.autograd.backward(list(used.values()), [lay_out(grad, self.layout) for grad in grads])
        return outputs, {name: leaf.grad for name, leaf in wanted.items()}

    def run_ours(self, dtype: torch.dtype | None = None) -> tuple[dict, dict]:
        return self.run(self.layer.ours, dtype)

    def run_theirs(self, dtype: torch.dtype | None = None) -> tuple[dict, dict]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # more of them make torch's many small operators slower, not faster
        try:
            return self.run(self.layer.theirs, dtype)
        finally:
            torch.set_num_threads(threads)
