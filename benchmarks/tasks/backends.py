"""The backends by name: where the recurrent layers of a model come from."""

from __future__ import annotations

from importlib import import_module

from .numpy_learner import NumpyLearner
from .problem import Learner, Problem
from .torch_learner import TorchLearner

LAYERS = {"torch": "torch.nn", "rnn_ext": "rnn_ext"}  # backend -> the module that has RNN
BACKENDS = ("torch", "rnn_ext", "numpy")


def make_learner(backend: str, problem: Problem, seed: int, dtype: str) -> Learner:
    """A fresh model of the problem; the same seed gives the same weights on every backend."""
    if backend == "numpy":
        return numpy_twin(make_learner("torch", problem, seed, dtype), problem)
    return TorchLearner(problem, import_module(LAYERS[backend]), seed, dtype)


def numpy_twin(learner: TorchLearner, problem: Problem) -> NumpyLearner:
    """A NumPy model with that learner's present weights."""
    return NumpyLearner(problem, {name: p.numpy() for name, p in learner.module.state_dict().items()})
