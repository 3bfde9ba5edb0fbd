"""The CUDA kernels under the emulator: the very sources that nvcc compiles, with the operators around them.

What this cannot show: that the hardware lays out matrix fragments as the twins do, and in which order it makes writes
visible. tests/test_cuda_gpu.py shows it where there is a GPU.
"""

from __future__ import annotations

import pytest
import torch

from tests.cuda_emulator.device import (
    GRU,
    HALVES,
    KINDS,
    LSTM,
    PROJECTED,
    RELU,
    TANH,
    assert_equals_reference,
    each_layer,
    each_layer_and_kind,
    plan,
)
from tests.subject import Case, assert_parity_on_a_view, each_overlap
from tests.tolerances import assert_close


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("hidden_size", [1, 33, 130])
@each_layer_and_kind(["stepwise", "grid", "library"])
def test_odd_sizes_equal_the_reference(emulator, layer, hidden_size, batch, kind):
    emulator.device(shared_bytes=227 << 10)
    emulator.plan(kind)
    ragged = (hidden_size + batch) % 4 < 2
    assert_equals_reference(emulator, layer, hidden_size, batch, torch.float32, ragged, bidirectional=batch == 7)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("hidden_size", [8, 40, 136])
@pytest.mark.parametrize("layer", [TANH, RELU, LSTM, GRU], ids=str)
def test_clusters_equal_the_reference(emulator, layer, hidden_size, batch):
    emulator.device(shared_bytes=227 << 10)
    emulator.plan("cluster")
    assert_equals_reference(emulator, layer, hidden_size, batch, torch.float32, batch == 7)


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
@each_layer_and_kind(KINDS)
def test_every_dtype_equals_the_reference(emulator, layer, kind, dtype):
    if layer.options.get("nonlinearity") == "relu" and dtype in HALVES:
        layer = TANH  # rounding to 16 bits moves numbers across the kink
    emulator.plan(kind)
    hidden_size = 24 if kind == "cluster" else 17
    assert_equals_reference(emulator, layer, hidden_size, 3, dtype, kind != "grid")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("product", ["fma", "fragments", "held"])
@pytest.mark.parametrize("batch", [1, 9, 20])
def test_every_product_of_sixteen_bit_types(emulator, product, dtype, batch):
    emulator.device(multiprocessors=40)
    emulator.plan("grid", product)
    assert ("registers" in plan("LSTM", 5, batch, 33, 2)) == (product == "held")
    assert_equals_reference(emulator, LSTM, 33, batch, dtype, False, bidirectional=False)


@pytest.mark.sanitize
@each_layer_and_kind(KINDS)
def test_layers_directions_dropout_and_lengths_give_what_the_cpu_kernels_give(emulator, layer, kind):
    emulator.plan(kind)
    size = 16 if kind == "cluster" else 13
    case = Case(layer, 5, size, 3, dropout=0.4, bidirectional=True, form="unsorted", lengths=(5, 1, 4), used=("y",))
    before = emulator.launches
    actual = case.run_ours()
    assert emulator.launches > before
    emulator.monkeypatch.undo()
    for ours, cpu in zip(actual, case.run_ours()):
        for name in cpu:
            assert_close(ours[name], cpu[name], scale=case.scale(name, cpu[name]))


@pytest.mark.parametrize("wanted", ["x", "h_0", "weight_hh_l0"])
@pytest.mark.parametrize("given", [False, True])
@each_layer
def test_any_one_gradient_alone(emulator, layer, wanted, given):
    emulator.plan("stepwise" if layer.projected else "grid")
    case = Case(layer, bias=False, given_state=given, wanted=frozenset({wanted}) if given or wanted != "h_0" else None)
    actual = case.run_ours()
    emulator.monkeypatch.undo()
    for ours, cpu in zip(actual, case.run_ours()):
        assert ours.keys() == cpu.keys()
        for name in cpu:
            assert_close(ours[name], cpu[name], scale=case.scale(name, cpu[name]))


@pytest.mark.sanitize
@each_layer
@each_overlap
def test_rows_of_the_input_may_share_memory(emulator, layer, shape, view):
    assert_parity_on_a_view(layer, shape, view)


@pytest.mark.sanitize
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_threads_changes_no_bit(emulator, kind):
    """A barrier that is missing shows as a difference here."""
    emulator.plan(kind)
    for layer in (LSTM, GRU, *([PROJECTED] if kind in ("stepwise", "library") else [])):
        case = Case(layer, hidden_size=24, num_layers=2, bidirectional=True, form="unsorted", lengths=(4, 1, 3))
        emulator.order(0)
        expected = case.run_ours()
        for order in (1, 2):
            emulator.order(order)
            for ours, same in zip(case.run_ours(), expected):
                for name in same:
                    assert torch.equal(ours[name], same[name]), (order, name)


@pytest.mark.parametrize("kind", ["stepwise", "grid"])
def test_the_order_of_threads_changes_no_bit_where_tiles_are_small(emulator, kind):
    emulator.device(multiprocessors=3, shared_bytes=6 << 10)
    emulator.plan(kind)
    for layer in (LSTM, GRU):
        case, found = Case(layer, hidden_size=13, lengths=(3,) * 23), []
        for order in range(3):
            emulator.order(order)
            found.append(case.run_ours())
        for ours in found[1:]:
            for actual, expected in zip(ours, found[0]):
                assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("shared_bytes", [4 << 10, 9 << 10])
@pytest.mark.parametrize("kind", ["stepwise", "grid"])
def test_little_shared_memory_means_smaller_tiles(emulator, kind, shared_bytes):
    emulator.device(multiprocessors=24 if kind == "grid" else 6, shared_bytes=shared_bytes)
    emulator.plan(kind)
    for layer in (LSTM, GRU):
        assert_equals_reference(emulator, layer, 33 if kind == "stepwise" else 9, 40, torch.float32, True, False)


def test_more_steps_than_one_launch_writes_into_the_tables(emulator):
    case = Case(TANH, 1, 2, form="sorted", lengths=(1900, 903, 3))
    emulator.plan("grid")
    actual = case.run_ours()
    emulator.monkeypatch.undo()
    for ours, cpu in zip(actual, case.run_ours()):
        for name in cpu:
            assert_close(ours[name], cpu[name], scale=case.scale(name, cpu[name]))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch, hidden_size", [(1, 256), (8, 512), (16, 768), (64, 512)])
@pytest.mark.parametrize("layer", [LSTM, GRU], ids=str)
def test_the_plans_of_a_large_gpu_give_what_the_cpu_kernels_give(emulator, layer, batch, hidden_size, dtype):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16, threads=256)
    case = Case(layer, 16, hidden_size, dtype=dtype, lengths=(3,) * batch)
    actual = case.run_ours()
    emulator.monkeypatch.undo()
    for ours, cpu in zip(actual, case.run_ours()):
        for name in cpu:
            assert_close(ours[name], cpu[name], scale=case.scale(name, cpu[name]))
