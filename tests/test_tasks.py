"""The tasks: loss curves agree between backends, and goals are reached."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from benchmarks.tasks.backends import make_learner, numpy_twin
from benchmarks.tasks.problem import Batch
from benchmarks.tasks.recorder import RECORDED_CALLS
from benchmarks.tasks.registry import TASKS
from benchmarks.tasks.runner import AGREEMENT, Run, largest_difference, measure, train
from tests.covering import each_meeting
from tests.tolerances import assert_close

TOYS = ["toy_classes", "up_down", "next_number", "next_number_default", "hihello"]
# Few updates, for what the toys leave out: lengths, clipping, SGD, tokens, states given, cells, an encoder.
SHORT = {
    "counting_ones": dict(sequences=160, epochs=5),
    "counting_ones_ragged": dict(sequences=160, epochs=5),
    "counting_ones_sgd": dict(sequences=160, epochs=5),
    "pos_toy": dict(epochs=25),
    "melody": dict(epochs=50),
    "reverse": dict(sequences=100, epochs=25, batch=50, hidden=16),
}
SHORT_CELLS = [
    *[("counting_ones", cell) for cell in ("LSTM", "GRU", "delay")],
    *[("counting_ones_ragged", cell) for cell in ("RNN", "delay")],
    ("counting_ones_sgd", "RNN"),
    ("pos_toy", "LSTM"),
    *[("melody", cell) for cell in ("RNN", "RNNCell", "LSTMCell", "GRUCell")],
    *[("reverse", cell) for cell in ("LSTM", "GRU")],
]
SMALL = {
    "reverse": dict(sequences=500, hidden=32),
    "names": dict(sequences=900),
    "token_tags": dict(sequences=100),
}
GOALS = [*TOYS, "counting_ones", "counting_ones_lstm", "counting_ones_gru", "counting_ones_delay"]
FORWARD = {  # tasks whose weights NumPy measures -> options of a training
    "pos_toy": {},
    "melody": {},
    "melody_cell": {},
    "reverse": dict(sequences=400, length=4, hidden=16, epochs=2, batch=50),
}


@pytest.fixture(autouse=True)
def one_thread():
    """More would cost these small models time; conftest puts the number back."""
    torch.set_num_threads(1)


def learner_of(name, backend, dtype="float32", **options):
    task = TASKS[name]
    problem = task.problem(backend, dtype=dtype, **options)
    return problem, make_learner(backend, problem, task.seed, dtype)


def trained(name, backend, dtype="float32", **options) -> tuple[Run, object]:
    problem, learner = learner_of(name, backend, dtype, **options)
    return train(learner, problem, backend, epochs=None, title=None), learner


@cache
def losses_on_torch(name, dtype, **options):
    return trained(name, "torch", dtype, **options)[0].losses


def assert_curves_agree(name, backend, dtype, **options):
    steps, bound = AGREEMENT[dtype]
    losses, expected = (
        trained(name, backend, dtype, **options)[0].losses,
        losses_on_torch(name, dtype, **options),
    )
    assert len(losses) >= 50
    assert largest_difference(losses, expected, steps) <= bound


@each_meeting(3, name=TOYS, cell=["RNN", "LSTM", "GRU"], backend=["rnn_ext", "numpy"], dtype=list(AGREEMENT))
def test_loss_curves_lie_on_those_of_torch(name, cell, backend, dtype):
    assert_curves_agree(name, backend, dtype, cell=cell, epochs=AGREEMENT[dtype][0])


@each_meeting(task=SHORT_CELLS, backend=["rnn_ext", "numpy"], dtype=list(AGREEMENT))
def test_loss_curves_of_the_larger_tasks_lie_on_those_of_torch(task, backend, dtype):
    name, cell = task
    # NumPy's SGD goes sequence by sequence unless a batch is one sequence on torch too.
    options = dict(SHORT[name], batch=1) if (name, backend) == ("counting_ones_sgd", "numpy") else SHORT[name]
    assert_curves_agree(name, backend, dtype, cell=cell, **options)


@pytest.mark.parametrize("dtype", AGREEMENT)
@pytest.mark.parametrize("name", ["names", "token_tags"])
def test_loss_curves_of_packed_batches_in_both_directions_lie_on_those_of_torch(name, dtype):
    length = {"length": 20} if "length" in TASKS[name].options else {}
    assert_curves_agree(name, "rnn_ext", dtype, sequences=180, batch=8, hidden=8, epochs=3, **length)


@pytest.mark.parametrize("backend", ["torch", "rnn_ext", "numpy"])
@pytest.mark.parametrize("name", GOALS)
def test_the_toys_reach_their_goals(name, backend):
    run, _ = trained(name, backend)
    assert run.reached, run.scores


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "rnn_ext"])
@pytest.mark.parametrize(
    "name", ["reverse", "names", "token_tags", "digits_rows", "digits_pixels", "char_lm"]
)
def test_the_long_trainings_reach_their_goals(name, backend):
    unboxed = {"seconds": None} if "seconds" in TASKS[name].options else {}  # however slow the machine is
    run, _ = trained(name, backend, **unboxed)
    assert run.reached, run.scores


def test_plain_sgd_sequence_by_sequence_reaches_its_goal_on_numpy():
    run, _ = trained("counting_ones_sgd", "numpy", epochs=5)
    assert run.reached, run.scores


@pytest.mark.parametrize("name", FORWARD)
def test_numpy_measures_the_same_success_on_the_weights_that_rnn_ext_has_learnt(name):
    run, learner = trained(name, "rnn_ext", **FORWARD[name])
    assert run.reached or FORWARD[name], run.scores
    problem = TASKS[name].problem("numpy", **FORWARD[name])
    assert measure(numpy_twin(learner, problem), problem).scores == run.scores


@pytest.mark.parametrize("name", TASKS)
def test_every_task_learns_on_every_backend_it_names(name):
    task = TASKS[name]
    for backend in task.backends:
        problem, learner = learner_of(name, backend, **SMALL.get(name, {}))
        batch = problem.batches(0)[0]
        first, state = learner.step(batch)
        losses = [learner.step(batch, state if problem.training.carry_state else None)[0] for _ in range(5)]
        assert all(map(math.isfinite, losses)) and losses[-1] < first
        assert all(map(math.isfinite, problem.score(learner).values()))
        replayed = learner.replay()
        assert replayed is None if problem.model.cell == "delay" else replayed > 0


def arrays(nested) -> list[np.ndarray]:
    if isinstance(nested, tuple):
        return [array for part in nested for array in arrays(part)]
    return [] if nested is None else [nested]


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_data_and_weights(name):
    task = TASKS[name]
    problem, again = (task.problem("torch", seed=3, **SMALL.get(name, {})) for _ in range(2))
    first, second = (arrays(p.batches(0)[0]) for p in (problem, again))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    weights = [make_learner("torch", problem, 3, "float32").module.state_dict() for _ in range(2)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("backend", ["torch", "rnn_ext", "numpy"])
def test_padding_does_not_count(backend):
    def loss(padding):
        problem, learner = learner_of("counting_ones_ragged", backend)
        x, y, lengths, *_ = problem.batches(0)[0]
        behind = np.arange(len(x))[:, None] >= lengths
        assert behind.any()
        return learner.step(Batch(np.where(behind[..., None], np.float32(padding), x), y, lengths))[0]

    assert loss(padding=0) == loss(padding=7)


@pytest.mark.parametrize("backend", ["torch", "rnn_ext", "numpy"])
def test_padding_of_a_source_does_not_count(backend):
    def loss(padding):
        problem, learner = learner_of("reverse", backend, sequences=64)
        batch = problem.batches(0)[0]
        x, lengths = batch.source
        behind = np.arange(len(x))[:, None] >= lengths
        assert behind.any()
        source = batch.source._replace(x=np.where(behind, padding, x))
        return learner.step(batch._replace(source=source))[0]

    assert loss(padding=0) == loss(padding=7)


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


@pytest.mark.parametrize(
    "name, options",
    [("toy_classes", {}), ("melody_cell", {}), ("reverse", dict(sequences=64)), ("names", SMALL["names"])],
)
def test_a_replayed_backward_pass_is_the_one_of_training(name, options):
    problem = TASKS[name].problem("torch", **options)
    problem = replace(
        problem, training=replace(problem.training, clip=None)
    )  # the clipped one is not replayed
    learner = make_learner("torch", problem, 0, "float32")
    start = {key: p.clone() for key, p in learner.module.state_dict().items()}
    learner.step(problem.batches(0)[0])
    parameters = [p for stack in learner.module.recurrent_layers() for p in stack.parameters()]
    trained_grads = [p.grad.clone() for p in parameters]
    learner.module.load_state_dict(start)
    learner.replay()
    for p, expected in zip(parameters, trained_grads, strict=True):
        assert_close(p.grad, expected)
