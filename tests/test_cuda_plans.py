"""How a call is divided on a GPU, in chunks of steps and in launches, under the emulator."""

from __future__ import annotations

import pytest

import rnn_ext
from rnn_ext.call import is_refusal
from tests.cuda_emulator.device import KINDS, LSTM, PROJECTED, TANH, each_layer_and_kind, plan, results_of
from tests.subject import Case
from tests.tolerances import assert_all_close, assert_close


@pytest.mark.sanitize
@each_layer_and_kind(KINDS)
def test_chunks_of_steps_give_what_all_steps_at_once_give(emulator, layer, kind):
    emulator.plan(kind)
    case = Case(layer, 5, 16, 2, dropout=0.4, bidirectional=True, form="unsorted", lengths=(7, 1, 4, 7))
    whole, launches = results_of(case), []
    for workspace_bytes in (1, 8 << 10):  # a step at a time, and two or three
        emulator.device(workspace_bytes=workspace_bytes)
        before = emulator.launches
        found = results_of(case)
        launches.append(emulator.launches - before)
        for name, expected in whole.items():
            assert_close(found[name], expected, scale=case.scale(name.removeprefix("d"), expected))
    assert launches[0] > launches[1]


@pytest.mark.parametrize("refusal", [{"at_once": 1}, {"refuses": True}], ids=["foreseen", "at the launch"])
@pytest.mark.parametrize("invariant", [False, True])
def test_blocks_that_cannot_all_be_there_run_step_by_step(emulator, refusal, invariant):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16)
    assert "step by step" not in plan("LSTM", 6, 3, 64, 4, invariant=invariant)
    case = Case(LSTM, hidden_size=64, num_layers=2, bidirectional=True, form="sorted", lengths=(5, 2, 2))
    with rnn_ext.batch_invariant(invariant):
        expected = results_of(case)
        emulator.device(132, 232_448, 16, **refusal)
        before = emulator.launches
        found = results_of(case)
    assert emulator.launches - before > 4 * 5  # a launch for every step of every layer, forward and backward
    for name, value in expected.items():
        assert_close(found[name], value, scale=case.scale(name.removeprefix("d"), value))


@pytest.mark.filterwarnings("ignore::rnn_ext.SlowPathWarning")
def test_a_gpu_that_the_library_was_not_built_for_leaves_calls_to_torch(emulator):
    emulator.device(has_code=False)
    with pytest.raises(RuntimeError) as raised:
        plan("LSTM", 6, 3, 64, 4)
    assert is_refusal(raised.value)  # in whose place `explain` says the path
    before = emulator.launches
    case = Case(TANH)
    outputs, expected = case.run_ours()[0], case.run_theirs()[0]
    assert_all_close(list(outputs.values()), list(expected.values()))
    assert emulator.launches == before


def test_a_projection_runs_step_by_step_and_says_so(emulator):
    assert plan("LSTM", 6, 3, 64, 4, proj_size=8).count("step by step: torch's products") == 2
    assert plan("LSTM", 6, 3, 64, 4, proj_size=8, invariant=True).count("step by step: our products") == 2
    emulator.plan("grid")
    with pytest.raises(RuntimeError, match="does not fit this call"):
        Case(PROJECTED).run_ours()


@pytest.mark.parametrize("storage_bytes", [2, 4, 8])
@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_small_weights_stay_on_the_chip(emulator, mode, storage_bytes):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16)
    for batch, hidden_size in [(1, 256), (8, 512), (64, 512)]:
        text = plan(mode, 500, batch, hidden_size, storage_bytes)
        assert "step by step" not in text, text


def test_what_fits_nowhere_runs_step_by_step(emulator):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16)
    assert plan("LSTM", 10, 8, 20_000, 4).count("step by step") == 2


def test_a_plan_that_does_not_fit_is_an_error(emulator):
    emulator.plan("cluster")
    with pytest.raises(RuntimeError, match="does not fit this call"):
        Case(TANH, hidden_size=7).run_ours()
    emulator.plan("nothing")
    with pytest.raises(RuntimeError, match="RNN_EXT_CUDA_PLAN must be"):
        Case(TANH, hidden_size=7).run_ours()
