"""Gradients of the weights for each sample of a folded batch (batching.py), without a loop over the samples.

The backward operator sums them over the batch. Here it gives the gradient da of the pre-activations instead, which is
what it returns for the input of a layer whose input they are; the rest is one product a weight. All of it is made of
functions that can be differentiated again, and of the layer's outputs, which can too; the tape cannot.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gradients(apply, apply_layer, samples, layer, needs, batch_sizes, y, tape, dy, dh_n, dc_n, x, h_0, c_0, *weights):
    """(dx, dh_0, dc_0) of the folded batch, each None unless needed, and for each weight one per sample, [V, ...].

    Args:
        apply, apply_layer: of `transforms._LayerGradient` and `transforms._Layer`.
        samples: V; row r and sequence b belong to sample r mod V and b mod V.
        layer, ...: as for `transforms._LayerGradient`.
    """
    directions, per_direction = layer.directions, layer.of_each(weights)
    w_ih = torch.cat(weights[::per_direction])
    a = x @ w_ih.T
    through = list(weights)
    through[::per_direction] = torch.eye(len(w_ih), dtype=x.dtype, device=x.device).chunk(directions)
    needs_da = (True, *needs[1:3], False)
    da, dh_0, dc_0 = apply(layer, needs_da, batch_sizes, y, tape, dy, dh_n, dc_n, a, h_0, c_0, *through)[:3]
    dx = da @ w_ih if needs[0] else None

    sizes = [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes.tolist()
    rows = [None if t is None else t.flatten(0, -2).chunk(directions, -1) for t in (a, da, y, dy)]
    if per_direction % 2 == 1:
        unprojected = _unprojected(apply_layer, layer, batch_sizes, x, h_0, c_0, weights)
    of_weights = []
    for d in range(directions):
        a_d, da_d, y_d, dy_d = (None if t is None else t[d] for t in rows)
        w_hh, *rest = weights[d * per_direction + 1 : (d + 1) * per_direction]
        h = _neighbour(y_d, None if h_0 is None else h_0[d], sizes, ahead=d == 1)  # what the step began with
        da_h = _OF_HIDDEN_GATES[layer.mode](a_d, da_d, h, w_hh, rest)
        of_weights += [_product(da_d, x.flatten(0, -2), samples), _product(da_h, h, samples)]
        if len(rest) >= 2:
            of_weights += [_rows(t, samples).sum(0) for t in (da_d, da_h)]
        if len(rest) % 2 == 1:
            dh = _neighbour(da_h @ w_hh, None if dh_n is None else dh_n[d], sizes, ahead=d == 0)
            of_weights.append(_product(dh if dy_d is None else dh + dy_d, unprojected[d], samples))
    return (dx, dh_0, dc_0), of_weights


def _same(a, da, h, w_hh, biases):
    return da


def _gru(a, da, h, w_hh, biases):
    """A GRU multiplies its part of n by r."""
    size = h.shape[-1]
    a_r = a[:, :size] + h @ w_hh[:size].T
    r = torch.sigmoid(a_r + biases[0][:size] + biases[1][:size] if biases else a_r)
    return torch.cat([da[:, : 2 * size], r * da[:, 2 * size :]], -1)


# The gradient of W_hh h + b_hh from that of the pre-activations, da.
_OF_HIDDEN_GATES = {"RNN_TANH": _same, "RNN_RELU": _same, "LSTM": _same, "GRU": _gru}


def _unprojected(apply_layer, layer, batch_sizes, x, h_0, c_0, weights) -> list[Tensor]:
    """o * tanh(c_t) for each direction, [R, H]: what the layer puts out beside h_t if it is projected to both."""
    directions, per_direction = layer.directions, layer.of_each(weights)
    wide = list(weights)
    output_size, hidden_size = weights[per_direction - 1].shape
    for d in range(directions):
        hh, hr = d * per_direction + 1, (d + 1) * per_direction - 1
        wide[hh] = torch.nn.functional.pad(weights[hh], (0, hidden_size))
        wide[hr] = torch.cat([weights[hr], torch.eye(hidden_size, dtype=x.dtype, device=x.device)])
    h_0 = None if h_0 is None else torch.nn.functional.pad(h_0, (0, hidden_size))
    y = apply_layer(layer, batch_sizes, x, h_0, c_0, *wide)[0].flatten(0, -2)
    return [part[:, output_size:] for part in y.chunk(directions, -1)]


def _neighbour(rows: Tensor, ends: Tensor | None, sizes: list[int], ahead: bool) -> Tensor:
    """For every row [R, N] that of its sequence a step ahead or back, or else of `ends` [B, N] or zeros."""
    if ends is None:
        ends = rows.new_zeros(sizes[0], rows.shape[1])
    if sizes[0] == sizes[-1]:  # all of one length
        return torch.cat([rows[sizes[0] :], ends] if ahead else [ends, rows[: -sizes[0]]])
    steps = rows.split(sizes)
    if not ahead:
        return torch.cat([ends, *(step[:size] for step, size in zip(steps, sizes[1:], strict=False))])
    ended = [ends[after:size] for size, after in zip(sizes, [*sizes[1:], 0], strict=True)]
    return torch.cat([part for pair in zip(steps[1:], ended, strict=False) for part in pair] + ended[-1:])


def _rows(t: Tensor, samples: int) -> Tensor:
    """[R, N] by sample: [R / V, V, N]."""
    return t.unflatten(0, (-1, samples))


def _product(left: Tensor, right: Tensor, samples: int) -> Tensor:
    """left^T right for each sample, [V, M, N]."""
    return torch.einsum("rvm,rvn->vmn", _rows(left, samples), _rows(right, samples))
