"""Every transform of every layer and cell gives what it gives for the same computation in plain PyTorch."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

import rnn_ext
from rnn_ext import ops
from tests import plain
from tests.contract import promise
from tests.covering import each_meeting
from tests.subject import CELLS, HALVES, LAYERS, Case, each_layer, gradients_of
from tests.test_gradients import as_function
from tests.tolerances import assert_all_close, assert_close

each_layer_and_cell = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)
each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)

SMALL = dict(input_size=2, hidden_size=3, dtype=torch.float64, lengths=(3, 3))
OPTIONS = {
    "one layer": {},
    "no bias, no state given": {"bias": False, "given_state": False},
    "unbatched, both directions": {"form": "unbatched", "lengths": (3,), "bidirectional": True},
    "two layers, both directions, dropout": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    "packed, both directions": {"form": "unsorted", "lengths": (1, 3, 2), "bidirectional": True},
}
CELL_OPTIONS = {
    "batched": {"lengths": (1, 1)},
    "unbatched, no bias": {"form": "unbatched", "lengths": (1,), "bias": False},
}


def varied(values, seed: int):
    """Other numbers of the same shapes; not drawn, as random numbers under vmap are another matter."""
    return tuple(
        (seed + i + torch.arange(v.numel(), dtype=v.dtype)).square().sin().view(v.shape) for i, v in enumerate(values)
    )


def loss_of(f):
    """A number that depends on each output, by a different factor for each element."""

    def loss(*values):
        outputs = f(*values)
        return sum((o * r + o.square()).sum() for o, r in zip(outputs, varied(outputs, 1)))

    return loss


def every(values) -> tuple[int, ...]:
    return tuple(range(len(values)))


def gradient_of(f, values):
    return grad(loss_of(f), every(values))


def slope_of(f, values):
    """The gradient along a fixed direction, as a function."""

    def slope(*at):
        return sum((g * v).sum() for g, v in zip(gradient_of(f, values)(*at), varied(values, 2)))

    return slope


def one_sample_each(values, dims):
    """Two samples of what has a dimension given, along that dimension."""
    others = varied(values, 3)
    return [v if d is None else torch.stack([v, o], d) for v, o, d in zip(values, others, dims)]


def vmapped(f, values, dims):
    return vmap(f, dims, randomness="same")(*one_sample_each(values, dims))


def only_x(values):
    return (1, *[None] * (len(values) - 1))


def forward_mode(f, values):
    with forward_ad.dual_level():
        outputs = f(*(forward_ad.make_dual(v, t) for v, t in zip(values, varied(values, 4))))
        return [part for o in outputs for part in forward_ad.unpack_dual(o)]


def gradient_in_forward_mode(f, values):
    """Forward over backward by hand: the primals require gradients, and are dual."""
    with forward_ad.dual_level():
        leaves = [v.clone().requires_grad_() for v in values]
        duals = [forward_ad.make_dual(v, t) for v, t in zip(leaves, varied(values, 4))]
        gradients = torch.autograd.grad(loss_of(f)(*duals), leaves)
        return [part for g in gradients for part in forward_ad.unpack_dual(g)]


def vmap_of_backward(f, values):
    """Several gradients at once of a call that was made outside of the transform."""
    leaves = [v.clone().requires_grad_() for v in values]
    y = f(*leaves)[0]
    [dy] = varied([torch.stack([y, y])], 5)
    gradients = torch.autograd.grad(y, leaves, dy, is_grads_batched=True, retain_graph=True)
    return gradients, vmap(lambda dy: torch.autograd.grad(y, leaves, dy, retain_graph=True))(dy)


def batched_backward_with_a_graph(f, values):
    """Several gradients at once, and their gradient."""
    leaves = [v.clone().requires_grad_() for v in values]
    y = f(*leaves)[0]
    [dy] = varied([torch.stack([y, y])], 5)
    gradients = torch.autograd.grad(y, leaves, dy, is_grads_batched=True, create_graph=True)
    assert all(g.is_contiguous() for g in gradients)
    return gradients, torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)


def nested(f, values):
    """Over x inside, over the last weight and x outside."""
    dims = (0, *[None] * (len(values) - 2), 0)
    samples = one_sample_each(values, dims)
    samples[0] = torch.stack([samples[0], samples[0] + 1], 2)
    return vmap(vmap(f, only_x(values), randomness="same"), dims, randomness="same")(*samples)


TRANSFORMS = {
    "grad": lambda f, v: gradient_of(f, v)(*v),
    "grad of grad": lambda f, v: grad(slope_of(f, v), every(v))(*v),
    "jacrev": lambda f, v: jacrev(lambda *v: f(*v)[0], every(v))(*v),
    "jacfwd": lambda f, v: jacfwd(lambda *v: f(*v)[-1], every(v), randomness="same")(*v),
    "hessian": lambda f, v: jacfwd(jacrev(loss_of(f), (0, len(v) - 1)), (0, len(v) - 1), randomness="same")(*v),
    "jvp": lambda f, v: [part for pair in zip(*jvp(f, v, varied(v, 4))) for part in pair],
    "jvp of grad": lambda f, v: jvp(gradient_of(f, v), v, varied(v, 4))[1],
    "grad of jvp": lambda f, v: grad(lambda *v: jvp(loss_of(f), v, varied(v, 4))[1], every(v))(*v),
    "jvp of grad of grad": lambda f, v: jvp(grad(slope_of(f, v)), v, varied(v, 6))[1],
    "jvp of jvp": lambda f, v: jvp(lambda *v: jvp(f, v, varied(v, 4))[1], v, varied(v, 5))[1],
    "vmap": lambda f, v: vmapped(f, v, only_x(v)),
    "vmap over all": lambda f, v: vmapped(f, v, (0,) * len(v)),
    "vmap over weights": lambda f, v: vmapped(f, v, (None, *[0] * (len(v) - 1))),
    "nested vmap": nested,
    "vmap of grad": lambda f, v: vmapped(gradient_of(f, v), v, only_x(v)),
    "vmap of grad over all": lambda f, v: vmapped(gradient_of(f, v), v, (0,) * len(v)),
    "vmap of grad of grad": lambda f, v: vmapped(grad(slope_of(f, v), every(v)), v, only_x(v)),
    "vmap of jvp": lambda f, v: vmapped(lambda *v: jvp(f, v, varied(v, 4))[1], v, only_x(v)),
    "jvp of vmap": lambda f, v: jvp(lambda *v: vmapped(f, v, only_x(v)), v, varied(v, 4))[1],
    "grad of vmap": lambda f, v: grad(loss_of(lambda *v: vmapped(f, v, only_x(v))), every(v))(*v),
    "grad of vmap of grad": lambda f, v: grad(
        loss_of(lambda *v: vmapped(gradient_of(f, v), v, only_x(v))), every(v)
    )(*v),
    "forward mode": forward_mode,
    "gradient in forward mode": gradient_in_forward_mode,
    "vmap of backward": vmap_of_backward,
    "batched backward with a graph": batched_backward_with_a_graph,
}  # fmt: skip


def assert_same_bits(actual, expected) -> None:
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def flat(results) -> list[torch.Tensor]:
    return [r for r in torch.utils._pytree.tree_leaves(results) if isinstance(r, torch.Tensor)]


REVERSE = promise("Autograd", "`torch.func`: `grad`, `grad` of `grad`, `jacrev`")
FORWARD = promise("Autograd", "forward mode: `jvp`, `jacfwd`, dual numbers")
VMAP = promise("Autograd", "`vmap` over inputs, weights or all")
PER_SAMPLE = promise("Autograd", "gradients per sample: `vmap` of `grad`")
COMPOSED = promise("Autograd", "compositions of these, such as `hessian`")
PROVES = {
    **dict.fromkeys(["grad", "grad of grad", "jacrev"], REVERSE),
    **dict.fromkeys(["jvp", "jacfwd", "forward mode"], FORWARD),
    **dict.fromkeys(["vmap", "vmap over all", "vmap over weights"], VMAP),
    **dict.fromkeys(["vmap of grad", "vmap of grad over all"], PER_SAMPLE),
}
EVERY_TRANSFORM = [pytest.param(f, id=name, marks=PROVES.get(name, COMPOSED)) for name, f in TRANSFORMS.items()]


def assert_a_transform_is_right(case: Case, transform) -> None:
    ours, values = as_function(case)
    values = tuple(v.detach() for v in values)
    assert_all_close(flat(transform(ours, values)), flat(transform(plain.as_function(case), values)))


@pytest.mark.sanitize
@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.projected], ids=str)
@pytest.mark.parametrize("hidden_size", [3, 5, 9])
@pytest.mark.parametrize("lengths", [SMALL["lengths"], (1,) * 6], ids=["some steps", "one step"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("transform", ["vmap of grad", "grad of vmap of grad"])
def test_a_layer_with_a_projection_wider_than_its_cell(layer, hidden_size, lengths, bidirectional, transform):
    """Such a layer gives the cell's output beside its projection, to gradients per sample."""
    case = Case(layer, **SMALL | {"hidden_size": hidden_size, "lengths": lengths}, bidirectional=bidirectional)
    assert_a_transform_is_right(case, TRANSFORMS[transform])


