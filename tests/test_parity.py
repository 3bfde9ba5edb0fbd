"""Outputs and gradients are those of torch, over the whole space of shapes and options."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given

import rnn_ext
from tests.contract import promise
from tests.covering import each_meeting
from tests.strategies import EDGE_CASES, cases
from tests.subject import DTYPES, HALVES, LAYERS, Case, assert_parity_on_a_view, each_layer, each_overlap, named_outputs
from tests.tolerances import assert_all_close, assert_close

each_layout = pytest.mark.parametrize("layout", ["contiguous", "gaps", "transposed", "offset"])


def assert_parity(case: Case) -> None:
    """Same outputs and gradients, None where torch has None, and the generator left in the same state.

    The numbers in half precision are compared with float64's: torch's own round at every step, ours less often.
    """
    outputs, gradients = case.run_ours()
    generator = torch.get_rng_state()
    theirs, their_gradients = case.run_theirs()
    assert torch.equal(generator, torch.get_rng_state())
    rounded = case.dtype in HALVES
    expected, expected_gradients = case.run_theirs(torch.float64) if rounded else (theirs, their_gradients)

    assert outputs.keys() == theirs.keys()
    for name, output in outputs.items():
        assert output.dtype == theirs[name].dtype
        assert output.is_contiguous() or not theirs[name].is_contiguous(), f"{name} is not contiguous"
        assert_close(output, expected[name])

    assert gradients.keys() == their_gradients.keys()
    for name, gradient in gradients.items():
        assert (gradient is None) == (their_gradients[name] is None), name
        if gradient is None:
            continue
        assert gradient.dtype == their_gradients[name].dtype
        assert gradient.shape == their_gradients[name].shape
        if not (rounded and case.kinked):  # test_accuracy bounds that: either side of the kink may be right
            exact = expected_gradients[name]
            assert_close(gradient, exact, scale=case.scale(name, exact))


@given(case=cases())
def test_any_call(case):
    assert_parity(case)


@promise("Forward", "every number is torch's, in float32, float64, bfloat16 and float16, forward and backward")
@pytest.mark.sanitize
@pytest.mark.parametrize("case", EDGE_CASES, ids=str)
def test_every_option_at_odd_sizes(case):
    assert_parity(case)


# (batch, time, input size, hidden size): the shapes of the speed benchmark, shortened, and one long one.
SHAPES = [
    (1, 6, 5, 4), (2, 5, 4, 6), (16, 5, 1, 16), (100, 4, 1, 8), (32, 10, 1, 20), (1, 1, 256, 256),
    (2, 2, 96, 96), (1, 100, 64, 64), (1, 100, 128, 128), (1, 20, 512, 512), (8, 20, 256, 256), (32, 20, 64, 64),
    (32, 20, 128, 128), (32, 20, 256, 256), (64, 8, 512, 512), (128, 4, 1024, 1024), (256, 16, 128, 128),
    (16, 1000, 64, 64), (3, 1500, 11, 37),
]  # fmt: skip


@each_meeting(2, layer=LAYERS, shape=SHAPES, threads=[1, 2, 3])
def test_shapes_of_the_benchmark(layer, threads, shape):
    batch, time, input_size, hidden_size = shape
    torch.set_num_threads(threads)
    assert_parity(Case(layer, input_size, hidden_size, lengths=(time,) * batch))


@pytest.mark.sanitize
@pytest.mark.parametrize("batch", [1, 3, 4, 30])
def test_a_row_larger_than_a_cache(batch):
    ours, theirs = rnn_ext.RNN(270_000, 20), torch.nn.RNN(270_000, 20)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, batch, 270_000) / 100
    results = []
    for module in (ours, theirs):
        y, _ = module(x)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in module.parameters())])
    assert_all_close(*results)


@each_meeting(2, layer=LAYERS, threads=[1, 2, 3], batch=[1, 2, 40], form=["batched", "unsorted"])
def test_deep_stacks_in_both_directions(layer, threads, batch, form):
    torch.set_num_threads(threads)
    lengths = [1 + 7 * b % 30 if form == "unsorted" else 30 for b in range(batch)]
    assert_parity(Case(layer, 33, 96, 3, bidirectional=True, dropout=0.2, form=form, lengths=tuple(lengths)))


# Lengths of packed batches, by what is unusual about the chunks that they make.
LENGTHS = {
    "one outlasts all": [700, *[2] * 90],
    "all but one end at once": [1, *[40] * 60],
    "more sequences than rows of a chunk": [1 + b % 4 for b in range(1100)],
    "one after the other": list(range(1, 70)),
    "two groups": [300] * 3 + [9] * 100,
}


@pytest.mark.sanitize
@each_meeting(2, layer=LAYERS, dtype=DTYPES, threads=[1, 2, 4], lengths=LENGTHS, bidirectional=[False, True])
def test_chunks_of_packed_batches_whose_sequences_end_in_any_way(layer, dtype, threads, lengths, bidirectional):
    torch.set_num_threads(threads)
    assert_parity(
        Case(layer, 20, 34, 2, bidirectional=bidirectional, form="unsorted", lengths=tuple(lengths), dtype=dtype)
    )


@pytest.mark.sanitize
@each_meeting(2, layer=LAYERS, dtype=DTYPES, num_layers=[2, 5], form=["unbatched", "batched", "unsorted"])
def test_deep_stacks_of_few_sequences(layer, dtype, num_layers, form):
    torch.set_num_threads(2)
    lengths = {"unbatched": (300,), "batched": (150, 150), "unsorted": (97, 150)}[form]
    assert_parity(Case(layer, 35, 50, num_layers, dropout=0.2, form=form, lengths=lengths, dtype=dtype))


@promise("Autograd", "any input alone may ask for a gradient, any output alone be used")
@each_layer
@pytest.mark.parametrize("form", ["batched", "unbatched", "unsorted"])
@pytest.mark.parametrize("used", [("y",), ("h_n",), ("y", "h_n")], ids=str)
@pytest.mark.parametrize(
    "wanted", ["x", "h_0", "weight_ih_l0", "weight_hh_l1", "bias_ih_l1_reverse", "bias_hh_l0"]
)
def test_any_one_input_may_ask_for_a_gradient(layer, form, used, wanted):
    case = Case(layer, num_layers=2, bidirectional=True, form=form, wanted=frozenset([wanted]), used=used)
    assert_parity(replace(case, lengths=(6,)) if form == "unbatched" else case)


@promise("Forward", "any layout in memory")
@pytest.mark.sanitize
@each_layer
@each_layout
@pytest.mark.parametrize("form", ["batched", "unbatched", "unsorted"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_any_layout_in_memory(layer, layout, form, batch_first):
    lengths = (5,) if form == "unbatched" else (4, 5, 1) if form == "unsorted" else (5, 5, 5)
    assert_parity(Case(layer, 6, 9, 2, layout=layout, form=form, batch_first=batch_first, lengths=lengths))


@promise("Forward", "any layout in memory")
@pytest.mark.sanitize
@each_layer
@each_overlap
def test_rows_of_the_input_may_share_memory(layer, shape, view):
    assert_parity_on_a_view(layer, shape, view)


@promise("Forward", "dropout draws torch's masks from torch's generator")
@each_layer
@pytest.mark.parametrize("form", ["batched", "unsorted"])
@pytest.mark.parametrize("dropout", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_dropout_draws_the_masks_that_torch_draws(layer, form, dropout, training):
    case = Case(layer, num_layers=3, bidirectional=True, form=form, dropout=dropout, training=training)
    assert_parity(replace(case, dtype=torch.float64, lengths=(4, 9, 2) if form == "unsorted" else (9, 9, 9)))


@each_layer
def test_expanded_tensors(layer):
    """One learned initial state for all sequences, one input for all steps, the gradient of a sum."""
    ours, theirs = layer.make_both(4, 9, 2)
    gradients = []
    for module in (ours, theirs):
        start = torch.linspace(-1, 1, 9).requires_grad_()
        x = torch.linspace(-2, 2, 4).requires_grad_()
        states = [start[: shape[-1]].expand(shape) for shape in layer.state_shapes(2, 5, 9)]
        y, state = module(x.expand(6, 5, 4), layer.state(*states))
        (y.sum() + named_outputs((y, state))["h_n"].sum()).backward()
        gradients.append([start.grad, x.grad, *(weight.grad for weight in module.parameters())])
    assert_all_close(*gradients)


@each_layer
def test_a_gradient_at_exactly_zero_is_torchs(layer):
    ours, theirs = layer.make_both(4, 3)
    gradients = []
    for module in (ours, theirs):
        with torch.no_grad():
            for weight in module.parameters():
                weight.zero_()
        module(torch.ones(5, 2, 4))[0].sum().backward()
        gradients.append([weight.grad for weight in module.parameters()])
    for actual, expected in zip(*gradients):
        assert torch.equal(actual, expected)


@each_layer
def test_gradients_accumulate_over_calls(layer):
    ours, theirs = layer.make_both(4, 3, 2)
    for module in (ours, theirs):
        generator = torch.Generator().manual_seed(1)
        for time in (3, 8):
            module(torch.randn(time, 2, 4, generator=generator))[0].sum().backward()
    assert_all_close(*([weight.grad for weight in module.parameters()] for module in (ours, theirs)))


@each_layer
def test_truncated_backpropagation_carries_the_state(layer):
    ours, theirs = layer.make_both(4, 3, 2)
    x, losses = torch.randn(12, 2, 4), []
    for module in (ours, theirs):
        optimizer, state, curve = torch.optim.SGD(module.parameters(), lr=0.1), None, []
        for chunk in x.split(4):
            y, state = module(chunk, state)
            state = (
                state.detach() if isinstance(state, torch.Tensor) else tuple(part.detach() for part in state)
            )
            loss = y.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses.append(curve)
    assert_close(losses[0], losses[1], dtype=torch.float32)


@pytest.mark.slow
@each_layer
def test_more_elements_than_int32_counts(layer):
    """Every sequence is the same, so each of them must equal the first of a small call."""
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 16 << 30:
        pytest.skip("needs 16 GiB of free memory")
    hidden_size = 50 if layer.projected else 33  # both have 33 outputs
    module = layer.make_ours(1, hidden_size, dtype=torch.bfloat16)
    x = torch.randn(1024, 1, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        expected, _ = module(x)
        y, _ = module(x.expand(1024, 65_536, 1))
    assert y.numel() > 2**31
    assert_close(y[:, [0, 1, 40_000, 65_535]], expected.expand(1024, 4, 33))
