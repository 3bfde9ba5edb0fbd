"""NaN and infinity stay in their own sequence, and come out where torch's do."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import rnn_ext
from tests.subject import HALVES, each_layer, gradients_of, named_outputs
from tests.tolerances import assert_close

each_product = pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)


@pytest.mark.sanitize
@each_layer
@each_product
@pytest.mark.parametrize("batch", [2, 5, 17, 33])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_one_sequence_that_is_not_finite_stays_alone(layer, dtype, batch, poison):
    module = layer.make_ours(7, 19, 2, bidirectional=True, dtype=dtype)
    clean, sick = torch.randn(6, batch, 7, dtype=dtype), batch // 2
    poisoned = clean.clone()
    poisoned[3, sick, 5] = poison
    healthy = [b for b in range(batch) if b != sick]

    results = []
    for x in (clean.requires_grad_(), poisoned.requires_grad_()):
        outputs = named_outputs(module(x))
        outputs["y"].sum().backward()
        results.append({**outputs, "dx": x.grad})
    for name, expected in results[0].items():
        assert torch.equal(results[1][name][:, healthy], expected[:, healthy]), name


@pytest.mark.sanitize
@each_layer
@each_product
@pytest.mark.parametrize("sick", [0, 1, 4])
def test_one_packed_sequence_that_is_not_finite_stays_alone(layer, dtype, sick):
    module = layer.make_ours(7, 19, 2, bidirectional=True, dtype=dtype)
    clean = [torch.randn(length, 7, dtype=dtype) for length in (6, 6, 5, 3, 1)]
    poisoned = [x.clone() for x in clean]
    poisoned[sick][0] = float("nan")
    healthy = [b for b in range(5) if b != sick]
    outputs = []
    for sequences in (clean, poisoned):
        y, h_n = module(pack_sequence(sequences))
        outputs.append(named_outputs((pad_packed_sequence(y)[0], h_n)).values())
    for expected, actual in zip(*outputs):
        assert torch.equal(actual[:, healthy], expected[:, healthy])
        assert actual[:, sick].isnan().any()


@pytest.mark.sanitize
@each_layer
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("where", ["x", "hx", "weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_what_is_not_finite_comes_out_where_torchs_does(layer, poison, where):
    ours, theirs = layer.make_both(7, 19)
    x, states = torch.randn(6, 3, 7), [torch.randn(shape) for shape in layer.state_shapes(1, 3, 19)]
    for module in (ours, theirs):
        target = {"x": x, "hx": states[0], **dict(module.named_parameters())}[where]
        with torch.no_grad():
            target[(2,) * target.dim() if where == "x" else (0,) * target.dim()] = poison
    hx = layer.state(*states)
    actual, expected = named_outputs(ours(x, hx)), named_outputs(theirs(x, hx))
    for name, tensor in expected.items():
        assert torch.equal(actual[name].isnan(), tensor.isnan()), name
        assert_close(actual[name].nan_to_num(), tensor.nan_to_num())


@pytest.mark.sanitize
@each_layer
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("hidden_size", [5, 19])
def test_weights_that_are_not_finite_do_to_a_packed_batch_what_they_do_to_each_sequence(layer, poison, hidden_size):
    module = layer.make_ours(3, hidden_size, bidirectional=True)
    with torch.no_grad():
        module.weight_hh_l0[0, 0] = module.weight_hh_l0_reverse[1, 0] = poison
    sequences = [torch.randn(1 + b % 6, 3, requires_grad=True) for b in range(21)]

    def outputs_and_gradients(which):
        y, h_n = module(pack_sequence([sequences[b] for b in which], enforce_sorted=False))
        outputs = named_outputs((pad_packed_sequence(y)[0], h_n))
        total = sum(output.nan_to_num().sum() for output in outputs.values()) + outputs["y"].sum()
        return outputs, torch.autograd.grad(total, [sequences[b] for b in which])

    with rnn_ext.batch_invariant():
        outputs, gradients = outputs_and_gradients(range(21))
        for b in range(21):
            alone, [gradient] = outputs_and_gradients([b])
            for name, output in alone.items():
                assert_same_bits(outputs[name][: output.shape[0], b], output[:, 0])
            assert_same_bits(gradients[b], gradient)


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Where both are NaN they are equal."""
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(), expected.nan_to_num())


@pytest.mark.sanitize
@each_layer
@each_product
def test_a_gradient_that_is_not_finite_stays_in_its_sequence(layer, dtype):
    module = layer.make_ours(7, 19, 2, dtype=dtype)
    x = torch.randn(6, 17, 7, dtype=dtype, requires_grad=True)
    y, _ = module(x)
    grad = torch.randn_like(y)
    [clean] = torch.autograd.grad(y, x, grad, retain_graph=True)
    grad[2, 11] = float("nan")
    [poisoned] = torch.autograd.grad(y, x, grad)
    healthy = [b for b in range(17) if b != 11]
    assert torch.equal(poisoned[:, healthy], clean[:, healthy])
    assert poisoned[:3, 11].isnan().all()
    assert torch.equal(poisoned[3:, 11], clean[3:, 11])


@pytest.mark.sanitize
@each_product
@pytest.mark.parametrize("hidden_size", [3, 19])
def test_a_sequence_that_ends_in_infinity_leaves_gradients_of_weights_as_torch_does(dtype, hidden_size):
    """ReLU is not bounded: the other cells' states cannot be infinite."""
    ours = rnn_ext.RNN(4, hidden_size, nonlinearity="relu", bidirectional=True, dtype=dtype)
    theirs = torch.nn.RNN(4, hidden_size, nonlinearity="relu", bidirectional=True)
    theirs.load_state_dict(ours.state_dict())
    sequences = [torch.rand(2 + b % 2, 4, dtype=dtype) for b in range(29)]
    sequences.append(torch.full((1, 4), float("inf"), dtype=dtype))
    gradients = []
    for module, own in ((ours, dtype), (theirs, torch.float32)):
        with torch.no_grad():
            module.weight_ih_l0.abs_(), module.weight_ih_l0_reverse.abs_()
        x = pack_sequence([sequence.to(own) for sequence in sequences], enforce_sorted=False)
        finite = x.data.isfinite().all(1, keepdim=True)
        gradients.append(gradients_of(module, module(x)[0].data.where(finite, 0).sum()))
    for actual, expected in zip(*gradients, strict=True):
        assert torch.equal(actual.isnan(), expected.isnan())
