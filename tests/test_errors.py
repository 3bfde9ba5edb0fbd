"""A bad call fails as torch's does: the same type, the same words. Found by making the same call on both."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from tests.contract import promise
from tests.subject import LAYERS, each_layer, named_outputs, run_python
from tests.tolerances import assert_close

each_class = pytest.mark.parametrize("layer", {layer.ours: layer for layer in LAYERS}.values(), ids=str)


def outcome(call):
    """What a call gives: its result, or the type and text of its error, without the addresses in torch's stack."""
    try:
        return call()
    except Exception as error:
        return type(error), str(error).split("\nException raised from")[0]


def is_error(result) -> bool:
    return isinstance(result, tuple) and isinstance(result[0], type)


def assert_same_error(ours, theirs) -> None:
    """Where no gradient is asked for, too: such calls are checked in another place."""
    expected = outcome(theirs)
    if not is_error(expected) and isinstance(expected[1], tuple):
        pytest.skip("torch's oneDNN LSTM takes this call unchecked")
    assert is_error(expected), "torch accepts this call"
    assert outcome(ours) == expected
    with torch.no_grad():
        expected = outcome(theirs)
        assert not is_error(expected) or outcome(ours) == expected


CONSTRUCTOR_ERRORS = [
    ((), {}),
    ((4,), {}),
    ((4, 3), {"no_such_argument": 1}),
    *[((value, 3), {}) for value in (0, -1, 2.0, "4", None)],
    *[((4, value), {}) for value in (0, -1, 2.0, "4", None)],
    *[((4, 3, value), {}) for value in (0, -1, 1.5, "2", None)],
    *[((4, 3), {"num_layers": value}) for value in (0, -1, 1.5, "2", None)],
    *[((4, 3), {"nonlinearity": value}) for value in ("sigmoid", "Tanh", "", None, 3)],
    ((4, 3, 1, "sigmoid"), {}),
    ((4, 3, 1, True), {}),
    ((4, 3, 1, "tanh"), {"nonlinearity": "tanh"}),
    *[((4, 3), {"bias": value}) for value in (1, None, "yes")],
    *[((4, 3), {"batch_first": value}) for value in (1, None, "yes")],
    *[((4, 3, 2), {"dropout": value}) for value in (-0.1, 1.1, float("nan"), True, "0.5", None, [0.5], 1j)],
    *[((4, 3), {"proj_size": value}) for value in (0, 2, -1, 3)],
    ((4, 3), {"proj_size": 2, "nonlinearity": "sigmoid"}),
    ((4, 3), {"bias": 1, "batch_first": 1, "dropout": 2}),
    ((4, 3), {"device": "nowhere"}),
    ((4, 3), {"device": 3.5}),
    ((4, 3), {"dtype": torch.int32}),
    ((4, 3), {"dtype": "float32"}),
    ((2**40, 2**20), {}),
    ((2**62, 2**62), {}),
    ((2**70, 3), {}),
]


@promise("Constructor", "torch's errors for bad arguments")
@each_class
@pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTOR_ERRORS, ids=str)
def test_bad_constructor_arguments(layer, args, kwargs):
    """What is bad for one class may be good for another: then both make the same module."""
    ours, theirs = (outcome(lambda cls=cls: repr(cls(*args, **kwargs))) for cls in (layer.ours, layer.theirs))
    assert ours == theirs
    refused = isinstance(theirs, tuple) or "RNN" not in theirs
    assert refused or torch.__version__ < (2, 13), "torch's RNN accepts this call"


x = torch.randn(5, 2, 4)
packed = pack_sequence([torch.randn(2, 4), torch.randn(4, 4)], enforce_sorted=False)


def of_batch_sizes(rows: int, *batch_sizes: float, dtype=torch.int64) -> PackedSequence:
    return PackedSequence(torch.randn(rows, 4), torch.tensor(batch_sizes, dtype=dtype))


def state(*shape: int, **kwargs):
    """hx of this shape for any layer: a tensor, or as many as the layer has."""
    return lambda layer: layer.state(*[torch.zeros(s, **kwargs) for s in layer.state_shapes(*shape)])


def just(value):
    return lambda layer: value


