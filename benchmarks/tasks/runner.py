"""Trains one task on several backends and compares them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter

import numpy as np
from tqdm import tqdm

from .backends import BACKENDS, make_learner, numpy_twin
from .problem import Learner, Problem, Scores, Task

# With equal seeds the loss curves lie on each other: over so many updates, to this relative difference.
# Later they part by chaos, not by error.
AGREEMENT = {"float32": (50, 1e-4), "float64": (300, 1e-9)}
REPLAY_ROUNDS, REPLAY_SECONDS = (3, 25), 2.0  # least and most rounds; no further round after so many seconds


@dataclass
class Run:
    """One training on one backend. Times are in seconds."""

    backend: str
    losses: list[float] = field(
        default_factory=list
    )  # of every update; of the test alone if nothing was trained
    epochs: int = 0
    final_loss: float = float("nan")  # mean over the last epoch
    scores: Scores = field(default_factory=dict)
    reached: bool = False
    reached_epoch: int | None = None  # the first, counted from 1
    wall_s: float = 0.0  # the updates alone, without the measures of success
    layers_s: float | None = (
        None  # the recurrent layers alone, all updates; None if not trained or none there
    )


@dataclass
class Result:
    """A task on all its backends."""

    task: str
    options: dict
    seed: int
    dtype: str
    runs: dict[str, Run]
    wall_ratio: float | None = None  # torch / rnn_ext
    layers_ratio: float | None = None  # the same, median over interleaved replays
    disagreement: float | None = (
        None  # largest relative difference of the two loss curves over `steps` updates
    )
    agreement_bound: float | None = None
    agreement_steps: int | None = None
    swept: str | None = None  # the option that varies from result to result
    cell_chosen: bool = False  # whether the cell was asked for, be it the task's own

    @property
    def agrees(self) -> bool:
        """False if the loss curves of torch and rnn_ext part sooner than they may."""
        return self.disagreement is None or self.disagreement <= self.agreement_bound

    def as_json(self) -> dict:
        return {**asdict(self), "agrees": self.agrees}


def run_task(
    task: Task,
    backends: Sequence[str],
    seed: int | None = None,
    dtype: str = "float32",
    bar: bool = True,
    **options,
) -> Result:
    """Train the task on those of the backends that it has.

    Raises ValueError as Task.check and check_trained do.
    """
    check_trained(task, backends)
    seed = task.seed if seed is None else seed
    learners: dict[str, Learner] = {}
    result = Result(task.name, {**task.options, **options}, seed, dtype, {})
    epochs = None
    for backend in (b for b in BACKENDS if b in backends and b in task.backends):
        problem = task.problem(backend, seed, dtype, **options)
        if backend == "numpy" and task.numpy == "forward":
            result.runs[backend] = measure(numpy_twin(next(iter(learners.values())), problem), problem)
            continue
        make_learner(backend, problem, seed, dtype).step(
            problem.batches(0)[0]
        )  # the first call pays for set-up
        learners[backend] = make_learner(backend, problem, seed, dtype)
        result.runs[backend] = run = train(
            learners[backend], problem, backend, epochs, task.name if bar else None
        )
        if problem.training.seconds is not None:
            epochs = epochs or run.epochs
    replay(learners, result)
    compare(result)
    return result


def check_trained(task: Task, backends: Sequence[str]) -> None:
    """Raises ValueError if NumPy is to measure trained weights but no backend trains them."""
    trained = [b for b in backends if b in task.backends and b != "numpy"]
    if "numpy" in backends and task.numpy == "forward" and not trained:
        raise ValueError(f"{task.name} on numpy measures trained weights: add backend torch or rnn_ext")


def train(learner: Learner, problem: Problem, backend: str, epochs: int | None, title: str | None) -> Run:
    """Train to the end, or to the epoch at which the time box closes. A bar is shown under a title."""
    run, training = Run(backend), problem.training
    with tqdm(
        total=epochs or training.epochs, desc=f"{title}, {backend}", unit="epoch", disable=not title
    ) as bar:
        for epoch in range(epochs or training.epochs):
            batches, state, first = problem.batches(epoch), None, len(run.losses)
            start = perf_counter()
            for batch in batches:
                loss, state = learner.step(batch, state if training.carry_state else None)
                run.losses.append(loss)
            run.wall_s += perf_counter() - start
            run.epochs, run.final_loss = epoch + 1, statistics.fmean(run.losses[first:])
            closed = epochs is None and training.seconds is not None and run.wall_s > training.seconds
            last = closed or epoch + 1 == (epochs or training.epochs)
            if last or (problem.score_from is not None and run.epochs >= problem.score_from):
                run.scores = problem.score(learner)
                if not run.reached and problem.reached(run.losses, run.scores):
                    run.reached, run.reached_epoch = True, run.epochs
            bar.update()
            bar.set_postfix(loss=f"{run.final_loss:.4g}", refresh=last)
            if last:
                break
    return run


def measure(learner: Learner, problem: Problem) -> Run:
    """The measure of success on weights as they are."""
    start = perf_counter()
    run = Run("numpy", scores=problem.score(learner))
    run.wall_s = perf_counter() - start
    run.reached = problem.reached(run.losses, run.scores)
    return run


def replay(learners: dict[str, Learner], result: Result) -> None:
    """Time the recurrent layers alone, the backends taking turns so that a busy machine hits all alike."""
    rounds: dict[str, list[float]] = {backend: [] for backend in learners}
    least, most = REPLAY_ROUNDS
    start = perf_counter()
    for done in range(most):
        for backend, learner in learners.items():
            seconds = learner.replay()
            if seconds is not None:
                rounds[backend].append(seconds)
        if done + 1 >= least and perf_counter() - start > REPLAY_SECONDS:
            break
    for backend, seconds in rounds.items():
        if seconds:
            run = result.runs[backend]
            run.layers_s = statistics.median(seconds) * len(run.losses)
    if rounds.get("torch") and rounds.get("rnn_ext"):
        pairs = zip(rounds["torch"], rounds["rnn_ext"], strict=True)
        result.layers_ratio = statistics.median(torch / ours for torch, ours in pairs)


def compare(result: Result) -> None:
    """Put the two torch backends side by side."""
    if not {"torch", "rnn_ext"} <= result.runs.keys():
        return
    torch, ours = result.runs["torch"], result.runs["rnn_ext"]
    result.wall_ratio = torch.wall_s / ours.wall_s
    steps, result.agreement_bound = AGREEMENT[result.dtype]
    result.agreement_steps = min(steps, len(torch.losses), len(ours.losses))
    result.disagreement = largest_difference(ours.losses, torch.losses, result.agreement_steps)


def largest_difference(losses: list[float], expected: list[float], steps: int) -> float:
    """The largest relative difference of two loss curves over their first steps; infinite if one has NaN."""
    a, b = np.array(losses[:steps]), np.array(expected[:steps])
    difference = np.abs(a - b) / np.abs(b)
    return float(np.where(np.isnan(difference), np.inf, difference).max())
