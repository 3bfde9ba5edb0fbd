"""A bad call of a cell fails as torch's does, and what torch's cell takes ours takes too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.contract import promise
from tests.subject import CELLS
from tests.test_errors import assert_same_error, is_error, outcome
from tests.tolerances import assert_close

each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_class = pytest.mark.parametrize("cell", {cell.ours: cell for cell in CELLS}.values(), ids=str)
pytestmark = pytest.mark.filterwarnings("ignore::rnn_ext.SlowPathWarning", "ignore:Initializing zero-element")

CONSTRUCTORS = [
    ((), {}),
    ((4,), {}),
    ((4, 3), {"no_such_argument": 1}),
    ((4, 3), {"num_layers": 2}),
    *[((value, 3), {}) for value in (0, -1, 2.0, "4", None)],
    *[((4, value), {}) for value in (0, -1, 2.0, "4", None)],
    *[((4, 3), {"bias": value}) for value in (1, None, "yes", "")],
    *[((4, 3), {"nonlinearity": value}) for value in ("sigmoid", "Tanh", None, "relu")],
    ((4, 3, True, "relu"), {}),
    ((4, 3, True, "relu", "cpu", torch.float64), {}),
    ((4, 3, True, "cpu", torch.float64), {}),
    ((4, 3), {"device": "nowhere"}),
    ((4, 3), {"dtype": torch.int32}),
    ((4, 3), {"dtype": "float32"}),
    ((2**40, 2**20), {}),
    ((2**70, 3), {}),
]


@promise("Constructor", "torch's errors for bad arguments")
@each_class
@pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTORS, ids=str)
def test_constructor_arguments(cell, args, kwargs):
    """Much that torch's layers refuse its cells take: then both make the same module, or fail at the call."""

    def make_and_call(cls):
        module = cls(*args, **kwargs)
        x = torch.ones(1, 4, dtype=next(module.parameters()).dtype)
        return repr(module), outcome(lambda: type(module(x)))

    ours, theirs = (outcome(lambda cls=cls: make_and_call(cls)) for cls in (cell.ours, cell.theirs))
    theirs = theirs if isinstance(theirs[0], str) else (theirs[0], theirs[1].replace("torch.nn", "rnn_ext"))
    assert ours == theirs


x, z = torch.randn(2, 4), torch.zeros

# name -> (input, the state h, which for an LSTM is both of its states), for input size 4 and hidden size 3
CALLS = {
    "no dimension": (torch.tensor(1.0), None),
    "three dimensions": (x[None], None),
    "input size": (torch.randn(2, 3), None),
    "input size, unbatched": (torch.randn(3), None),
    "input size zero": (torch.randn(2, 0), None),
    "float64 input": (x.double(), None),
    "bfloat16 input": (x.bfloat16(), None),
    "complex input": (x.to(torch.complex64), None),
    "integer input": (x.long(), None),
    "list": ([[1.0]], None),
    "None": (None, None),
    "sparse input": (x.to_sparse(), None),
    "meta input": (x.to("meta"), None),
    "no sequences": (x[:0], None),
    "no sequences, hx": (x[:0], z(0, 3)),
    "no sequences, hx of one": (x[:0], z(1, 3)),
    "hx: one dimension": (x, z(3)),
    "hx: one dimension, as many sequences": (torch.randn(3, 4), z(3)),
    "hx: two dimensions, unbatched": (x[0], z(1, 3)),
    "hx: two sequences, unbatched": (x[0], z(2, 3)),
    "hx: three dimensions": (x, z(1, 2, 3)),
    "hx: three dimensions, unbatched": (x[0], z(1, 1, 3)),
    "hx: no dimension": (x, z(())),
    "hx: no dimension, unbatched": (x[0], z(())),
    "hx: batch": (x, z(3, 3)),
    "hx: batch one": (x, z(1, 3)),
    "hx: hidden size": (x, z(2, 4)),
    "hx: hidden size, unbatched": (x[0], z(4)),
    "hx: float64": (x, z(2, 3).double()),
    "hx: integer": (x, z(2, 3).long()),
    "hx: meta": (x, z(2, 3, device="meta")),
    "hx: string": (x, "zeros"),
    "hx: number": (x, 0),
}  # fmt: skip

# The same for hx as it is.
RAW_CALLS = {
    "none of them": (x, ()),
    "one of them": (x, (z(2, 3),)),
    "three of them": (x, (z(2, 3),) * 3),
    "three of them, unbatched": (x[0], (z(3),) * 3),
    "list": (x, [z(2, 3), z(2, 3)]),
    "list, unbatched": (x[0], [z(3), z(3)]),
    "one tensor of both": (x, z(2, 2, 3)),
    "one tensor of both, unbatched": (x[0], z(2, 3)),
    "one tensor of one dimension": (x, z(3)),
    "of one and two dimensions": (x, (z(2, 3), z(3))),
    "of different batch": (x, (z(2, 3), z(3, 3))),
    "of different hidden size": (x, (z(2, 3), z(2, 4))),
    "of one and two dimensions, unbatched": (x[0], (z(3), z(1, 3))),
    "c float64": (x, (z(2, 3), z(2, 3).double())),
    "strings": (x, ("h", "c")),
    "h None": (x, (None, z(2, 3))),
    "string": (x, "hx"),
    "number": (x, 0),
    "dict": (x, {"h": z(2, 3)}),
}


