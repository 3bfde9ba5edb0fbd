"""The cells are torch's: constructor, weights, and every number that comes out of a call."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

import rnn_ext
from tests.contract import promise
from tests.covering import each_meeting
from tests.strategies import BATCHES, FEATURES
from tests.subject import CELLS, COPIES, DTYPES, Case
from tests.test_module import assert_same_weights
from tests.test_parity import assert_parity
from tests.tolerances import assert_all_close, assert_close

each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def states_of(cell, *shape, dtype=torch.float32):
    """hx of random numbers for a cell."""
    return cell.state(*[torch.randn(shape, dtype=dtype) for _ in cell.states])


def loop(cell, module, x, hx=None):
    """The steps of x [T, B, I] one by one: all outputs [T, B, H] and the final state."""
    outputs = []
    for x_t in x:
        hx = module(x_t, hx)
        outputs.append(cell.named_outputs(hx)["h_n"])
    return torch.stack(outputs), hx


# Module


CONSTRUCTORS = [
    ((4, 3), {}),
    ((4, 3, False), {}),
    ((4, 3), {"bias": False, "dtype": torch.float64}),
    ((1, 1), {"device": "cpu", "dtype": torch.bfloat16}),
]
each_constructor = pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTORS, ids=str)


@promise("Base class", "an instance of `RNNBase` or `RNNCellBase`, with torch's attributes and repr")
@each_cell
@each_constructor
def test_the_same_seed_gives_the_same_module(cell, args, kwargs):
    torch.manual_seed(7)
    ours, next_after_ours = cell.make_ours(*args, **kwargs), torch.rand(1)
    torch.manual_seed(7)
    theirs, next_after_theirs = cell.make_theirs(*args, **kwargs), torch.rand(1)
    assert_same_weights(ours, theirs)
    assert next_after_ours == next_after_theirs
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, nn.RNNCellBase)
    public = {name: value for name, value in vars(theirs).items() if not name.startswith("_")}
    assert {name: getattr(ours, name) for name in public} == public
    assert type(ours).__constants__ == type(theirs).__constants__


@promise("Parameters", "`state_dict` goes both ways")
@each_cell
def test_state_dict_goes_both_ways(cell):
    ours, theirs = cell.make_both(4, 3)
    assert_same_weights(ours, theirs)
    fresh = cell.make_ours(4, 3)
    theirs.load_state_dict(fresh.state_dict())
    assert_same_weights(fresh, theirs)


@promise("Parameters", "meta device, `to_empty`, `load_state_dict(assign=True)`")
@each_cell
def test_meta_device_to_empty_and_assigned_weights(cell):
    theirs, x = cell.make_theirs(4, 3), torch.randn(2, 4)
    expected = cell.named_outputs(theirs(x))["h_n"]
    for load in (
        lambda ours: ours.load_state_dict(theirs.state_dict(), assign=True),
        lambda ours: ours.to_empty(device="cpu").load_state_dict(theirs.state_dict()),
    ):
        ours = cell.make_ours(4, 3, device="meta")
        assert all(weight.is_meta for weight in ours.parameters())
        load(ours)
        assert_close(cell.named_outputs(ours(x))["h_n"], expected)


@promise("Around it", "`deepcopy`, `pickle`, `torch.save`")
@each_cell
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
def test_a_copy_stands_on_its_own(cell, make_copy):
    module, x = cell.make_ours(4, 3, bias=False), torch.randn(2, 4)
    before = cell.named_outputs(module(x))["h_n"]
    duplicate = make_copy(module)
    assert type(duplicate) is type(module)
    assert torch.equal(cell.named_outputs(duplicate(x))["h_n"], before)
    with torch.no_grad():
        for weight in duplicate.parameters():
            weight.zero_()
    assert torch.equal(cell.named_outputs(module(x))["h_n"], before)
    assert not torch.equal(cell.named_outputs(duplicate(x))["h_n"], before)


def drop_connect(module):
    """Replaces the parameter by a plain tensor, as WeightDrop does before each call."""
    raw = module.weight_hh
    del module.weight_hh
    module.register_parameter("raw", raw)
    module.weight_hh = raw * 0.5


CHANGES = {
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh"),
    "pruning": lambda m: prune.l1_unstructured(m, "weight_hh", amount=4),
    "a plain tensor": drop_connect,
    "another parameter": lambda m: setattr(m, "weight_hh", nn.Parameter(torch.randn_like(m.weight_hh))),
    "other data": lambda m: setattr(m.weight_hh, "data", torch.randn_like(m.weight_hh)),
    "no biases": lambda m: (setattr(m, "bias_ih", None), setattr(m, "bias_hh", None)),
    "one bias": lambda m: setattr(m, "bias_hh", None),
}  # fmt: skip


@promise("Around it", "weight_norm, spectral_norm, orthogonal, pruning, a plain tensor as weight: never ignored")
@each_cell
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_the_one_used(cell, change):
    ours, theirs = cell.make_both(4, 3)
    x, h = torch.randn(2, 4), states_of(cell, 2, 3)
    ours(x, h)  # whatever is kept from this call must not be used in the next
    results = []
    for module in (ours, theirs):
        torch.manual_seed(5)
        CHANGES[change](module)
        module.zero_grad()
        y = cell.named_outputs(module(x, h))["h_n"]
        y.sum().backward()
        results.append([y, *(weight.grad for weight in module.parameters())])
    assert_all_close(*results)


def test_another_nonlinearity_set_later_is_the_one_used():
    cell = CELLS[0]
    ours, theirs = cell.make_both(4, 3)
    ours.nonlinearity = theirs.nonlinearity = "relu"
    x = torch.randn(9, 4)
    assert_close(ours(x), theirs(x))


@promise("Autograd", "`torch.func.functional_call`")
@each_cell
def test_functional_call_uses_the_weights_that_it_is_given(cell):
    ours, theirs = cell.make_both(4, 3)
    other = {name: torch.randn_like(weight) for name, weight in theirs.named_parameters()}
    x, h = torch.randn(2, 4), states_of(cell, 2, 3)
    actual, expected = (functional_call(module, other, (x, h)) for module in (ours, theirs))
    assert_close(cell.named_outputs(actual)["h_n"], cell.named_outputs(expected)["h_n"])


# Numbers


@st.composite
def cell_cases(draw) -> Case:
    """Any call of any cell that has a kernel."""
    form = draw(st.sampled_from(["batched", "batched", "unbatched"]))
    case = Case(
        layer=draw(st.sampled_from(CELLS)),
        input_size=draw(FEATURES),
        hidden_size=draw(FEATURES),
        bias=draw(st.booleans()),
        dtype=draw(st.sampled_from(DTYPES)),
        form=form,
        lengths=(1,) * (1 if form == "unbatched" else draw(BATCHES)),
        given_state=draw(st.booleans()),
        layout=draw(st.sampled_from(["contiguous", "gaps", "transposed", "offset"])),
        seed=draw(st.integers(0, 99)),
    )
    names = [name for name, _ in case.make(case.layer.theirs).named_parameters()]
    inputs = st.frozensets(st.sampled_from(["x", *case.state(), *names]))
    outputs = [f"{name}_n" for name in case.layer.states]
    used = st.sampled_from([tuple(outputs), *((name,) for name in outputs)])
    return replace(case, wanted=draw(inputs) if draw(st.booleans()) else None, used=draw(used))


@given(case=cell_cases())
def test_any_call(case):
    assert_parity(case)


@promise("Forward", "every number is torch's, in float32, float64, bfloat16 and float16, forward and backward")
@pytest.mark.sanitize
@each_cell
@each_dtype
@pytest.mark.parametrize("form", ["batched", "unbatched"])
@pytest.mark.parametrize("layout", ["contiguous", "gaps", "transposed", "offset"])
@pytest.mark.parametrize(("given_state", "bias"), [(True, True), (False, False)])
def test_every_form_and_layout_at_odd_sizes(cell, dtype, form, layout, given_state, bias):
    for hidden_size, batch in ((1, 3), (9, 5), (17, 4), (33, 19)):
        lengths = (1,) * (1 if form == "unbatched" else batch)
        assert_parity(
            Case(
                cell, 5, hidden_size, bias=bias, dtype=dtype, form=form, layout=layout, lengths=lengths,
                given_state=given_state, used=("h_n", "c_n"),
            )
        )  # fmt: skip


@each_cell
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 32, 200])
def test_sizes_that_are_worth_several_threads(cell, threads, batch):
    torch.set_num_threads(threads)
    assert_parity(Case(cell, 64, 512, lengths=(1,) * batch, used=("h_n", "c_n")))


@each_meeting(3, cell=CELLS, dtype=DTYPES, threads=[1, 2, 3], invariant={"batch_invariant": True, "default": False})
def test_every_way_to_use_the_weights_of_one_step(cell, dtype, threads, invariant):
    """As they lie with few rows, else packed in pieces; more than a block of terms, off the widths of vectors."""
    torch.set_num_threads(threads)
    with rnn_ext.batch_invariant(invariant):
        for batch in (1, 2, 3, 5, 16, 33):
            assert_parity(Case(cell, 131, 257, dtype=dtype, lengths=(1,) * batch, used=("h_n", "c_n")))


@each_cell
def test_states_of_tensors_expanded_from_one(cell):
    ours, theirs = cell.make_both(4, 3)
    results = []
    for module in (ours, theirs):
        start, x = torch.linspace(-1, 1, 3).requires_grad_(), torch.linspace(-2, 2, 4).requires_grad_()
        result = module(x.expand(6, 4), cell.state(*[start.expand(6, 3) for _ in cell.states]))
        sum(out.sum() for out in cell.named_outputs(result).values()).backward()
        results.append([start.grad, x.grad, *(weight.grad for weight in module.parameters())])
    assert_all_close(*results)


@each_cell
def test_a_loop_is_torchs_loop_forward_and_backward(cell):
    ours, theirs = cell.make_both(4, 9)
    x, results = torch.randn(12, 3, 4), []
    for module in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y, state = loop(cell, module, leaf)
        (y.square().sum() + sum(s.sum() for s in cell.named_outputs(state).values())).backward()
        results.append([y, leaf.grad, *(weight.grad for weight in module.parameters())])
    assert_all_close(*results)


@each_cell
@pytest.mark.parametrize("sizes", [(0, 3), (4, 0)], ids=str)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore::rnn_ext.SlowPathWarning")
def test_sizes_of_zero(cell, sizes):
    """torch's layers refuse them, its cells do not."""
    ours, theirs = cell.make_both(*sizes)
    x, h = torch.randn(2, sizes[0]), states_of(cell, 2, sizes[1])
    for hx in (None, h):
        assert_close(cell.named_outputs(ours(x, hx))["h_n"], cell.named_outputs(theirs(x, hx))["h_n"])


