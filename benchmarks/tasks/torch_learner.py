"""Trains a model whose recurrent layers are torch.nn's, or those of a package with the same interface."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from .models import SequenceModel
from .problem import Batch, Problem
from .recorder import Recorder, map_tensors

LOSSES = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "mean_squared_error": F.mse_loss,
}


class TorchLearner:
    """The problem's model in training, with recurrent layers from the module `layers`."""

    def __init__(self, problem: Problem, layers: ModuleType, seed: int, dtype: str):
        torch.manual_seed(seed)
        self.problem, self.dtype = problem, getattr(torch, dtype)
        self.module = SequenceModel(problem.model, layers).to(self.dtype)
        training = problem.training
        self.optimizer = getattr(torch.optim, training.optimizer)(self.module.parameters(), lr=training.lr)
        self.loss = LOSSES[training.loss]
        self.recorders = [Recorder(stack) for stack in self.module.recurrent_layers()]

    def step(self, batch: Batch, state=None):
        self.optimizer.zero_grad()
        y, lengths = torch.from_numpy(batch.y), from_numpy(batch.lengths)
        state = self._start(batch) if state is None else state
        scores, state = self.module(torch.from_numpy(batch.x), lengths, state)
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

    def start(self, batch: Batch):
        with torch.no_grad():
            return self._start(batch)

    def predict(self, x: np.ndarray, lengths: np.ndarray | None = None, state=None):
        with torch.no_grad():
            scores, state = self.module(torch.from_numpy(x), from_numpy(lengths), state)
        return scores.numpy(), state

    def replay(self) -> float | None:
        return sum(recorder.replay() for recorder in self.recorders) if self.recorders else None

    def _start(self, batch: Batch):
        if batch.source is not None:
            return self.module.encode(*map(torch.from_numpy, batch.source))
        if batch.state is None:
            return None
        state = tuple(map(torch.from_numpy, batch.state))
        return state if len(state) > 1 else state[0]  # torch's layers take a lone h bare

    def _inside(self, y: Tensor, lengths: Tensor) -> Tensor:
        """Which steps [T, B] (or [B, T]) are no padding."""
        if self.problem.model.batch_first:
            return torch.arange(y.shape[1]) < lengths[:, None]
        return torch.arange(y.shape[0])[:, None] < lengths


def from_numpy(array: np.ndarray | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
