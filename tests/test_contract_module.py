"""Contract: what the modules are, how they are made and called. Most of it is proven in test_module and test_cells."""

from __future__ import annotations

import pytest
import torch

import rnn_ext
from tests.contract import promise
from tests.subject import CELLS, LAYERS
from tests.tolerances import assert_close

each_module = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)
each_class = pytest.mark.parametrize("layer", {row.ours: row for row in LAYERS + CELLS}.values(), ids=str)

# Every argument of a constructor, in torch's order: RNN and GRU have a place for proj_size too.
POSITIONAL = {
    "RNN": (4, 3, 2, "relu", False, True, 0.5, True, 0, "cpu", torch.float64),
    "LSTM": (4, 3, 2, False, True, 0.5, True, 2, "cpu", torch.float64),
    "GRU": (4, 3, 2, False, True, 0.5, True, 0, "cpu", torch.float64),
    "RNNCell": (4, 3, False, "relu", "cpu", torch.float64),
    "LSTMCell": (4, 3, False, "cpu", torch.float64),
    "GRUCell": (4, 3, False, "cpu", torch.float64),
}


@each_class
def test_a_module_is_no_instance_of_torchs_own_class(layer):
    """torch.compile refuses those."""
    assert layer.ours is layer.theirs or not isinstance(layer.make_ours(4, 3), layer.theirs)


@promise("Base class", "`flatten_parameters` and `all_weights`")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_flattening_the_parameters_changes_nothing(layer):
    module, x = layer.make_ours(4, 3, 2, bidirectional=True), layer.random_input(4)
    expected = module(x)[0]
    module.flatten_parameters()
    assert torch.equal(module(x)[0], expected)
    assert [id(w) for group in module.all_weights for w in group] == [id(w) for w in module.parameters()]


@promise("Constructor", "every argument by position")
@each_class
def test_every_argument_may_be_given_by_position(layer):
    args = POSITIONAL[layer.theirs.__name__]
    ours, theirs = layer.ours(*args), layer.theirs(*args)
    assert repr(ours) == repr(theirs)
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert {name: (w.shape, w.dtype) for name, w in ours.items()} == {n: (w.shape, w.dtype) for n, w in theirs.items()}


@promise("Forward", "hx of an LSTM as a tuple or a list")
@pytest.mark.parametrize("layer", [row for row in LAYERS + CELLS if len(row.states) == 2], ids=str)
def test_the_states_of_an_lstm_may_come_as_a_list(layer):
    ours, theirs = layer.make_both(4, 3)
    x, rows = layer.random_input(4), () if layer.is_cell else (1,)
    hx = [torch.randn(shape) for shape in layer.state_shapes(*rows, 2, 3)]
    expected = layer.named_outputs(theirs(x, hx))
    for form in (hx, tuple(hx)):
        actual = ours(x, form)
        for name, output in layer.named_outputs(actual).items():
            assert_close(output, expected[name])
        assert type(actual if layer.is_cell else actual[1]) is tuple


@promise("Forward", "`batch_first` moves the output alone, not the states")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_batch_first_leaves_the_states_as_they_are(layer):
    module, first = layer.make_ours(4, 3, 2), layer.make_ours(4, 3, 2, batch_first=True)
    first.load_state_dict(module.state_dict())
    x = torch.randn(5, 2, 4)
    expected, actual = layer.named_outputs(module(x)), layer.named_outputs(first(x.transpose(0, 1)))
    assert_close(actual.pop("y"), expected.pop("y").transpose(0, 1))
    for name, state in actual.items():
        assert_close(state, expected[name])


@promise("Forward", "the path that a call takes can be told, and why")
@each_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_explain_tells_the_path_of_a_call(layer, dtype):
    told = rnn_ext.explain(layer.make_ours(4, 3, dtype=dtype), layer.random_input(4, dtype=dtype))
    assert told.path == ("kernel" if dtype == torch.float32 else "torch")
    assert dtype == torch.float32 or str(dtype) in told.reason
