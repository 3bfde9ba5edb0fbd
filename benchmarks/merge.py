"""Results read from their files, and speed results of several files put together."""

from __future__ import annotations

import json
from pathlib import Path

from .speed import FORMAT

# Facts that must be the same in results whose lines stand in one table.
CONDITIONS = (
    "cpu",
    "cpu_details",
    "affinity",
    "system",
    "isa",
    "versions",
    "environment",
    "build",
    "memory_kept",
)
# What tells one record of a result from another.
CASE = ("grid", "cell", "point", "sizes", "mode", "threads", "dtype")


def load(path: Path) -> dict:
    """Read one result.

    Raises:
        ValueError: a result neither of `tasks`, nor of `speed` in the format of today.
    """
    result = json.loads(path.read_text())
    kind = result.get("kind") if isinstance(result, dict) else None
    if kind == "tasks" or (kind == "speed" and result["format"] == FORMAT):
        return result
    raise ValueError(f"{path}: expected JSON of `python -m benchmarks` speed (format {FORMAT}) or tasks")


def merged(results: dict[str, dict]) -> dict[str, dict]:
    """Speed results by name, put together where their conditions agree: one result, named after all of them.

    Raises:
        ValueError: two of them measured the same case under the same conditions.
    """
    groups: dict[str, dict[str, dict]] = {}
    for name, result in results.items():
        conditions = json.dumps([result["machine"].get(key) for key in CONDITIONS], sort_keys=True)
        groups.setdefault(conditions, {})[name] = result
    return {", ".join(group): _joined(group) for group in groups.values()}


def _joined(group: dict[str, dict]) -> dict:
    first = next(iter(group.values()))
    whole: dict = first | {"fma_peak_gflops": {}, "speed": [], "linear": [], "refused": []}
    origin: dict[str, str] = {}
    for name, result in group.items():
        for threads, samples in result["fma_peak_gflops"].items():
            whole["fma_peak_gflops"].setdefault(threads, []).extend(samples)
        whole["refused"] += result.get("refused", [])
        for kind in ("speed", "linear"):
            for record in result[kind]:
                case = f"{kind}: " + ", ".join(str(record[key]) for key in CASE if key in record)
                if case in origin:
                    raise ValueError(
                        f"{case} was measured twice, in {origin[case]} and in {name}: leave one out"
                    )
                origin[case] = name
                whole[kind].append(record)
    return whole
