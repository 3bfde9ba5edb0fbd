"""Contract: an LSTM's states in every wrong form, and `explain`, which raises what the call raises."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import rnn_ext
from tests import test_cell_errors, test_errors
from tests.contract import promise
from tests.subject import CELLS, LAYERS, named_outputs
from tests.test_errors import is_error, outcome
from tests.tolerances import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::rnn_ext.SlowPathWarning")

x = torch.randn(5, 2, 4)
# name -> (input of size 4, the shape of a state without the hidden size)
FORMS = {
    "batched": (x, (1, 2)),
    "unbatched": (x[:, 0], (1,)),
    "packed, sorted": (pack_sequence([x[:, 0], x[:3, 1]]), (1, 2)),
    "packed, unsorted": (pack_sequence([x[:3, 0], x[:, 1]], enforce_sorted=False), (1, 2)),
}
# name -> hx, from a good state and one of another hidden size
PAIRS = {
    "none": lambda good, bad: (),
    "one": lambda good, bad: (good,),
    "a wrong one": lambda good, bad: (bad,),
    "h wrong": lambda good, bad: (bad, good),
    "c wrong": lambda good, bad: (good, bad),
    "c of fewer dimensions": lambda good, bad: (good, good[0]),
    "c of another dtype": lambda good, bad: (good, good.double()),
    "c None": lambda good, bad: (good, None),
    "three": lambda good, bad: (good, good, good),
    "three, all wrong": lambda good, bad: (bad, bad, bad),
    "three, c wrong": lambda good, bad: (good, bad, good),
    "three, the last wrong": lambda good, bad: (good, good, bad),
    "three, the last no tensor": lambda good, bad: (good, good, "a"),
    "a list of three": lambda good, bad: [good, good, good],
    "one tensor of both": lambda good, bad: torch.stack([good, good]),
    "strings": lambda good, bad: ("h", "c"),
    "a dict": lambda good, bad: {"h": good, "c": good},
    "a number": lambda good, bad: 3,
    "an iterator": lambda good, bad: iter((good, good)),
}


@promise("Forward", "torch's errors for bad input, states and weights")
@pytest.mark.parametrize("layer", [row for row in LAYERS if len(row.states) == 2 and not row.projected], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("grad", [True, False])
def test_states_of_an_lstm_in_any_wrong_form(layer, form, pair, grad):
    ours, theirs = layer.make_both(4, 3)
    given, rows = FORMS[form]
    with torch.set_grad_enabled(grad):
        results = [outcome(lambda m=m: m(given, PAIRS[pair](torch.zeros(*rows, 3), torch.zeros(*rows, 4))))
                   for m in (ours, theirs)]  # fmt: skip
    actual, expected = results
    if is_error(expected):
        assert actual == expected
        return
    for name, output in named_outputs(expected).items():
        assert_close(named_outputs(actual)[name], output)


# What the operators judge at the call: for these `explain` tells the path alone.
LEFT_TO_THE_CALL = ("packed:", "no steps", "sparse", "meta", "float", "complex", "integer")
BAD_CALLS = [(row, name, *call) for row in LAYERS for name, call in test_errors.INPUT_ERRORS.items()]
BAD_CALLS += [(row, name, *call) for row in CELLS for name, call in test_cell_errors.CALLS.items()]


@pytest.mark.parametrize(("layer", "given", "hx"), [
    pytest.param(row, given, hx, id=f"{row}-{name}")
    for row, name, given, hx in BAD_CALLS if not any(word in name for word in LEFT_TO_THE_CALL)
])  # fmt: skip
def test_explain_raises_what_the_call_raises(layer, given, hx):
    module = layer.make_ours(4, 3)
    if callable(hx):
        hx = hx(layer)
    elif isinstance(hx, torch.Tensor):
        hx = layer.state(*[hx for _ in layer.states])
    called, explained = outcome(lambda: module(given, hx)), outcome(lambda: rnn_ext.explain(module, given, hx))
    if is_error(called):
        assert explained == called
    else:
        assert explained.path in ("kernel", "torch")
