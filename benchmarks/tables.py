"""Tables of a speed result, for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import median

from tabulate import tabulate

from .contest import threads_text
from .grids import GRIDS
from .lines import Line, by_grid, grouped, lines, mean_bound, mean_ratio
from .pairs import Interval, median_interval, ratio_interval

DISTURBED = 0.05  # of the machine's CPU time
SLOW_BARRIER = 3  # times the median: the cores are further apart than usual
NAMES = {
    "onnxruntime": "ONNX Runtime",
    "float32": "rnn_ext in float32",
}  # of contestants, where not their own

Column = tuple[str, Callable[[Line], object]]


def titled(all_lines: Iterable[Line]) -> list[tuple[str, list[Line]]]:
    """Lines that belong into one table, with its title."""
    return [
        (f"{members[0].class_name}, {mode}, {dtype}, {threads_text(threads)}", members)
        for (_, _, dtype, threads, mode), members in grouped(
            all_lines, "grid", "cell", "dtype", "threads", "mode"
        )
    ]


def number(value: float | None) -> str:
    """A positive number with three significant digits and no exponent; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def percent(share: float) -> str:
    """A share as a percentage with two significant digits."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def bounds(interval: Interval) -> str:
    """The two ends of an interval."""
    return f"{number(interval.low)} – {number(interval.high)}"


def megabytes(size: int | None) -> str:
    """Bytes in millions."""
    return number(size and size / 1e6)


def other_columns(name: str) -> list[Column]:
    """A further contestant's time and ratio."""

    def of(line: Line, value: Callable) -> str:
        return number(value(line.others[name]) if name in line.others else None)

    title = NAMES.get(name, name)
    return [
        (f"{title} ms", lambda line: of(line, lambda other: other.ms)),
        (f"{title} / rnn_ext", lambda line: of(line, lambda other: other.ratio.median)),
    ]


def others_of(members: Iterable[Line]) -> list[str]:
    """The further contestants of some lines."""
    return list(dict.fromkeys(name for line in members for name in line.others))


def columns(members: list[Line]) -> list[Column]:
    """The columns that one group's table needs: those that some line has a value for."""
    found: list[Column] = [
        ("B×T×I×H", lambda line: line.shape),
        ("plan", lambda line: line.plan),
        ("rnn_ext ms", lambda line: number(line.fused_ms)),
        ("torch ms", lambda line: number(line.torch_ms)),
        ("torch / rnn_ext", lambda line: number(line.ratio.median)),
        ("95% interval", lambda line: bounds(line.ratio)),
    ]
    if any(line.share is not None for line in members):
        found.append(("of peak", lambda line: percent(line.share)))
    if any(line.bound_ms for line in members):
        found.append(("torch / bound", lambda line: number(line.bound_ratio)))
    found.append(("pairs", lambda line: line.pairs))
    if any(line.barrier_ns for line in members):
        found.append(("barrier ns", lambda line: ", ".join(f"{ns:.0f}" for ns in line.barrier_ns) or "–"))
    for name in others_of(members):
        found += other_columns(name)
    if any(line.memory for line in members):
        found += [
            ("rnn_ext MB", lambda line: megabytes(line.memory)),
            ("torch MB", lambda line: megabytes(line.torch_memory)),
            ("MB, rnn_ext / torch", lambda line: number(line.memory_ratio)),
        ]
    if any(line.amx for line in members):
        found += [
            ("AMX GFLOP/s", lambda line: number(line.amx and line.amx.gflops)),
            ("AMX", lambda line: line.amx.state if line.amx else "–"),
        ]
    if any(line.amx and line.amx.mixed for line in members):
        found += [
            ("ratio, AMX fast", lambda line: number(line.amx and line.amx.fast_ratio)),
            ("ratio, AMX slow", lambda line: number(line.amx and line.amx.slow_ratio)),
        ]
    return found


def speed_table(members: list[Line], style: str) -> str:
    """One group's table."""
    found = columns(members)
    body = [[cell(line) for _, cell in found] for line in members]
    alignment = ["left", "left"] + ["right"] * (len(found) - 2)
    headers = [title for title, _ in found]
    return tabulate(body, headers, tablefmt=style, colalign=alignment, disable_numparse=True)


