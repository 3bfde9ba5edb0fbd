"""Parity of a sliding window: at each step, is the number of ones among the last `window` bits even?"""

import numpy as np

from .batching import pad
from .problem import Batch, Model, Options, Problem, Task, Training

TEST_BITS = "1011000010100001111000"
FRESH, FRESH_LENGTH = 100, len(TEST_BITS)  # more of the same kind, for a finer measure
FRESH_MEASURE = f"accuracy on {FRESH} fresh sequences"
REACHED = "bit accuracy 1 on the test bits within 10 epochs, window 3"
SGD_REACHED = f"{REACHED}: NumPy, sequence by sequence; in batches of 16 SGD stays at chance"


def even_ones(bits: np.ndarray, window: int) -> np.ndarray:
    """1 where the ones in the last `window` steps (fewer at the start) are even: bits [T, B] -> [T, B]."""
    ones = np.cumsum(np.concatenate([np.zeros((window, bits.shape[1]), int), bits]), axis=0)
    return (ones[window:] - ones[:-window] + 1) % 2


def collate(sequences: list[np.ndarray], window: int, dtype: str) -> Batch:
    """Bit sequences of any lengths, padded with zeros at the end: x and y [T, B, 1]."""
    bits, lengths = pad(sequences)
    padded = (lengths < len(bits)).any()
    x, y = bits[..., None].astype(dtype), even_ones(bits, window)[..., None].astype(dtype)
    return Batch(x, y, lengths if padded else None)


def build(o: Options) -> Problem:
    rng = np.random.default_rng(o.seed)
    lengths = rng.integers(o.shortest or o.length, o.length + 1, o.sequences)
    sequences = [rng.integers(0, 2, length) for length in lengths]
    # As first published, NumPy with SGD goes sequence by sequence; all else in batches.
    size = 1 if (o.backend, o.optimizer) == ("numpy", "SGD") else o.batch
    batches = [collate(sequences[i : i + size], o.window, o.dtype) for i in range(0, len(sequences), size)]
    test = collate([np.array([int(bit) for bit in TEST_BITS])], o.window, o.dtype)
    fresh = collate([rng.integers(0, 2, FRESH_LENGTH) for _ in range(FRESH)], o.window, o.dtype)

    def score(learner):
        right = [(learner.predict(batch.x)[0] > 0) == (batch.y > 0) for batch in (test, fresh)]
        return {"bit accuracy": float(right[0].mean()), FRESH_MEASURE: float(right[1].mean())}

    return Problem(
        Model(1, o.hidden, 1, cell=o.cell, taps=o.window),
        Training("binary_cross_entropy", o.optimizer, o.lr, o.epochs, clip=5),
        lambda epoch: batches,
        score,
        reached=lambda losses, scores: scores["bit accuracy"] == 1,
        score_from=1,
    )


def variant(name: str, title: str, reached_when: str = REACHED, **changed) -> Task:
    options = dict(
        cell="RNN", hidden=20, lr=0.01, optimizer="Adam", epochs=10, batch=16, sequences=1000, length=10,
        shortest=None, window=3,
    )  # fmt: skip
    return Task(
        name=name,
        id="B4",
        title=title,
        reached_when=reached_when,
        options={**options, **changed},
        build=build,
        quick=dict(epochs=4),
        cells=("RNN", "LSTM", "GRU", "delay"),
        charted=FRESH_MEASURE,
    )


TASKS = [
    variant("counting_ones", "parity of a window"),
    variant("counting_ones_lstm", "parity of a window, LSTM", cell="LSTM"),
    variant("counting_ones_gru", "parity of a window, GRU", cell="GRU"),
    variant("counting_ones_delay", "parity of a window, time-delay network", cell="delay"),
    variant("counting_ones_ragged", "parity of a window, lengths 5 to 10", shortest=5),
    variant("counting_ones_sgd", "parity of a window, SGD", SGD_REACHED, optimizer="SGD", lr=0.1),
]