@each_meeting(layer=LAYERS, options=OPTIONS, transform=EVERY_TRANSFORM)
@pytest.mark.filterwarnings("error::rnn_ext.SlowPathWarning")
def test_a_transform_of_a_layer_is_right(layer, options, transform):
    assert_a_transform_is_right(replace(Case(layer, **SMALL), **options), transform)


@each_meeting(cell=CELLS, options=CELL_OPTIONS, transform=EVERY_TRANSFORM, batch_invariant=[False, True])
@pytest.mark.filterwarnings("error::rnn_ext.SlowPathWarning")
def test_a_transform_of_a_cell_is_right(cell, options, transform, batch_invariant):
    with rnn_ext.batch_invariant(batch_invariant):
        assert_a_transform_is_right(replace(Case(cell, **SMALL), **options), transform)


@each_layer_and_cell
@pytest.mark.filterwarnings("ignore::rnn_ext.SlowPathWarning")
def test_functionalize_takes_torchs_operator_and_says_so(layer):
    module, x = layer.make_ours(4, 3), layer.random_input(4)
    functional = torch.func.functionalize(module)
    assert_all_close(flat(functional(x)), flat(module(x)))
    found = gradients_of(module, layer.total(functional(x)))
    assert_all_close(found, gradients_of(module, layer.total(module(x))))
    reasons = []
    torch.func.functionalize(lambda x: reasons.append(rnn_ext.explain(module, x).reason) or x)(x)
    assert "functionalize" in reasons[0]


