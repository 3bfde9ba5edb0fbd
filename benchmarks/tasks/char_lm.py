"""The next character of Python's own help texts."""

import math

import numpy as np

from .problem import Batch, Model, Options, Problem, Task, Training


def columns(text: np.ndarray, batch: int, length: int) -> list[Batch]:
    """The text as `batch` columns side by side, in chunks of `length`; a column goes on in the next chunk."""
    steps = (len(text) - 1) // batch
    x, y = (text[shift : shift + steps * batch].reshape(batch, steps).T for shift in (0, 1))
    starts = range(0, steps - length + 1, length)
    return [Batch(*(np.ascontiguousarray(a[i : i + length]) for a in (x, y))) for i in starts]


def build(o: Options) -> Problem:
    from pydoc_data.topics import topics

    letters = "".join(topics.values())
    alphabet = sorted(set(letters))
    index = {letter: i for i, letter in enumerate(alphabet)}
    text = np.array([index[letter] for letter in letters])
    held_out = len(text) // 20
    seen, test = columns(text[:-held_out], o.batch, o.length), columns(text[-held_out:], o.batch, o.length)

    def score(learner):
        bits, state = [], None
        for x, y, *_ in test:
            scores, state = learner.predict(x, state=state)  # [T, B, K]
            scores = scores - scores.max(-1, keepdims=True)
            log_p = np.take_along_axis(scores, y[..., None], -1)[..., 0] - np.log(np.exp(scores).sum(-1))
            bits.append(-log_p.mean() / math.log(2))
        return {"bits per character": float(np.mean(bits))}

    return Problem(
        Model(64, o.hidden, len(alphabet), cell=o.cell, num_layers=o.layers, tokens=len(alphabet)),
        Training("cross_entropy", "Adam", o.lr, o.epochs, clip=1, carry_state=True, seconds=o.seconds),
        lambda epoch: seen,
        score,
        reached=lambda losses, scores: scores["bits per character"] <= o.goal,
    )


TASKS = [
    Task(
        name="char_lm",
        id="C2",
        title="next character, state carried",
        reached_when="at most 2 bits per character on held-out text",
        options=dict(
            cell="RNN", hidden=128, layers=1, lr=0.002, epochs=6, batch=32, length=64, seconds=40, goal=2
        ),
        build=build,
        quick=dict(epochs=1),
        backends=("torch", "rnn_ext"),
    )
]
