"""Spell "hihello": each letter gives the next."""

import numpy as np

from .problem import Batch, Model, Options, Problem, Task, Training, one_batch

LETTERS, WORD = "hielo", "hihello"


def build(o: Options) -> Problem:
    letters = np.array([LETTERS.index(letter) for letter in WORD])
    x = np.eye(5, dtype=o.dtype)[letters[:-1]][None]  # [B, T, I] = [1, 6, 5], one-hot
    y = letters[None, 1:]

    def score(learner):
        return {"letters right": float((learner.predict(x)[0].argmax(-1) == y).mean())}

    return Problem(
        Model(5, o.hidden, 5, cell=o.cell, batch_first=True),
        Training("cross_entropy", "Adam", o.lr, o.epochs),
        one_batch(Batch(x, y)),
        score,
        reached=lambda losses, scores: scores["letters right"] == 1,
        score_from=1,
    )


TASKS = [
    Task(
        name="hihello",
        id="B5",
        title="hihell -> ihello",
        reached_when='"ihello" within 15 epochs',
        options=dict(cell="RNN", hidden=4, lr=0.1, epochs=15),
        build=build,
        seed=777,
    )
]