# What it takes


@pytest.fixture
def operator_calls(note_calls):
    """The names of the operators called, in order."""
    return note_calls(ops, "forward", "backward")


@each_layer
def test_vmap_over_inputs_is_one_operator_call(layer, operator_calls):
    vmap(layer.make_ours(4, 3))(torch.randn(6, 5, 2, 4))
    assert operator_calls == ["forward"]


@each_cell
def test_a_cell_under_a_transform_is_some_of_torchs_operators_unless_bits_are_promised(cell, operator_calls):
    module, x = cell.make_ours(4, 3), torch.randn(6, 2, 4)
    vmap(module)(x)
    assert operator_calls == []
    with rnn_ext.batch_invariant():
        found = vmap(module)(x)
        assert operator_calls == ["forward"]
        assert_same_bits([t.flatten(0, 1) for t in flat(found)], flat(module(x.flatten(0, 1))))


@each_layer
def test_gradients_per_sample_are_one_backward_operator_call(layer, operator_calls):
    module, x = layer.make_ours(4, 3), torch.randn(6, 5, 4)

    def loss(weights, x):
        return layer.named_outputs(functional_call(module, weights, (x,)))["h_n"].square().sum()

    gradients = vmap(grad(loss), (None, 0))(dict(module.named_parameters()), x)
    # A projected layer runs forward once more, for what it projects.
    assert operator_calls == ["forward", "backward"] + ["forward"] * layer.projected
    assert all(g.shape == (6, *w.shape) for g, w in zip(gradients.values(), module.parameters(), strict=True))


