"""From many sequences of unequal lengths to batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pad(sequences: Sequence[Sequence[int]], filling: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The sequences side by side [T, B], as long as the longest, and their lengths [B]; all integers."""
    lengths = np.array([len(sequence) for sequence in sequences])
    padded = np.full((lengths.max(), len(sequences)), filling)
    for b, sequence in enumerate(sequences):
        padded[: len(sequence), b] = sequence
    return padded, lengths


def inside(lengths: np.ndarray, steps: int) -> np.ndarray:
    """Which of the steps [T, B] are no padding."""
    return np.arange(steps)[:, None] < lengths


def shuffled(count: int, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The numbers 0..count-1 in an order that the epoch has for itself, `batch` by `batch`."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return np.split(order, range(batch, count, batch))
