"""What a task is, whichever backend trains it: data, model, training and the measure of success."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import numpy as np

Options = SimpleNamespace  # a task's options by name, with seed, dtype ("float32" or "float64") and backend
Scores = dict[str, float]  # what is measured, the main measure first


class Source(NamedTuple):
    """What an encoder reads."""

    x: np.ndarray  # tokens [S, B]
    lengths: np.ndarray  # [B] integers in 1..S


class Batch(NamedTuple):
    """T steps of B sequences. A model with batch_first takes [B, T, ...] where this says [T, B, ...]."""

    x: np.ndarray  # [T, B, I], or integers [T, B] for a model with an embedding
    y: np.ndarray  # one per sequence: classes [B]; at each step: classes [T, B] or numbers [T, B, O]
    lengths: np.ndarray | None = None  # [B] integers in 1..T, T if None; what lies behind is padding
    # Where the layers start from; at zero if neither is given.
    state: tuple[np.ndarray, ...] | None = None  # h [L*D, B, H]; for an LSTM h and c
    source: Source | None = None  # for a model with an encoder, whose final state it is


@dataclass(frozen=True)
class Model:
    """(Embedding ->) recurrent layers -> Linear, at each step or after the last one.

    With an encoder there are two stacks of recurrent layers of the same sizes behind one embedding: the
    encoder reads a source, and the model proper, now the decoder, starts from the encoder's final state.
    """

    input_size: int  # also the embedding's size, where there is one
    hidden_size: int
    output_size: int
    cell: str = "RNN"  # a layer of torch.nn, a cell of it ("RNNCell") called step by step, or "delay"
    num_layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    readout: str = "each"  # "each" step, or the "last": the final state of the last layer, all directions
    tokens: int | None = None  # size of the vocabulary, where the input is tokens
    normal_weights: bool = False  # weights from normal(0, 1), biases as they come
    taps: int | None = None  # for "delay": a delay line over the last `taps` inputs, without recurrence
    encoder: bool = False


@dataclass(frozen=True)
class Training:
    """How a model learns."""

    loss: str  # "cross_entropy", "binary_cross_entropy" (of scores, sigmoid included) or "mean_squared_error"
    optimizer: str  # "SGD" or "Adam"
    lr: float
    epochs: int
    clip: float | None = None  # the largest norm of all gradients together
    carry_state: bool = False  # a batch starts from the final state of the one before (truncated BPTT)
    seconds: float | None = None  # begin no epoch after that; the other backends train as many


class Learner(Protocol):
    """A model in training on one backend. Arrays are NumPy's, states are the backend's own."""

    def step(self, batch: Batch, state: Any = None) -> tuple[float, Any]:
        """One update; returns the loss before it and the final state, cut from the gradients."""

    def start(self, batch: Batch) -> Any:
        """The state that the batch starts from; None is zero."""

    def predict(self, x: np.ndarray, lengths: np.ndarray | None = None, state: Any = None) -> tuple:
        """Scores [T, B, O] or [B, O], and the final state."""

    def replay(self) -> float | None:
        """Seconds for the recurrent layers alone, mean of the recorded calls; None without such layers."""


@dataclass(frozen=True)
class Problem:
    """A task with its options filled in."""

    model: Model
    training: Training
    batches: Callable[[int], list[Batch]]  # of the given epoch
    score: Callable[[Learner], Scores]
    reached: Callable[[list[float], Scores], bool]  # from the losses of the updates so far and the scores
    score_from: int | None = None  # the first epoch at which the goal may be reached; None: the last only


@dataclass(frozen=True)
class Task:
    """A problem by name, and the options that it has."""

    name: str
    id: str
    title: str
    reached_when: str
    options: dict[str, Any]
    build: Callable[[Options], Problem]
    quick: dict[str, Any] = field(default_factory=dict)  # options of a short run
    seed: int = 0
    backends: tuple[str, ...] = ("torch", "rnn_ext", "numpy")
    numpy: str = "train"  # or "forward": NumPy measures the weights that another backend has trained
    cells: tuple[str, ...] = ("RNN", "LSTM", "GRU")  # values of the option cell
    charted: str | None = None  # the measure that a sweep's chart shows; the main one if None

    def check(self, **options) -> None:
        """Raises ValueError for an option that the task does not have, and for a cell it does not support."""
        unknown = options.keys() - self.options.keys()
        if unknown:
            raise ValueError(
                f"{self.name} has no option {', '.join(sorted(unknown))}; it has {', '.join(self.options)}"
            )
        cell = options.get("cell", self.options["cell"])
        if cell not in self.cells:
            raise ValueError(f"{self.name} has no cell {cell}; it has {', '.join(self.cells)}")

    def problem(self, backend: str, seed: int | None = None, dtype: str = "float32", **options) -> Problem:
        """The problem for one backend. Raises ValueError as `check` does."""
        self.check(**options)
        seed = self.seed if seed is None else seed
        return self.build(Options(**{**self.options, **options}, backend=backend, seed=seed, dtype=dtype))


def one_batch(batch: Batch) -> Callable[[int], list[Batch]]:
    """The same full batch in every epoch."""
    return lambda epoch: [batch]


def accuracy(scores: np.ndarray, classes: np.ndarray) -> float:
    """Share of the entries whose largest score [..., K] is that of their class [...]."""
    return float((scores.argmax(-1) == classes).mean())
