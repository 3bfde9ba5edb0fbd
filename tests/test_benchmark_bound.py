"""The least time that the machine allows is a sum of what was measured beside a line, and goes into the tables."""

from __future__ import annotations

import pytest

from benchmarks import bound, lines, tables
from benchmarks.contest import MODES, Case
from benchmarks.grids import Point
from tests.test_benchmarks import ONE, only_line, record

POINT = Point(2, 3, 4, 5)  # batch, steps, input size, hidden size
FREE = {"call_seconds": 0.0, "read_gbytes": 1e30}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grid, layers", [("padded", 1), ("packed", 1), ("stack", 6)])
def test_where_only_multiplying_takes_time_the_bound_is_all_operations_at_the_peak(grid, layers, mode):
    flops = bound.GRIDS[grid].flops(POINT, mode, 4)
    assert bound.seconds("lstm", grid, POINT, mode, FREE, 1e-3) == pytest.approx(flops / 1e6)


def test_a_call_costs_what_any_call_costs():
    facts = FREE | {"call_seconds": 7.0}
    assert bound.seconds("rnn", "padded", POINT, "inference", facts, 1e30) == pytest.approx(7.0)


@pytest.mark.parametrize("mode, passes", [("inference", 1), ("training", 2)])
@pytest.mark.parametrize("grid, loops", [("padded", 1), ("stack", 6)])
def test_where_only_reading_takes_time_W_hh_is_read_in_every_step_of_every_pass(grid, loops, mode, passes):
    facts = FREE | {"read_gbytes": 1e-9}  # a byte a second
    expected = 3 * passes * loops * (4 * 5 * 5) * 4
    assert bound.seconds("lstm", grid, POINT, mode, facts, 1e30) == pytest.approx(expected)


def test_reading_and_multiplying_in_the_loop_go_on_at_the_same_time():
    slow_both = FREE | {"read_gbytes": 1e-9}
    multiplying = bound.seconds("rnn", "padded", POINT, "inference", FREE, 1e-9)
    recurrent = 2 * 2 * 3 * 5 * 5
    assert bound.seconds("rnn", "padded", POINT, "inference", slow_both, 1e-9) == pytest.approx(
        multiplying - recurrent + max(recurrent, 3 * 5 * 5 * 4)
    )


def test_the_best_round_counts_and_a_round_is_its_median():
    ticks = iter([0, 5, 10, 14, 20, 29, 30, 33, 40, 42, 50, 59])  # calls of 5, 4, 9 and of 3, 2, 9
    found = bound.least_of_calls(lambda: None, rounds=2, calls=3, clock=lambda: next(ticks))
    assert found == 3


@pytest.mark.parametrize("mode", MODES)
def test_the_facts_are_positive_rates(mode):
    facts = bound.measure(Case("gru", Point(1, 2, 3, 64), mode, 1, "float32", "padded"))
    assert set(facts) == {"call_seconds", "read_gbytes"}
    assert all(value > 0 for value in facts.values())


def test_a_line_tells_what_its_ratio_could_be():
    facts = FREE | {"call_seconds": 2.5e-4}
    line = only_line(record(ONE, "inference", 3.0, bound=facts))  # 1 ms, torch 3
    assert line.bound_ms == pytest.approx(0.25, rel=1e-3)
    assert line.bound_ratio == pytest.approx(12.0, rel=1e-3)
    assert "torch / bound" in tables.speed_table([line], "pipe")
    assert "| 12.0 |" in " ".join(tables.means_table([line], "pipe").split())


@pytest.mark.parametrize(
    "fields",
    [{}, {"dtype": "bfloat16"}, {"amx_gflops": [300.0] * 7}, {"grid": "steps"}],
    ids=["old", "half", "AMX", "loop"],
)
def test_without_its_facts_for_another_dtype_with_AMX_and_for_a_loop_of_cells_there_is_no_bound(fields):
    facts = {} if not fields else {"bound": FREE}
    line = only_line(record(ONE, "inference", 3.0, **fields, **facts))
    assert line.bound_ms is None and line.bound_ratio is None
    assert lines.mean_bound([line]) is None
    assert "torch / bound" not in tables.speed_table([line], "pipe") + tables.means_table([line], "pipe")
