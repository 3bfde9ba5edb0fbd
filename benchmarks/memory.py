"""Peak memory of a call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import rnn_ext

try:
    import memray
except ImportError:  # the columns are then left out
    memray = None


def available() -> bool:
    """Whether memray is installed."""
    return memray is not None


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory that one call holds at once beyond what was there before it, in bytes.

    memray follows every malloc, aligned allocation and mmap of the process while the call runs. That is exact
    where the resident size knows only pages, and it sees what PyTorch's own record of its tensors
    (torch.profiler with profile_memory) misses: the autograd graph, and the scratch memory of oneDNN and MKL.
    What earlier calls left in their caches is not counted, so the function must have been called before; rnn_ext's
    memory between calls is emptied, for it holds what a call needs.
    """
    # Followed for the first time, Python itself allocates some kilobytes that it keeps.
    return min(_followed(function) for _ in range(2))


def _followed(function: Callable[[], object]) -> int:
    with TemporaryDirectory() as folder:
        record = Path(folder) / "allocations"
        rnn_ext.release_memory()
        with memray.Tracker(record):
            function()
        return memray.FileReader(record).metadata.peak_memory
