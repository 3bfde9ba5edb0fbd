"""Calls that few programs make: memory given back, no gradient at all, nested tensors, settings as decorators."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.flop_counter import FlopCounterMode

import rnn_ext
from tests.contract import promise
from tests.subject import CELLS, LAYERS, each_layer, gradients_of
from tests.tolerances import assert_all_close

each_module = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)


def give_back(tensor: torch.Tensor) -> None:
    """Frees its memory, as resharding and offloading do; it keeps its sizes."""
    tensor.untyped_storage().resize_(0)


@each_module
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_a_tensor_without_memory_raises(layer, grad_mode):
    """No promise of the contract's: torch's own LSTM takes the process down."""
    weights = [name for name, _ in layer.make_ours(4, 3).named_parameters()]
    for freed in ("x", *layer.states, *weights):
        module, x = layer.make_ours(4, 3), layer.random_input(4)
        shapes = layer.state_shapes(*([] if layer.is_cell else [1]), 2, 3)
        states = {s: torch.randn(shape) for s, shape in zip(layer.states, shapes)}
        give_back({"x": x, **states, **dict(module.named_parameters())}[freed])
        with grad_mode(), pytest.raises(RuntimeError):
            module(x, layer.state(*states.values()))


@each_module
def test_memory_that_is_given_back_before_backward_raises(layer):
    for freed in ("x", "weight"):
        module, x = layer.make_ours(4, 3), layer.random_input(4, requires_grad=True)
        loss = layer.total(module(x))
        give_back(x if freed == "x" else next(module.parameters()))
        with pytest.raises(RuntimeError, match="its data is not allocated"):
            loss.backward()


class NoGradient(torch.autograd.Function):
    """The identity, whose backward gives nothing."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return None


@each_module
@pytest.mark.parametrize("steps", [None, 2], ids=["whole", "in segments"])
def test_where_no_output_has_a_gradient_no_input_gets_one(layer, steps):
    module, x = layer.make_ours(4, 3), layer.random_input(4, requires_grad=True)
    with rnn_ext.checkpoint_time(steps):
        outputs = layer.named_outputs(module(x)).values()
    sum(NoGradient.apply(output).sum() for output in outputs).backward()
    assert x.grad is None
    assert all(weight.grad is None for weight in module.parameters())


@promise("Forward", "dropout draws torch's masks from torch's generator")
@each_layer
def test_a_call_that_the_kernels_refuse_draws_its_masks_once(layer):
    ours, theirs = layer.make_both(4, 3, 2, dropout=0.5)
    packed = PackedSequence(torch.randn(5, 4), torch.tensor([3, 2, 0]))  # which only torch takes
    found = []
    for module in (ours, theirs):
        torch.manual_seed(1)
        found.append([*layer.named_outputs(module(packed)).values(), torch.rand(3)])
    assert_all_close(*found)


@promise("Forward", "torch's errors for bad input, states and weights")
@each_layer
def test_a_packed_sequence_of_no_steps_with_a_state_raises_what_torch_raises(layer):
    packed = PackedSequence(torch.randn(0, 4), torch.tensor([], dtype=torch.int64))
    hx = layer.state(*(torch.zeros(shape) for shape in layer.state_shapes(1, 3, 3)))
    for module in layer.make_both(4, 3):
        with pytest.raises(IndexError, match="index 0 is out of bounds for dimension 0 with size 0"):
            module(packed, hx)


@each_layer
def test_segments_of_a_packed_batch_are_cut_whatever_the_default_device_is(layer):
    module = layer.make_ours(4, 3, bidirectional=True)
    packed, hx = pack_sequence([torch.randn(7, 4), torch.randn(3, 4)]), layer.state_shapes(2, 2, 3)
    hx = layer.state(*(torch.randn(shape) for shape in hx))
    expected = layer.named_outputs(module(packed, hx))
    with rnn_ext.checkpoint_time(2), torch.device("meta"):
        found = layer.named_outputs(module(packed, hx))
    assert_all_close(list(found.values()), list(expected.values()))


@pytest.mark.parametrize("layer", [layer for layer in LAYERS if len(layer.states) == 1], ids=str)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_goes_to_torchs_operator(layer):
    ours, theirs = layer.make_both(4, 3)
    x = torch.nested.nested_tensor([torch.randn(2, 4)] * 5)
    assert_all_close(list(ours(x)), list(theirs(x)))
    assert rnn_ext.explain(ours, x).path == "torch"


