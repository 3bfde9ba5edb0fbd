"""A network fed its own output."""

from __future__ import annotations

from typing import Any

import numpy as np

from .problem import Learner


def generate(learner: Learner, first: np.ndarray, length: int, state: Any = None) -> np.ndarray:
    """Tokens [length, B] from the first ones [B]: the best one of a step is the input of the next."""
    tokens = [first]
    for _ in range(length - 1):
        scores, state = learner.predict(tokens[-1][None], state=state)  # [1, B, K]
        tokens.append(scores[0].argmax(-1))
    return np.stack(tokens)
