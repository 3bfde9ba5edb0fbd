"""Memory that stays with the library between calls."""

from __future__ import annotations

from rnn_ext._load import _C


def release_memory() -> int:
    """Gives the memory that the library keeps for its next calls back to the system.

    On the CPU a workspace, or what a call keeps for its backward, stays with the library from 32 MB on when it is no
    longer needed, and the next call that needs as much, or up to a fifth less, has it: fresh memory would have to be
    cleared first. There is never more of it than was in use at once since the last release, and it is marked such that
    Linux takes it when it is short (MADV_FREE). With torch 2.10, which does not tell when a tensor is no longer needed,
    nothing is kept.

    Returns:
        How many bytes that were.
    """
    return _C.release_memory()
