"""The module is torch's module: constructor, parameters, copies, and every form of input and output."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from tests.contract import promise
from tests.subject import COPIES, HALVES, LAYERS, each_layer, named_outputs
from tests.tolerances import assert_close

CONSTRUCTORS = [
    ((4, 3), {}),
    ((4, 3, 2), {}),
    ((4, 3), {"num_layers": 3, "bidirectional": True}),
    ((4, 3), {"bias": False}),
    ((4, 3, 2), {"bias": False, "batch_first": True, "dropout": 0.25, "bidirectional": True}),
    ((1, 1), {"dtype": torch.float64}),
    ((4, 3), {"dtype": torch.bfloat16, "device": "cpu"}),
]
each_constructor = pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTORS, ids=str)


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert list(ours) == list(theirs)
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name


@promise("Parameters", "the same names in the same order; the same seed gives the same bits")
@each_layer
@each_constructor
def test_the_same_seed_gives_the_same_weights_in_the_same_order(layer, args, kwargs):
    torch.manual_seed(7)
    ours, next_after_ours = layer.make_ours(*args, **kwargs), torch.rand(1)
    torch.manual_seed(7)
    theirs, next_after_theirs = layer.make_theirs(*args, **kwargs), torch.rand(1)
    assert_same_weights(ours, theirs)
    assert next_after_ours == next_after_theirs
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for our_group, their_group in zip(ours.all_weights, theirs.all_weights, strict=True):
        assert [weight.shape for weight in our_group] == [weight.shape for weight in their_group]


@promise("Base class", "an instance of `RNNBase` or `RNNCellBase`, with torch's attributes and repr")
@each_layer
@each_constructor
def test_repr_and_attributes_are_torchs(layer, args, kwargs):
    ours, theirs = layer.make_ours(*args, **kwargs), layer.make_theirs(*args, **kwargs)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, nn.RNNBase)
    public = {name: value for name, value in vars(theirs).items() if not name.startswith("_")}
    assert {name: getattr(ours, name) for name in public} == public


def test_nonlinearity_is_also_the_fourth_positional_argument():
    [(ours, theirs)] = {(layer.ours, layer.theirs) for layer in LAYERS if layer.ours.__name__ == "RNN"}
    args = (4, 3, 2, "relu", False, True, 0.5, True)
    assert repr(ours(*args)) == repr(theirs(*args))
    assert ours(*args).nonlinearity == "relu"
    assert ours(*args).mode == theirs(*args).mode == "RNN_RELU"
    assert ours(4, 3).nonlinearity == "tanh"


@promise("Constructor", "every argument by name")
@each_layer
def test_every_argument_may_be_given_by_name(layer):
    ours, theirs = layer.make_both(
        input_size=4, hidden_size=3, num_layers=2, bias=False, batch_first=True, dropout=0.0,
        bidirectional=True, device="cpu", dtype=torch.float64,
    )  # fmt: skip
    h = layer.state(*[torch.randn(shape).double() for shape in layer.state_shapes(4, 2, 3)])
    x = torch.randn(2, 5, 4).double()
    assert_close(ours(input=x, hx=h)[0], theirs(input=x, hx=h)[0])
    assert list(inspect.signature(layer.ours.forward).parameters) == ["self", "input", "hx"]


@promise("Constructor", "torch's warning for dropout with one layer")
@each_layer
def test_dropout_with_one_layer_warns_with_torchs_words(layer):
    with warnings.catch_warnings(record=True) as theirs:
        warnings.simplefilter("always")
        layer.make_theirs(4, 3, dropout=0.5)
    with warnings.catch_warnings(record=True) as ours:
        warnings.simplefilter("always")
        layer.make_ours(4, 3, dropout=0.5)
    assert [(w.category, str(w.message)) for w in ours] == [(w.category, str(w.message)) for w in theirs]
    assert len(ours) == 1


@promise("Parameters", "`state_dict` goes both ways")
@each_layer
@each_constructor
def test_state_dict_goes_both_ways(layer, args, kwargs):
    ours, theirs = layer.make_ours(*args, **kwargs), layer.make_theirs(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    assert_same_weights(ours, theirs)
    fresh = layer.make_ours(*args, **kwargs)
    theirs.load_state_dict(fresh.state_dict())
    assert_same_weights(fresh, theirs)


@promise("Parameters", "meta device, `to_empty`, `load_state_dict(assign=True)`")
@each_layer
def test_assigned_weights_are_the_ones_used(layer):
    theirs = layer.make_theirs(4, 3)
    ours = layer.make_ours(4, 3, device="meta")
    ours.load_state_dict(theirs.state_dict(), assign=True)
    assert_same_weights(ours, theirs)
    x = torch.randn(5, 2, 4)
    assert_close(ours(x)[0], theirs(x)[0])


@promise("Parameters", "meta device, `to_empty`, `load_state_dict(assign=True)`")
@each_layer
def test_meta_device_and_to_empty(layer):
    ours = layer.make_ours(4, 3, 2, bidirectional=True, device="meta")
    assert all(weight.is_meta for weight in ours.parameters())
    ours = ours.to_empty(device="cpu")
    theirs = layer.make_theirs(4, 3, 2, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 4)
    assert_close(ours(x)[0], theirs(x)[0])
    torch.manual_seed(3)
    ours.reset_parameters()
    torch.manual_seed(3)
    theirs.reset_parameters()
    assert_same_weights(ours, theirs)


@promise("Around it", "`deepcopy`, `pickle`, `torch.save`")
@each_layer
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_copy_stands_on_its_own(layer, make_copy):
    module, x = layer.make_ours(4, 3, 2, bidirectional=True, bias=False), torch.randn(5, 2, 4)
    before = module(x)[0]
    duplicate = make_copy(module)
    assert type(duplicate) is type(module)
    assert torch.equal(duplicate(x)[0], before)
    with torch.no_grad():
        for weight in duplicate.parameters():
            weight.zero_()
    assert torch.equal(module(x)[0], before)
    assert not torch.equal(duplicate(x)[0], before)
    duplicate(x)[0].sum().backward()
    assert all(weight.grad is not None for weight in duplicate.parameters())
    assert all(weight.grad is None for weight in module.parameters())


@each_layer
@pytest.mark.parametrize("dtype", [torch.float64, *HALVES])
def test_a_module_moved_to_another_dtype_computes_in_it(layer, dtype):
    ours, theirs = layer.make_both(4, 3)
    x = torch.randn(5, 2, 4, dtype=dtype)
    actual, expected = ours.to(dtype)(x), theirs.to(dtype)(x)
    for name, tensor in named_outputs(expected).items():
        assert named_outputs(actual)[name].dtype == dtype
        assert_close(named_outputs(actual)[name], tensor)


FORMS = {
    "batched": (torch.randn(5, 2, 4), (2, 2, 3)),
    "batched, one step": (torch.randn(1, 2, 4), (2, 2, 3)),
    "batched, one sequence": (torch.randn(5, 1, 4), (2, 1, 3)),
    "unbatched": (torch.randn(5, 4), (2, 3)),
    "packed, sorted": (pack_sequence([torch.randn(4, 4), torch.randn(2, 4)]), (2, 2, 3)),
    "packed, unsorted": (
        pack_sequence([torch.randn(2, 4), torch.randn(4, 4)], enforce_sorted=False),
        (2, 2, 3),
    ),
}


@promise("Forward", "padded, unbatched and packed input, sorted or not, with and without hx, `batch_first`")
@each_layer
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given_state", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input_gives_torchs_form_of_output(layer, batch_first, given_state, form):
    x, shape = FORMS[form]
    if batch_first and form.startswith("batched"):
        x = x.transpose(0, 1)
    hx = layer.state(*map(torch.randn, layer.state_shapes(*shape))) if given_state else None
    ours, theirs = layer.make_both(4, 3, bidirectional=True, batch_first=batch_first)
    actual, expected = ours(x, hx), theirs(x, hx)
    assert type(actual) is type(expected) is tuple
    assert type(actual[0]) is type(expected[0])
    for name, tensor in named_outputs(expected).items():
        assert_close(named_outputs(actual)[name], tensor)
        assert not tensor.is_contiguous() or named_outputs(actual)[name].is_contiguous()
    if isinstance(x, PackedSequence):
        for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            assert getattr(actual[0], field) is getattr(expected[0], field) is getattr(x, field)


@promise("Forward", "a packed batch is each of its sequences alone")
@each_layer
def test_a_packed_batch_is_each_of_its_sequences_alone(layer):
    lengths = [2, 5, 1, 5, 3]
    x, h = torch.randn(5, 5, 4), [torch.randn(shape) for shape in layer.state_shapes(4, 5, 3)]
    module = layer.make_ours(4, 3, 2, bidirectional=True)
    y, h_n = module(pack_padded_sequence(x, lengths, enforce_sorted=False), layer.state(*h))
    y, output_lengths = pad_packed_sequence(y)
    assert output_lengths.tolist() == lengths
    for b, length in enumerate(lengths):
        alone = named_outputs(module(x[:length, b], layer.state(*[state[:, b] for state in h])))
        assert_close(y[:length, b], alone["y"])
        assert_close(named_outputs((y, h_n))["h_n"][:, b], alone["h_n"])
        assert not y[length:, b].any()


@each_layer
def test_the_last_output_is_the_final_state(layer):
    y, h_n = layer.make_ours(4, 3, 2)(torch.randn(5, 2, 4))
    assert torch.equal(named_outputs((y, h_n))["h_n"][-1], y[-1])


@promise("Forward", "an empty batch gives empty outputs and zero weight gradients")
@each_layer
@pytest.mark.parametrize("form", ["batched", "batch_first", "two layers both ways"])
def test_an_empty_batch_gives_empty_outputs_and_zero_weight_gradients(layer, form):
    options = {"batch_first": form == "batch_first"}
    if form == "two layers both ways":
        options |= {"num_layers": 2, "bidirectional": True}
    ours, theirs = layer.make_both(4, 3, **options)
    x = torch.randn((0, 5, 4) if form == "batch_first" else (5, 0, 4), requires_grad=True)
    actual, expected = named_outputs(ours(x)), named_outputs(theirs(x))
    assert {name: y.shape for name, y in actual.items()} == {name: y.shape for name, y in expected.items()}
    sum(y.sum() for y in actual.values()).backward()
    assert x.grad.shape == x.shape
    for weight in ours.parameters():
        assert weight.grad is not None and not weight.grad.any()


@promise("Autograd", "right gradients in eval mode")
@each_layer
def test_eval_mode_has_no_dropout_and_the_right_gradients(layer):
    ours, theirs = layer.make_both(4, 3, 2, dropout=0.9)
    x = torch.randn(5, 2, 4)
    ours.eval()(x)[0].sum().backward()
    theirs.eval()(x)[0].sum().backward()
    for weight, expected in zip(ours.parameters(), theirs.parameters()):
        assert_close(weight.grad, expected.grad)
