"""Translate a string of digits into its reverse: an encoder reads it, a decoder writes it."""

import numpy as np

from .batching import inside, pad, shuffled
from .greedy import generate
from .problem import Batch, Model, Options, Problem, Source, Task, Training

END = 10  # the token after the last digit; what the decoder is given first, too
SHORTEST, UNSEEN = 4, 500


def draw(rng: np.random.Generator, count: int, longest: int) -> list[tuple[int, ...]]:
    """As many different strings, with lengths uniform in SHORTEST..longest.

    Raises ValueError for fewer digits than SHORTEST, or so few that there are not enough strings.
    """
    if longest < SHORTEST or count > 10**longest // 2:
        raise ValueError(f"{count} strings of {SHORTEST} to {longest} digits are not to be had")
    strings: dict[tuple[int, ...], None] = {}
    while len(strings) < count:
        length = rng.integers(SHORTEST, longest + 1)
        strings[tuple(rng.integers(0, 10, length).tolist())] = None
    return list(strings)


def collate(strings: list) -> Batch:
    """x is y one step later: in training the decoder is given the true digits (teacher forcing)."""
    y, lengths = pad([(*string[::-1], END) for string in strings], END)
    x = np.concatenate([np.full_like(y[:1], END), y[:-1]])
    return Batch(x, y, lengths, source=Source(*pad(strings, END)))


def build(o: Options) -> Problem:
    rng = np.random.default_rng(o.seed)
    strings = draw(rng, UNSEEN + o.sequences, o.length)
    test, seen = collate(strings[:UNSEEN]), strings[UNSEEN:]

    def batches(epoch):
        return [collate([seen[i] for i in part]) for part in shuffled(len(seen), o.batch, o.seed, epoch)]

    def score(learner):
        steps = len(test.y)
        written = generate(learner, test.x[0], steps + 1, learner.start(test))[1:]
        same = (written == test.y) | ~inside(test.lengths, steps)
        return {"exact": float(same.all(0).mean())}

    return Problem(
        Model(o.hidden, o.hidden, END + 1, cell=o.cell, tokens=END + 1, encoder=True),
        Training("cross_entropy", "Adam", o.lr, o.epochs, clip=1),
        batches,
        score,
        reached=lambda losses, scores: scores["exact"] >= 0.95,
        score_from=1,
    )


TASKS = [
    Task(
        name="reverse",
        id="B8",
        title="a digit string into its reverse, encoder and decoder",
        reached_when=f"at least 0.95 of {UNSEEN} unseen strings exact, after some epoch",
        options=dict(cell="LSTM", hidden=128, lr=0.003, epochs=5, batch=128, sequences=40000, length=10),
        build=build,
        numpy="forward",
        cells=("LSTM", "GRU"),
    )
]
