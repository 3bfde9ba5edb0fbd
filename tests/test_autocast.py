"""Under autocast a loop casts each weight once, as torch's operators do, and never uses one that has changed."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import rnn_ext
from rnn_ext import autocast, call, loops
from tests.subject import CELLS, LAYERS
from tests.tolerances import assert_all_close, assert_close

SIZE = 6
each_module = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)
each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)


def under_autocast(dtype=torch.bfloat16, **options):
    return torch.autocast("cpu", dtype, **options)


def steps(layer, module, x, count: int) -> torch.Tensor:
    """The last output of so many calls of one step, each from the state that the one before it left."""
    states, out = None, None
    for _ in range(count):
        result = module(x, states)
        out, states = layer.named_outputs(result), result if layer.is_cell else result[1]
    return out["h_n"].float()


def one_step(layer):
    return torch.randn(2, SIZE) if layer.is_cell else torch.randn(1, 2, SIZE)


def saved_weights(module: nn.Module, act) -> int:
    """How many tensors of the shape of W_hh autograd keeps while `act` runs."""
    shape = next(w.shape for name, w in module.named_parameters() if name.startswith("weight_hh"))
    found = set()

    def pack(tensor):
        if tensor.shape == shape:
            found.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        act()
    return len(found)


@each_module
def test_a_loop_keeps_one_copy_of_each_weight(layer):
    module, x = layer.make_ours(SIZE, 3), one_step(layer)
    with under_autocast():
        assert saved_weights(module, lambda: steps(layer, module, x, 4)) == 1
    with under_autocast(cache_enabled=False):
        assert saved_weights(module, lambda: steps(layer, module, x, 4)) == 4


@each_module
def test_gradients_of_a_loop_are_those_of_casts_by_hand(layer):
    module, x = layer.make_ours(SIZE, 5), one_step(layer)
    with under_autocast():
        loss = steps(layer, module, x, 5).square().sum()
    loss.backward()
    by_hand = layer.make_ours(SIZE, 5, dtype=torch.bfloat16)
    by_hand.load_state_dict(module.state_dict())
    steps(layer, by_hand, x.bfloat16(), 5).square().sum().backward()
    found = [w.grad for w in module.parameters()]
    assert all(g.dtype == torch.float32 for g in found)
    assert_all_close([g.bfloat16() for g in found], [w.grad for w in by_hand.parameters()])


@each_cell
def test_the_weight_gradients_of_a_loop_are_one_product(cell, note_calls):
    module, x = cell.make_ours(64, 64), torch.randn(2, 64)
    with under_autocast():
        loss = steps(cell, module, x, 8).sum()
    calls = note_calls(loops.ops, "gradients_of_loop")
    loss.backward()
    assert len(calls) == 1


@each_module
def test_a_plain_call_under_autocast_takes_the_short_way(layer, note_calls):
    module, x = layer.make_ours(SIZE, 3), layer.random_input(SIZE)
    calls = note_calls(call, "as_call")
    with under_autocast():
        module(x)
    assert calls == []


@each_cell
def test_a_weight_that_changes_inside_a_block_is_cast_again(cell):
    module, x = cell.make_ours(SIZE, 3), torch.randn(2, SIZE)
    with torch.no_grad(), under_autocast():
        before = cell.total(module(x))
        module.weight_ih.mul_(2)
        after = cell.total(module(x))
    with torch.no_grad(), under_autocast():
        assert_close(after, cell.total(module(x)))
    assert not torch.equal(before, after)


@each_cell
def test_a_weight_that_changes_between_two_blocks_is_cast_again_though_nothing_tells_of_it(cell):
    module, x = cell.make_ours(SIZE, 3), torch.randn(2, SIZE)
    with under_autocast():
        before = cell.total(module(x))  # whose graph lives on, and with it what was cast
    module.weight_ih.data.mul_(2)
    with under_autocast():
        after = cell.total(module(x))
    assert not torch.equal(before, after)


def test_nothing_is_kept_behind_a_block():
    module = rnn_ext.GRUCell(SIZE, 3)
    with under_autocast():
        with under_autocast():
            module(torch.randn(2, SIZE))
        assert autocast._casts, "the outer block lasts"
    gc.collect()
    assert not autocast._casts and not autocast._results


def test_one_cast_of_a_weight_is_kept_however_often_it_changes_in_a_block():
    module, x = rnn_ext.GRUCell(SIZE, 3), torch.randn(2, SIZE)
    with torch.no_grad(), under_autocast():
        for _ in range(3):
            module(x)
            module.weight_ih.mul_(2)
        assert len(autocast._casts) == len(autocast._results) == 4


def test_a_cast_without_a_graph_is_not_used_where_there_must_be_one():
    module, x = rnn_ext.GRUCell(SIZE, 3), torch.randn(2, SIZE)
    with under_autocast():
        with torch.no_grad():
            module(x)
        with torch.inference_mode():
            module(x)
        loss = module(x).sum()
    loss.backward()
    assert all(w.grad is not None for w in module.parameters())


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        module, x = rnn_ext.GRUCell(SIZE, 3), torch.randn(2, SIZE)
        with under_autocast():
            assert module(x, module(x)).dtype == torch.bfloat16


def test_backward_and_a_step_inside_of_one_block():
    torch.manual_seed(0)
    module, x = rnn_ext.LSTMCell(SIZE, 3), torch.randn(2, SIZE)
    optimizer = torch.optim.SGD(module.parameters(), 0.5)
    losses = []
    with under_autocast():
        for _ in range(3):
            optimizer.zero_grad()
            h, c = module(x)
            loss = module(x, (h, c))[0].square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_two_dtypes_in_one_block():
    module, x = rnn_ext.GRUCell(SIZE, 3), torch.randn(2, SIZE)
    with under_autocast():
        assert module(x).dtype == torch.bfloat16
        with under_autocast(torch.float16):
            assert module(x).dtype == torch.float16
        with under_autocast(enabled=False):
            assert module(x).dtype == torch.float32
        assert module(x).dtype == torch.bfloat16


def test_frozen_weights_are_left_alone_under_autocast():
    module, x = rnn_ext.LSTM(SIZE, 5), torch.randn(20, 3, SIZE)
    with torch.no_grad(), under_autocast():
        expected = module(x)[0]
        with rnn_ext.frozen(module):
            assert torch.equal(module(x)[0], expected)
            assert not rnn_ext.explain(module, x).frozen
