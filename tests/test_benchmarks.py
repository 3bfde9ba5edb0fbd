"""The harness behind the speed figures: statistics, taking turns, counting work, agreement, the report."""

from __future__ import annotations

import gc
import json
import math
import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

NEEDED = "part of the bench extra"
pytest.importorskip("tabulate", reason=NEEDED)
pytest.importorskip("matplotlib", reason=NEEDED)
pytest.importorskip("tqdm", reason=NEEDED)

from benchmarks import contest, machine, onnx_peer, pairs, report, speed, tables  # noqa: E402
from benchmarks.contest import Case, Contest, Point  # noqa: E402
from benchmarks.tasks import cli  # noqa: E402
from benchmarks.tasks.registry import TASKS  # noqa: E402
from benchmarks.tasks.runner import run_task  # noqa: E402
from tests.tolerances import assert_close  # noqa: E402

needs_onnx = pytest.mark.skipif(not onnx_peer.available(), reason="onnx and onnxruntime are optional")


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
    intervals = [pairs.median_interval([generator.lognormvariate(0, 1) for _ in range(20)]) for _ in range(2000)]
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
    seconds = pairs.interleave(clock.contestants(fast=2e-6, slow=5e-4), budget=0, clock=clock)
    assert {name: len(values) for name, values in seconds.items()} == {"fast": 7, "slow": 7}
    assert_close(seconds["fast"], [2e-6] * 7)
    assert_close(seconds["slow"], [5e-4] * 7)


def test_a_timed_block_lasts_long_enough_for_the_clock():
    for cost in (1e-7, 3e-6, 9e-4, 2e-3, 5.0):
        assert pairs.repeats_for(cost) * cost >= pairs.BLOCK_SECONDS
    assert pairs.repeats_for(5.0) == 1


def test_interleaving_stops_when_the_budget_is_used():
    clock = FakeTime()
    seconds = pairs.interleave(clock.contestants(a=0.05, b=0.05), budget=0.95, clock=clock)
    assert len(seconds["a"]) == len(seconds["b"]) == 10  # of 0.1 s; the last crosses the line


def test_interleaving_has_a_greatest_number_of_rounds():
    clock = FakeTime()
    assert len(pairs.interleave(clock.contestants(a=1e-3), budget=math.inf, clock=clock)["a"]) == pairs.MAX_ROUNDS


def test_a_short_turn_opens_with_an_untimed_call_and_a_long_one_does_not():
    clock = FakeTime()
    pairs.interleave(clock.contestants(short=1e-3, long=1.0), 0, {"short": 2, "long": 1}, clock)
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


# Counting work


