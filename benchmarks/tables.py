"""Summaries of a speed result, and tables of them, for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from statistics import geometric_mean, median

from tabulate import tabulate

from .pairs import Interval, median_interval, ratio_interval

DISTURBED = 0.05  # of the machine's CPU time
LINEAR_TITLE = "Cost over the length, rnn_ext alone: B = 1, I = H = 64, 1 thread"


@dataclass(frozen=True)
class Line:
    """One measured case: medians in milliseconds, shares of the float32 multiply-add peak in 0..1."""

    cell: str
    point: tuple[int, int, int, int]
    mode: str
    threads: int
    dtype: str
    plan: str
    fused_ms: float
    torch_ms: float
    ratio: Interval  # torch / rnn_ext
    share: float
    torch_share: float
    onnx_ms: float | None
    onnx_ratio: Interval | None  # onnxruntime / rnn_ext
    pairs: int

    @property
    def shape(self) -> str:
        """B×T×I×H."""
        return "×".join(map(str, self.point))


def lines(result: dict) -> list[Line]:
    """The lines of a speed result as measured; shares are of the best peak that the run saw."""
    peaks = {int(threads): max(samples) for threads, samples in result["fma_peak_gflops"].items()}
    return [_line(record, peaks[record["threads"]]) for record in result["speed"]]


def _line(record: dict, peak_gflops: float) -> Line:
    seconds = record["seconds"]
    fused, builtin, onnx = seconds["rnn_ext"], seconds["torch"], seconds.get("onnxruntime")
    return Line(
        cell=record["cell"],
        point=tuple(record["point"]),
        mode=record["mode"],
        threads=record["threads"],
        dtype=record["dtype"],
        plan=record["plan"]["plan"] or record["plan"]["path"],
        fused_ms=median(fused) * 1e3,
        torch_ms=median(builtin) * 1e3,
        ratio=ratio_interval(builtin, fused),
        share=record["flops"] / median(fused) / (peak_gflops * 1e9),
        torch_share=record["flops"] / median(builtin) / (peak_gflops * 1e9),
        onnx_ms=median(onnx) * 1e3 if onnx else None,
        onnx_ratio=ratio_interval(onnx, fused) if onnx else None,
        pairs=len(fused),
    )


def grouped(all_lines: Iterable[Line], *fields: str) -> list[tuple[tuple, list[Line]]]:
    """Lines that agree in the named fields, with their values: groups sorted, lines as they came."""
    key = attrgetter(*fields)
    return [(values, list(members)) for values, members in groupby(sorted(all_lines, key=key), key)]


def titled(all_lines: Iterable[Line]) -> list[tuple[str, list[Line]]]:
    """Lines that belong into one table, with its title."""
    return [
        (f"{cell.upper()}, {mode}, {dtype}, {threads_text(threads)}", members)
        for (cell, dtype, threads, mode), members in grouped(all_lines, "cell", "dtype", "threads", "mode")
    ]


def threads_text(threads: int) -> str:
    """The count with its noun: 1 thread, 2 threads."""
    return f"{threads} thread{'s' if threads > 1 else ''}"


def number(value: float | None) -> str:
    """A positive number with three significant digits and no exponent; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def percent(share: float) -> str:
    """A share as a percentage with two significant digits."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def speed_table(members: list[Line], style: str) -> str:
    """One group's table."""
    headers = [
        "B×T×I×H",
        "plan",
        "rnn_ext ms",
        "torch ms",
        "torch / rnn_ext",
        "95% interval",
        "of peak",
        "pairs",
    ]
    with_onnx = any(line.onnx_ms is not None for line in members)
    if with_onnx:
        headers += ["ONNX Runtime ms", "ONNX / rnn_ext"]
    body = []
    for line in members:
        cells = [
            line.shape,
            line.plan,
            number(line.fused_ms),
            number(line.torch_ms),
            number(line.ratio.median),
            f"{number(line.ratio.low)} – {number(line.ratio.high)}",
            percent(line.share),
            line.pairs,
        ]
        if with_onnx:
            cells += [number(line.onnx_ms), number(line.onnx_ratio.median if line.onnx_ratio else None)]
        body.append(cells)
    alignment = ["left", "left"] + ["right"] * (len(headers) - 2)
    return tabulate(body, headers, tablefmt=style, colalign=alignment, disable_numparse=True)


def mean_ratio(members: list[Line]) -> float:
    """Geometric mean of the ratios torch / rnn_ext."""
    return geometric_mean(line.ratio.median for line in members)


def means_table(all_lines: Iterable[Line], style: str) -> str:
    """Geometric means of each group, and the shape whose lower bound is the least."""
    body = []
    for title, members in titled(all_lines):
        least = min(members, key=lambda line: line.ratio.low)
        onnx = [line.onnx_ratio.median for line in members if line.onnx_ratio]
        body.append(
            [
                title,
                len(members),
                number(mean_ratio(members)),
                number(geometric_mean(onnx)) if onnx else "–",
                f"{number(least.ratio.low)} at {least.shape}",
            ]
        )
    headers = ["", "shapes", "torch / rnn_ext", "ONNX / rnn_ext", "least lower bound"]
    alignment = ["left"] + ["right"] * 4
    return tabulate(body, headers, tablefmt=style, colalign=alignment, disable_numparse=True)


def linear_table(records: list[dict], style: str) -> str:
    """Nanoseconds per step over the length, and each length's cost per step against the shortest's."""
    body = []
    for record in records:
        shortest, *_ = lengths = sorted(record["seconds"], key=int)
        for length in lengths:
            per_step = [seconds / int(length) for seconds in record["seconds"][length]]
            base = [seconds / int(shortest) for seconds in record["seconds"][shortest]]
            growth, cost = ratio_interval(per_step, base), median_interval(per_step)
            body.append(
                [
                    record["mode"],
                    f"{int(length):,}",
                    number(cost.median * 1e9),
                    number(growth.median),
                    f"{number(growth.low)} – {number(growth.high)}" if length != shortest else "–",
                    len(per_step),
                ]
            )
    headers = ["mode", "T", "ns per step", "against the shortest", "95% interval", "rounds"]
    return tabulate(body, headers, tablefmt=style, colalign=["left"] + ["right"] * 5, disable_numparse=True)


def disturbance(result: dict) -> str:
    """What other processes took of the machine meanwhile, with a warning where that is too much."""
    shares = sorted(record["neighbours"] for record in [*result["speed"], *result["linear"]])
    typical, worst = percent(median(shares)), percent(shares[-1])
    told = f"Other processes took {typical} of the CPU time (median), {worst} at most."
    if shares[-1] > DISTURBED:
        told += f" Above {percent(DISTURBED)} times are not to be trusted: measure again on a quiet machine."
    return told


def text(result: dict) -> str:
    """Everything a result holds, for the terminal."""
    parts = []
    if result["speed"]:
        measured = lines(result)
        for title, members in titled(measured):
            parts += [title, speed_table(members, "simple")]
        parts += ["Geometric means", means_table(measured, "simple")]
    if result["linear"]:
        parts += [LINEAR_TITLE, linear_table(result["linear"], "simple")]
    return "\n\n".join([*parts, disturbance(result)])
