"""Four short sequences in two classes: many-to-one at its smallest."""

import numpy as np

from .problem import Batch, Model, Options, Problem, Task, Training, accuracy, one_batch

SEQUENCES = [
    [[1.0, 0.5], [0.2, 0.1], [0.3, -0.1]],
    [[-0.5, -0.4], [0.1, -0.2], [-0.3, -0.1]],
    [[0.8, 0.2], [0.5, 0.4], [0.1, 0.2]],
    [[-0.6, -0.2], [-0.4, -0.3], [0.0, -0.1]],
]
LABELS = [1, 0, 1, 0]


def build(o: Options) -> Problem:
    x = np.array(SEQUENCES, o.dtype).swapaxes(0, 1)  # [T, B, I] = [3, 4, 2]
    y = np.array(LABELS)
    return Problem(
        Model(input_size=2, hidden_size=o.hidden, output_size=2, cell=o.cell, readout="last"),
        Training("cross_entropy", "Adam", o.lr, o.epochs),
        one_batch(Batch(x, y)),
        score=lambda learner: {"accuracy": accuracy(learner.predict(x)[0], y)},
        reached=lambda losses, scores: scores["accuracy"] == 1,
    )


TASKS = [
    Task(
        name="toy_classes",
        id="B1",
        title="class of a 3-step sequence",
        reached_when="4 of 4 right",
        options=dict(cell="RNN", hidden=4, lr=0.05, epochs=100),
        build=build,
    )
]