@pytest.mark.parametrize("point", [Point(1, 6, 5, 4), Point(3, 2, 7, 5)])
def test_flops_are_those_that_torch_counts_in_an_explicit_loop(point):
    cell = torch.nn.RNNCell(point.input_size, point.hidden_size)
    xs = [torch.randn(point.batch, point.input_size, requires_grad=True) for _ in range(point.steps)]
    h = torch.zeros(point.batch, point.hidden_size, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        for x in xs:
            h = cell(x, h)
    with FlopCounterMode(display=False) as backward:
        h.sum().backward()
    assert contest.flop_count(point, "inference") == forward.get_total_flops()
    assert contest.flop_count(point, "training") == forward.get_total_flops() + backward.get_total_flops()


def test_gates_multiply_the_work():
    point = Point(2, 3, 4, 5)
    assert contest.flop_count(point, "inference", gates=4) == 4 * contest.flop_count(point, "inference")


# Cases


def test_a_point_is_named_by_its_sizes_or_its_place_in_the_grid():
    assert speed.parse_point("1x100x64x64") == speed.parse_point("1,100,64,64") == Point(1, 100, 64, 64)
    assert speed.parse_point(str(Point(1, 2, 3, 4))) == Point(1, 2, 3, 4)
    assert speed.parse_point("6") == contest.GRID[6]
    with pytest.raises(TypeError):
        speed.parse_point("1x2x3")


@pytest.mark.parametrize("mode", contest.MODES)
@pytest.mark.parametrize("dtype", contest.DTYPES)
def test_contestants_agree_before_they_are_timed(mode, dtype):
    rivals = Contest(Case("rnn", Point(2, 5, 4, 6), mode, 1, dtype))
    assert rivals.disagreement() <= contest.AGREEMENT[dtype]
    with_onnx = mode == "inference" and dtype == "float32" and onnx_peer.available()
    assert list(rivals.functions) == ["rnn_ext", "torch"] + ["onnxruntime"] * with_onnx


def test_contestants_agree_on_a_gradient_that_is_zero():
    rivals = Contest(Case("rnn", Point(1, 1, 3, 3), "training", 1, "float32"))
    assert rivals.disagreement() <= contest.AGREEMENT["float32"]
    assert not rivals.modules["torch"].weight_hh_l0.grad.any()


@pytest.mark.parametrize("mode", contest.MODES)
def test_a_contestant_with_other_weights_is_not_timed(mode):
    rivals = Contest(Case("rnn", Point(2, 5, 4, 6), mode, 1, "float32"))
    with torch.no_grad():
        rivals.modules["rnn_ext"].weight_hh_l0.add_(0.01)
    with pytest.raises(RuntimeError, match="rnn_ext disagrees"):
        rivals.disagreement()


def test_a_contestant_that_returns_nan_is_not_timed():
    rivals = Contest(Case("rnn", Point(2, 5, 4, 6), "inference", 1, "float32"))
    with torch.no_grad():
        rivals.modules["rnn_ext"].bias_hh_l0.fill_(math.nan)
    with pytest.raises(RuntimeError, match="rnn_ext disagrees"):
        rivals.disagreement()


def test_every_training_step_leaves_fresh_gradients():
    rivals = Contest(Case("rnn", Point(2, 5, 4, 6), "training", 1, "float32"))
    first = [gradient.clone() for gradient in rivals.results("rnn_ext")]
    for once, again in zip(first, rivals.results("rnn_ext"), strict=True):
        assert_close(again, once)


def test_inference_is_timed_without_a_graph():
    rivals = Contest(Case("rnn", Point(2, 5, 4, 6), "inference", 1, "float32"))
    seen = []
    rivals.modules["torch"].register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    rivals.disagreement()
    assert seen == [False, False]


@needs_onnx
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_onnx_twin_computes_what_torch_computes(nonlinearity):
    rnn, x = torch.nn.RNN(5, 4, nonlinearity=nonlinearity), torch.randn(6, 3, 5)
    y, h_n = onnx_peer.contestant(rnn, x, threads=1)()
    expected_y, expected_h_n = rnn(x)
    assert_close(y[:, 0], expected_y)
    assert_close(h_n, expected_h_n)


@needs_onnx
def test_the_onnx_twin_refuses_what_its_one_node_cannot_hold():
    with pytest.raises(ValueError, match="one layer"):
        onnx_peer.rnn_model(torch.nn.RNN(5, 4, num_layers=2))


# From measurement to report


def result_with(speed_records=(), linear_records=()):
    """A result as `speed` writes it, with records of our choosing."""
    return {
        "kind": "speed",
        "format": speed.FORMAT,
        "machine": machine.facts(),
        "budget_seconds": 1,
        "fma_peak_gflops": {"1": [90.0, 100.0]},
        "speed": list(speed_records),
        "linear": list(linear_records),
    }


def record(point, mode, ratio, seconds=1e-3, **contestants):
    """A record in which torch takes `ratio` times as long as rnn_ext in every round of a drifting machine."""
    drift = [1.0, 1.1, 0.9, 1.3, 1.0, 1.2, 0.8]
    times = {"rnn_ext": 1.0, "torch": ratio, **contestants}
    return {
        "cell": "rnn",
        "point": list(point),
        "mode": mode,
        "threads": 1,
        "dtype": "float32",
        "flops": 2e7,
        "plan": {"path": "kernel", "plan": "serial", "reason": "", "isa": "avx2", "threads": 1},
        "disagreement": 0.0,
        "neighbours": 0.01,
        "seconds": {name: [seconds * factor * d for d in drift] for name, factor in times.items()},
    }


def test_a_line_summarises_its_rounds():
    (line,) = tables.lines(result_with([record(Point(1, 2, 3, 4), "inference", 3.0, onnxruntime=2.0)]))
    assert line.shape == "1×2×3×4" and line.plan == "serial" and line.pairs == 7
    assert_close([line.fused_ms, line.torch_ms, line.onnx_ms], [1.0, 3.0, 2.0])
    assert_close([line.ratio.median, line.ratio.low, line.onnx_ratio.median], [3.0, 3.0, 2.0])
    # 2e7 operations in 1 ms are 20 GFLOP/s, of the best peak sample, 100.
    assert_close([line.share, line.torch_share], [0.2, 0.2 / 3])


def test_geometric_means_stand_beside_the_worst_shape():
    records = [record(Point(1, 1, 1, 1), "training", 2.0), record(Point(2, 2, 2, 2), "training", 8.0)]
    table = tables.means_table(tables.lines(result_with(records)), "pipe")
    assert "4.00" in table and "2.00 at 1×1×1×1" in table


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.00697, "0.00697"), (0.5, "0.500"), (9.996, "10.00"), (21.04, "21.0"), (512.7, "513")],
)
def test_numbers_have_three_digits_and_no_exponent(value, text):
    assert tables.number(value) == text


