"""Gradients are the derivatives: gradcheck in float64, whole-gradient checks in every dtype."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import rnn_ext
from tests.contract import promise
from tests.subject import HALVES, Case, each_layer
from tests.tolerances import assert_same_vector

OPTIONS = {
    "one layer": {},
    "no bias": {"bias": False},
    "no state given": {"given_state": False},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "two layers, both directions, dropout": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    "batch first": {"batch_first": True, "num_layers": 2},
    "eval mode": {"training": False, "num_layers": 2, "dropout": 0.5},
    "unbatched": {"form": "unbatched", "lengths": (4,), "bidirectional": True},
    "packed, sorted": {"form": "sorted", "lengths": (4, 2, 1), "num_layers": 2, "bidirectional": True},
    "packed, unsorted": {"form": "unsorted", "lengths": (2, 4, 1), "bidirectional": True},
    "one step": {"lengths": (1, 1)},
    "strided": {"layout": "gaps"},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def as_function(case: Case):
    """The call as a function of tensors alone, as gradcheck wants it, and float64 values for them."""
    module, x, states = case.make(case.layer.ours), case.input(), case.state()
    weights = dict(module.named_parameters())

    def call(x_data, *rest):
        torch.manual_seed(case.seed)  # the same dropout at each evaluation
        hx = case.layer.state(*rest[: len(states)]) if states else None
        inputs = (x._replace(data=x_data) if case.packed else x_data, hx)
        result = functional_call(module, dict(zip(weights, rest[len(states) :])), inputs)
        return tuple(case.layer.named_outputs(result).values())

    values = [x.data if case.packed else x, *states.values(), *weights.values()]
    return call, [value.detach().clone().requires_grad_() for value in values]


@promise("Autograd", "`gradcheck` and `gradgradcheck`")
@each_layer
@each_option
def test_gradcheck(layer, options):
    case = replace(Case(layer, 2, 3, dtype=torch.float64, lengths=(4, 4)), **options)
    call, values = as_function(case)
    assert gradcheck(call, values)


@each_layer
@each_option
@pytest.mark.parametrize("hidden_size", [5, 17])
def test_gradcheck_fast_at_larger_sizes(layer, options, hidden_size):
    case = replace(Case(layer, 7, hidden_size, dtype=torch.float64, lengths=(9,) * 6), **options)
    call, values = as_function(case)
    assert gradcheck(call, values, fast_mode=True)


@promise("Autograd", "`gradcheck` and `gradgradcheck`")
@each_layer
@each_option
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_gradgradcheck(layer, options, batch_invariant):
    case = replace(Case(layer, 2, 2, dtype=torch.float64, lengths=(3, 3)), **options)
    call, values = as_function(case)
    with rnn_ext.batch_invariant(batch_invariant):
        assert gradgradcheck(call, values, fast_mode=True)


@each_layer
@pytest.mark.parametrize("used", [0, 1], ids=["y", "h_n"])
def test_gradcheck_of_one_output(layer, used):
    call, values = as_function(Case(layer, 2, 3, 2, dtype=torch.float64, lengths=(4, 4), bidirectional=True))
    assert gradcheck(lambda *values: call(*values)[used], values, fast_mode=True)


@each_layer
def test_gradcheck_where_only_some_inputs_want_gradients(layer):
    call, values = as_function(Case(layer, 2, 3, 2, dtype=torch.float64, lengths=(4, 4)))
    for wanted in range(len(values)):
        for index, value in enumerate(values):
            value.requires_grad_(index == wanted)
        assert gradcheck(call, values, fast_mode=True)


@each_layer
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("lengths", [(40,) * 17, (1, 40, 7, 40, 23)], ids=["padded", "packed"])
def test_whole_gradients_have_the_right_size_and_direction(layer, dtype, lengths):
    case = Case(
        layer, 33, 65, 2, dtype=dtype, lengths=lengths, form="batched" if len(lengths) == 17 else "unsorted"
    )
    if case.kinked and dtype in HALVES:
        pytest.skip(
            "ReLU's derivative jumps: no bound on one gradient at this precision; test_accuracy pools many"
        )
    _, gradients = case.run_ours()
    _, exact = case.run_theirs(torch.float64)
    for name, gradient in gradients.items():
        if name != "h_0":  # forgotten after 40 steps: what is left of its gradient is rounding
            assert_same_vector(gradient, exact[name], dtype)
    whole = [torch.cat([grads[name].double().flatten() for name in exact]) for grads in (gradients, exact)]
    assert_same_vector(*whole, dtype)


@each_layer
def test_gradients_flow_through_a_long_sequence(layer):
    """A weight near the edge of stability keeps the gradient of the first step alive to the last."""
    module = layer.make_ours(3, 8, dtype=torch.float64)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.startswith("weight_hh"):
                weight.copy_(torch.eye(8, weight.shape[1]).repeat(weight.shape[0] // 8, 1))
    reference = layer.make_theirs(3, 8, dtype=torch.float64)
    reference.load_state_dict(module.state_dict())
    x = 0.01 * torch.randn(300, 2, 3, dtype=torch.float64)
    gradients = []
    for m in (module, reference):
        leaf = x.clone().requires_grad_()
        m(leaf)[0][-1].sum().backward()
        gradients.append(leaf.grad)
    assert gradients[1][0].any()
    assert_same_vector(*gradients, torch.float64)
