"""From a measurement to JSON, tables, charts and the report; the command line."""

from __future__ import annotations

import json

import pytest
import torch

NEEDED = "part of the bench extra"
pytest.importorskip("tabulate", reason=NEEDED)
pytest.importorskip("matplotlib", reason=NEEDED)
pytest.importorskip("tqdm", reason=NEEDED)
pytest.importorskip("psutil", reason=NEEDED)

import rnn_ext  # noqa: E402
from benchmarks import charts, contest, lines, machine, memory, merge, pairs, report, speed, tables  # noqa: E402
from benchmarks.contest import CELLS, MODES  # noqa: E402
from benchmarks.grids import GRIDS, Point  # noqa: E402
from benchmarks.tasks import cli  # noqa: E402
from benchmarks.tasks.registry import TASKS  # noqa: E402
from benchmarks.tasks.runner import run_task  # noqa: E402
from tests.subject import run_python  # noqa: E402
from tests.tolerances import assert_close  # noqa: E402


@pytest.fixture(autouse=True)
def coarse_charts(monkeypatch):
    """Fewer pixels, less time."""
    monkeypatch.setitem(charts.STYLE, "savefig.dpi", 30)


# Results of our choosing


def result_with(speed_records=(), linear_records=(), **facts):
    """A result as `speed` writes it, with records of our choosing."""
    return {
        "kind": "speed",
        "format": speed.FORMAT,
        "machine": machine.facts() | facts,
        "budget_seconds": 1,
        "fma_peak_gflops": {"1": [90.0, 100.0]},
        "speed": list(speed_records),
        "linear": list(linear_records),
        "refused": [],
    }


def record(point, mode, ratio, seconds=1e-3, others=(), **fields):
    """A record in which torch takes `ratio` times as long as rnn_ext in every round of a drifting machine."""
    drift = [1.0, 1.1, 0.9, 1.3, 1.0, 1.2, 0.8]
    times = {"rnn_ext": 1.0, "torch": ratio, **dict(others)}
    return {
        "grid": "padded",
        "cell": "rnn",
        "point": list(point),
        "mode": mode,
        "threads": 1,
        "dtype": "float32",
        "flops": 2e7,
        "plan": {"path": "kernel", "plan": "serial", "reason": "", "isa": "avx2", "threads": 1},
        "disagreement": 0.0,
        "memory": {},
        "amx_gflops": [],
        "neighbours": 0.01,
        "faults": dict.fromkeys(times, 0.0),
        "seconds": {name: [seconds * factor * d for d in drift] for name, factor in times.items()},
        **fields,
    }


def linear_record(**fields):
    """A record over two lengths, ten times as long and eleven times as slow."""
    return {
        "cell": "rnn",
        "sizes": [1, 64, 64],
        "mode": "training",
        "dtype": "float32",
        "threads": 1,
        "neighbours": 0.0,
        "faults": {"1000": 0.0, "10000": 6250.0},
        "seconds": {"1000": [1e-3 * d for d in range(1, 8)], "10000": [1.1e-2 * d for d in range(1, 8)]},
        **fields,
    }


def only_line(record):
    (line,) = lines.lines(result_with([record]))
    return line


ONE, TWO, LARGE = Point(1, 1, 1, 1), Point(2, 2, 2, 2), Point(1, 2, 3, 64)


# Lines and tables


def test_a_line_summarises_its_rounds():
    line = only_line(record(Point(1, 2, 3, 4), "inference", 3.0, others={"onnxruntime": 2.0}))
    assert line.shape == "1×2×3×4" and line.plan == "serial" and line.pairs == 7
    assert_close([line.fused_ms, line.torch_ms, line.others["onnxruntime"].ms], [1.0, 3.0, 2.0])
    assert_close(
        [line.ratio.median, line.ratio.low, line.others["onnxruntime"].ratio.median], [3.0, 3.0, 2.0]
    )
    # 2e7 operations in 1 ms are 20 GFLOP/s, of the best peak sample, 100.
    assert_close([line.share, line.torch_share], [0.2, 0.2 / 3])
    assert line.memory_ratio is None and line.amx is None


