"""The operator under autograd, autocast and torch.compile: what is saved, what raises, what comes out."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from tests.contract import promise
from tests.subject import DTYPES, each_layer, gradients_of, named_outputs
from tests.tolerances import assert_all_close, assert_close

# What is saved for the backward pass


@contextmanager
def saved_tensors():
    """A list of the tensors that autograd saves in the block."""
    saved = []

    def keep(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


@promise("Autograd", "nothing is saved under `no_grad` and `inference_mode`")
@each_layer
@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_saved_without_grad_mode(layer, grad_mode):
    module, x = layer.make_ours(4, 3, 2), torch.randn(5, 2, 4, requires_grad=True)
    with saved_tensors() as saved, grad_mode():
        y, _ = module(x)
    assert not saved
    assert not y.requires_grad and y.grad_fn is None
    assert y.untyped_storage().nbytes() == y.nbytes, "the output keeps a larger buffer alive"
    with saved_tensors() as saved:
        module(x)
    assert saved


@each_layer
def test_nothing_is_saved_when_nothing_asks_for_a_gradient(layer):
    module, x = layer.make_ours(4, 3).requires_grad_(False), torch.randn(5, 2, 4)
    with saved_tensors() as saved:
        y, h_n = module(x)
    assert not saved
    assert not any(output.requires_grad for output in named_outputs((y, h_n)).values())


@promise("Autograd", "a saved tensor changed in place raises in backward")
@each_layer
@pytest.mark.parametrize(
    "changed", ["x", "h_0", "weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]
)
def test_changing_a_saved_tensor_in_place_raises(layer, changed):
    module, x = layer.make_ours(4, 3, 2), torch.randn(5, 2, 4, requires_grad=True)
    states = [torch.randn(shape) for shape in layer.state_shapes(2, 2, 3)]
    y, _ = module(x, layer.state(*states))
    with torch.no_grad():
        {"x": x, "h_0": states[0], **dict(module.named_parameters())}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_layer
@pytest.mark.parametrize("changed", ["y", "h_n"])
def test_changing_an_output_in_place_is_right_or_raises(layer, changed):
    gradients = []
    ours, theirs = layer.make_both(4, 3, 2)
    x = torch.randn(5, 2, 4)
    for module in (ours, theirs):
        outputs = named_outputs(module(x))
        try:
            outputs[changed].mul_(3)
            gradients.append(gradients_of(module, sum(output.sum() for output in outputs.values())))
        except RuntimeError as error:
            assert module is ours
            assert "modified by an inplace operation" in str(error)
            return
    assert_all_close(*gradients)


@promise("Autograd", "`retain_graph`, and a second backward without it raises")
@each_layer
def test_the_graph_can_be_kept_and_is_otherwise_freed(layer):
    module = layer.make_ours(4, 3, 2)
    loss = module(torch.randn(5, 2, 4))[0].sum()
    loss.backward(retain_graph=True)
    once = [weight.grad.clone() for weight in module.parameters()]
    loss.backward()
    for weight, grad in zip(module.parameters(), once):
        assert torch.equal(weight.grad, 2 * grad)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@each_layer
def test_one_module_used_twice_in_a_graph(layer):
    size = layer.output_size(4)
    ours, theirs = layer.make_both(size, 4)
    x = torch.randn(5, 2, size)
    assert_all_close(*(gradients_of(m, m(m(x)[0].flip(0))[0].square().sum()) for m in (ours, theirs)))


# Operators


class Recorder(TorchDispatchMode):
    """Notes the calls of this package's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "rnn_ext":
            copies = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), args)
            self.calls.append((func, copies, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


@each_layer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["batched", "packed"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}], ids=str)
def test_operators_pass_opcheck(layer, dtype, form, options):
    module = layer.make_ours(4, 3, dtype=dtype, **options).requires_grad_(False)
    x = torch.randn(5, 2, 4, dtype=dtype)
    with Recorder() as recorder:
        training = copy.deepcopy(module).requires_grad_(True)
        for m in (module, training):
            y, h_n = m(x if form == "batched" else pack_sequence([x[:, 0], x[:3, 1]]))
        named_outputs((y, h_n))["y"].sum().backward()
    names = {func.name() for func, _, _ in recorder.calls}
    assert len(names) == 2, f"expected one forward and one backward operator, saw {names}"
    for func, args, kwargs in recorder.calls:
        torch.library.opcheck(func, args, kwargs, test_utils=("test_schema", "test_faketensor"))


@promise("Around it", "`torch.compile(fullgraph=True)`, forward and backward")
@each_layer
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("given_state", [False, True])
def test_a_compiled_module_needs_no_graph_break(layer, given_state, backend):
    torch.compiler.reset()
    ours, theirs = layer.make_both(4, 3, 2)
    compiled = torch.compile(lambda x, h: ours(x, h)[0].square().sum(), fullgraph=True, backend=backend)
    x = torch.randn(5, 2, 4)
    h = layer.state(*map(torch.randn, layer.state_shapes(2, 2, 3))) if given_state else None
    assert_all_close(gradients_of(ours, compiled(x, h)), gradients_of(theirs, theirs(x, h)[0].square().sum()))


@promise("Around it", "compiled once for every length and batch size")
@each_layer
def test_a_compiled_module_takes_every_length_without_compiling_again(layer):
    torch.compiler.reset()
    ours, theirs = layer.make_both(4, 3)
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(torch.randn(5, 2, 4))
    with torch.compiler.set_stance("fail_on_recompile"):
        for time, batch in [(6, 2), (9, 3), (40, 7)]:
            x = torch.randn(time, batch, 4)
            loss, expected = compiled(x)[0].square().sum(), theirs(x)[0].square().sum()
            assert_all_close(gradients_of(ours, loss), gradients_of(theirs, expected))


# Autocast


@promise("Forward", "autocast: output in its dtype, gradients in the weights'")
@each_layer
@pytest.mark.parametrize("form", ["batched", "packed"])
def test_autocast_gives_outputs_in_its_dtype_and_gradients_in_the_weights(layer, form):
    ours, theirs = layer.make_both(4, 3, 2)
    x = torch.randn(5, 2, 4)
    x = x if form == "batched" else pack_sequence([x[:, 0], x[:3, 1]])
    with torch.autocast("cpu", torch.bfloat16):
        actual = named_outputs(ours(x))
        with torch.autocast("cpu", enabled=False):
            assert named_outputs(ours(x))["y"].dtype == torch.float32
            expected = named_outputs(theirs(x))  # torch's LSTM has no bfloat16 without AVX-512
    for name, output in actual.items():
        assert output.dtype == torch.bfloat16
        assert_close(output, expected[name])
    actual["y"].sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in ours.parameters())
