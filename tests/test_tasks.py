"""The tasks: loss curves agree between backends, goals are reached, the command does what it says."""

import json
import math

import numpy as np
import pytest
import torch

from benchmarks.tasks import main
from benchmarks.tasks.backends import make_learner, numpy_twin
from benchmarks.tasks.counting_ones import even_ones
from benchmarks.tasks.problem import Batch
from benchmarks.tasks.registry import TASKS
from benchmarks.tasks.runner import AGREEMENT, Result, Run, compare, largest_difference, measure, train
from benchmarks.tasks.torch_learner import RECORDED_CALLS, DelayLine
from tests.tolerances import assert_close

TOYS = ["toy_classes", "up_down", "next_number", "next_number_default", "hihello"]
# Few updates, for what the toys leave out: sequence lengths, clipping, tokens, SGD.
SHORT = {
    "counting_ones_ragged": dict(sequences=160, epochs=5),
    "counting_ones_sgd": dict(sequences=160, epochs=5),
    "melody": dict(epochs=50),
}


def learner_of(name, backend, dtype="float32", **options):
    task = TASKS[name]
    problem = task.problem(backend, dtype=dtype, **options)
    return problem, make_learner(backend, problem, task.seed, dtype)


def trained(name, backend, dtype="float32", **options) -> tuple[Run, object]:
    problem, learner = learner_of(name, backend, dtype, **options)
    return train(learner, problem, backend, epochs=None, title=None), learner


def assert_curves_agree(name, backend, dtype, **options):
    steps, bound = AGREEMENT[dtype]
    losses, expected = (trained(name, b, dtype, **options)[0].losses for b in (backend, "torch"))
    assert len(losses) >= 50
    assert largest_difference(losses, expected, steps) <= bound


@pytest.mark.parametrize("dtype", AGREEMENT)
@pytest.mark.parametrize("backend", ["rnn_ext", "numpy"])
@pytest.mark.parametrize("name", TOYS)
def test_loss_curves_lie_on_those_of_torch(name, backend, dtype):
    assert_curves_agree(name, backend, dtype, epochs=AGREEMENT[dtype][0])


@pytest.mark.parametrize("dtype", AGREEMENT)
@pytest.mark.parametrize("backend", ["rnn_ext", "numpy"])
@pytest.mark.parametrize("name", SHORT)
def test_loss_curves_with_lengths_tokens_and_clipping_lie_on_those_of_torch(name, backend, dtype):
    # NumPy's SGD goes sequence by sequence unless a batch is one sequence on torch too.
    options = dict(SHORT[name], batch=1) if (name, backend) == ("counting_ones_sgd", "numpy") else SHORT[name]
    assert_curves_agree(name, backend, dtype, **options)


@pytest.mark.parametrize("backend", ["torch", "rnn_ext", "numpy"])
@pytest.mark.parametrize("name", [*TOYS, "counting_ones"])
def test_the_toys_reach_their_goals(name, backend):
    run, _ = trained(name, backend)
    assert run.reached, run.scores


def test_plain_sgd_sequence_by_sequence_reaches_its_goal_on_numpy():
    run, _ = trained("counting_ones_sgd", "numpy", epochs=5)
    assert run.reached, run.scores


def test_numpy_plays_the_melodies_that_rnn_ext_has_learnt():
    run, learner = trained("melody", "rnn_ext")
    assert run.reached, run.scores
    problem = TASKS["melody"].problem("numpy")
    assert measure(numpy_twin(learner, problem), problem).reached


@pytest.mark.parametrize("name", TASKS)
def test_every_task_learns_on_every_backend_it_names(name):
    task = TASKS[name]
    for backend in task.backends:
        problem, learner = learner_of(name, backend)
        batch = problem.batches(0)[0]
        first, state = learner.step(batch)
        losses = [learner.step(batch, state if problem.training.carry_state else None)[0] for _ in range(5)]
        assert all(map(math.isfinite, losses)) and losses[-1] < first
        assert all(map(math.isfinite, problem.score(learner).values()))
        replayed = learner.replay()
        assert replayed is None if problem.model.taps else replayed > 0


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_data_and_weights(name):
    task = TASKS[name]
    first, second = (task.problem("torch", seed=3).batches(0)[0] for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True) if a is not None)
    problem = task.problem("torch")
    weights = [make_learner("torch", problem, 3, "float32").module.state_dict() for _ in range(2)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("backend", ["torch", "rnn_ext", "numpy"])
def test_padding_does_not_count(backend):
    def loss(padding):
        problem, learner = learner_of("counting_ones_ragged", backend)
        x, y, lengths = problem.batches(0)[0]
        behind = np.arange(len(x))[:, None] >= lengths
        assert behind.any()
        return learner.step(Batch(np.where(behind[..., None], np.float32(padding), x), y, lengths))[0]

    assert loss(padding=0) == loss(padding=7)


def test_even_ones_counts_the_window():
    bits = np.array([1, 0, 1, 1, 0, 0, 0])[:, None]
    assert even_ones(bits, 3).ravel().tolist() == [0, 0, 1, 1, 1, 0, 1]


def test_a_delay_line_knows_its_last_inputs_and_no_more():
    line, x = DelayLine(1, 4, taps=3), torch.randn(8, 1, 1)
    before, _ = line(x)
    x[2] += 1
    after, _ = line(x)
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, True, True, False, False, False]


def test_a_replay_repeats_the_recorded_calls_of_training_alone():
    problem, learner = learner_of("up_down", "torch")
    batch = problem.batches(0)[0]
    for _ in range(RECORDED_CALLS + 3):
        learner.step(batch)
        learner.predict(batch.x)
    inputs = []
    learner.module.rnn.register_forward_pre_hook(lambda layer, args: inputs.append(args[0]))
    learner.replay()
    assert len(inputs) == RECORDED_CALLS
    assert all(np.array_equal(x, batch.x) for x in inputs)


def test_a_replayed_backward_pass_is_the_one_of_training():
    _, learner = learner_of("toy_classes", "torch")
    rnn = learner.module.rnn
    learner.step(learner.problem.batches(0)[0])
    trained_grads = [p.grad.clone() for p in rnn.parameters()]
    learner.module.load_state_dict(learner_of("toy_classes", "torch")[1].module.state_dict())
    learner.replay()
    for p, expected in zip(rnn.parameters(), trained_grads, strict=True):
        assert_close(p.grad, expected)


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


def test_list_names_every_task(capsys):
    assert main(["--list"]) == 0
    listing = capsys.readouterr().out
    assert all(f"{task.name}  [{task.id}]" in listing for task in TASKS.values())


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


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "hihello", "--window", "3"], "hihello has no option window"),
        (["--task", "up_down", "--hidden", "1", "2", "--length", "3", "4"], "a sweep takes one option"),
        (["--task", "melody", "--backend", "numpy"], "melody on numpy measures trained weights"),
        (["--task", "no_such_task"], "invalid choice"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
