"""Contract: autograd through the cells. For the layers see test_binding, test_parity and test_gradients."""

from __future__ import annotations

import pytest
import torch

from tests.contract import promise
from tests.subject import CELLS, Case, gradients_of
from tests.test_binding import saved_tensors
from tests.test_parity import assert_parity

each_cell = pytest.mark.parametrize("layer", CELLS, ids=str)


# A cell, one of its inputs and some of its outputs.
CHOICES = [
    (cell, wanted, used)
    for cell in CELLS
    for wanted in [*(f"{s}_0" for s in cell.states), "x", "weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    for used in [("h_n",), ("c_n",), ("h_n", "c_n")][: 3 if "c" in cell.states else 1]
]


@promise("Autograd", "any input alone may ask for a gradient, any output alone be used")
@pytest.mark.parametrize(("layer", "wanted", "used"), CHOICES, ids=str)
def test_any_one_input_of_a_cell_may_ask_for_a_gradient(layer, wanted, used):
    assert_parity(Case(layer, lengths=(1,) * 3, wanted=frozenset([wanted]), used=used))


@promise("Autograd", "nothing is saved under `no_grad` and `inference_mode`")
@each_cell
@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_a_cell_saves_nothing_without_grad_mode(layer, grad_mode):
    module, x = layer.make_ours(4, 3), layer.random_input(4, requires_grad=True)
    with saved_tensors() as saved, grad_mode():
        outputs = layer.named_outputs(module(x))
    assert not saved
    assert not any(output.requires_grad for output in outputs.values())
    with saved_tensors() as saved:
        module(x)
    assert saved


@promise("Autograd", "a saved tensor changed in place raises in backward")
@each_cell
@pytest.mark.parametrize("changed", ["x", "h_0", "weight_ih", "weight_hh"])
def test_changing_what_a_cell_saved_in_place_raises(layer, changed):
    module, x = layer.make_ours(4, 3), layer.random_input(4, requires_grad=True)
    states = [torch.randn(2, 3, requires_grad=True) for _ in layer.states]
    loss = layer.total(module(x, layer.state(*states)))
    with torch.no_grad():
        {"x": x, "h_0": states[0], **dict(module.named_parameters())}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@promise("Autograd", "`retain_graph`, and a second backward without it raises")
@each_cell
def test_the_graph_of_a_cell_can_be_kept_and_is_otherwise_freed(layer):
    module = layer.make_ours(4, 3)
    loss = layer.total(module(layer.random_input(4)))
    once = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    assert all(torch.equal(*pair) for pair in zip(once, gradients_of(module, loss)))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()
