"""The weights are read at each call, whatever has become of them since the last."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, prune

from tests.contract import promise
from tests.subject import each_layer
from tests.tolerances import assert_all_close, assert_close


def drop_connect(module):
    """Replaces the parameter by a plain tensor, as WeightDrop does before each call."""
    raw = module.weight_hh_l0
    del module.weight_hh_l0
    module.register_parameter("raw", raw)
    module.weight_hh_l0 = raw * 0.5


def train_a_step(module):
    module(torch.ones(5, 2, 4))[0].sum().backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()


CHANGES = {
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0").eval(),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "pruning": lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=4),
    "a plain tensor": drop_connect,
    "another parameter": lambda m: setattr(m, "weight_hh_l0", nn.Parameter(torch.randn_like(m.weight_hh_l0))),
    "other data": lambda m: setattr(m.weight_hh_l0, "data", torch.randn_like(m.weight_hh_l0)),
    "in place": lambda m: m.weight_hh_l0.data.mul_(2),
    "an optimizer's step": train_a_step,
    "moved and cast": lambda m: m.double().float(),
    "shared memory": lambda m: m.share_memory(),
}  # fmt: skip


@promise("Around it", "weight_norm, spectral_norm, orthogonal, pruning, a plain tensor as weight: never ignored")
@each_layer
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_the_one_used(layer, change):
    module, x = layer.make_ours(4, 3, 2), torch.randn(5, 2, 4)
    module(x)  # whatever is kept from this call must not be used in the next
    CHANGES[change](module)
    module.zero_grad()
    names = [name for name, _ in layer.make_theirs(4, 3, 2).named_parameters()]
    effective = {name: getattr(module, name).detach().clone() for name in names}
    reference = layer.make_theirs(4, 3, 2)
    reference.load_state_dict(effective)
    y, expected = module(x)[0], reference(x)[0]
    assert_close(y, expected)
    y.sum().backward()
    assert all(weight.grad is not None for weight in module.parameters()), "a parameter got no gradient"


@promise("Autograd", "`torch.func.functional_call`")
@each_layer
def test_functional_call_uses_the_weights_that_it_is_given(layer):
    ours, theirs = layer.make_both(4, 3)
    other = {name: torch.randn_like(weight) for name, weight in theirs.named_parameters()}
    x = torch.randn(5, 2, 4)
    before = ours(x)[0]
    assert_close(functional_call(ours, other, (x,))[0], functional_call(theirs, other, (x,))[0])
    assert torch.equal(ours(x)[0], before)


@promise("Around it", "tied weights")
@each_layer
def test_tied_weights_get_the_sum_of_both_gradients(layer):
    gradients = []
    for module in layer.make_both(3, 3, 2):
        module.weight_hh_l1 = module.weight_hh_l0
        module(torch.ones(5, 2, 3))[0].sum().backward()
        gradients.append([weight.grad for weight in module.parameters()])
    assert len(gradients[0]) == len(list(layer.make_theirs(3, 3, 2).parameters())) - 1
    assert_all_close(*gradients)
