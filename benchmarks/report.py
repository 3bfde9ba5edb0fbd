"""`python -m benchmarks report`: Markdown tables and PNG charts from the JSON of `speed` and `tasks`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from . import charts, tables
from .speed import FOLDER, FORMAT
from .tasks import cli as tasks
from .tasks import tables as task_tables
from .tasks.runner import Result, Run

READING = """\
Milliseconds are the median of a call; the ratio is the median over interleaved pairs, above 1 where rnn_ext
is faster; *of peak* is the share of the float32 multiply-add peak that rnn_ext reaches."""
READING_TASKS = """\
Ratios are torch / rnn_ext. *Seconds* are all updates; *in layers* is the recurrent layers' part of them,
forward and backward; *curves apart* is the loss curves' largest relative difference at the start."""


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


def machine_lines(facts: dict) -> list[str]:
    """The facts that a reader needs before any number, as Markdown list items."""
    details = ", ".join(f"{key} {value}" for key, value in facts["cpu_details"].items())
    items = [
        f"Date: {facts['date']}",
        f"Processor: {facts['cpu']}" + (f" ({details})" if details else ""),
        f"Logical CPUs used: {len(facts['affinity'])};"
        f" those that share a core: {'; '.join(facts['core_siblings']) or 'unknown'}",
        f"Instruction set: {facts['isa']} of {', '.join(facts['available_isas'])}",
        f"System: {facts['system']}",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version),
    ]
    if facts["environment"]:
        items.append("Set: " + ", ".join(f"`{name}={value}`" for name, value in facts["environment"].items()))
    return [f"- {item}" for item in items]


def peak_lines(result: dict) -> list[str]:
    """What a speed result says of the machine's peak and of its quiet, as Markdown list items."""
    items = [
        f"float32 multiply-add peak, {tables.threads_text(int(threads))}: {max(samples):.0f} GFLOP/s"
        f" (least of {len(samples)} samples: {min(samples):.0f})"
        for threads, samples in result["fma_peak_gflops"].items()
    ]
    return [f"- {item}" for item in [*items, tables.disturbance(result)]]


def setting(result: dict) -> str:
    """Machine and versions in a few words."""
    facts = result["machine"]
    versions = facts["versions"]
    return f"{facts['cpu']}, {facts['isa']}; rnn_ext {versions['rnn_ext']}, torch {versions['torch']}"


def draw(result: dict, stem: str, out: Path) -> list[Path]:
    """Write one result's charts into `out`, two for each cell, dtype and thread count; returns them."""
    paths = []
    for (cell, dtype, threads), lines in tables.grouped(tables.lines(result), "cell", "dtype", "threads"):
        name = f"{stem}-{cell}-{dtype}-{threads}t"
        note = f"{dtype}, {tables.threads_text(threads)}; {setting(result)}"
        speed, share = out / f"{name}-speed.png", out / f"{name}-peak.png"
        title = f"rnn_ext.{cell.upper()} against torch.nn.{cell.upper()}"
        charts.ratio_chart(lines, speed, title, note)
        charts.share_chart(lines, share, "Share of the machine's peak", note)
        paths += [speed, share]
    return paths


def speed_section(result: dict, name: str, out: Path) -> list[str]:
    """A speed result as paragraphs of Markdown; its charts go into `out`."""
    parts = ["\n".join(machine_lines(result["machine"]) + peak_lines(result))]
    if result["speed"]:
        lines = tables.lines(result)
        parts += [link(picture, out) for picture in draw(result, name, out)]
        parts += [READING, "### Geometric means", tables.means_table(lines, "pipe")]
        for heading, members in tables.titled(lines):
            parts += [f"### {heading}", tables.speed_table(members, "pipe")]
    if result["linear"]:
        parts += [f"### {tables.LINEAR_TITLE}", tables.linear_table(result["linear"], "pipe")]
    return parts


def tasks_section(document: dict, name: str, out: Path) -> list[str]:
    """The same for the results of tasks; their charts go into a folder of that name."""
    results = []
    for fields in document["results"]:
        runs = {backend: Run(**run) for backend, run in fields["runs"].items()}
        results.append(Result(**{key: value for key, value in fields.items() if key != "agrees"} | {"runs": runs}))
    tasks.draw(results, out / name)
    pictures = sorted((out / name).glob("*.png"))
    table = one_header_row(task_tables.text(results, "pipe"))
    return ["\n".join(machine_lines(document["machine"])), READING_TASKS, table] + [link(p, out) for p in pictures]


def one_header_row(table: str) -> str:
    """Joins the rows above the first rule, one for each line of the headings: Markdown knows but one."""
    rows = table.splitlines()
    rule = next(place for place, row in enumerate(rows) if row.startswith("|:"))
    columns = zip(*(row.strip("|").split("|") for row in rows[:rule]), strict=True)
    headings = (" ".join(" ".join(column).split()) for column in columns)
    return "\n".join([f"| {' | '.join(headings)} |", *rows[rule:]])


def link(picture: Path, out: Path) -> str:
    """A picture in Markdown, by its path from `out`."""
    return f"![{picture.stem}]({picture.relative_to(out).as_posix()})"


SECTIONS = {"speed": speed_section, "tasks": tasks_section}


def write(results: dict[str, dict], out: Path) -> Path:
    """Write `report.md` and the charts of all results, by name, into `out`; returns the Markdown file."""
    out.mkdir(parents=True, exist_ok=True)
    parts = ["# Results"]
    for name, result in results.items():
        parts += [f"## {name}", *SECTIONS[result["kind"]](result, name, out)]
    page = out / "report.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page


def main(argv: list[str] | None = None) -> int:
    """Read the files named, write the report, and say where it is."""
    options = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    add = options.add_argument
    add("results", nargs="*", type=Path, metavar="RESULT.json", help=f"default: every one in {FOLDER}")
    add("--out", type=Path, default=FOLDER / "report", metavar="DIR", help="default: %(default)s")
    args = options.parse_args(argv)
    paths = args.results or sorted(FOLDER.glob("*.json"))
    if not paths:
        options.error(f"no result in {FOLDER}; make one with `python -m benchmarks speed`")
    page = write({path.stem: load(path) for path in paths}, args.out)
    print(f"wrote {page} and its charts")
    return 0
