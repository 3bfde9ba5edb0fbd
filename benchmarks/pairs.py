"""Paired timing: contestants take turns, and only ratios from within one round are compared.

A shared machine drifts by more than the differences worth knowing. Two calls a few milliseconds apart see the
same machine, so their ratio can be trusted where the ratio of two separate averages cannot.
"""

from __future__ import annotations

import gc
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Clock = Callable[[], float]

MIN_ROUNDS = 7  # a 95% interval of the median needs six
MAX_ROUNDS = 300
BLOCK_SECONDS = 1e-3  # a timed block lasts at least this long, so the clock's resolution does not matter
PATIENCE_SECONDS = 5.0  # for rounds and waiting, a line, while the machine is not itself
SETTLE_SECONDS = 0.02  # calls longer than this need no untimed call first: they settle within themselves


def turn_order(names: Sequence[str], round_index: int) -> list[str]:
    """The order of one round: every second one reversed, each two rotated, so that no place is favoured."""
    shift = (round_index // 2) % len(names)
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if round_index % 2 else order


def time_block(function: Callable[[], object], repeats: int, clock: Clock = time.perf_counter) -> float:
    """Seconds per call over `repeats` calls in a row."""
    start = clock()
    for _ in range(repeats):
        function()
    return (clock() - start) / repeats


def repeats_for(seconds_per_call: float) -> int:
    """How many calls fill one timed block."""
    return max(1, math.ceil(BLOCK_SECONDS / max(seconds_per_call, 1e-9)))


@dataclass(frozen=True)
class Rounds:
    """What was measured in turns.

    Attributes:
        seconds: per call, by name; entry `i` of every list belongs to round `i`.
        faults: page faults of a call, the mean over all timed ones, by name. Where it is not zero, memory had
            gone back to the system, and a time holds what it takes to get it again.
        probe: the machine's state as read before each round; empty without a probe.
        unsteady: how often a round was put off or left out, for the machine was not steady before or after it.
    """

    seconds: dict[str, list[float]]
    faults: dict[str, float]
    probe: list[float]
    unsteady: int = 0


def page_faults() -> int:
    """Page faults of this process so far that needed no disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def interleave(
    functions: Mapping[str, Callable[[], object]],
    budget: float,
    repeats: Mapping[str, int] | None = None,
    probe: Callable[[], float] | None = None,
    steady: Callable[[], bool] | None = None,
    clock: Clock = time.perf_counter,
) -> Rounds:
    """Time the functions in turns until `budget` seconds are used.

    Each turn opens with one untimed call, which brings back the function's own caches and gives the thread
    pool of the one before it time to fall asleep.

    Args:
        functions: what to time, by name; each must have been called once before.
        budget: seconds to spend; at least MIN_ROUNDS rounds run whatever it says, and at most MAX_ROUNDS.
        repeats: calls per timed block, by name; None chooses them so that a block lasts BLOCK_SECONDS.
        probe: reads a state of the machine that changes from one moment to the next, in a few milliseconds.
        steady: whether the machine is itself just now. A round counts only if it was so before and after it; once
            PATIENCE_SECONDS have gone by in vain, every round counts.
        clock: seconds, monotonic.
    """
    names = list(functions)
    per_call = {name: time_block(functions[name], 1, clock) for name in names}
    if repeats is None:
        # A single call is a rough guess for a fast function; a look at a whole block corrects it.
        rough = {name: repeats_for(per_call[name]) for name in names}
        short = [name for name in names if rough[name] > 1]
        per_call |= {name: time_block(functions[name], rough[name], clock) for name in short}
        repeats = {name: repeats_for(per_call[name]) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    faults, readings = dict.fromkeys(names, 0), []
    lost, unsteady = 0.0, 0

    def one_round(index: int) -> tuple[dict[str, float], dict[str, int]]:
        blocks, new_faults = {}, {}
        for name in turn_order(names, index):
            if per_call[name] < SETTLE_SECONDS:
                functions[name]()
            faults_before = page_faults()
            blocks[name] = time_block(functions[name], repeats[name], clock)
            new_faults[name] = page_faults() - faults_before
        return blocks, new_faults

    gc_was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        start, round_index, quiet = clock(), 0, False
        while round_index < MAX_ROUNDS and (round_index < MIN_ROUNDS or clock() - start - lost <= budget):
            opened, watched = clock(), steady is not None and lost < PATIENCE_SECONDS
            quiet = not watched or quiet or steady()  # a look after a round serves the next one too
            if quiet:
                reading = probe() if probe else None
                blocks, new_faults = one_round(round_index)
                quiet = not watched or steady()
            if not quiet:
                lost, unsteady = lost + clock() - opened, unsteady + 1
                continue
            round_index += 1
            if probe:
                readings.append(reading)
            for name in names:
                seconds[name].append(blocks[name])
                faults[name] += new_faults[name]
    finally:
        if gc_was_on:
            gc.enable()
    calls = {name: repeats[name] * len(seconds[name]) for name in names}
    return Rounds(seconds, {name: faults[name] / calls[name] for name in names}, readings, unsteady)


@dataclass(frozen=True)
class Interval:
    """A median and the bounds of its confidence interval, in the unit of the values."""

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Median with its distribution-free confidence interval from order statistics.

    The number of values below the true median is Binomial(n, 1/2), so the interval runs from the k-th
    smallest to the k-th largest value, k being the largest for which P(fewer than k below) <=
    (1 - confidence) / 2. Six values are the fewest that reach 95% (David and Nagaraja, Order Statistics,
    section 7.1).

    Raises:
        ValueError: too few values for the confidence asked for.
    """
    ordered = sorted(values)
    count = len(ordered)
    tail = (1 - confidence) / 2
    below, k = 0.0, 0
    while k < count:
        below += math.comb(count, k) / 2**count
        if below > tail:
            break
        k += 1
    if k == 0:
        raise ValueError(f"median_interval: {count} values cannot give a {confidence:.0%} interval")
    return Interval(median(ordered), ordered[k - 1], ordered[count - k])


def ratio_interval(slow: Sequence[float], fast: Sequence[float], confidence: float = 0.95) -> Interval:
    """Median of the per-round ratios slow / fast, with its interval.

    Raises:
        ValueError: the lists differ in length, or hold too few rounds.
    """
    return median_interval([s / f for s, f in zip(slow, fast, strict=True)], confidence)
