"""Trains a model on the NumPy reference, from the weights that torch draws for the same seed."""

from __future__ import annotations

from time import perf_counter

import numpy as np

from rnn_ext import reference

from .batching import inside
from .numpy_layers import DelayLine, Recurrent
from .problem import Batch, Problem

RECORDED_STEPS = 4  # NumPy takes its time
Arrays = dict[str, np.ndarray]


class NumpyLearner:
    """The problem's model with the given parameters, named as those of models.SequenceModel."""

    def __init__(self, problem: Problem, params: Arrays):
        self.problem, self.model, training = problem, problem.model, problem.training
        self.params = {name: p.copy() for name, p in params.items()}
        self.encoder = Recurrent(self.model.cell, self._part("encoder.")) if self.model.encoder else None
        self.rnn: Recurrent | DelayLine
        if self.model.cell == "delay":
            self.rnn = DelayLine(self._part("rnn."))
        else:
            self.rnn = Recurrent(self.model.cell, self._part("rnn."))
        self.optimizer = getattr(reference, training.optimizer)(self.params, training.lr)
        self.loss = getattr(reference, training.loss)
        self.steps: list[list[tuple]] = []  # of each, the stacks with their arguments forward and backward

    def step(self, batch: Batch, state=None):
        encoder_tape = None
        if state is None:
            state, encoder_tape = self._start(batch)
        x = self._embed(batch.x)
        output, final_state, tape = self.rnn.forward(x, state, batch.lengths)
        features = self._features(output, final_state)
        scores = reference.linear(features, self.params["head.weight"], self.params["head.bias"])
        loss, d_scores = self._loss(scores, batch)

        d_features, d_head = reference.linear_backward(d_scores, features, self.params["head.weight"])
        d_outputs = self._spread(d_features, final_state)
        dx, d_state, d_rnn = self.rnn.backward(tape, *d_outputs)
        grads = under("head.", d_head) | under("rnn.", d_rnn)
        embedded = [(batch.x, dx)]
        calls = [(self.rnn, (x, state, batch.lengths), d_outputs)]
        if encoder_tape is not None:
            d_source, _, d_encoder = self.encoder.backward(encoder_tape, None, d_state)
            grads |= under("encoder.", d_encoder)
            embedded.append((batch.source.x, d_source))
            calls.append((self.encoder, self._source(batch), (None, d_state)))
        if self.model.tokens is not None:  # each token's row gets the sum over the places where it stood
            grads["embedding.weight"] = np.zeros_like(self.params["embedding.weight"])
            for tokens, d_tokens in embedded:
                np.add.at(grads["embedding.weight"], self._time_major(tokens), d_tokens)
        if self.problem.training.clip is not None:
            reference.clip_grad_norm(grads, self.problem.training.clip)
        self.optimizer.step(grads)
        if len(self.steps) < RECORDED_STEPS:
            self.steps.append(calls)
        return loss, final_state

    def start(self, batch: Batch):
        return self._start(batch)[0]

    def predict(self, x: np.ndarray, lengths: np.ndarray | None = None, state=None):
        output, final_state, _ = self.rnn.forward(self._embed(x), state, lengths)
        features = self._features(output, final_state)
        scores = reference.linear(features, self.params["head.weight"], self.params["head.bias"])
        return self._time_major(scores) if self.model.readout == "each" else scores, final_state

    def replay(self) -> float | None:
        if self.model.cell == "delay" or not self.steps:
            return None
        start = perf_counter()
        for layers, arguments, gradients in (call for calls in self.steps for call in calls):
            *_, tape = layers.forward(*arguments)
            layers.backward(tape, *gradients)
        return (perf_counter() - start) / len(self.steps)

    def _part(self, prefix: str) -> Arrays:
        """The parameters whose names start so, by the rest of the name."""
        return {name.removeprefix(prefix): p for name, p in self.params.items() if name.startswith(prefix)}

    def _start(self, batch: Batch):
        """The state that the batch starts from, and the tape of the encoder where one made it."""
        if batch.source is None:
            return batch.state, None
        _, state, tape = self.encoder.forward(*self._source(batch))
        return state, tape

    def _source(self, batch: Batch):
        """What the encoder is called with."""
        return self._embed(batch.source.x), None, batch.source.lengths

    def _embed(self, x):
        x = self._time_major(x)
        return x if self.model.tokens is None else self.params["embedding.weight"][x]

    def _features(self, output, final_state):
        """What the readout sees: the output [T, B, D*H], or the final state of the last layer [B, D*H]."""
        if self.model.readout == "each":
            return output
        last = final_state[0][-self._directions() :]  # [D, B, H]
        return last.swapaxes(0, 1).reshape(last.shape[1], -1)

    def _spread(self, d_features, final_state):
        """The gradient of the features as (d_output, d_final_state)."""
        if self.model.readout == "each":
            return d_features, None
        d_state = tuple(np.zeros_like(s) for s in final_state)
        d_last = d_features.reshape(len(d_features), self._directions(), -1)  # [B, D, H]
        d_state[0][-self._directions() :] = d_last.swapaxes(0, 1)
        return None, d_state

    def _loss(self, scores, batch: Batch):
        """The loss over all that is no padding, and its gradient in the scores."""
        y = self._time_major(batch.y) if batch.y.ndim > 1 else batch.y
        wanted = ...
        if batch.lengths is not None and y.ndim > 1:
            wanted = inside(batch.lengths, len(y))
        rows, targets = scores[wanted], y[wanted]
        if targets.dtype.kind == "i":
            rows, targets = rows.reshape(-1, rows.shape[-1]), targets.ravel()
        loss, d_rows = self.loss(rows.astype(np.float64), targets)  # as torch_learner has it
        d_scores = np.zeros_like(scores)
        d_scores[wanted] = d_rows.reshape(scores[wanted].shape)
        return loss, d_scores

    def _directions(self) -> int:
        return 2 if self.model.bidirectional else 1

    def _time_major(self, array):
        """[B, T, ...] <-> [T, B, ...] for a model with batch_first."""
        return array.swapaxes(0, 1) if self.model.batch_first else array


def under(prefix: str, grads: Arrays) -> Arrays:
    return {prefix + name: g for name, g in grads.items()}
