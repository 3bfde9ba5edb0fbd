"""Global switches."""

from __future__ import annotations

_batch_invariant = False


def is_batch_invariant() -> bool:
    """Whether `batch_invariant` is on."""
    return _batch_invariant


class batch_invariant:
    """Makes the output, states and input gradients of a sequence bitwise independent of the rest of the batch.

    `with batch_invariant():` switches it on inside the block, `batch_invariant(True)` from now on, for all threads.
    It is off by default, where the same already holds except for calls with no more than four rows (sequences times
    steps; for a cell, sequences): those skip packing the weights, which sums in another order.

    Args:
        enabled: on (the default) or off.
    """

    def __init__(self, enabled: bool = True) -> None:
        global _batch_invariant
        self._before = _batch_invariant
        _batch_invariant = bool(enabled)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        global _batch_invariant
        _batch_invariant = self._before
