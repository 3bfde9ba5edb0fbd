"""Fused recurrent layers for PyTorch: drop-in replacements for `torch.nn.RNN` with C++ forward and backward kernels.

    from rnn_ext import RNN

    layer = RNN(input_size=64, hidden_size=128, num_layers=2)   # parameters and call as in torch.nn.RNN
    output, h_n = layer(x)

`explain` tells how a call is carried out, `batch_invariant` makes results independent of the rest of the batch, and
`rnn_ext.reference` is the readable NumPy specification that the kernels are tested against.
"""

from importlib.metadata import PackageNotFoundError, version

from rnn_ext._load import _C as _C
from rnn_ext.explain import Explanation, explain
from rnn_ext.modules import GRU, LSTM, RNN
from rnn_ext.route import SlowPathWarning
from rnn_ext.settings import batch_invariant, is_batch_invariant

try:
    __version__ = version("rnn_ext")
except PackageNotFoundError:  # built in place, not installed
    __version__ = _C.build_info()["version"]

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Explanation",
    "SlowPathWarning",
    "batch_invariant",
    "explain",
    "is_batch_invariant",
]
