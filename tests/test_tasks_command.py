"""`python -m benchmarks tasks`: the command does what it says, and refuses what it cannot do."""

import json

import pytest
import torch

from benchmarks.tasks import main
from benchmarks.tasks.registry import TASKS
from benchmarks.tasks.runner import Result, Run, compare


@pytest.fixture(autouse=True)
def one_thread():
    """More would cost these small models time; conftest puts the number back."""
    torch.set_num_threads(1)


def result_of(torch_losses, our_losses):
    runs = {
        "torch": Run("torch", torch_losses, wall_s=3.0),
        "rnn_ext": Run("rnn_ext", our_losses, wall_s=2.0),
    }
    result = Result("toy_classes", {}, 0, "float32", runs)
    compare(result)
    return result


def test_curves_that_part_too_soon_do_not_agree():
    curve = [1.0] * 60
    assert result_of(curve, curve).agrees
    assert result_of(curve, [1.0] * 50 + [2.0] * 10).agrees  # later they may part
    assert not result_of(curve, [1.0] * 49 + [1.001] * 11).agrees
    assert not result_of(curve, [1.0] * 49 + [float("nan")] * 11).agrees
    assert result_of(curve, curve).wall_ratio == 1.5


def test_list_names_every_task_with_its_cells(capsys):
    assert main(["--list"]) == 0
    listing = capsys.readouterr().out
    for task in TASKS.values():
        assert f"{task.name}  [{task.id}]" in listing
        assert f"    cells: {', '.join(task.cells)}\n" in listing


def test_every_task_of_the_plan_is_there():
    ids = [f"B{i}" for i in range(1, 9)] + [f"C{i}" for i in range(1, 5)]
    assert sorted({task.id for task in TASKS.values()}) == ids


def test_a_run_prints_a_table_and_writes_json_and_charts(tmp_path, capsys):
    path = tmp_path / "results.json"
    assert main(["--task", "toy_classes", "--json", str(path), "--charts", str(tmp_path)]) == 0
    assert "toy_classes" in capsys.readouterr().out
    (result,) = json.loads(path.read_text())["results"]
    assert {backend: len(run["losses"]) for backend, run in result["runs"].items()} == {
        "torch": 100,
        "rnn_ext": 100,
        "numpy": 100,
    }
    assert result["agrees"] and result["runs"]["rnn_ext"]["reached"]
    assert (tmp_path / "toy_classes.png").stat().st_size > 0


def test_a_sweep_gives_a_row_for_each_value_and_a_chart(tmp_path, capsys):
    arguments = ["--task", "toy_classes", "--backend", "numpy", "--epochs", "3", "--hidden", "2", "5"]
    assert main([*arguments, "--charts", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "toy_classes, hidden 2" in table and "toy_classes, hidden 5" in table
    assert [path.name for path in tmp_path.iterdir()] == ["toy_classes-hidden.png"]


def test_several_cells_give_a_row_and_a_chart_each(tmp_path, capsys):
    arguments = ["--task", "toy_classes", "--backend", "numpy", "--epochs", "3", "--cell", "lstm", "GRU"]
    assert main([*arguments, "--charts", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "toy_classes, LSTM" in table and "toy_classes, GRU" in table
    assert {path.name for path in tmp_path.iterdir()} == {"toy_classes-LSTM.png", "toy_classes-GRU.png"}


@pytest.mark.parametrize("backends", [["numpy"], ["torch", "rnn_ext"]])
def test_a_sweep_over_cells_gives_one_chart(backends, tmp_path, capsys):
    arguments = "--task counting_ones --epochs 1 --sequences 32 --window 2 3 --cell RNN delay".split()
    chosen = [word for backend in backends for word in ("--backend", backend)]
    assert main([*arguments, *chosen, "--charts", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    for cell in ("RNN", "delay"):
        assert all(f"counting_ones, {cell}, window {window}" in table for window in (2, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["counting_ones-window.png"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "hihello", "--window", "3"], "hihello has no option window"),
        (["--task", "up_down", "--hidden", "1", "2", "--length", "3", "4"], "a sweep takes one option"),
        (["--task", "melody", "--backend", "numpy"], "melody on numpy measures trained weights"),
        (["--task", "no_such_task"], "invalid choice"),
        (["--task", "pos_toy", "--cell", "GRU"], "pos_toy has no cell GRU; it has LSTM"),
        (["--task", "reverse", "--cell", "RNN"], "reverse has no cell RNN; it has LSTM, GRU"),
        (["--task", "hihello", "--cell", "transformer"], "choose from RNN, LSTM, GRU, delay, RNNCell"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