@promise("Forward", "an empty batch gives empty outputs and zero weight gradients")
@each_cell
@pytest.mark.parametrize("given_state", [False, True])
def test_an_empty_batch_gives_empty_outputs_and_zero_weight_gradients(cell, given_state):
    ours, theirs = cell.make_both(4, 3)
    x, h = torch.randn(0, 4, requires_grad=True), states_of(cell, 0, 3) if given_state else None
    actual, expected = cell.named_outputs(ours(x, h)), cell.named_outputs(theirs(x, h))
    assert {name: y.shape for name, y in actual.items()} == {name: y.shape for name, y in expected.items()}
    sum(y.sum() for y in actual.values()).backward()
    assert x.grad.shape == x.shape
    for name, weight in ours.named_parameters():
        assert weight.grad is not None and not weight.grad.any(), name


@each_cell
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_what_is_not_finite_comes_out_where_torchs_does(cell, poison):
    ours, theirs = cell.make_both(7, 19)
    x, h = torch.randn(33, 7), states_of(cell, 33, 19)
    x[11, 5] = poison
    expected = cell.named_outputs(theirs(x, h))
    for name, actual in cell.named_outputs(ours(x, h)).items():
        assert torch.equal(actual.isnan(), expected[name].isnan()), name
        assert_close(actual.nan_to_num(), expected[name].nan_to_num())


@pytest.mark.sanitize
@each_cell
@pytest.mark.parametrize("batch", [2, 5, 16, 33])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
def test_a_sequence_that_is_not_finite_stays_alone(cell, batch, poison):
    module, sick = cell.make_ours(131, 70), batch // 2
    healthy = [b for b in range(batch) if b != sick]
    x, h = torch.randn(batch, 131), states_of(cell, batch, 70)
    results = []
    for value in (x[sick, 7].item(), poison):
        x[sick, 7] = value
        leaf = x.clone().requires_grad_()
        outputs = cell.named_outputs(module(leaf, h))
        results.append([*outputs.values(), *torch.autograd.grad(sum(y.sum() for y in outputs.values()), leaf)])
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(poisoned[healthy], clean[healthy])