# name -> (input, hx as a function of the layer) for a layer of input size 4 and hidden size 3
INPUT_ERRORS = {
    "one dimension": (x[0, 0], just(None)),
    "four dimensions": (x[None], just(None)),
    "no dimension": (torch.tensor(1.0), just(None)),
    "input size": (torch.randn(5, 2, 3), just(None)),
    "input size, unbatched": (torch.randn(5, 3), just(None)),
    "input size, packed": (pack_sequence([torch.randn(5, 3)]), just(None)),
    "input size zero": (torch.randn(5, 2, 0), just(None)),
    "packed data of three dimensions": (PackedSequence(x, torch.tensor([2, 1])), just(None)),
    "packed data of one dimension": (PackedSequence(x[0, 0], torch.tensor([2, 2])), just(None)),
    "no steps": (x[:0], just(None)),
    "no steps, unbatched": (x[:0, 0], just(None)),
    "no steps, no sequences": (x[:0, :0], just(None)),
    "no steps, hx": (x[:0], state(1, 2, 3)),
    "float64 input": (x.double(), just(None)),
    "bfloat16 input": (x.bfloat16(), just(None)),
    "complex input": (x.to(torch.complex64), just(None)),
    "integer input": (x.long(), just(None)),
    "float64 packed input": (packed.double(), just(None)),
    "list": ([[1.0]], just(None)),
    "None": (None, just(None)),
    "sparse input": (x.to_sparse(), just(None)),
    "meta input": (x.to("meta"), just(None)),
    "hx: rows": (x, state(2, 2, 3)),
    "hx: batch": (x, state(1, 3, 3)),
    "hx: batch one": (x, state(1, 1, 3)),
    "hx: hidden size": (x, state(1, 2, 4)),
    "hx: two dimensions": (x, state(1, 3)),
    "hx: four dimensions": (x, state(1, 1, 2, 3)),
    "hx: three dimensions, unbatched": (x[:, 0], state(1, 1, 3)),
    "hx: one dimension, unbatched": (x[:, 0], state(3)),
    "hx: hidden size, unbatched": (x[:, 0], state(1, 4)),
    "hx: rows, unbatched": (x[:, 0], state(2, 3)),
    "hx: rows, packed": (packed, state(2, 2, 3)),
    "hx: too few sequences, packed": (packed, state(1, 1, 3)),
    "hx: hidden size, packed": (packed, state(1, 2, 4)),
    "hx: two dimensions, packed": (packed, state(1, 3)),
    "hx: batch, packed and sorted": (pack_sequence([x[:, 0], x[:3, 1]]), state(1, 3, 3)),
    "hx: float64": (x, state(1, 2, 3, dtype=torch.float64)),
    "hx: bfloat16": (x, state(1, 2, 3, dtype=torch.bfloat16)),
    "hx: float64, packed": (packed, state(1, 2, 3, dtype=torch.float64)),
    "hx: meta": (x, state(1, 2, 3, device="meta")),
    "hx: string": (x, just("zeros")),
    "hx: number": (x, just(0)),
    "hx: three of them": (x, lambda layer: (torch.zeros(1, 2, layer.output_size(3)), *[torch.zeros(1, 2, 3)] * 2)),
    "packed: more rows announced than given": (of_batch_sizes(2, 2, 1), just(None)),
    "packed: batch sizes grow": (of_batch_sizes(3, 1, 2), just(None)),
    "packed: negative batch size": (of_batch_sizes(2, 3, -1), just(None)),
    "packed: negative first batch size": (of_batch_sizes(2, -1, 3), just(None)),
    "packed: no steps": (of_batch_sizes(0), just(None)),
    "packed: int32 batch sizes": (of_batch_sizes(2, 1, 1, dtype=torch.int32), just(None)),
    "packed: float batch sizes": (of_batch_sizes(2, 1, 1, dtype=torch.float32), just(None)),
    "packed: batch sizes of two dimensions": (PackedSequence(x[0], torch.tensor([[1, 1]])), just(None)),
}


@promise("Forward", "torch's errors for bad input, states and weights")
@pytest.mark.sanitize
@each_layer
@pytest.mark.parametrize("name", INPUT_ERRORS)
def test_bad_inputs(layer, name):
    ours, theirs = layer.make_both(4, 3)
    bad, hx = INPUT_ERRORS[name]
    assert_same_error(lambda: ours(bad, hx(layer)), lambda: theirs(bad, hx(layer)))


@each_layer
@pytest.mark.parametrize(
    "options", [{"batch_first": True}, {"num_layers": 2}, {"bidirectional": True}], ids=str
)
@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 5, 3), (4, 2, 3), (2, 2, 6)], ids=str)
def test_bad_states_of_larger_stacks(layer, options, shape):
    ours, theirs = layer.make_both(4, 3, **options)
    hx = state(*shape)(layer)
    assert_same_error(lambda: ours(x, hx), lambda: theirs(x, hx))


@each_class
@pytest.mark.parametrize("args", [(), (x, None, None)], ids=["none", "three"])
def test_a_wrong_number_of_arguments(layer, args):
    ours, theirs = layer.make_both(4, 3)
    assert_same_error(lambda: ours(*args), lambda: theirs(*args))


@each_class
def test_no_steps_with_batch_first(layer):
    ours, theirs = layer.make_both(4, 3, batch_first=True)
    assert_same_error(lambda: ours(torch.randn(2, 0, 4)), lambda: theirs(torch.randn(2, 0, 4)))


