"""Gradients of gradients, forward mode and torch.func: right, or refused where torch refuses too."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.subject import LAYERS, gradients_of
from tests.tolerances import assert_all_close, assert_close

each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


@each_layer
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}], ids=str)
def test_a_gradient_penalty_is_right(layer, options):
    ours, theirs = layer.make_both(4, 3, dtype=torch.float64, **options)
    x, results = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True), []
    for module in (ours, theirs):
        torch.manual_seed(2)
        loss = module(x)[0].square().sum()
        [dx] = torch.autograd.grad(loss, x, create_graph=True)
        results.append(gradients_of(module, loss + dx.square().sum()))
    assert_all_close(*results)


def per_example(module, x):
    return module(x)[0].square().sum()


FUNCTIONALS = {
    "grad": lambda m, x: torch.func.grad(lambda x: per_example(m, x))(x),
    "grad of weights": lambda m, x: torch.func.grad(
        lambda w: functional_call(m, w, (x,))[0].square().sum()
    )(dict(m.named_parameters()))["weight_hh_l0"],
    "grad of grad": lambda m, x: torch.func.grad(
        lambda x: torch.func.grad(lambda x: per_example(m, x))(x).square().sum()
    )(x),
    "jacrev": lambda m, x: torch.func.jacrev(lambda x: m(x)[0])(x),
    "jvp": lambda m, x: torch.func.jvp(lambda x: m(x)[0], (x,), (torch.ones_like(x),))[1],
    "jvp of grad": lambda m, x: torch.func.jvp(
        torch.func.grad(lambda x: per_example(m, x)), (x,), (torch.ones_like(x),)
    )[1],
    "forward-mode level": lambda m, x: forward_mode(m, x),
    "vmap": lambda m, x: torch.func.vmap(lambda x: m(x)[0])(torch.stack([x, 2 * x])),
    "vmap of grad": lambda m, x: torch.func.vmap(
        torch.func.grad(lambda x: per_example(m, x))
    )(torch.stack([x, 2 * x])),
}  # fmt: skip


def forward_mode(module, x):
    with torch.autograd.forward_ad.dual_level():
        y, _ = module(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        return torch.autograd.forward_ad.unpack_dual(y).tangent


class PlainStack(nn.Module):
    """One RNN layer step by step: what every transform differentiates right."""

    def __init__(self, module: nn.RNNBase) -> None:
        super().__init__()
        self.activation = {"RNN_TANH": torch.tanh, "RNN_RELU": torch.relu}[module.mode]
        for name, weight in module.named_parameters():
            self.register_parameter(name, weight)

    def forward(self, x):
        h, steps = torch.zeros(x.shape[1], self.weight_hh_l0.shape[0], dtype=x.dtype), []
        for x_t in x:
            h = self.activation(
                x_t @ self.weight_ih_l0.T + self.bias_ih_l0 + h @ self.weight_hh_l0.T + self.bias_hh_l0
            )
            steps.append(h)
        return torch.stack(steps), h


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if layer.ours.__name__ == "RNN"], ids=str)
@pytest.mark.parametrize("functional", FUNCTIONALS)
def test_a_transform_is_right_or_refused_never_silently_wrong(layer, functional):
    module, x = layer.make_ours(4, 3, dtype=torch.float64), torch.randn(5, 2, 4, dtype=torch.float64)
    expected = FUNCTIONALS[functional](PlainStack(module), x)
    try:
        actual = FUNCTIONALS[functional](module, x)
    except (RuntimeError, NotImplementedError):
        theirs = layer.make_theirs(4, 3, dtype=torch.float64)
        with pytest.raises((RuntimeError, NotImplementedError)):  # torch's own layer cannot do it either
            FUNCTIONALS[functional](theirs, x)
    else:
        assert_close(actual, expected)
