"""vmap of a layer and of its gradient: what is mapped over becomes part of the batch.

Sample v of sequence b is sequence b*V + v of the folded batch, and row r of it row r*V + v, packed or not. Weights that
are mapped over make another layer of each sample: a loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rnn_ext import per_sample


def layer(apply, samples: int, in_dims, layer, batch_sizes, *tensors):
    """The vmap rule of `transforms._Layer`, whose `apply` is given."""
    if _maps_any(in_dims[5:]):
        return _loop(apply, samples, in_dims, layer, batch_sizes, *tensors)
    inputs = [_fold(t, dim, samples) for t, dim in zip(tensors[:3], in_dims[2:5], strict=True)]
    return _unfold(apply(layer, _times(batch_sizes, samples), *inputs, *tensors[3:]), samples)


def gradient(apply, apply_layer, samples: int, in_dims, layer, needs, batch_sizes, *tensors):
    """The vmap rule of `transforms._LayerGradient`, whose `apply` is given beside that of `_Layer`."""
    if _maps_any(in_dims[11:]):
        return _loop(apply, samples, in_dims, layer, needs, batch_sizes, *tensors)
    folded = [_fold(t, dim, samples) for t, dim in zip(tensors[:8], in_dims[3:11], strict=True)]
    args = (layer, needs, _times(batch_sizes, samples), *folded, *tensors[8:])
    if needs[3]:
        of_inputs, of_weights = per_sample.gradients(apply, apply_layer, samples, *args)
    else:
        of_inputs, of_weights = apply(*args)[:3], [None] * len(tensors[8:])
    of_inputs, dims = _unfold(of_inputs, samples)
    return (*of_inputs, *of_weights), (*dims, *[0 if needs[3] else None] * len(of_weights))


def _maps_any(dims) -> bool:
    return any(dim is not None for dim in dims)


def _row_dim(dims: int) -> int:
    """Where rows or sequences stand: first in packed data, else second, behind steps or directions."""
    return 0 if dims == 2 else 1


def _fold(t: Tensor | None, dim: int | None, samples: int) -> Tensor | None:
    """The tensor with the dimension mapped over (None: the same for all samples) made part of its rows."""
    if t is None:
        return None
    t = t.expand(samples, *t.shape) if dim is None else t.movedim(dim, 0)
    rows = _row_dim(t.dim() - 1)
    return t.movedim(0, rows + 1).flatten(rows, rows + 1)


def _unfold(tensors, samples: int):
    """The inverse of `_fold`, for each tensor; and which dimensions are mapped over then."""
    rows = [None if t is None else _row_dim(t.dim()) for t in tensors]
    unfolded = [
        None if t is None else t.unflatten(r, (t.shape[r] // samples, samples))
        for t, r in zip(tensors, rows, strict=True)
    ]
    return tuple(unfolded), tuple(None if r is None else r + 1 for r in rows)


def _times(batch_sizes: Tensor | None, samples: int) -> Tensor | None:
    return None if batch_sizes is None else batch_sizes * samples


def _loop(apply, samples: int, in_dims, *args):
    """One call for each sample; results stacked."""
    calls = []
    for v in range(samples):
        own = [a.select(dim, v) if isinstance(a, Tensor) and dim is not None else a for a, dim in zip(args, in_dims)]
        calls.append(apply(*own))
    results = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*calls, strict=True))
    return results, tuple(None if r is None else 0 for r in results)
