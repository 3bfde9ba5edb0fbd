"""Trains a model whose recurrent layers are torch.nn's, or those of a package with the same interface."""

from __future__ import annotations

from functools import partial
from time import perf_counter
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .problem import Batch, Model, Problem

LOSSES = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "mean_squared_error": F.mse_loss,
}
RECORDED_CALLS = 32


class DelayLine(nn.Module):
    """The first layer of a focused time-delay network: tanh(W [x_t, x_{t-1}, ..., x_{t-taps+1}] + b).

    No recurrence: all it knows of the past are the last inputs, zero before the first. Takes and returns what
    a recurrent layer does, [T, B, I] -> [T, B, H], but no state. A. Waibel et al., "Phoneme recognition using
    time-delay neural networks", IEEE Trans. ASSP 37 (1989).
    """

    def __init__(self, input_size: int, hidden_size: int, taps: int):
        super().__init__()
        self.taps = nn.Conv1d(input_size, hidden_size, taps)  # over time: one tap per position of the kernel

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        past = F.pad(x.permute(1, 2, 0), (self.taps.kernel_size[0] - 1, 0))  # [B, I, taps-1+T]
        return self.taps(past).tanh().permute(2, 0, 1), None


class SequenceModel(nn.Module):
    """(Embedding ->) recurrent layers -> Linear. `layers` is the module that has the recurrent layers."""

    def __init__(self, model: Model, layers: ModuleType):
        super().__init__()
        self.model = model
        if model.tokens is not None:
            self.embedding = nn.Embedding(model.tokens, model.input_size)
        if model.taps is not None:
            self.rnn = DelayLine(model.input_size, model.hidden_size, model.taps)
        else:
            self.rnn = getattr(layers, model.cell)(
                model.input_size,
                model.hidden_size,
                model.num_layers,
                batch_first=model.batch_first,
                bidirectional=model.bidirectional,
            )
        directions = 2 if model.bidirectional else 1
        self.head = nn.Linear(directions * model.hidden_size, model.output_size)
        if model.normal_weights:
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter)

    def forward(self, x: Tensor, lengths: Tensor | None = None, state=None):
        batch_first = self.model.batch_first
        if self.model.tokens is not None:
            x = self.embedding(x)
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
        features, state = self.rnn(x, state)
        if self.model.readout == "last":
            h_n = state if isinstance(state, Tensor) else state[0]  # [L*D, B, H]
            features = h_n[-2:].transpose(0, 1).flatten(1) if self.model.bidirectional else h_n[-1]
        elif lengths is not None:
            features, _ = pad_packed_sequence(features, batch_first)
        return self.head(features), state


class TorchLearner:
    """The problem's model in training, with recurrent layers from the module `layers`."""

    def __init__(self, problem: Problem, layers: ModuleType, seed: int, dtype: str):
        torch.manual_seed(seed)
        self.problem, self.dtype = problem, getattr(torch, dtype)
        self.module = SequenceModel(problem.model, layers).to(self.dtype)
        training = problem.training
        self.optimizer = getattr(torch.optim, training.optimizer)(self.module.parameters(), lr=training.lr)
        self.loss = LOSSES[training.loss]
        self.recorder = None if problem.model.taps else Recorder(self.module.rnn)

    def step(self, batch: Batch, state=None):
        x, y, lengths = (None if a is None else torch.from_numpy(a) for a in batch)
        self.optimizer.zero_grad()
        scores, state = self.module(x, lengths, state)
        if lengths is not None and y.dim() > 1:
            inside = self._inside(y, lengths)
            scores, y = scores[inside], y[inside]
        if not y.is_floating_point():
            scores, y = scores.flatten(0, -2), y.flatten()
        # In float32 a cross-entropy of 1e-4 has an error of 1e-3: two curves could not be compared there.
        loss = self.loss(scores.double(), y.double() if y.is_floating_point() else y)
        loss.backward()
        if self.problem.training.clip is not None:
            clip_grad_norm_(self.module.parameters(), self.problem.training.clip)
        self.optimizer.step()
        return loss.item(), map_tensors(Tensor.detach, state)

    def predict(self, x: np.ndarray, lengths: np.ndarray | None = None, state=None):
        with torch.no_grad():
            scores, state = self.module(
                torch.from_numpy(x), None if lengths is None else torch.from_numpy(lengths), state
            )
        return scores.numpy(), state

    def replay(self) -> float | None:
        return self.recorder and self.recorder.replay()

    def _inside(self, y: Tensor, lengths: Tensor) -> Tensor:
        """Which steps [T, B] (or [B, T]) are no padding."""
        if self.problem.model.batch_first:
            return torch.arange(y.shape[1]) < lengths[:, None]
        return torch.arange(y.shape[0])[:, None] < lengths


class Recorder:
    """Keeps what went through a layer in its first training calls, to run it alone on the same again."""

    def __init__(self, layer: nn.Module):
        self.layer = layer
        self.calls: list[tuple[tuple, dict[int, Tensor]]] = []
        self.handle = layer.register_forward_hook(self._keep)

    def _keep(self, layer, args, outputs):
        if not torch.is_grad_enabled():
            return
        grads: dict[int, Tensor] = {}

        def keep(grad, i):
            if grad is not None:  # an output that nothing was made of
                grads[i] = grad

        for i, output in enumerate(tensors(outputs)):
            output.register_hook(partial(keep, i=i))
        self.calls.append((map_tensors(as_leaf, args), grads))
        if len(self.calls) == RECORDED_CALLS:
            self.handle.remove()

    def replay(self) -> float:
        """Mean seconds of a call, forward and backward."""
        self.handle.remove()
        seconds = 0.0
        for args, grads in self.calls:
            self.layer.zero_grad()
            start = perf_counter()
            outputs = tensors(self.layer(*args))
            torch.autograd.backward([outputs[i] for i in grads], list(grads.values()))
            seconds += perf_counter() - start
            for leaf in tensors(args):
                leaf.grad = None
        return seconds / len(self.calls)


def tensors(nested) -> list[Tensor]:
    """The floating point tensors in tuples and packed sequences, in order."""
    if isinstance(nested, PackedSequence):
        return [nested.data]
    if isinstance(nested, tuple):
        return [t for part in nested for t in tensors(part)]
    return [nested] if isinstance(nested, Tensor) else []


def map_tensors(f, nested):
    """The same tuples and packed sequences with f of each tensor; anything else stays."""
    if isinstance(nested, PackedSequence):
        return nested._replace(data=f(nested.data))
    if isinstance(nested, tuple):
        return tuple(map_tensors(f, part) for part in nested)
    return f(nested) if isinstance(nested, Tensor) else nested


def as_leaf(tensor: Tensor) -> Tensor:
    """The tensor cut from the graph that made it; it asks for a gradient as before."""
    return tensor.detach().requires_grad_(tensor.requires_grad)
