"""`python -m benchmarks report`: Markdown tables and PNG charts from the JSON of `speed` and `tasks`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import charts, grids, lines, tables
from .contest import threads_text
from .grids import GRIDS
from .merge import load, merged
from .speed import FOLDER
from .tasks import cli as tasks
from .tasks import tables as task_tables
from .tasks.runner import Result, Run

READING = """\
Milliseconds are the median of a call; the ratio is the median over interleaved pairs, above 1 where rnn_ext
is faster; *of peak* is the share of the float32 multiply-add peak that rnn_ext reaches. *MB* are the peak
memory of a training step beyond weights and input, gradients included."""
READING_BOUND = """\
*Bound* is the least time that the rates measured beside a line allow: what Python, PyTorch and autograd ask of any
call, the products at the multiply-add peak, and where a step has few rows reading W_hh for each of them. The cell,
what backward needs of forward and waiting count as nothing there, so that *torch / bound* is out of reach."""
READING_AMX = f"""\
*AMX GFLOP/s* is what one thread gave beside the pairs in float32 products split into bfloat16 tiles. On some
machines it jumps between two levels; a pair counts as fast from {lines.AMX_FAST} on."""
READING_FLOOR = f"""\
A toy is a shape with hidden size below {grids.TOY_HIDDEN_SIZE}. *Two linears* are two calls of `F.linear`
with the layer's input and parameters: what Python, PyTorch and autograd ask for any such call."""
READING_LINEAR = """\
The process keeps its memory while it measures this: a page fault adds the cost of getting memory anew."""
READING_TASKS = """\
Ratios are torch / rnn_ext. *Seconds* are all updates; *in layers* is the recurrent layers' part of them,
forward and backward; *curves apart* is the loss curves' largest relative difference at the start."""


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
        "Versions: "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version),
    ]
    if facts["environment"]:
        items.append("Set: " + ", ".join(f"`{name}={value}`" for name, value in facts["environment"].items()))
    if facts.get("memory_kept"):
        items.append("malloc kept all memory of the process")
    return [f"- {item}" for item in items]


def peak_lines(result: dict) -> list[str]:
    """What a speed result says of the machine's peak and of its quiet, as Markdown list items."""
    items = [
        f"float32 multiply-add peak, {threads_text(int(threads))}: {max(samples):.0f} GFLOP/s"
        f" (least of {len(samples)} samples: {min(samples):.0f})"
        for threads, samples in result["fma_peak_gflops"].items()
    ]
    items += [tables.barriers(result)] if any(record.get("barrier_ns") for record in result["speed"]) else []
    return [f"- {item}" for item in [*items, tables.disturbance(result), *tables.refused(result)]]


def setting(result: dict) -> str:
    """Machine and versions in a few words."""
    facts = result["machine"]
    versions = facts["versions"]
    return f"{facts['cpu']}, {facts['isa']}; rnn_ext {versions['rnn_ext']}, torch {versions['torch']}"


def draw(result: dict, stem: str, out: Path) -> list[Path]:
    """Write one result's charts into `out`, a few for each grid, dtype and thread count; returns them."""
    paths = []
    for (grid, dtype, threads), members in lines.grouped(lines.lines(result), "grid", "dtype", "threads"):
        note = f"{dtype}, {threads_text(threads)}; {setting(result)}"
        with_share = [line for line in members if line.share is not None]
        with_memory = [line for line in members if line.memory_ratio is not None]
        kinds = {
            "speed": (charts.ratio_chart, members, f"rnn_ext against torch.nn: {GRIDS[grid].purpose}"),
            "peak": (charts.share_chart, with_share, "Share of the machine's peak"),
            "memory": (charts.memory_chart, with_memory, "Peak memory of training"),
        }
        for kind, (write_chart, content, title) in kinds.items():
            if content:
                paths.append(out / f"{stem}-{grid}-{dtype}-{threads}t-{kind}.png")
                write_chart(content, paths[-1], title, note)
    for place, (title, records) in enumerate(tables.linear_titled(result["linear"])):
        paths.append(out / f"{stem}-linear-{place}.png")
        charts.linear_chart(records, paths[-1], "Cost over the length", f"{title}; {setting(result)}")
    return paths


