"""Every transform of every layer and cell gives what it gives for the same computation in plain PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap

import rnn_ext
from rnn_ext import ops
from tests import plain
from tests.subject import CELLS, LAYERS, Case, gradients_of
from tests.test_gradients import as_function
from tests.tolerances import assert_all_close, assert_close

each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)
each_layer_and_cell = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)

SMALL = dict(input_size=2, hidden_size=3, dtype=torch.float64, lengths=(3, 3))
OPTIONS = {
    "one layer": {},
    "no bias, no state given": {"bias": False, "given_state": False},
    "unbatched, both directions": {"form": "unbatched", "lengths": (3,), "bidirectional": True},
    "two layers, both directions, dropout": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    "packed, both directions": {"form": "unsorted", "lengths": (1, 3, 2), "bidirectional": True},
}
CELL_OPTIONS = {"batched": {}, "unbatched, no bias": {"form": "unbatched", "bias": False}}
CASES = [
    pytest.param(replace(Case(layer, **SMALL), **options), id=f"{layer}, {name}")
    for layer in LAYERS
    for name, options in OPTIONS.items()
] + [
    pytest.param(
        replace(Case(cell, **SMALL), lengths=(1,) * (1 + (name == "batched")), **options), id=f"{cell}, {name}"
    )
    for cell in CELLS
    for name, options in CELL_OPTIONS.items()
]
each_case = pytest.mark.parametrize("case", CASES)


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


def inputs(values):
    """x and the states: what has no weights' shape; the weights follow the states."""
    return tuple(0 if i == 0 else None for i, _ in enumerate(values))


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
    return vmap(lambda dy: torch.autograd.grad(y, leaves, dy, retain_graph=True))(dy)


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
}  # fmt: skip


def flat(results) -> list[torch.Tensor]:
    return [r for r in torch.utils._pytree.tree_leaves(results) if isinstance(r, torch.Tensor)]


@each_case
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.filterwarnings("error::rnn_ext.SlowPathWarning")
def test_a_transform_is_right(case, transform):
    ours, values = as_function(case)
    values = tuple(v.detach() for v in values)
    assert_all_close(flat(transform(ours, values)), flat(transform(plain.as_function(case), values)))