def test_the_float32_peak_is_no_measure_of_another_dtype():
    line = only_line(record(ONE, "inference", 3.0, dtype="bfloat16"))
    assert line.share is None
    assert "of peak" not in tables.speed_table([line], "pipe")


def test_memory_stands_beside_the_times_of_training():
    line = only_line(record(ONE, "training", 3.0, memory={"rnn_ext": 1_500_000, "torch": 2_000_000}))
    table = tables.speed_table([line], "pipe")
    assert "1.50 |" in table and "2.00 |" in table and "0.750 |" in table
    assert "0.750 at 1×1×1×1" in tables.means_table([line], "pipe")


def test_pairs_are_told_apart_by_the_amx_rate_beside_them():
    measured = record(ONE, "training", 3.0, amx_gflops=[400, 400, 100, 100, 100, 250, 249])
    measured["seconds"]["torch"] = [
        seconds * factor for seconds, factor in zip(measured["seconds"]["rnn_ext"], [4, 4, 2, 2, 2, 3, 2])
    ]
    line = only_line(measured)
    assert (line.amx.fast, line.amx.slow, line.amx.state) == (3, 4, "fast in 3 of 7")
    assert_close([line.amx.gflops, line.amx.fast_ratio, line.amx.slow_ratio], [249, 4.0, 2.0])
    table = tables.speed_table([line], "pipe")
    assert "ratio, AMX fast" in table and "fast in 3 of 7" in table


@pytest.mark.parametrize(("rate", "state"), [(300, "fast"), (100, "slow")])
def test_a_steady_amx_rate_needs_one_ratio(rate, state):
    line = only_line(record(ONE, "training", 3.0, threads=1, amx_gflops=[rate] * 7))
    assert line.amx.state == state
    assert "ratio, AMX" not in tables.speed_table([line], "pipe")


def test_geometric_means_stand_beside_the_worst_shape_with_and_without_toys():
    records = [record(point, "training", ratio) for point, ratio in ((ONE, 2.0), (TWO, 8.0), (LARGE, 9.0))]
    row = tables.means_table(lines.lines(result_with(records)), "pipe").splitlines()[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "RNN, training, float32, 1 thread", "3", "5.24", "9.00", "2.00 at 1×1×1×1"
    ]  # fmt: skip


def test_the_mean_of_a_contestant_is_over_the_shapes_where_it_took_part():
    records = [
        record(ONE, "inference", 2.0, others={"onnxruntime": 0.5, "two linears": 0.7}),
        record(LARGE, "inference", 3.0, others={"onnxruntime": 2.0}),
    ]
    table = tables.means_table(lines.lines(result_with(records)), "pipe")
    headers, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert headers[2:7] == [
        "torch / rnn_ext", "without toys", "ONNX Runtime / rnn_ext", "without toys", "two linears / rnn_ext"
    ]  # fmt: skip
    assert row[2:7] == ["2.45", "3.00", "1.00", "2.00", "0.700"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.00697, "0.00697"), (0.5, "0.500"), (9.996, "10.00"), (21.04, "21.0"), (512.7, "513")],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert tables.number(value) == text


def test_cost_per_step_is_compared_round_by_round_and_page_faults_are_told():
    table = tables.linear_table([linear_record()], "pipe")
    assert "10,000" in table and "1.10 – 1.10" in table and "6,250" in table


def test_a_busy_machine_is_told_of():
    quiet, busy = (record(ONE, "training", 2.0, neighbours=share) for share in (0.01, 0.3))
    assert "not to be trusted" not in tables.disturbance(result_with([quiet, quiet]))
    assert "30% at most" in tables.disturbance(result_with([quiet, busy]))
    assert "not to be trusted" in tables.disturbance(result_with([quiet, busy]))


