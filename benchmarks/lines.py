"""Summaries of the records of a speed result, one line for each case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from statistics import geometric_mean, median

from . import bound
from .contest import CELLS
from .grids import GRIDS, Point
from .pairs import Interval, ratio_interval

AMX_FAST = 250  # GFLOP/s of float32 products on tiles on one thread, from which on the machine counts as fast


@dataclass(frozen=True)
class Amx:
    """The machine's AMX rate beside the pairs of a line, and the line's ratio torch / rnn_ext by it.

    Attributes:
        gflops: median rate of float32 products by splitting on one thread.
        fast, slow: how many pairs had a rate of at least AMX_FAST, and below.
        fast_ratio, slow_ratio: their median ratios; None without such pairs.
    """

    gflops: float
    fast: int
    slow: int
    fast_ratio: float | None
    slow_ratio: float | None

    @property
    def mixed(self) -> bool:
        return self.fast > 0 and self.slow > 0

    @property
    def state(self) -> str:
        if self.mixed:
            return f"fast in {self.fast} of {self.fast + self.slow}"
        return "fast" if self.fast else "slow"


@dataclass(frozen=True)
class Other:
    """A further contestant: median in milliseconds, and its time over rnn_ext's."""

    ms: float
    ratio: Interval


@dataclass(frozen=True)
class Line:
    """One measured case: medians in milliseconds, shares of the float32 multiply-add peak in 0..1, bytes.

    Shares and the bound are None in another dtype; the bound with AMX too, for a loop of cells, and where its rates
    were not measured; memory in inference or where it was not measured; amx without AMX.
    """

    grid: str
    cell: str
    point: Point
    mode: str
    threads: int
    dtype: str
    plan: str
    fused_ms: float
    torch_ms: float
    ratio: Interval  # torch / rnn_ext
    share: float | None
    torch_share: float | None
    bound_ms: float | None  # the least that the machine allows
    others: dict[str, Other]
    memory: int | None
    torch_memory: int | None
    amx: Amx | None
    barrier_ns: tuple[float, ...]
    pairs: int

    @property
    def shape(self) -> str:
        """B×T×I×H."""
        return str(self.point)

    @property
    def class_name(self) -> str:
        """What torch.nn and rnn_ext call it: RNN, LSTMCell and so on."""
        return CELLS[self.cell].class_name(GRIDS[self.grid])

    @property
    def bound_ratio(self) -> float | None:
        """What torch / rnn_ext would be if rnn_ext took no more than the bound."""
        return self.bound_ms and self.ratio.median * self.fused_ms / self.bound_ms

    @property
    def memory_ratio(self) -> float | None:
        """rnn_ext / torch."""
        return self.memory / self.torch_memory if self.memory and self.torch_memory else None


def lines(result: dict) -> list[Line]:
    """The lines of a speed result as measured; shares are of the best peak that the run saw."""
    peaks = {int(threads): max(samples) for threads, samples in result["fma_peak_gflops"].items()}
    return [_line(record, peaks[record["threads"]]) for record in result["speed"]]


def _line(record: dict, peak_gflops: float) -> Line:
    others = dict(record["seconds"])
    fused, builtin = others.pop("rnn_ext"), others.pop("torch")
    share = record["flops"] / (peak_gflops * 1e9) if record["dtype"] == "float32" else None
    memory = record.get("memory", {})
    cell, grid, point, mode = record["cell"], record.get("grid", "padded"), Point(*record["point"]), record["mode"]
    one_call = GRIDS[grid].call != "steps"  # what a call costs is known, not what each of many in a loop does
    facts = record.get("bound") if share and one_call and not record.get("amx_gflops") else None
    return Line(
        grid=grid,
        cell=cell,
        point=point,
        mode=mode,
        threads=record["threads"],
        dtype=record["dtype"],
        plan=record["plan"]["plan"] or record["plan"]["path"],
        fused_ms=median(fused) * 1e3,
        torch_ms=median(builtin) * 1e3,
        ratio=ratio_interval(builtin, fused),
        share=share and share / median(fused),
        torch_share=share and share / median(builtin),
        bound_ms=facts and bound.seconds(cell, grid, point, mode, facts, peak_gflops) * 1e3,
        others={
            name: Other(median(times) * 1e3, ratio_interval(times, fused)) for name, times in others.items()
        },
        memory=memory.get("rnn_ext"),
        torch_memory=memory.get("torch"),
        amx=_amx(record),
        barrier_ns=tuple(record.get("barrier_ns", ())),
        pairs=len(fused),
    )


def _amx(record: dict) -> Amx | None:
    readings = record.get("amx_gflops")
    if not readings:
        return None
    rates = [reading / record["threads"] for reading in readings]
    ratios = [t / f for t, f in zip(record["seconds"]["torch"], record["seconds"]["rnn_ext"], strict=True)]
    fast = [ratio for ratio, rate in zip(ratios, rates, strict=True) if rate >= AMX_FAST]
    slow = [ratio for ratio, rate in zip(ratios, rates, strict=True) if rate < AMX_FAST]
    return Amx(
        median(rates), len(fast), len(slow), median(fast) if fast else None, median(slow) if slow else None
    )


def grouped(all_lines: Iterable[Line], *fields: str) -> list[tuple[tuple, list[Line]]]:
    """Lines that agree in the named fields (two or more), with these: groups sorted, lines as they came."""
    key = attrgetter(*fields)
    return [(values, list(members)) for values, members in groupby(sorted(all_lines, key=key), key)]


def by_grid(all_lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Lines by grid, in the order of GRIDS."""
    all_lines = list(all_lines)
    found = {name: [line for line in all_lines if line.grid == name] for name in GRIDS}
    return {name: members for name, members in found.items() if members}


def mean_bound(members: Iterable[Line]) -> float | None:
    """Geometric mean of what torch / rnn_ext may reach, over lines with a bound; None if there are none."""
    ratios = [line.bound_ratio for line in members if line.bound_ratio]
    return geometric_mean(ratios) if ratios else None


def mean_ratio(members: Iterable[Line], other: str | None = None) -> float | None:
    """Geometric mean of torch / rnn_ext, or of `other` / rnn_ext where it took part; None if nowhere."""
    if other is None:
        ratios = [line.ratio.median for line in members]
    else:
        ratios = [line.others[other].ratio.median for line in members if other in line.others]
    return geometric_mean(ratios) if ratios else None
