"""`batch_invariant` on CUDA, under the emulator: not a bit of a sequence depends on the rest of the batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnn_ext
from tests.cuda_emulator.device import GRU, HALVES, LSTM, PROJECTED, TANH, assert_equals_reference, each_layer
from tests.subject import LAYERS, named_outputs

INVARIANT = [(layer, kind) for layer in LAYERS for kind in ("", "stepwise", "library")]
INVARIANT += [(layer, "cluster") for layer in (TANH, LSTM, GRU)]


def alone_and_together(layer, dtype, hidden_size):
    """y, states, dx, dh_0 and dc_0 of each of some sequences, by itself and in a batch of 19."""
    lengths = [7, 2, 5, *[6] * 13, 1, 3, 7]
    torch.manual_seed(0)
    module = layer.make_ours(5, hidden_size, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(7, len(lengths), 5, dtype=dtype)
    shapes = layer.state_shapes(4, len(lengths), hidden_size)
    states = [torch.randn(shape, dtype=dtype) for shape in shapes]

    def run(which):
        leaves = [x[:, which].requires_grad_(), *(s[:, which].requires_grad_() for s in states)]
        packed = pack_padded_sequence(leaves[0], [lengths[b] for b in which], enforce_sorted=False)
        y, final = module(packed, layer.state(*leaves[1:]))
        outputs = [pad_packed_sequence(y, total_length=7)[0], *named_outputs((None, final)).values()]
        gradients = torch.autograd.grad(sum(out.double().square().sum() for out in outputs[:2]), leaves)
        return [*outputs, *gradients]

    together = run(list(range(len(lengths))))
    for b in (0, 1, 9, 18):
        yield [t[:, b] for t in together], [t[:, 0] for t in run([b])]


@pytest.mark.sanitize
@pytest.mark.parametrize("layer, kind", INVARIANT, ids=str)
def test_under_batch_invariant_a_sequence_does_not_see_the_batch(emulator, layer, kind):
    emulator.plan(kind)
    emulator.device(workspace_bytes=14 << 10)  # other chunks for another batch
    with rnn_ext.batch_invariant():
        for together, alone in alone_and_together(layer, torch.float32, 16):
            assert all(torch.equal(a, b) for a, b in zip(together, alone))


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
@pytest.mark.parametrize("layer, kind", [(PROJECTED, ""), (GRU, "stepwise"), (GRU, "cluster")], ids=str)
def test_batch_invariant_holds_for_every_dtype(emulator, layer, kind, dtype):
    emulator.plan(kind)
    with rnn_ext.batch_invariant():
        for together, alone in alone_and_together(layer, dtype, 24):
            assert all(torch.equal(a, b) for a, b in zip(together, alone))


@each_layer
def test_batch_invariant_results_equal_the_reference(emulator, layer):
    emulator.device(shared_bytes=227 << 10)
    with rnn_ext.batch_invariant():
        for hidden_size in (1, 33, 130):
            assert_equals_reference(emulator, layer, hidden_size, 7, torch.float32, True, num_layers=2)


def test_without_batch_invariant_the_plan_may_follow_the_batch(emulator):
    """Which is what makes the tests above able to fail."""
    emulator.plan("stepwise")
    pairs = list(alone_and_together(LSTM, torch.float32, 48))
    assert not all(torch.equal(a, b) for together, alone in pairs for a, b in zip(together, alone))