def speed_section(result: dict, name: str, out: Path) -> list[str]:
    """A speed result as paragraphs of Markdown; its charts go into `out`."""
    parts = ["\n".join(machine_lines(result["machine"]) + peak_lines(result)), READING]
    measured = lines.lines(result)
    if any(line.bound_ms for line in measured):
        parts.append(READING_BOUND)
    if any(line.amx for line in measured):
        parts.append(READING_AMX)
    if any(line.point.toy for line in measured):
        parts.append(READING_FLOOR)
    pictures = draw(result, name, out)

    def of_grid(grid: str) -> list[str]:
        return [link(picture, out) for picture in pictures if picture.name.startswith(f"{name}-{grid}-")]

    for grid, members in lines.by_grid(measured).items():
        parts += [f"### {tables.grid_title(grid)}", *of_grid(grid), tables.means_table(members, "pipe")]
        for heading, group in tables.titled(members):
            parts += [f"#### {heading}", tables.speed_table(group, "pipe")]
    if result["linear"]:
        parts += [f"### {tables.grid_title('linear')}", *of_grid("linear"), READING_LINEAR]
    for heading, records in tables.linear_titled(result["linear"]):
        parts += [f"#### {heading}", tables.linear_table(records, "pipe")]
    return parts


def tasks_section(document: dict, name: str, out: Path) -> list[str]:
    """The same for the results of tasks; their charts go into a folder of that name."""
    results = []
    for fields in document["results"]:
        runs = {backend: Run(**run) for backend, run in fields["runs"].items()}
        results.append(
            Result(**{key: value for key, value in fields.items() if key != "agrees"} | {"runs": runs})
        )
    tasks.draw(results, out / name)
    pictures = sorted((out / name).glob("*.png"))
    table = one_header_row(task_tables.text(results, "pipe"))
    return ["\n".join(machine_lines(document["machine"])), READING_TASKS, table] + [
        link(p, out) for p in pictures
    ]


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


def write(results: dict[str, dict], out: Path) -> Path:
    """Write `report.md` and the charts of all results, by file name, into `out`; returns the Markdown file.

    Raises:
        ValueError: the same case was measured twice under the same conditions.
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = ["# Results"]
    speed = merged({name: result for name, result in results.items() if result["kind"] == "speed"})
    for place, (names, result) in enumerate(speed.items()):
        stem = "speed" if len(speed) == 1 else f"speed{place + 1}"
        parts += [f"## Speed: {names}", *speed_section(result, stem, out)]
    for name, result in results.items():
        if result["kind"] == "tasks":
            parts += [f"## Tasks: {name}", *tasks_section(result, name, out)]
    page = out / "report.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page


def main(argv: list[str] | None = None) -> int:
    """Read the files named, write the report, and say where it is."""
    options = argparse.ArgumentParser(prog="python -m benchmarks report", description=__doc__)
    add = options.add_argument
    add(
        "results",
        nargs="*",
        type=Path,
        metavar="RESULT.json",
        help=f"files, or folders of them (default: {FOLDER})",
    )
    add("--out", type=Path, default=FOLDER / "report", metavar="DIR", help="default: %(default)s")
    args = options.parse_args(argv)
    given = args.results or [FOLDER]
    paths = [file for path in given for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not paths:
        options.error(
            f"no result in {', '.join(map(str, given))}; make one with `python -m benchmarks speed`"
        )
    try:
        results = {path.stem: load(path) for path in paths}
        if len(results) < len(paths):
            options.error("two results have the same file name")
        page = write(results, args.out)
    except (OSError, ValueError) as error:
        options.error(str(error))
    print(f"wrote {page} and its charts")
    return 0
