"""Trains a model on the NumPy reference, from the weights that torch draws for the same seed."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from rnn_ext import reference

from .problem import Batch, Problem

RECORDED_CALLS = 4  # NumPy takes its time


class NumpyLearner:
    """The problem's model with the given parameters, named as those of torch_learner.SequenceModel."""

    def __init__(self, problem: Problem, params: dict[str, np.ndarray]):
        self.problem, self.model, training = problem, problem.model, problem.training
        self.params = {name: p.copy() for name, p in params.items()}
        self.rnn_params = {name[4:]: p for name, p in self.params.items() if name.startswith("rnn.")}
        self.cell = reference.CELLS[self.model.cell]()
        self.optimizer = getattr(reference, training.optimizer)(self.params, training.lr)
        self.loss = getattr(reference, training.loss)
        self.calls: list[tuple] = []

    def step(self, batch: Batch, state=None):
        scores, features, state, tape = self._forward(batch.x, batch.lengths, state)
        y = self._time_major(batch.y) if batch.y.ndim > 1 else batch.y
        inside = ...
        if batch.lengths is not None and y.ndim > 1:
            inside = np.arange(len(y))[:, None] < batch.lengths
        targets = y[inside]
        rows = scores[inside]
        if targets.dtype.kind == "i":
            rows, targets = rows.reshape(-1, rows.shape[-1]), targets.ravel()
        loss, d_rows = self.loss(rows.astype(np.float64), targets)  # as torch_learner has it
        d_scores = np.zeros_like(scores)
        d_scores[inside] = d_rows.reshape(scores[inside].shape)

        d_features, grads = reference.linear_backward(d_scores, features, self.params["head.weight"])
        d_outputs = self._spread(d_features, state)
        dx, _, rnn_grads = reference.backward(tape, *d_outputs)
        grads = {"head." + name: g for name, g in grads.items()}
        grads.update({"rnn." + name: g for name, g in rnn_grads.items()})
        if self.model.tokens is not None:  # each token's row gets the sum over the places where it stood
            grads["embedding.weight"] = np.zeros_like(self.params["embedding.weight"])
            np.add.at(grads["embedding.weight"], self._time_major(batch.x), dx)
        if self.problem.training.clip is not None:
            reference.clip_grad_norm(grads, self.problem.training.clip)
        self.optimizer.step(grads)
        if len(self.calls) < RECORDED_CALLS:
            self.calls.append((batch, d_outputs))
        return loss, state

    def predict(self, x: np.ndarray, lengths: np.ndarray | None = None, state=None):
        scores, _, state, _ = self._forward(x, lengths, state)
        return self._time_major(scores) if self.model.readout == "each" else scores, state

    def replay(self) -> float | None:
        start = perf_counter()
        for batch, d_outputs in self.calls:
            *_, tape = self._layers(batch.x, batch.lengths, None)
            reference.backward(tape, *d_outputs)
        return (perf_counter() - start) / len(self.calls) if self.calls else None

    def _layers(self, x, lengths, state):
        """The recurrent layers: output [T, B, D*H], final state, tape."""
        x = self._time_major(x)
        if self.model.tokens is not None:
            x = self.params["embedding.weight"][x]
        return reference.forward(self.cell, x, self.rnn_params, state, lengths)

    def _forward(self, x, lengths, state):
        features, state, tape = self._layers(x, lengths, state)
        if self.model.readout == "last":
            directions = 2 if self.model.bidirectional else 1
            last = state[0][-directions:]  # [D, B, H]
            features = last.swapaxes(0, 1).reshape(last.shape[1], -1)  # [B, D*H]
        scores = reference.linear(features, self.params["head.weight"], self.params["head.bias"])
        return scores, features, state, tape

    def _spread(self, d_features, state):
        """The gradient of the features as (d_output, d_final_state)."""
        if self.model.readout == "each":
            return d_features, None
        d_state = tuple(np.zeros_like(s) for s in state)
        directions = 2 if self.model.bidirectional else 1
        d_last = d_features.reshape(len(d_features), directions, -1)  # [B, D, H]
        d_state[0][-directions:] = d_last.swapaxes(0, 1)
        return None, d_state

    def _time_major(self, array):
        """[B, T, ...] <-> [T, B, ...] for a model with batch_first."""
        return array.swapaxes(0, 1) if self.model.batch_first else array
