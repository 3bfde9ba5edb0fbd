"""Does a short run of numbers rise or fall?"""

import numpy as np

from .problem import Batch, Model, Options, Problem, Task, Training, accuracy, one_batch


def draw(rng: np.random.Generator, count: int, length: int, dtype: str) -> Batch:
    """Uniform numbers sorted up (class 1) or down (class 0): x [B, T, 1], y [B]."""
    numbers, up = np.sort(rng.random((count, length)), axis=1), rng.integers(0, 2, count)
    return Batch(np.where(up[:, None], numbers, numbers[:, ::-1])[..., None].astype(dtype), up)


def build(o: Options) -> Problem:
    rng = np.random.default_rng(o.seed)
    seen, fresh = draw(rng, o.sequences, o.length, o.dtype), draw(rng, 10, o.length, o.dtype)

    def score(learner):
        return {
            "accuracy": accuracy(learner.predict(seen.x)[0], seen.y),
            "fresh": accuracy(learner.predict(fresh.x)[0], fresh.y),
        }

    return Problem(
        Model(
            input_size=1, hidden_size=o.hidden, output_size=2, cell=o.cell, readout="last", batch_first=True
        ),
        Training("cross_entropy", "Adam", o.lr, o.epochs),
        one_batch(seen),
        score,
        reached=lambda losses, scores: scores["accuracy"] >= 0.97 and scores["fresh"] == 1,
    )


TASKS = [
    Task(
        name="up_down",
        id="B2",
        title="rising or falling",
        reached_when="accuracy >= 0.97 and 10 of 10 fresh ones",
        options=dict(cell="RNN", hidden=8, lr=0.01, epochs=50, sequences=100, length=4),
        build=build,
    )
]
