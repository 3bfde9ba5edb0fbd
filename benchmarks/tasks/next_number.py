"""Count on: a number at every step, and the next one wanted."""

import numpy as np

from .problem import Batch, Model, Options, Problem, Task, Training, one_batch


def build(o: Options) -> Problem:
    starts = np.random.default_rng(o.seed).integers(0, 10, o.sequences)
    x = (starts + np.arange(o.length)[:, None])[..., None].astype(o.dtype)  # [T, B, 1]
    counted = np.arange(o.length, dtype=o.dtype).reshape(-1, 1, 1)  # [0, 1, 2, 3, 4]

    def score(learner):
        return {"largest error": float(np.abs(learner.predict(counted)[0] - (counted + 1)).max())}

    return Problem(
        Model(1, o.hidden, 1, cell=o.cell, normal_weights=o.start == "normal"),
        Training("mean_squared_error", "Adam", o.lr, o.epochs),
        one_batch(Batch(x, x + 1)),
        score,
        reached=lambda losses, scores: losses[-1] < 0.005 and scores["largest error"] <= 0.05,
        score_from=1001,  # any of them: Adam's loss has a spike now and then, maybe at the last
    )


OPTIONS = dict(cell="RNN", hidden=16, lr=0.01, epochs=2000, sequences=16, length=5, start="normal")
REACHED = "past epoch 1000, loss < 0.005 and [0,1,2,3,4] gives 1..5 within 0.05"
TASKS = [
    Task("next_number", "B3", "count on, weights from normal(0, 1)", REACHED, OPTIONS, build),
    Task(
        "next_number_default",
        "B3",
        "count on, default weights",
        REACHED,
        {**OPTIONS, "start": "default"},
        build,
    ),
]
