"""Handwritten digits of 8x8 pixels (scikit-learn), read as 8 rows or as 64 pixels, in both directions."""

import numpy as np

from .batching import shuffled
from .problem import Batch, Model, Options, Problem, Task, Training, accuracy


def build(o: Options) -> Problem:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, classes = load_digits(return_X_y=True)  # [1797, 64], pixels in 0..16
    images = (images / 16).astype(o.dtype).reshape(len(images), o.length, -1)  # [B, T, I]
    train_x, test_x, train_y, test_y = train_test_split(
        images, classes, test_size=0.2, random_state=o.seed, stratify=classes
    )
    train_x, test_x = (np.ascontiguousarray(x.swapaxes(0, 1)) for x in (train_x, test_x))

    def batches(epoch):
        parts = shuffled(len(train_y), o.batch, o.seed, epoch)
        return [Batch(np.ascontiguousarray(train_x[:, part]), train_y[part]) for part in parts]

    return Problem(
        Model(images.shape[2], o.hidden, 10, cell=o.cell, bidirectional=True, readout="last"),
        Training("cross_entropy", "Adam", o.lr, o.epochs, clip=1, seconds=o.seconds),
        batches,
        score=lambda learner: {"test accuracy": accuracy(learner.predict(test_x)[0], test_y)},
        reached=lambda losses, scores: scores["test accuracy"] >= o.goal,
        score_from=1,
    )


def variant(name: str, title: str, quick: dict, **options) -> Task:
    return Task(
        name=name,
        id="C1",
        title=title,
        reached_when=f"test accuracy >= {options['goal']} within {options['epochs']} epochs",
        options=dict(cell="RNN", hidden=64, batch=64, lr=0.003, seconds=40, **options),
        build=build,
        quick=quick,
        backends=("torch", "rnn_ext"),
    )


TASKS = [
    variant("digits_rows", "digit from its 8 rows", {}, length=8, epochs=20, goal=0.95),
    variant("digits_pixels", "digit from its 64 pixels", dict(epochs=18), length=64, epochs=30, goal=0.8),
]
