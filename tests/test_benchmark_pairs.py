"""How the benchmarks time: statistics of pairs, contestants in turns, what is read beside them."""

from __future__ import annotations

import gc
import math
import mmap
import random

import pytest

from benchmarks import pairs
from tests.tolerances import assert_close

# Statistics


@pytest.mark.parametrize(("count", "k"), [(6, 1), (7, 1), (9, 2), (25, 8), (100, 40)])
def test_the_interval_of_a_median_has_the_tabulated_order_statistics(count, k):
    values = list(range(1, count + 1))
    random.Random(0).shuffle(values)
    interval = pairs.median_interval(values)
    assert interval == pairs.Interval(median=(count + 1) / 2, low=k, high=count + 1 - k)


def test_five_values_cannot_give_a_95_percent_interval():
    with pytest.raises(ValueError, match="5 values"):
        pairs.median_interval([1.0] * 5)


def test_the_interval_covers_the_true_median_of_a_skewed_distribution_as_often_as_it_says():
    generator = random.Random(0)
    intervals = [
        pairs.median_interval([generator.lognormvariate(0, 1) for _ in range(20)]) for _ in range(2000)
    ]
    covered = sum(interval.low <= 1 <= interval.high for interval in intervals) / len(intervals)
    assert covered >= 0.95  # 20 values give 95.9%, known by counting


def test_a_ratio_is_taken_within_rounds_so_drift_cancels():
    drift = [1.0, 5.0, 2.0, 9.0, 3.0, 7.0, 4.0]
    interval = pairs.ratio_interval([3 * d for d in drift], drift)
    assert_close([interval.median, interval.low, interval.high], [3.0, 3.0, 3.0])


def test_rounds_of_unequal_number_are_refused():
    with pytest.raises(ValueError):
        pairs.ratio_interval([1.0] * 8, [1.0] * 7)


# Taking turns


def test_two_contestants_alternate_who_goes_first():
    assert [pairs.turn_order(["a", "b"], i) for i in range(2)] == [["a", "b"], ["b", "a"]]


@pytest.mark.parametrize("count", [2, 3])
def test_over_a_cycle_every_contestant_has_every_place_equally_often(count):
    names = "abc"[:count]
    orders = [pairs.turn_order(names, i) for i in range(2 * count)]
    for place in range(count):
        assert sorted(order[place] for order in orders) == sorted(names * 2)


class FakeTime:
    """A clock that only the timed functions move."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def function(self, name: str, seconds: float):
        def run():
            self.now += seconds
            self.calls.append(name)

        return run

    def contestants(self, **seconds):
        return {name: self.function(name, cost) for name, cost in seconds.items()}


def test_interleaving_returns_each_contestants_own_time_per_call():
    clock = FakeTime()
    seconds = pairs.interleave(clock.contestants(fast=2e-6, slow=5e-4), budget=0, clock=clock).seconds
    assert {name: len(values) for name, values in seconds.items()} == {"fast": 7, "slow": 7}
    assert_close(seconds["fast"], [2e-6] * 7)
    assert_close(seconds["slow"], [5e-4] * 7)


def test_a_timed_block_lasts_long_enough_for_the_clock():
    for cost in (1e-7, 3e-6, 9e-4, 2e-3, 5.0):
        assert pairs.repeats_for(cost) * cost >= pairs.BLOCK_SECONDS
    assert pairs.repeats_for(5.0) == 1


def test_interleaving_stops_when_the_budget_is_used():
    clock = FakeTime()
    seconds = pairs.interleave(clock.contestants(a=0.05, b=0.05), budget=0.95, clock=clock).seconds
    assert len(seconds["a"]) == len(seconds["b"]) == 10  # of 0.1 s; the last crosses the line


def test_interleaving_has_a_greatest_number_of_rounds():
    clock = FakeTime()
    rounds = pairs.interleave(clock.contestants(a=1e-3), budget=math.inf, clock=clock)
    assert len(rounds.seconds["a"]) == pairs.MAX_ROUNDS


def test_a_short_turn_opens_with_an_untimed_call_and_a_long_one_does_not():
    clock = FakeTime()
    pairs.interleave(clock.contestants(short=1e-3, long=1.0), 0, {"short": 2, "long": 1}, clock=clock)
    looks = 1  # at first, to learn how long a call takes
    assert clock.calls.count("short") == looks + pairs.MIN_ROUNDS * (1 + 2)
    assert clock.calls.count("long") == looks + pairs.MIN_ROUNDS


def test_the_garbage_collector_rests_while_timing_and_is_back_even_after_an_error():
    seen = []

    def look():
        seen.append(gc.isenabled())
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pairs.interleave({"look": look}, 0, {"look": 1})
    assert seen == [True, False, False]
    assert gc.isenabled()


def test_a_probe_is_read_before_each_round_and_its_time_is_nobodys():
    clock = FakeTime()

    def probe() -> float:
        clock.now += 1.0
        return len(clock.calls)

    rounds = pairs.interleave(clock.contestants(a=0.03, b=0.05), 0, {"a": 1, "b": 1}, probe, clock=clock)
    assert rounds.probe == [2 + 2 * i for i in range(pairs.MIN_ROUNDS)]
    assert_close(rounds.seconds["a"], [0.03] * pairs.MIN_ROUNDS)
    assert_close(rounds.seconds["b"], [0.05] * pairs.MIN_ROUNDS)


def test_a_round_counts_only_if_the_machine_was_steady_before_and_after_it():
    clock = FakeTime()
    readings = iter([False, True, False, *[True] * 100])  # at once, and after the first round

    rounds = pairs.interleave(clock.contestants(a=0.03), 0, {"a": 1}, steady=lambda: next(readings), clock=clock)
    assert rounds.unsteady == 2
    assert len(rounds.seconds["a"]) == pairs.MIN_ROUNDS
    assert len(clock.calls) == 1 + 1 + pairs.MIN_ROUNDS  # a first look, the round that does not count, the others


def test_patience_with_a_machine_that_is_never_steady_ends():
    clock = FakeTime()

    def never() -> bool:
        clock.now += 1.0
        return False

    rounds = pairs.interleave(clock.contestants(a=0.03), 0, {"a": 1}, steady=never, clock=clock)
    assert rounds.unsteady == pairs.PATIENCE_SECONDS
    assert len(rounds.seconds["a"]) == pairs.MIN_ROUNDS


def test_page_faults_are_counted_for_the_function_that_has_them():
    def touch_new_memory():
        with mmap.mmap(-1, 64 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory[:] = bytes(len(memory))

    rounds = pairs.interleave({"fresh": touch_new_memory, "none": lambda: None}, 0, {"fresh": 5, "none": 5})
    assert rounds.faults["fresh"] >= 1 > rounds.faults["none"]