def test_cost_per_step_is_compared_round_by_round():
    seconds = {"1000": [1e-3 * d for d in range(1, 8)], "10000": [1.1e-2 * d for d in range(1, 8)]}
    table = tables.linear_table([{"mode": "training", "seconds": seconds}], "pipe")
    assert "10,000" in table and "1.10 – 1.10" in table


def test_a_result_survives_the_way_through_json_into_the_report(tmp_path):
    records = [record(point, mode, 3.0) for point in contest.GRID[:3] for mode in contest.MODES]
    result = result_with(
        records, [{"mode": "training", "neighbours": 0.0, "seconds": {"10": [1.0] * 7, "100": [10.0] * 7}}]
    )
    speed.save(result, tmp_path / "some" / "run.json")
    assert report.load(tmp_path / "some" / "run.json") == result

    assert report.main([str(tmp_path / "some" / "run.json"), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    for expected in ("## run", "1×6×5×4", "RNN, training, float32, 1 thread", "3.00", "Cost over the length"):
        assert expected in page
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert [picture.name for picture in pictures] == [
        "run-rnn-float32-1t-peak.png",
        "run-rnn-float32-1t-speed.png",
    ]
    for picture in pictures:
        assert picture.name in page
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_results_of_tasks_go_into_the_same_report(tmp_path):
    result = run_task(TASKS["toy_classes"], ["torch", "rnn_ext"], bar=False, epochs=2)
    cli.write_json([result], tmp_path / "toys.json")
    page = report.write({"toys": report.load(tmp_path / "toys.json")}, tmp_path).read_text()
    assert (tmp_path / "toys" / "toy_classes.png").exists() and "(toys/toy_classes.png)" in page
    assert "| task | final loss torch | rnn_ext | success measure |" in page
    assert f" {result.runs['rnn_ext'].final_loss:.4g} |" in page


def test_a_chart_can_show_a_single_mode_and_a_slower_shape(tmp_path):
    result = result_with([record(Point(1, 1, 1, 1), "training", 0.5)])
    assert report.write({"slow": result}, tmp_path).exists()


def test_a_file_that_is_no_result_is_refused_by_name(tmp_path):
    other = tmp_path / "other.json"
    for content in ('{"kind": "speed", "format": 999}', "{}", "[]"):
        other.write_text(content)
        with pytest.raises(ValueError, match="other.json"):
            report.load(other)


def test_the_facts_of_the_machine_are_complete():
    facts = json.loads(json.dumps(machine.facts()))
    assert facts["cpu"] and facts["affinity"] and facts["isa"] in facts["available_isas"]
    assert facts["versions"]["torch"] == torch.__version__
    assert machine.fma_peak(1, seconds=0.01) > 0


def test_a_busy_machine_is_told_of():
    quiet, busy = (record(Point(1, 1, 1, 1), "training", 2.0) | {"neighbours": share} for share in (0.01, 0.3))
    assert "not to be trusted" not in tables.disturbance(result_with([quiet, quiet]))
    assert "30% at most" in tables.disturbance(result_with([quiet, busy]))
    assert "not to be trusted" in tables.disturbance(result_with([quiet, busy]))


def test_own_work_does_not_count_as_a_neighbours():
    times = iter([(10.0, 20.0), (11.0, 24.0)])  # own and all CPU seconds, before and after
    neighbours = machine.Neighbours(lambda: next(times), clock=iter([0.0, 4.0]).__next__, cpus=2)
    with neighbours:
        pass
    assert_close(neighbours.share, (4 - 1) / (4 * 2))


def test_speed_runs_from_the_command_line_to_json(tmp_path, capsys):
    path = tmp_path / "run.json"
    options = "--points 0 2x3x4x5 --threads 1 --budget 0 --json".split()
    assert speed.main([*options, str(path)]) == 0
    result = report.load(path)
    assert [(r["point"], r["mode"]) for r in result["speed"]] == [
        ([1, 6, 5, 4], "inference"),
        ([1, 6, 5, 4], "training"),
        ([2, 3, 4, 5], "inference"),
        ([2, 3, 4, 5], "training"),
    ]
    for measured in result["speed"]:
        assert {len(values) for values in measured["seconds"].values()} == {pairs.MIN_ROUNDS}
    assert len(result["fma_peak_gflops"]["1"]) == 4
    assert "torch / rnn_ext" in capsys.readouterr().out


def test_linear_runs_from_the_command_line_to_json(tmp_path, capsys):
    path = tmp_path / "run.json"
    assert speed.main(["--linear", "--lengths", "10", "40", "--budget", "0", "--json", str(path)]) == 0
    result = report.load(path)
    assert [r["mode"] for r in result["linear"]] == list(contest.MODES)
    assert all(set(r["seconds"]) == {"10", "40"} for r in result["linear"])
    assert "ns per step" in capsys.readouterr().out
