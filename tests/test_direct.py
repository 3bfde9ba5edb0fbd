"""Plain eager calls on the CPU go past torch's dispatcher, to the same bits; all others go through it."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnn_ext
from rnn_ext import _C, base, cells, ops, transforms
from tests.subject import CELLS, DTYPES, LAYERS, each_layer, gradients_of
from tests.test_errors import is_error, outcome
from tests.tolerances import assert_all_close, assert_close

pytestmark = pytest.mark.sanitize
each_layer_and_cell = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)


@pytest.fixture
def operators(note_calls):
    """The operators that are called, by name, in order."""
    return note_calls(ops, "_forward_op", "_backward_op")


def step(layer, module, x):
    """Outputs and the gradients of the weights, of the input and of a state."""
    x = x.detach().requires_grad_()
    size = (x.shape[0],) if layer.is_cell else (2, x.shape[1])
    states = [torch.linspace(-1, 1, shape[-1]).expand(shape) for shape in layer.state_shapes(*size, 5)]
    states = [s.clone().requires_grad_() for s in states]
    outputs = layer.named_outputs(module(x, layer.state(*states)))
    loss = sum(output.square().sum() for output in outputs.values())
    return [*outputs.values(), *torch.autograd.grad(loss, [x, *states, *module.parameters()])]


def make(layer):
    return layer.make_ours(4, 5) if layer.is_cell else layer.make_ours(4, 5, bidirectional=True)


@each_layer_and_cell
def test_a_plain_call_needs_no_operator(layer, operators):
    step(layer, make(layer), layer.random_input(4))
    assert operators == []


@each_layer_and_cell
def test_a_plain_call_is_checked_by_the_kernels_alone(layer, monkeypatch):
    module, x = make(layer), layer.random_input(4)
    expected = step(layer, module, x)
    with torch.no_grad():
        outputs = layer.named_outputs(module(x, None))
        monkeypatch.setattr(type(module), "_ext_prepare", None)
        assert all(torch.equal(outputs[name], t) for name, t in layer.named_outputs(module(x, None)).items())
    assert all(torch.equal(a, b) for a, b in zip(step(layer, module, x), expected, strict=True))


def call_of(layer, form):
    """A module, an input of that form and a state for it."""
    if layer.is_cell:
        module, batch = layer.make_ours(4, 5), () if form == "one sequence" else (3,)
        x = torch.randn(*batch, 4)
    else:
        module = layer.make_ours(4, 5, bidirectional=True, batch_first=form == "batch first")
        batch = () if form == "one sequence" else (3,)
        x = torch.randn({"batch first": (3, 6, 4), "one sequence": (6, 4)}.get(form, (6, 3, 4)))
        if form in ("sorted", "unsorted"):
            lengths = (6, 4, 4) if form == "sorted" else (4, 6, 4)
            x = pack_sequence([torch.randn(n, 4) for n in lengths], form == "sorted")
    shapes = layer.state_shapes(*(() if layer.is_cell else (2,)), *batch, 5)
    return module, x, layer.state(*map(torch.randn, shapes))


def each_call(*forms, of_cells):
    """For every layer in every form, and every cell in those that it has."""
    calls = [*itertools.product(LAYERS, forms), *itertools.product(CELLS, of_cells)]
    return pytest.mark.parametrize("layer, form", calls, ids=str)


@each_call("batch first", "one sequence", "sorted", "unsorted", of_cells=["one sequence"])
@pytest.mark.parametrize("with_state", [True, False])
def test_a_call_of_any_form_is_checked_by_the_kernels_alone(layer, form, with_state, monkeypatch):
    module, x, hx = call_of(layer, form)
    hx = hx if with_state else None
    assert_the_long_way_gives_the_same(lambda: outputs_of(layer, module, x, hx), monkeypatch)
    monkeypatch.setattr(type(module), "_ext_prepare", None)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            result = module(x, hx)
        if form in ("sorted", "unsorted"):
            assert type(result[0]) is PackedSequence and result[0][1:] == x[1:]


@each_call("time first", "batch first", "one sequence", of_cells=["time first", "one sequence"])
def test_a_call_of_any_form_takes_tensors_with_gaps(layer, form, monkeypatch):
    module, x, hx = call_of(layer, form)

    def with_gaps(t):
        return torch.stack([t, t], -1)[..., 0]

    spread = layer.state(*map(with_gaps, hx if isinstance(hx, tuple) else (hx,)))
    expected = outputs_of(layer, module, x, hx)
    monkeypatch.setattr(type(module), "_ext_prepare", None)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = outputs_of(layer, module, with_gaps(x), spread)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@each_layer
@pytest.mark.parametrize("form", ["time first", "batch first", "one sequence"])
def test_wrong_dimensions_are_refused_in_any_form(layer, form, monkeypatch):
    module, x, hx = call_of(layer, form)
    states = hx if isinstance(hx, tuple) else (hx,)
    for change in (lambda t: t.unsqueeze(0), lambda t: t[0], lambda t: t.sum()):
        for arguments in ((x, layer.state(*map(change, states))), (change(x), hx)):
            assert_the_long_way_gives_the_same(lambda call=arguments: outputs_of(layer, module, *call), monkeypatch)


@each_layer_and_cell
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_plain_backward_gives_the_bits_of_one_checked_in_python(layer, dtype, monkeypatch, note_calls):
    module, x = make(layer).to(dtype), layer.random_input(4, dtype=dtype)
    for frozen in ([], ["weight"], ["bias"], ["weight", "bias"]):
        for name, weight in module.named_parameters():
            weight.requires_grad_(name.split("_")[0] not in frozen)
        wanted = [*([x.requires_grad_()] if frozen else []), *(w for w in module.parameters() if w.requires_grad)]
        found = torch.autograd.grad(layer.total(module(x)), wanted)
        with monkeypatch.context() as patch:
            patch.setattr(_C, "gradients", lambda *args: NotImplemented)
            calls = note_calls(transforms, "gradients_of_call")
            expected = torch.autograd.grad(layer.total(module(x)), wanted)
        assert calls == ["gradients_of_call"]
        assert all(a.dtype == dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def long_way(monkeypatch):
    """Calls are checked in Python from now on."""
    for owner in (base, cells):
        monkeypatch.setattr(owner, "plain_call", lambda *args: None)


def assert_the_long_way_gives_the_same(call, monkeypatch):
    """Twice the same error, or the same bits."""
    for grad in (True, False):
        with torch.set_grad_enabled(grad), monkeypatch.context() as patch:
            short = outcome(call)
            long_way(patch)
            long = outcome(call)
        if is_error(long):
            assert short == long
        else:
            assert all(torch.equal(a, b) for a, b in zip(short, long, strict=True))


def outputs_of(layer, module, x, hx):
    return list(layer.named_outputs(module(x, hx)).values())


def wrong_states(layer):
    """States of the sizes of another batch, of other layers, of fewer dimensions, and of another dtype."""
    right = layer.state_shapes(*((3,) if layer.is_cell else (1, 3)), 5)
    changes = [lambda s: (*s[:-2], 1, s[-1]), lambda s: (2, *s[-2:]), lambda s: s[1:], lambda s: s[-1:], lambda s: ()]
    for change in changes:
        yield layer.state(*[torch.zeros(change(shape)) for shape in right])
    yield layer.state(*[torch.zeros(shape, dtype=torch.float64) for shape in right])


@each_layer_and_cell
def test_wrong_states_are_refused_under_checkpoints_and_transforms(layer, monkeypatch):
    module = layer.make_ours(4, 5)
    x = torch.randn(3, 4) if layer.is_cell else torch.randn(6, 3, 4)
    for hx in wrong_states(layer):
        with rnn_ext.checkpoint_time(2):
            assert_the_long_way_gives_the_same(lambda hx=hx: outputs_of(layer, module, x, hx), monkeypatch)
        mapped = torch.func.vmap(lambda x, hx=hx: outputs_of(layer, module, x, hx))
        assert_the_long_way_gives_the_same(lambda mapped=mapped: mapped(torch.stack([x, x])), monkeypatch)


@each_layer_and_cell
@pytest.mark.parametrize("name", ["hidden_size", "input_size", "bias"])
@pytest.mark.parametrize("with_states", [True, False])
def test_an_attribute_changed_later_is_seen(layer, name, with_states, monkeypatch):
    module, x = layer.make_ours(4, 5), layer.random_input(4)
    setattr(module, name, False if name == "bias" else 7)
    shapes = layer.state_shapes(*((x.shape[0],) if layer.is_cell else (1, x.shape[1])), 5)
    hx = layer.state(*map(torch.zeros, shapes)) if with_states else None
    assert_the_long_way_gives_the_same(lambda: outputs_of(layer, module, x, hx), monkeypatch)


@each_layer_and_cell
@pytest.mark.parametrize("missing", [("bias_ih",), ("bias_ih", "bias_hh"), ("weight_hh",)], ids=str)
def test_a_weight_that_is_none_is_seen(layer, missing, monkeypatch):
    module, x = layer.make_ours(4, 5), layer.random_input(4)
    for name in missing:
        setattr(module, name if layer.is_cell else f"{name}_l0", None)
    assert_the_long_way_gives_the_same(lambda: outputs_of(layer, module, x, None), monkeypatch)


@each_layer_and_cell
@pytest.mark.parametrize("which", [0, -1])
def test_a_nested_state_is_refused(layer, which, monkeypatch):
    module, x = layer.make_ours(4, 5), layer.random_input(4)
    states = [torch.zeros(s) for s in layer.state_shapes(*((len(x),) if layer.is_cell else (1, x.shape[1])), 5)]
    states[which] = torch.nested.nested_tensor(list(states[which]))
    assert_the_long_way_gives_the_same(lambda: outputs_of(layer, module, x, layer.state(*states)), monkeypatch)


@each_layer_and_cell
def test_a_weight_that_is_computed_is_computed_once(layer):
    class Count(nn.Module):
        calls = 0

        def forward(self, w):
            Count.calls += 1
            return w

    module, x = layer.make_ours(4, 5), layer.random_input(4)
    parametrize.register_parametrization(module, "weight_hh" if layer.is_cell else "weight_hh_l0", Count())
    Count.calls = 0
    with torch.no_grad(), torch.profiler.profile():
        module(x)
    assert Count.calls == 1


@each_layer_and_cell
def test_an_error_that_is_not_the_kernels_is_raised_at_once(layer):
    calls = []

    def fail(tensor):
        calls.append(tensor)
        raise RuntimeError("of a hook")

    with pytest.raises(RuntimeError, match="of a hook"), torch.autograd.graph.saved_tensors_hooks(fail, lambda t: t):
        make(layer)(layer.random_input(4))
    assert len(calls) == 1


@each_layer_and_cell
def test_a_direct_call_gives_the_bits_of_the_operator(layer, operators, monkeypatch):
    module, x = make(layer), layer.random_input(4)
    direct = step(layer, module, x)
    for name in ("plain_call", "forward", "backward", "gradients"):
        monkeypatch.setattr(_C, name, lambda *args: NotImplemented)
    through_operator = step(layer, module, x)
    assert operators == ["_forward_op", "_backward_op"]
    assert all(torch.equal(a, b) for a, b in zip(direct, through_operator, strict=True))


@pytest.mark.parametrize("layer", CELLS, ids=str)
def test_a_step_without_dimensions_of_one_gives_the_bits_of_a_sequence_of_one(layer):
    module, x = layer.make_ours(4, 5), torch.randn(3, 4)
    states = [torch.randn(3, 5) for _ in layer.states] + [None] * (2 - len(layer.states))
    weights = [w.detach() for w in module.parameters()]
    stack = ops.Stack(*module._ext_stack(), False)
    flat = ops.forward(x, *states, weights, None, (), stack, True)
    sequence = [None if t is None else t.unsqueeze(0) for t in (x, *states)]
    whole = ops.forward(*sequence, weights, None, (), stack, True)
    if stack.tape() == 0:
        assert len(flat) == 1  # h_n, of which backward makes use as y
        flat *= 2
    for i, (a, b) in enumerate(zip(flat, whole, strict=True)):
        assert torch.equal(a, b.squeeze(0) if i <= len(layer.states) else b)


@pytest.mark.parametrize("layer", CELLS, ids=str)
def test_a_direct_step_that_saves_nothing_is_its_states_alone(layer, monkeypatch):
    module, x = layer.make_ours(4, 5), torch.randn(3, 4)
    weights = [w.detach() for w in module.parameters()]
    call = (x, None, None, weights, None, (), ops.Stack(*module._ext_stack(), False), False)
    direct = ops.forward(*call)
    monkeypatch.setattr(_C, "forward", lambda *args: NotImplemented)
    y, *states = ops.forward(*call)
    assert all(torch.equal(a, b) for a, b in zip(direct, states, strict=True))
    assert torch.equal(y, states[0])


@pytest.mark.parametrize("layer", CELLS, ids=str)
def test_a_cell_gives_the_same_bits_with_and_without_a_gradient(layer):
    module, x = layer.make_ours(4, 5), layer.random_input(4)
    differentiable = layer.named_outputs(module(x))
    with torch.no_grad():
        plain = layer.named_outputs(module(x))
    assert list(plain) == list(differentiable)
    assert all(torch.equal(plain[name], differentiable[name]) for name in plain)


def test_a_step_without_dimensions_of_one_is_for_one_layer_and_direction():
    weights = [w.detach() for w in nn.GRU(4, 5, 2).parameters()]
    with pytest.raises(RuntimeError, match="one step is for one layer"):
        ops.forward(torch.randn(3, 4), None, None, weights, None, (), ops.Stack("GRU", 2, False, False), False)


@each_layer_and_cell
def test_whoever_looks_at_operators_sees_them(layer, operators):
    class Looking(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    module, x = make(layer), layer.random_input(4)
    expected = step(layer, module, x)
    for mode in (Looking(), torch.profiler.profile(), torch.overrides.BaseTorchFunctionMode()):
        operators.clear()
        with mode:
            found = step(layer, module, x)
        # A function mode sees torch.autograd.grad as one call, and nothing of what goes on inside.
        assert operators[:1] == ["_forward_op"]
        assert operators[1:] == ["_backward_op"] or isinstance(mode, torch.overrides.TorchFunctionMode)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Subclass(torch.Tensor):
    pass


def negated(x):
    """-x, but that its memory holds x: the imaginary part of a conjugate."""
    return torch.complex(torch.zeros_like(x), x).conj().imag


@each_layer_and_cell
@pytest.mark.parametrize("unusual", [negated, lambda x: -x.as_subclass(Subclass)], ids=["negated", "subclass"])
def test_a_tensor_that_is_not_plain_goes_to_the_operator(layer, unusual, operators):
    module, x = make(layer), layer.random_input(4)
    expected = [output.detach() for output in layer.named_outputs(module(-x)).values()]
    with torch.no_grad():
        found = list(layer.named_outputs(module(unusual(x))).values())
    assert operators == ["_forward_op"]
    assert_all_close([torch.as_tensor(t) for t in found], expected)


@each_layer_and_cell
def test_a_negated_weight_goes_to_the_operator(layer, operators):
    module, x = make(layer), layer.random_input(4)
    name, weight = next(iter(module.named_parameters()))
    with torch.no_grad():
        expected = list(layer.named_outputs(torch.func.functional_call(module, {name: -weight}, (x,))).values())
        found = list(layer.named_outputs(torch.func.functional_call(module, {name: negated(weight)}, (x,))).values())
    assert operators == ["_forward_op"]
    assert_all_close(found, expected)


@each_layer_and_cell
def test_a_tensor_without_memory_goes_to_the_operator(layer):
    module, x = make(layer), layer.random_input(4)
    with torch.no_grad():
        expected = layer.named_outputs(module(torch.zeros_like(x)))
        found = layer.named_outputs(module(torch._efficientzerotensor(x.shape)))
    for name, output in expected.items():
        assert_close(found[name], output)


@each_layer_and_cell
def test_a_tensor_that_outlived_its_transform_is_the_value_it_wraps(layer):
    module, x = make(layer), layer.random_input(4)
    kept = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(x)
    expected = gradients_of(module, layer.total(module(x)))
    assert_all_close(gradients_of(module, layer.total(module(kept[0]))), expected)


def test_a_wrong_call_is_refused_in_words():
    for name in ("plain_call", "forward", "backward", "gradients", "set_up_direct"):
        with pytest.raises(TypeError, match=f"{name}: expected .* arguments, got 1"):
            getattr(_C, name)(None)


def test_arguments_of_other_types_go_to_the_operator():
    assert _C.forward(*[object()] * 12) is NotImplemented
    assert _C.backward(*[None] * 18) is NotImplemented
    assert _C.plain_call(*[object()] * 17) is NotImplemented
    with pytest.raises(ValueError):
        _C.gradients_of_loop(object())
    with pytest.raises(TypeError):
        _C.loop_steps("many")
    call = "GRU", 1, False, False
    for saved, d_outputs, wanted, num_masks in [
        (None, None, None, None),
        ((), (), (), 0),
        ((None,) * 5, (None,) * 3, (True,) * 3, 0),
        *(((1,) * 9, (1,) * 3, (True,) * 7, n) for n in ("1", -1, 0, 5)),
    ]:
        for steps in (None, _C.loop_steps(4), object()):
            with torch.no_grad():
                assert _C.gradients(saved, d_outputs, wanted, num_masks, *call, steps) is NotImplemented


def test_an_input_without_dimensions_goes_to_the_operator():
    arguments = torch.tensor(1.0), None, None, [], None, [], "GRU", 1, False, False, False, None
    assert _C.forward(*arguments) is NotImplemented