SETTINGS = {"batch_invariant": rnn_ext.batch_invariant, "checkpoint_time": lambda: rnn_ext.checkpoint_time(8)}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_setting_decorates_a_function_and_is_on_in_its_calls_alone(setting):
    def told():
        return rnn_ext.is_batch_invariant(), rnn_ext.checkpoint_steps()

    before = told()
    decorated = setting()(told)
    assert told() == before
    assert decorated() != before
    assert told() == before


@each_module
@pytest.mark.parametrize("wanted", ["all", "weights"])
def test_flops_are_those_of_the_products(layer, wanted):
    """As torch counts them, where it does: of its LSTM on the CPU it sees nothing."""
    options = {} if layer.is_cell else {"num_layers": 2, "bidirectional": True}
    ours, theirs = layer.make_both(4, 3, **options)
    x, counted = layer.random_input(4, requires_grad=wanted == "all"), []
    for module in (ours, theirs):
        counter = FlopCounterMode(display=False)
        with counter, torch.backends.mkldnn.flags(enabled=False):
            layer.total(module(x)).backward()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


def test_a_setting_decorates_no_function_that_runs_after_its_call():
    def generator():
        yield

    async def coroutine():
        pass

    async def asynchronous_generator():
        yield

    for function in (generator, coroutine, asynchronous_generator):
        with pytest.raises(TypeError, match="batch_invariant: expected a plain function"):
            rnn_ext.batch_invariant()(function)
    assert not rnn_ext.is_batch_invariant()


@each_module
def test_nothing_is_recorded_in_inference_mode_even_with_gradients_on(layer):
    ours, theirs = layer.make_both(4, 3)
    x = layer.random_input(4)
    with torch.inference_mode(), torch.enable_grad():
        found, expected = layer.named_outputs(ours(x)), layer.named_outputs(theirs(x))
        assert rnn_ext.explain(ours, x).path == "kernel"
    assert not any(t.requires_grad for t in found.values())
    assert_all_close(list(found.values()), list(expected.values()))


@each_module
def test_weights_of_a_layer_of_another_size_are_refused(layer):
    """As torch refuses them, but for its LSTM, which reads beyond the end of what it is given."""
    ours, larger = layer.make_ours(4, 3), layer.make_ours(4, 5)
    for name, weight in larger.named_parameters():
        setattr(ours, name, weight)
    with pytest.raises(RuntimeError, match="inconsistent hidden_size|shapes cannot be multiplied|size"):
        ours(layer.random_input(4))


@each_module
def test_a_subclass_may_use_any_name_that_torch_leaves_free(layer):
    ours, theirs = layer.make_both(4, 3)

    class Named(type(ours)):
        def forward(self, input, hx=None):
            return self._forward(input, hx)

        def _forward(self, input, hx):
            self._states = super().forward(input, hx)
            return self._states

    ours.__class__ = Named
    x = layer.random_input(4)
    for _ in range(2):
        assert_all_close(list(layer.named_outputs(ours(x)).values()), list(layer.named_outputs(theirs(x)).values()))


def test_an_override_of_reset_parameters_finds_the_nonlinearity():
    class Own(rnn_ext.RNN):
        def reset_parameters(self):
            nn.init.calculate_gain(self.nonlinearity)
            super().reset_parameters()

    assert Own(4, 3).nonlinearity == "tanh"


@pytest.mark.parametrize("shape", [(7, 4), (24, 3), (30, 6), (6,)], ids=str)
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
@each_layer
def test_a_weight_of_another_shape_raises(layer, name, shape):
    """No promise of the contract's: torch's own LSTM reads beyond its end, or takes the process down."""
    module = layer.make_ours(4, 6)
    setattr(module, name, nn.Parameter(torch.randn(shape)))
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match="mat2|expanded size|size of tensor"):
            module(torch.randn(3, 2, 4))


@pytest.mark.sanitize
@each_layer
def test_what_a_hook_on_saved_tensors_returns_may_lie_in_memory_as_it_likes(layer):
    module, x = layer.make_ours(4, 5, 2), torch.randn(3, 2, 4)
    expected = gradients_of(module, layer.total(module(x)))
    spread = lambda t: torch.stack([t, t], -1)[..., 0]  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(spread, lambda t: t):
        loss = layer.total(module(x))
    assert_all_close(gradients_of(module, loss), expected)


@each_layer
def test_a_packed_input_without_the_inverse_of_its_order_gets_one(layer):
    module = layer.make_ours(4, 5)
    x = pack_sequence([torch.randn(n, 4) for n in (1, 3, 2)], enforce_sorted=False)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y, _ = module(x._replace(unsorted_indices=None))
            assert torch.equal(y.unsorted_indices, x.unsorted_indices)
            assert torch.equal(y.data, module(x)[0].data)