@each_layer
def test_each_layer_of_a_stack_is_one_operator_call(layer, operator_calls):
    module = layer.make_ours(4, 3, num_layers=3, bidirectional=True)
    vmap(grad(lambda x: module(x)[0].sum()))(torch.randn(6, 5, 4))
    assert operator_calls == ["forward"] * 3 + ["backward"] * 3


# Uses


@each_layer_and_cell
def test_an_ensemble_gives_what_its_members_give(layer):
    members = [layer.make_ours(4, 3) for _ in range(3)]
    weights, buffers = stack_module_state(members)
    x = torch.randn(2, 4) if layer.is_cell else torch.randn(5, 2, 4)
    together = vmap(lambda w, b: functional_call(members[0], (w, b), (x,)), (0, 0))(weights, buffers)
    apart = [flat(member(x)) for member in members]
    assert_all_close(flat(together), [torch.stack(parts) for parts in zip(*apart, strict=True)])


@each_layer
def test_dropout_under_vmap_follows_its_randomness(layer):
    module, x = layer.make_ours(4, 30, num_layers=2, dropout=0.5), torch.randn(5, 1, 4).expand(2, -1, -1, -1)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(module)(x)
    same = vmap(module, randomness="same")(x)[0]
    different = vmap(module, randomness="different")(x)[0]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])


@each_layer_and_cell
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_forward_mode_in_a_lower_precision(layer, dtype):
    if layer.options.get("nonlinearity") == "relu" and dtype in HALVES:
        pytest.skip("ReLU's derivative jumps: no bound on one tangent at this precision")
    module, x = layer.make_ours(4, 3, dtype=dtype), torch.randn(2, 4) if layer.is_cell else torch.randn(5, 2, 4)
    results = []
    for m in (module, copy.deepcopy(module).double()):
        values = x.to(dtype).to(m.weight_ih.dtype if layer.is_cell else m.weight_ih_l0.dtype)
        outputs, tangents = jvp(lambda x, m=m: tuple(flat(m(x))), (values,), (torch.ones_like(values),))
        results.append(outputs + tangents)
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected)


@each_layer
def test_a_module_whose_weights_are_dual(layer):
    module, x = layer.make_ours(4, 3, dtype=torch.float64), torch.randn(5, 2, 4, dtype=torch.float64)
    weights = dict(module.named_parameters())
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(w, torch.ones_like(w)) for name, w in weights.items()}
        y = functional_call(module, duals, (x,))[0]
        tangent = forward_ad.unpack_dual(y).tangent
    ones = {name: torch.ones_like(w) for name, w in weights.items()}
    assert torch.equal(y, module(x)[0])
    assert_close(tangent, jvp(lambda w: functional_call(module, w, (x,))[0], (weights,), (ones,))[1])


COMPILED = {
    "grad": lambda m, x: grad(lambda x: m(x)[0].square().sum())(x),
    "vmap": lambda m, x: vmap(lambda x: m(x)[0])(x),
    "vmap of grad": lambda m, x: vmap(grad(lambda x: m(x)[0].square().sum()))(x),
    "jvp": lambda m, x: jvp(lambda x: m(x)[0], (x,), (torch.ones_like(x),))[1],
}


@pytest.mark.parametrize("transform", COMPILED.values(), ids=COMPILED)
def test_a_compiled_transform_needs_no_graph_break(transform):
    torch.compiler.reset()
    module, x = LAYERS[-1].make_ours(4, 3), torch.randn(2, 5, 4)
    compiled = torch.compile(lambda x: transform(module, x), fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), transform(module, x))


@each_layer
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}], ids=str)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_a_gradient_penalty_is_right(layer, options, batch_invariant, operator_calls):
    ours, theirs = layer.make_both(4, 3, dtype=torch.float64, **options)
    x, results = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True), []
    with rnn_ext.batch_invariant(batch_invariant):
        for module in (ours, theirs):
            torch.manual_seed(2)
            loss = module(x)[0].square().sum()
            [dx] = torch.autograd.grad(loss, x, create_graph=True)
            assert ("backward" in operator_calls) == batch_invariant, "torch's operators unless bits are promised"
            results.append(gradients_of(module, loss + dx.square().sum()))
    assert_all_close(*results)