# name -> (weight, what it is replaced by)
BAD_WEIGHTS = {
    "input weight of another dtype": ("weight_ih_l0", lambda w: nn.Parameter(w.double())),
    "recurrent weight of another dtype": ("weight_hh_l0", lambda w: nn.Parameter(w.double())),
    "bias of another dtype": ("bias_ih_l0", lambda w: nn.Parameter(w.double())),
    "input weight of another shape": ("weight_ih_l0", lambda w: nn.Parameter(torch.zeros(3, 5))),
    "recurrent weight of another shape": ("weight_hh_l0", lambda w: nn.Parameter(torch.zeros(3, 4))),
    "flat recurrent weight": ("weight_hh_l0", lambda w: nn.Parameter(w.detach().flatten())),
    "bias of another shape": ("bias_hh_l0", lambda w: nn.Parameter(torch.zeros(4))),
    "recurrent weight on another device": ("weight_hh_l0", lambda w: nn.Parameter(w.to("meta"))),
    "input weight on another device": ("weight_ih_l0", lambda w: nn.Parameter(w.to("meta"))),
    "recurrent weight None": ("weight_hh_l0", lambda w: None),
    "bias None": ("bias_hh_l0", lambda w: None),
}


@promise("Forward", "torch's errors for bad input, states and weights")
@pytest.mark.sanitize
@each_layer
@pytest.mark.parametrize("name", BAD_WEIGHTS)
@pytest.mark.filterwarnings("error:TF32 acceleration")  # torch's, of a processor that nobody asked for
def test_bad_weights(layer, name):
    ours, theirs = layer.make_both(4, 3)
    weight, replace = BAD_WEIGHTS[name]
    for module in (ours, theirs):
        setattr(module, weight, replace(getattr(module, weight)))
    assert_same_error(lambda: ours(x), lambda: theirs(x))


@each_class
def test_a_dropout_set_out_of_range_later(layer):
    ours, theirs = layer.make_both(4, 3, 2)
    ours.dropout = theirs.dropout = 1.5
    assert_same_error(lambda: ours(x), lambda: theirs(x))


# torch takes these calls, however odd they are (its LSTM refuses one of them).
ODD_BUT_ACCEPTED = {
    "packed: fewer rows announced than given": (of_batch_sizes(5, 1, 1), just(None)),
    "packed: a step without sequences": (of_batch_sizes(1, 1, 0), just(None)),
    "packed, unsorted: hx of too many sequences": (packed, state(1, 3, 3)),
    "no sequences": (x[:, :0], state(1, 0, 3)),
}


@pytest.mark.sanitize
@each_layer
@pytest.mark.parametrize("name", ODD_BUT_ACCEPTED)
def test_odd_calls_that_torch_accepts(layer, name):
    ours, theirs = layer.make_both(4, 3)
    odd, hx = ODD_BUT_ACCEPTED[name]
    actual, expected = outcome(lambda: ours(odd, hx(layer))), outcome(lambda: theirs(odd, hx(layer)))
    if is_error(expected):
        assert len(layer.states) == 2 and actual == expected
        return
    actual, expected = named_outputs(actual), named_outputs(expected)
    assert actual.keys() == expected.keys()
    for output, tensor in expected.items():
        assert_close(actual[output], tensor)


HUGE_INPUTS = [(2**42, 1, 4), (1, 2**42, 4), (2**21, 2**21, 4), (2**61, 1, 4)]


@each_class
def test_inputs_too_large_for_any_memory_raise(layer):
    """In a process of its own, which a call that does not raise would take down."""
    name = layer.ours.__name__
    printed = run_python(f"""
import torch, rnn_ext
for grad in (True, False):
    module = rnn_ext.{name}(4, 64).requires_grad_(grad)
    for shape in {HUGE_INPUTS}:
        print(grad, shape, end=": ", flush=True)
        try:
            module(torch.zeros(1, 1, 4).expand(shape))
            print("returned")
        except (MemoryError, RuntimeError) as error:
            print(type(error).__name__, *str(error).splitlines()[:1])
""")
    lines = printed.splitlines()
    assert len(lines) == 2 * len(HUGE_INPUTS), printed
    for line in lines:
        assert line.split(": ", 1)[1].startswith(("MemoryError", "RuntimeError")), line


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, as Linux can")
@each_class
def test_memory_that_runs_out_anywhere_raises(layer):
    """The limit is swept, so that each allocation of a training step fails once."""
    name = layer.ours.__name__
    printed = run_python(f"""
import resource, torch, rnn_ext
module, small, large = rnn_ext.{name}(64, 64, 2), torch.randn(4, 64, 64), torch.randn(200, 256, 64)
module(small)[0].sum().backward()  # starts the threads, which need address space too
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for extra in (*range(0, 96, 6), 2000):  # MiB
    resource.setrlimit(resource.RLIMIT_AS, (used + (extra << 20), resource.RLIM_INFINITY))
    try:
        y, state = module(large)
        y.sum().backward()
        print("returned")
    except (MemoryError, RuntimeError) as error:
        print(type(error).__name__, str(error).splitlines()[0])
    y = state = None
""")
    lines = printed.splitlines()
    assert len(lines) == 17
    assert lines[0].startswith(("MemoryError", "RuntimeError")), lines[0]
    assert lines[-1] == "returned", "the largest limit was too small to prove anything"
    failures = [line for line in lines if line != "returned"]
    assert all("memory" in line.lower() for line in failures), failures