def means_table(all_lines: Iterable[Line], style: str) -> str:
    """Geometric means of each group, with and without toys, and the shapes where rnn_ext looks worst."""
    groups = titled(all_lines)
    members_of_all = [line for _, members in groups for line in members]
    contestants = [None, *others_of(members_of_all)]
    larger = [line for line in members_of_all if not line.point.toy]
    without_toys = {name for name in (None, *others_of(larger)) if len(larger) < len(members_of_all)}
    with_memory = any(line.memory_ratio for line in members_of_all)
    headers = ["", "shapes"]
    for name in contestants:
        headers.append(f"{NAMES.get(name, name) if name else 'torch'} / rnn_ext")
        headers += ["without toys"] * (name in without_toys)
    bounded = any(line.bound_ms for line in members_of_all)
    headers += ["torch / bound"] * bounded + ["least lower end"] + ["most memory, rnn_ext / torch"] * with_memory
    body = []
    for title, members in groups:
        least = min(members, key=lambda line: line.ratio.low)
        row = [title, len(members)]
        for name in contestants:
            row.append(number(mean_ratio(members, name)))
            if name in without_toys:
                row.append(number(mean_ratio([line for line in members if not line.point.toy], name)))
        if bounded:
            row.append(number(mean_bound(members)))
        row.append(f"{number(least.ratio.low)} at {least.shape}")
        if with_memory:
            most = max(members, key=lambda line: line.memory_ratio or 0)
            row.append(f"{number(most.memory_ratio)} at {most.shape}" if most.memory_ratio else "–")
        body.append(row)
    alignment = ["left"] + ["right"] * (len(headers) - 1)
    return tabulate(body, headers, tablefmt=style, colalign=alignment, disable_numparse=True)


def linear_titled(records: Iterable[dict]) -> list[tuple[str, list[dict]]]:
    """Records over the length that belong into one table, with its title."""
    found: dict[str, list[dict]] = {}
    for record in records:
        batch, input_size, hidden_size = record.get("sizes", (1, 64, 64))
        shape = f"B = {batch}, I = {input_size}, H = {hidden_size}"
        title = f"{shape}, {record['dtype']}, {threads_text(record['threads'])}"
        found.setdefault(title, []).append(record)
    return list(found.items())


def linear_table(records: list[dict], style: str) -> str:
    """Nanoseconds per step over the length, and each length's cost per step against the shortest's."""
    body = []
    for record in records:
        shortest, *_ = lengths = sorted(record["seconds"], key=int)
        for length in lengths:
            per_step = [seconds / int(length) for seconds in record["seconds"][length]]
            base = [seconds / int(shortest) for seconds in record["seconds"][shortest]]
            growth, cost = ratio_interval(per_step, base), median_interval(per_step)
            faults = record.get("faults", {}).get(length)
            body.append(
                [
                    record["cell"].upper(),
                    record["mode"],
                    f"{int(length):,}",
                    number(cost.median * 1e9),
                    number(growth.median),
                    bounds(growth) if length != shortest else "–",
                    "–" if faults is None else f"{faults:,.0f}",
                    len(per_step),
                ]
            )
    headers = [
        "",
        "mode",
        "T",
        "ns per step",
        "against the shortest",
        "95% interval",
        "page faults a call",
        "rounds",
    ]
    alignment = ["left", "left"] + ["right"] * 6
    return tabulate(body, headers, tablefmt=style, colalign=alignment, disable_numparse=True)


def disturbance(result: dict) -> str:
    """What other processes took of the machine meanwhile, with a warning where that is too much."""
    shares = sorted(record["neighbours"] for record in [*result["speed"], *result["linear"]])
    if not shares:
        return "Nothing was timed."
    typical, worst = percent(median(shares)), percent(shares[-1])
    told = f"Other processes took {typical} of the CPU time (median), {worst} at most."
    unsteady = sum(record.get("unsteady", 0) for record in result["speed"])
    if unsteady:
        counted = sum(len(record["seconds"]["torch"]) for record in result["speed"])
        told += (
            f" {counted} rounds count; {unsteady} times one was put off or left out, for before or after it the"
            " multiply-add peak was not there."
        )
    if shares[-1] > DISTURBED:
        told += f" Above {percent(DISTURBED)} times are not to be trusted: measure again on a quiet machine."
    return told


def barriers(result: dict) -> str:
    """How long the threads of a line took to meet, before and after it: whether their cores shared a cache."""
    readings = sorted(ns for record in result["speed"] for ns in record.get("barrier_ns", ()))
    typical = median(readings)
    slow = sum(ns > SLOW_BARRIER * typical for ns in readings) / len(readings)
    return (
        f"A barrier between the threads of a line took {typical:.0f} ns (median of {len(readings)} readings),"
        f" {readings[-1]:.0f} at most; more than {SLOW_BARRIER} times the median, as where cores share no cache, in"
        f" {percent(slow)} of them. Tables tell it for each line, before and after: such cores slow both sides down."
    )


def refused(result: dict) -> list[str]:
    """What was not timed, and why."""
    return [f"Not timed: {reason}" for reason in result.get("refused", [])]


def text(result: dict) -> str:
    """Everything a result holds, for the terminal."""
    parts = []
    for grid, members in by_grid(lines(result)).items():
        parts.append(grid_title(grid))
        for title, group in titled(members):
            parts += [title, speed_table(group, "simple")]
        parts += ["Geometric means", means_table(members, "simple")]
    for title, records in linear_titled(result["linear"]):
        parts += [f"{grid_title('linear')}; {title}", linear_table(records, "simple")]
    return "\n\n".join([*parts, *refused(result), disturbance(result)])


def grid_title(grid: str) -> str:
    """A heading for one grid's tables."""
    return f"Grid {grid}: {GRIDS[grid].purpose}"