def assert_same_outcome(cell, ours, theirs) -> None:
    """The same error, or close results of the same dtype; where no gradient is asked for, too."""
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected = outcome(theirs)
            if is_error(expected):
                assert outcome(ours) == expected
                continue
            actual, expected = cell.named_outputs(ours()), cell.named_outputs(expected)
        assert actual.keys() == expected.keys()
        for name, tensor in expected.items():
            assert actual[name].dtype == tensor.dtype and actual[name].device == tensor.device
            assert tensor.is_meta or assert_close(actual[name], tensor) is None


@promise("Forward", "torch's errors for bad input, states and weights")
@pytest.mark.sanitize
@each_cell
@pytest.mark.parametrize("name", CALLS)
def test_odd_inputs_and_states(cell, name):
    ours, theirs = cell.make_both(4, 3)
    odd, h = CALLS[name]
    hx = h if h is None or isinstance(h, (str, int)) else cell.state(*[h for _ in cell.states])
    assert_same_outcome(cell, lambda: ours(odd, hx), lambda: theirs(odd, hx))


@promise("Forward", "torch's errors for bad input, states and weights")
@pytest.mark.sanitize
@each_class
@pytest.mark.parametrize("name", RAW_CALLS)
def test_odd_pairs_of_states(cell, name):
    ours, theirs = cell.make_both(4, 3)
    odd, hx = RAW_CALLS[name]
    assert_same_outcome(cell, lambda: ours(odd, hx), lambda: theirs(odd, hx))


@each_class
@pytest.mark.parametrize("args", [(), (x, None, None)], ids=["none", "three"])
def test_a_wrong_number_of_arguments(cell, args):
    ours, theirs = cell.make_both(4, 3)
    assert_same_error(lambda: ours(*args), lambda: theirs(*args))


# name -> (weight, what it is replaced by)
WEIGHTS = {
    "input weight of another dtype": ("weight_ih", lambda w: nn.Parameter(w.double())),
    "recurrent weight of another dtype": ("weight_hh", lambda w: nn.Parameter(w.double())),
    "bias of another dtype": ("bias_ih", lambda w: nn.Parameter(w.double())),
    "input weight of another shape": ("weight_ih", lambda w: nn.Parameter(torch.zeros(3, 5))),
    "recurrent weight of another shape": ("weight_hh", lambda w: nn.Parameter(torch.zeros(3, 4))),
    "flat recurrent weight": ("weight_hh", lambda w: nn.Parameter(w.detach().flatten())),
    "bias of another shape": ("bias_hh", lambda w: nn.Parameter(torch.zeros(4))),
    "recurrent weight None": ("weight_hh", lambda w: None),
    "input weight None": ("weight_ih", lambda w: None),
    "bias None": ("bias_ih", lambda w: None),
}


@promise("Forward", "torch's errors for bad input, states and weights")
@pytest.mark.sanitize
@each_cell
@pytest.mark.parametrize("name", WEIGHTS)
def test_odd_weights(cell, name):
    ours, theirs = cell.make_both(4, 3)
    weight, replace = WEIGHTS[name]
    for module in (ours, theirs):
        setattr(module, weight, replace(getattr(module, weight)))
    assert_same_outcome(cell, lambda: ours(x), lambda: theirs(x))


def test_an_unknown_nonlinearity_set_later():
    ours, theirs = CELLS[0].make_both(4, 3)
    ours.nonlinearity = theirs.nonlinearity = "sigmoid"
    assert_same_error(lambda: ours(x), lambda: theirs(x))
    assert_same_error(lambda: ours(x[None]), lambda: theirs(x[None]))


@promise("Forward", "complex numbers, the meta device: what torch gives")
@each_cell
@pytest.mark.parametrize("options", [{"dtype": torch.complex64}, {"device": "meta"}], ids=str)
@pytest.mark.parametrize("given_state", [False, True])
def test_what_has_no_kernel_goes_where_torchs_cell_goes(cell, options, given_state):
    ours, theirs = cell.make_both(4, 3, **options)
    inputs = torch.randn(2, 4, **options)
    hx = cell.state(*[torch.randn(2, 3, **options) for _ in cell.states]) if given_state else None
    assert_same_outcome(cell, lambda: ours(inputs, hx), lambda: theirs(inputs, hx))
