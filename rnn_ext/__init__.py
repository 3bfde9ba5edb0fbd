"""Fused recurrent layers for PyTorch: drop-in replacements for those of `torch.nn`, with C++ kernels both ways.

    from rnn_ext import RNN

    layer = RNN(input_size=64, hidden_size=128, num_layers=2)   # parameters and call as in torch.nn.RNN
    output, h_n = layer(x)

`accelerate` does so inside a whole model, `explain` tells how a call is carried out, `batch_invariant` makes results
independent of the rest of the batch, `frozen` keeps weights packed for streams, `checkpoint_time` trains on very long
sequences in bounded memory, and `rnn_ext.reference` is the readable NumPy specification that the kernels are tested
against. `python -m rnn_ext` prints versions and checks that they compute right on this machine.
"""

from importlib.metadata import PackageNotFoundError, version

from rnn_ext import reference
from rnn_ext._load import _C as _C
from rnn_ext.accelerate import Replacements, accelerate, restore
from rnn_ext.cells import GRUCell, LSTMCell, RNNCell
from rnn_ext.explain import Explanation, explain
from rnn_ext.frozen import frozen
from rnn_ext.memory import release_memory
from rnn_ext.modules import GRU, LSTM, RNN
from rnn_ext.route import SlowPathWarning
from rnn_ext.settings import (
    batch_invariant,
    checkpoint_steps,
    checkpoint_time,
    float32_product,
    is_batch_invariant,
    set_float32_product,
)

try:
    __version__ = version("rnn_ext")
except PackageNotFoundError:  # built in place, not installed
    __version__ = _C.build_info()["version"]

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Explanation",
    "Replacements",
    "SlowPathWarning",
    "accelerate",
    "batch_invariant",
    "checkpoint_steps",
    "checkpoint_time",
    "explain",
    "float32_product",
    "frozen",
    "is_batch_invariant",
    "reference",
    "release_memory",
    "restore",
    "set_float32_product",
]
