"""Weights that are packed once and kept, for inference while they do not change."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from rnn_ext import autocast
from rnn_ext._load import _C

# Of each frozen layer or cell: what `_C.forward` keeps its packed weights in.
_kept: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_used = False  # whether anything was ever frozen: else there is nothing to look for


def kept_weights(module: nn.Module) -> Any:
    """Where the packed weights of this layer or cell are kept, or None if they are not."""
    if not _used or torch.compiler.is_compiling() or autocast.is_enabled():
        return None
    return _kept.get(module)


class frozen:
    """Packs the weights of layers and cells once and keeps them packed, for calls that need no gradient.

    `with rnn_ext.frozen(model):` does so inside the block, `rnn_ext.frozen(model)` from now on, and
    `rnn_ext.frozen(model, False)` no more. It is for streams, where a call has one step or a few and packing the
    weights costs as much as using them; long sequences gain nothing. The memory of the packed weights comes on top of
    that of the weights.

    What is written into a weight meanwhile, by an optimizer, through `.data` or NumPy, is not looked for: freeze again
    after it. A weight that is replaced by another tensor is seen. Calls that need a gradient, are compiled, traced or
    under a transform, autocast, a profiler or a default device, and calls on CUDA use the weights as they are, and so
    do calls of at most four rows, which pack nothing; `rnn_ext.explain` tells. Outputs are those of the ordinary call
    up to rounding, and bit for bit those under `batch_invariant`, as long as both multiply in the same way
    (`set_float32_product`).

    Args:
        module: a layer or cell of rnn_ext, or a module that has some inside.
        enabled: whether to keep packed weights, or to drop them.

    Raises:
        TypeError: if module is not a module.
        ValueError: if there is no layer or cell of rnn_ext in it.
    """

    def __init__(self, module: nn.Module, enabled: bool = True) -> None:
        from rnn_ext.base import Recurrent  # these import this module
        from rnn_ext.cells import Cell

        if not isinstance(module, nn.Module):
            raise TypeError(f"frozen: expected a module, got {type(module).__name__}")
        found = [m for m in module.modules() if isinstance(m, (Recurrent, Cell))]
        if not found:
            raise ValueError(f"frozen: there is no layer or cell of rnn_ext in {type(module).__name__}")
        self._before = [(weakref.ref(m), _kept.get(m)) for m in found]
        global _used
        _used = True
        for m in found:
            _set(m, _C.keep_weights() if enabled else None)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        for reference, kept in self._before:
            module = reference()
            if module is not None:
                _set(module, kept)


def _set(module: nn.Module, kept: Any) -> None:
    if kept is None:
        _kept.pop(module, None)
    else:
        _kept[module] = kept
