"""What the benchmarks time: grids, contestants that agree, counted work and memory."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("psutil", reason="part of the bench extra")

import rnn_ext  # noqa: E402
from benchmarks import contest, machine, memory, onnx_peer  # noqa: E402
from benchmarks.contest import CELLS, MODES, Case, Contest  # noqa: E402
from benchmarks.grids import GRIDS, Point  # noqa: E402
from tests.covering import each_meeting  # noqa: E402
from tests.tolerances import assert_close  # noqa: E402

needs_onnx = pytest.mark.skipif(not onnx_peer.available(), reason="onnx and onnxruntime are optional")
needs_memray = pytest.mark.skipif(not memory.available(), reason="memray is optional")
SMALL = Point(2, 5, 4, 6)


# Grids


def test_packed_lengths_lie_between_a_quarter_and_the_whole_and_are_the_same_every_time():
    grid = GRIDS["packed"]
    for point in grid.points:
        lengths = grid.lengths(point)
        assert point.steps / 4 <= lengths.min() and lengths.max() <= point.steps
        assert torch.equal(lengths, grid.lengths(point))
    many = grid.lengths(Point(10_000, 100, 1, 1)).double()
    assert abs(many.mean() - (25 + 100) / 2) < 1  # the mean of 10,000 has a standard deviation of 0.22


def test_shapes_of_the_derived_grids_are_those_of_the_padded_one_that_fit():
    assert set(GRIDS["packed"].points) == {p for p in GRIDS["padded"].points if p.batch >= 2 and p.steps >= 5}
    assert set(GRIDS["bfloat16"].points) == {p for p in GRIDS["padded"].points if p.hidden_size >= 64}
    assert set(GRIDS["float16"].points) == {p for p in GRIDS["bfloat16"].points if p.batch * p.steps <= 3_200}


def test_no_untuned_shape_is_in_another_grid():
    others = {point for name, grid in GRIDS.items() if name != "untuned" for point in grid.points}
    assert not others & set(GRIDS["untuned"].points)


# Counting work


@pytest.mark.parametrize("point", [Point(1, 6, 5, 4), Point(3, 7, 2, 5)])
@pytest.mark.parametrize("name", ["padded", "packed", "stack"])
def test_flops_are_those_that_torch_counts(name, point):
    grid = GRIDS[name]
    layers = grid.num_layers * (2 if grid.bidirectional else 1)
    rnn = torch.nn.RNN(point.input_size, point.hidden_size, grid.num_layers, bidirectional=grid.bidirectional)
    x = torch.randn(point.steps, point.batch, point.input_size, requires_grad=True)
    if name == "packed":
        x = pack_padded_sequence(x, grid.lengths(point), enforce_sorted=False)
    h_0 = torch.zeros(layers, point.batch, point.hidden_size, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y, h_n = rnn(x, h_0)
    with FlopCounterMode(display=False) as backward:
        (y.data if name == "packed" else y).sum().backward()
    assert grid.flops(point, "inference", gates=1) == forward.get_total_flops()
    assert grid.flops(point, "training", gates=1) == forward.get_total_flops() + backward.get_total_flops()


def test_gates_multiply_the_work():
    grid = GRIDS["padded"]
    assert grid.flops(SMALL, "inference", gates=4) == 4 * grid.flops(SMALL, "inference", gates=1)


# Contestants


@each_meeting(grid=list(GRIDS), mode=list(MODES), cell=list(CELLS))
def test_contestants_agree_on_every_grid(grid, mode, cell):
    dtype = GRIDS[grid].dtype
    rivals = Contest(Case(cell, SMALL, mode, 1, dtype, grid))
    assert rivals.disagreement() <= contest.AGREEMENT[dtype]
    assert rivals.plan["path"] == "kernel"
    expected = ["rnn_ext", "torch"]
    expected += ["float32"] * (grid in contest.HALVES)
    one_layer = grid in ("padded", "untuned")
    expected += ["onnxruntime"] * (one_layer and mode == "inference" and onnx_peer.available())
    assert list(rivals.contestants) == expected
    assert list(rivals.floor) == ["two linears"] * one_layer  # the shape is a toy
    assert list(rivals.functions) == [*expected, *rivals.floor]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", contest.DTYPES)
def test_contestants_agree_in_every_dtype(mode, dtype):
    assert Contest(Case("rnn", SMALL, mode, 1, dtype)).disagreement() <= contest.AGREEMENT[dtype]


def test_only_toys_have_a_floor():
    assert not Contest(Case("rnn", Point(1, 2, 3, 64), "inference", 1, "float32")).floor


@pytest.mark.parametrize("grid", GRIDS)
def test_rnn_ext_and_torch_share_their_parameters_and_get_equal_input(grid):
    rivals = Contest(Case("lstm", SMALL, "training", 1, "float32", grid)).contestants
    ours, theirs = rivals["rnn_ext"], rivals["torch"]
    for a, b in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        assert a is b
    for a, b in zip(contest.tensors(ours.argument), contest.tensors(theirs.argument), strict=True):
        assert a is not b and torch.equal(a, b) and a.requires_grad and b.requires_grad


def test_each_grid_hands_over_its_own_kind_of_input():
    def argument(grid):
        return Contest(Case("gru", SMALL, "training", 1, "float32", grid)).contestants["rnn_ext"].argument

    assert argument("padded").shape == (5, 2, 4)
    packed, lengths = argument("packed"), GRIDS["packed"].lengths(SMALL)
    assert isinstance(packed, PackedSequence) and len(packed.data) == lengths.sum()
    assert [step.shape for step in argument("steps")] == [(2, 4)] * 5


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_loop_over_a_cell_computes_what_the_layer_computes(name):
    layer, cell = getattr(torch.nn, name)(4, 6), getattr(torch.nn, f"{name}Cell")(4, 6)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x = torch.randn(5, 2, 4)
    outputs, state = contest.loop(cell, list(x))
    y, states = layer(x)
    assert_close(torch.stack(outputs), y)
    for a, b in zip(contest.tensors(state), contest.tensors(states), strict=True):
        assert_close(a, b.squeeze(0))


def test_contestants_agree_on_a_gradient_that_is_zero():
    rivals = Contest(Case("rnn", Point(1, 1, 3, 3), "training", 1, "float32"))
    assert rivals.disagreement() <= contest.AGREEMENT["float32"]
    _, _, dw_hh, *_ = rivals.contestants["torch"].results()  # of input, W_ih, W_hh, biases
    assert not dw_hh.any()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("mode", MODES)
def test_a_contestant_with_other_weights_is_not_timed(mode, grid):
    rivals = Contest(Case("rnn", SMALL, mode, 1, "float32", grid))
    weights = dict(rivals.contestants["rnn_ext"].module.named_parameters())
    name = next(name for name in weights if name.startswith("weight_hh"))
    other = torch.nn.Parameter(weights[name].detach() + 0.1)
    setattr(rivals.contestants["rnn_ext"].module, name, other)
    rivals.contestants["rnn_ext"].leaves[1:] = rivals.contestants["rnn_ext"].module.parameters()
    with pytest.raises(contest.Disagreement, match="rnn_ext disagrees"):
        rivals.disagreement()


def test_a_contestant_that_returns_nan_is_not_timed():
    rivals = Contest(Case("rnn", SMALL, "inference", 1, "float32"))
    module = rivals.contestants["rnn_ext"].module
    module.bias_hh_l0 = torch.nn.Parameter(torch.full((6,), math.nan))
    with pytest.raises(contest.Disagreement, match="rnn_ext disagrees"):
        rivals.disagreement()


@pytest.mark.parametrize("grid", ["padded", "packed", "steps"])
def test_every_training_step_leaves_fresh_gradients(grid):
    ours = Contest(Case("rnn", SMALL, "training", 1, "float32", grid)).contestants["rnn_ext"]
    first = [gradient.clone() for gradient in ours.results()]
    for once, again in zip(first, ours.results(), strict=True):
        assert_close(again, once)


def test_inference_is_timed_without_a_graph():
    rivals = Contest(Case("rnn", SMALL, "inference", 1, "float32"))
    seen = []
    rivals.contestants["torch"].module.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    rivals.disagreement()
    assert seen == [False, False]


@pytest.mark.parametrize("mode", MODES)
def test_the_floor_under_a_toy_is_two_linear_layers_of_the_same_parameters(mode):
    rivals = Contest(Case("gru", SMALL, mode, 1, "float32"))
    rows = SMALL.batch * SMALL.steps
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(mode == "training"):
        rivals.functions["two linears"]()
    products = 2 * rows * 18 * (4 + 6)
    backward = products + 2 * rows * 18 * 4  # gradients of both weights and of the input
    assert counter.get_total_flops() == products + backward * (mode == "training")
    for parameter in rivals.contestants["torch"].module.parameters():
        assert (parameter.grad is not None) == (mode == "training")


# ONNX Runtime


MODULES = {
    "RNN-tanh": torch.nn.RNN,
    "RNN-relu": partial(torch.nn.RNN, nonlinearity="relu"),
    "LSTM": torch.nn.LSTM,
    "GRU": torch.nn.GRU,
}


@needs_onnx
@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_the_onnx_twin_computes_what_torch_computes(make):
    module, x = make(5, 4), torch.randn(6, 3, 5)
    for ours, expected in zip(
        onnx_peer.OnnxRuntime(module, x, threads=1).results(), contest.tensors(module(x))
    ):
        assert_close(ours, expected)


@needs_onnx
@pytest.mark.parametrize(
    "options", [{"num_layers": 2}, {"bidirectional": True}, {"bias": False}, {"proj_size": 2}]
)
def test_the_onnx_twin_refuses_what_its_one_node_does_not_hold(options):
    with pytest.raises(ValueError, match="one layer"):
        onnx_peer.model_of(torch.nn.LSTM(5, 4, **options))


# Memory


@needs_memray
def test_peak_memory_of_known_allocations():
    before = torch.empty(700_000, dtype=torch.uint8)

    def allocate():
        first = torch.empty(1_000_000, dtype=torch.uint8)
        second = np.empty(500_000, dtype=np.uint8)  # not of torch's allocator
        del first
        third = torch.empty(250_000, dtype=torch.uint8)
        return second, third, before

    assert 1_500_000 <= memory.peak_bytes(allocate) <= 1_500_000 + 20_000


@needs_memray
def test_peak_memory_counts_what_backward_allocates():
    a = torch.randn(300, 300, requires_grad=True)

    def train():
        a.grad = None
        (a @ a).sum().backward()

    train()
    matrix = 300 * 300 * 4
    a.grad = None
    assert 2 * matrix <= memory.peak_bytes(train) <= 5 * matrix


# The machine


def test_the_amx_probe_is_absent_without_amx(monkeypatch):
    monkeypatch.setattr(rnn_ext._C, "amx_rate", lambda seconds, threads: 0.0)
    assert machine.amx_probe(threads=1) is None


def test_the_amx_probe_reads_the_rate_of_as_many_threads_in_a_few_milliseconds(monkeypatch):
    asked = []

    def rate(seconds, threads):
        asked.append((seconds, threads))
        return 300.0

    monkeypatch.setattr(rnn_ext._C, "amx_rate", rate)
    assert machine.amx_probe(threads=2)() == 300.0
    assert {threads for _, threads in asked} == {2} and max(seconds for seconds, _ in asked) <= 0.005
