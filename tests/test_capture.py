"""torch.fx and torch.jit.script capture a model with our layers as they do one with torch's."""

from __future__ import annotations

import pytest
import torch
from torch import _VF, Tensor, nn

import rnn_ext
from tests.contract import promise
from tests.subject import CELLS, LAYERS, named_outputs
from tests.tolerances import assert_all_close

each_module = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)


class Layered(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y, _ = self.layer(x)
        return y.tanh()


class Stepped(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, self.layer(x))


def model_of(layer, module):
    return (Stepped if layer.is_cell else Layered)(module)


def results(model, x):
    x = x.clone().requires_grad_()
    outputs = model(x)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.square().sum() for output in outputs).backward()
    return [*outputs, x.grad]


@promise("Around it", "`torch.fx.symbolic_trace` keeps a layer as one call")
@each_module
def test_a_layer_is_a_leaf_of_a_symbolic_trace(layer):
    module, x = layer.make_ours(5, 6), layer.random_input(5)
    model = model_of(layer, module)
    traced = torch.fx.symbolic_trace(model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["layer"] * (2 if layer.is_cell else 1)
    assert traced.layer is module
    assert_all_close(results(traced, x), results(model, x))


class Decoder(nn.Module):
    """Whose input is its own, and the state that of its caller."""

    def __init__(self, layer: nn.Module, several: bool, start: Tensor) -> None:
        super().__init__()
        self.layer, self.several = layer, several
        self.register_buffer("start", start)

    def forward(self, h, c=None):
        return self.layer(self.start, (h, c) if self.several else h)


@promise("Around it", "`torch.fx.symbolic_trace` keeps a layer as one call")
@each_module
def test_a_layer_of_which_the_state_alone_is_traced_is_a_leaf(layer):
    module, several = layer.make_ours(5, 6), len(layer.states) > 1
    states = [torch.randn(s[1:] if layer.is_cell else s) for s in layer.state_shapes(1, 2, 6)]
    model = Decoder(module, several, layer.random_input(5))
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["layer"]
    found, expected = traced(*states), model(*states)
    assert_all_close(torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(expected))


@pytest.mark.parametrize("kind", ["forward hook", "forward pre-hook", "subclass"])
@each_module
def test_what_is_around_a_layers_forward_is_traced_once(layer, kind):
    module, x = layer.make_ours(5, 6), layer.random_input(5)
    if kind == "subclass":
        ours = type(module)

        class Doubled(ours):
            def forward(self, input, hx=None):
                return super().forward(input * 2, hx)

        module.__class__ = Doubled
    elif kind == "forward hook":
        several = not layer.is_cell or len(layer.states) > 1  # which a tuple holds, or one node of the graph
        module.register_forward_hook(lambda _, args, out: (out[0] * 2, out[1]) if several else out * 2)
    else:
        module.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
    model = model_of(layer, module)
    assert_all_close(results(torch.fx.symbolic_trace(model), x), results(model, x))


@each_module
def test_a_layer_by_itself_has_no_graph(layer):
    with pytest.raises(torch.fx.proxy.TraceError, match="trace a model that contains it"):
        torch.fx.symbolic_trace(layer.make_ours(5, 6))


@promise("Around it", "`torch.jit.script` of a model with a layer in it")
@each_module
@pytest.mark.filterwarnings("ignore::rnn_ext.SlowPathWarning", "ignore:.*torch.jit.script:DeprecationWarning")
def test_a_scripted_model_computes_the_same(layer):
    module, x = layer.make_ours(5, 6), layer.random_input(5)
    model = Scripted(module) if not layer.is_cell else module
    expected = results(model, x)
    scripted = torch.jit.script(model)
    assert {p.data_ptr() for p in scripted.parameters()} == {p.data_ptr() for p in module.parameters()}
    assert_all_close(results(scripted, x), expected)


class Scripted(Layered):
    def forward(self, x: Tensor):
        y, _ = self.layer(x)
        return y


def test_that_scripting_takes_torchs_class_is_said_and_can_be_undone():
    model = Scripted(rnn_ext.GRU(5, 6))
    with pytest.warns(rnn_ext.SlowPathWarning, match=r"torch.jit.script takes torch.nn.GRU"):
        torch.jit.script(model)
    assert type(model.layer) is nn.GRU
    rnn_ext.accelerate(model)
    assert type(model.layer) is rnn_ext.GRU


def test_a_subclass_with_a_forward_of_its_own_is_scripted_as_it_is():
    class Doubled(rnn_ext.GRUCell):
        def forward(self, input: Tensor):
            return 2 * input

    x = torch.randn(2, 5)
    assert torch.equal(torch.jit.script(Doubled(5, 6))(x), 2 * x)


@promise("Base class", "a forward copied from torch's runs in a subclass")
@pytest.mark.parametrize("layer", [row for row in LAYERS if not row.projected], ids=str)
def test_a_forward_copied_from_torchs_runs_in_a_subclass(layer):
    operator = {"RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu, "LSTM": _VF.lstm, "GRU": _VF.gru}
    ours, theirs = layer.make_both(5, 6)
    x, states = torch.randn(4, 3, 5), [torch.randn(shape) for shape in layer.state_shapes(1, 3, 6)]

    class Copied(layer.ours):
        def forward(self, input, hx):
            hx = self.permute_hidden(hx, torch.tensor([2, 0, 1]))
            self.check_forward_args(input, hx, None)
            weights, *flags = self._flat_weights, self.bias, self.num_layers, self.dropout, self.training
            return operator[self.mode](input, hx, weights, *flags, self.bidirectional, self.batch_first)

    copied = layer.make(Copied, 5, 6)
    copied.load_state_dict(ours.state_dict())
    y, *found = copied(x, layer.state(*states))
    expected = named_outputs(theirs(x, layer.state(*(state[:, [2, 0, 1]] for state in states))))
    assert_all_close([y, *found], expected.values())
    wrong = [torch.randn(shape) for shape in layer.state_shapes(1, 3, 7)]
    with pytest.raises(RuntimeError, match=r"Expected hidden.* size \(1, 3, 6\), got \[1, 3, 7\]"):
        copied(x, layer.state(*wrong))