# The report


def test_a_result_survives_the_way_through_json_into_the_report(tmp_path):
    some = {"memory": {"rnn_ext": 10, "torch": 20}, "amx_gflops": [300.0] * 7}
    records = [record(point, mode, 3.0, **some) for point in GRIDS["padded"].points[:3] for mode in MODES]
    result = result_with(records, [linear_record()])
    speed.save(result, tmp_path / "some" / "run.json")
    assert merge.load(tmp_path / "some" / "run.json") == result

    assert report.main([str(tmp_path / "some"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    for expected in (
        "## Speed: run", "### Grid padded", "1×6×5×4", "RNN, training, float32, 1 thread", "3.00",
        "AMX GFLOP/s", "### Grid linear",
    ):  # fmt: skip
        assert expected in page
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert [picture.name for picture in pictures] == [
        "speed-linear-0.png",
        "speed-padded-float32-1t-memory.png",
        "speed-padded-float32-1t-peak.png",
        "speed-padded-float32-1t-speed.png",
    ]
    for picture in pictures:
        assert picture.name in page
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_every_grid_and_cell_has_its_section_and_chart(tmp_path):
    pairs_of_grids = [name for name in GRIDS if name != "linear"]
    records = [
        record(LARGE, mode, 2.0, grid=grid, cell=cell, dtype=GRIDS[grid].dtype, others={"float32": 3.0})
        for grid in pairs_of_grids for cell in CELLS for mode in MODES
    ]  # fmt: skip
    page = report.write({"all": result_with(records)}, tmp_path).read_text()
    for grid in pairs_of_grids:
        assert f"### Grid {grid}: {GRIDS[grid].purpose}" in page
        assert (tmp_path / f"speed-{grid}-{GRIDS[grid].dtype}-1t-speed.png").exists()
    assert "#### LSTMCell, training" in page and "rnn_ext in float32 / rnn_ext" in page


def test_results_of_one_machine_stand_in_one_table(tmp_path):
    rnn, gru = (result_with([record(LARGE, "training", 2.0, cell=cell)]) for cell in ("rnn", "gru"))
    joined = merge.merged({"a": rnn, "b": gru})
    assert list(joined) == ["a, b"]
    assert [line.cell for line in lines.lines(joined["a, b"])] == ["rnn", "gru"]
    assert len(joined["a, b"]["fma_peak_gflops"]["1"]) == 4


def test_results_of_other_conditions_stand_apart(tmp_path):
    same = [record(LARGE, "training", 2.0)]
    results = {
        "a": result_with(same),
        "b": result_with(same, isa="other"),
        "c": result_with(same, memory_kept=True),
    }
    assert list(merge.merged(results)) == ["a", "b", "c"]
    page = report.write(results, tmp_path).read_text()
    assert page.count("## Speed: ") == 3 and (tmp_path / "speed3-padded-float32-1t-speed.png").exists()


def test_a_case_that_was_measured_twice_is_refused(tmp_path, capsys):
    for name in ("first", "second"):
        speed.save(result_with([record(LARGE, "training", 2.0)]), tmp_path / f"{name}.json")
    with pytest.raises(SystemExit):
        report.main([str(tmp_path), "--out", str(tmp_path)])
    assert "measured twice, in first and in second" in capsys.readouterr().err


def test_a_file_that_is_no_result_and_one_that_is_not_there_are_told_of(tmp_path, capsys):
    (tmp_path / "list.json").write_text("[1]")
    for path, said in (("list.json", "expected JSON of"), ("nowhere.json", "No such file")):
        with pytest.raises(SystemExit):
            report.main([str(tmp_path / path), "--out", str(tmp_path)])
        assert said in capsys.readouterr().err


def test_results_of_tasks_go_into_the_same_report(tmp_path):
    result = run_task(TASKS["toy_classes"], ["torch", "rnn_ext"], bar=False, epochs=2)
    cli.write_json([result], tmp_path / "toys.json")
    page = report.write({"toys": merge.load(tmp_path / "toys.json")}, tmp_path).read_text()
    assert (tmp_path / "toys" / "toy_classes.png").exists() and "(toys/toy_classes.png)" in page
    assert "| task | final loss torch | rnn_ext | success measure |" in page
    assert f" {result.runs['rnn_ext'].final_loss:.4g} |" in page


def test_a_chart_can_show_a_single_mode_and_a_slower_shape(tmp_path):
    assert report.write({"slow": result_with([record(ONE, "training", 0.5)])}, tmp_path).exists()


def test_a_file_that_is_no_result_is_refused_by_name(tmp_path):
    other = tmp_path / "other.json"
    for content in ('{"kind": "speed", "format": 999}', "{}", "[]"):
        other.write_text(content)
        with pytest.raises(ValueError, match="other.json"):
            merge.load(other)


# The machine


def test_the_facts_of_the_machine_are_complete():
    facts = json.loads(json.dumps(machine.facts()))
    assert facts["cpu"] and facts["affinity"] and facts["isa"] in facts["available_isas"]
    assert facts["versions"]["torch"] == torch.__version__
    assert machine.fma_peak(1, seconds=0.01) > 0


def test_a_machine_below_its_best_rate_is_not_steady():
    rates, pauses = iter([90.0] * 7 + [100.0, 94.0, 96.0, 110.0, 103.0]), []
    steady = machine.Steady(2, rate=lambda threads, seconds: next(rates), sleep=pauses.append)
    assert [steady() for _ in range(4)] == [False, True, True, False]
    assert len(pauses) == 2


def test_rounds_of_an_unsteady_machine_are_told():
    told = tables.disturbance(result_with([record(ONE, "training", 2.0, unsteady=3)]))
    assert "7 rounds count; 3 times one was put off or left out" in told
    assert "left out" not in tables.disturbance(result_with([record(ONE, "training", 2.0)]))


def test_barriers_that_took_longer_than_usual_are_told(tmp_path):
    near = record(ONE, "training", 2.0, threads=2, barrier_ns=[40.0, 50.0])
    far = record(TWO, "training", 2.0, threads=2, barrier_ns=[60.0, 400.0])
    told = tables.barriers(result_with([near, far]))
    assert "took 55 ns (median of 4 readings), 400 at most" in told and "in 25% of them" in told
    facts = {"fma_peak_gflops": {"2": [200.0]}}
    rows = tables.speed_table(lines.lines(result_with([near, far]) | facts), "simple").splitlines()
    assert "barrier ns" in rows[0] and "40, 50" in rows[2] and "60, 400" in rows[3]
    assert told in report.write({"run": result_with([near, far]) | facts}, tmp_path).read_text()
    assert "barrier" not in report.write({"run": result_with([record(ONE, "training", 2.0)])}, tmp_path).read_text()


def test_own_work_does_not_count_as_a_neighbours():
    times = iter([(10.0, 20.0), (11.0, 24.0)])  # own and all CPU seconds, before and after
    neighbours = machine.Neighbours(lambda: next(times), clock=iter([0.0, 4.0]).__next__, cpus=2)
    with neighbours:
        pass
    assert_close(neighbours.share, (4 - 1) / (4 * 2))


KEEPING = """
import torch
from benchmarks import machine, pairs
assert machine.keep_memory(0.25)
run = lambda: [torch.ones(n) for n in (1_500_000, 3_000_000, 1_500_000)]
for _ in range(3):
    run()
before = pairs.page_faults()
for _ in range(5):
    run()
print(pairs.page_faults() - before)
"""


def test_memory_that_is_kept_is_not_faulted_in_again():
    # In a process of its own: the setting lasts.
    assert int(run_python(KEEPING)) < 100  # of 29,000 pages in five calls


# The command line


def test_a_point_is_named_by_its_sizes_or_its_place_in_the_grid():
    assert speed.parse_point("1x100x64x64") == speed.parse_point("1,100,64,64") == Point(1, 100, 64, 64)
    assert speed.parse_point(str(Point(1, 2, 3, 4))) == Point(1, 2, 3, 4)
    args = speed.parser().parse_args(["--points", "6", "1x2x3x4"])
    assert speed.chosen_points(args, "padded") == [GRIDS["padded"].points[6], Point(1, 2, 3, 4)]
    for wrong in ("1x2x3", "99"):
        with pytest.raises(SystemExit):
            speed.main(["--points", wrong])


def test_the_list_names_every_grid_and_shape(capsys):
    assert speed.main(["--list"]) == 0
    told = capsys.readouterr().out
    for name, grid in GRIDS.items():
        assert f"{name}: {grid.purpose}" in told
        assert all(str(point) in told for point in grid.points)


def test_speed_runs_from_the_command_line_to_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rnn_ext._C, "amx_rate", lambda seconds, threads: 300.0)
    path = tmp_path / "run.json"
    options = "--grid padded packed --points 1 --threads 1 --budget 0 --json".split()
    assert speed.main([*options, str(path)]) == 0
    result = merge.load(path)
    assert [(r["grid"], r["point"], r["mode"]) for r in result["speed"]] == [
        (grid, list(GRIDS[grid].points[1]), mode) for grid in ("padded", "packed") for mode in MODES
    ]
    for measured in result["speed"]:
        assert {len(values) for values in measured["seconds"].values()} == {pairs.MIN_ROUNDS}
        assert measured["amx_gflops"] == [300.0] * pairs.MIN_ROUNDS
        assert len(measured["barrier_ns"]) == (2 if measured["threads"] > 1 else 0)
        remembered = measured["mode"] == "training" and memory.available()
        assert set(measured["memory"]) == ({"rnn_ext", "torch"} if remembered else set())
    assert len(result["fma_peak_gflops"]["1"]) == 4
    assert "torch / rnn_ext" in capsys.readouterr().out


def test_a_case_in_which_results_disagree_is_told_of_and_the_others_are_timed(tmp_path, capsys, monkeypatch):
    def wrong_in_training(self):
        if self.case.mode == "training":
            raise contest.Disagreement(f"{self.case}: torch disagrees")
        return right(self)

    right = contest.Contest.disagreement
    monkeypatch.setattr(contest.Contest, "disagreement", wrong_in_training)
    path = tmp_path / "run.json"
    options = "--grid steps --points 1x2x3x4 --threads 1 --budget 0 --json".split()
    assert speed.main([*options, str(path)]) == 1
    reason = "Not timed: steps, RNNCell 1×2×3×4, training, float32, 1 thread: torch disagrees"
    assert reason in capsys.readouterr().out
    assert [measured["mode"] for measured in merge.load(path)["speed"]] == ["inference"]
    assert reason in report.write({"run": merge.load(path)}, tmp_path).read_text()


def test_linear_runs_from_the_command_line_to_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "keep_memory", lambda: True)  # it would last for all tests
    path = tmp_path / "run.json"
    options = "--grid linear --cell gru --points 1x10x3x5 1x40x3x5 --budget 0 --json".split()
    assert speed.main([*options, str(path)]) == 0
    result = merge.load(path)
    assert [r["mode"] for r in result["linear"]] == list(MODES)
    assert all(set(r["seconds"]) == set(r["faults"]) == {"10", "40"} for r in result["linear"])
    told = capsys.readouterr().out
    assert "ns per step" in told and "B = 1, I = 3, H = 5" in told


def test_the_cost_over_the_length_is_refused_for_shapes_that_differ_otherwise(capsys):
    with pytest.raises(SystemExit):
        speed.main(["--grid", "linear", "--points", "1x10x3x5", "1x40x3x6"])
    assert "differ in their steps alone" in capsys.readouterr().err
