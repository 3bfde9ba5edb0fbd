"""The tangent of one recurrent layer, step by step in torch's operators: it can be differentiated any number of times.

Every derivative beyond the kernels' own follows from it: it is the derivative forward, and its gradient that of the
layer's gradient (transforms.py). In names, `x_` is the tangent of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnn_ext.ops import Stack


def tangent(layer: Stack, batch_sizes: Tensor | None, primals, tangents) -> tuple[Tensor, ...]:
    """Tangents of y, h_n and, for an LSTM, c_n of a layer (one or both directions).

    Args:
        layer: cell and directions, of one layer.
        batch_sizes: int64 [T] for packed input, or None.
        primals: x, h_0, c_0 and the weights, as `rnn_ext.autograd.recurrent` takes them.
        tangents: theirs, in the same order; None stands for zeros.
    """
    x, x_ = primals[0], tangents[0]
    sizes = [x.shape[1]] * x.shape[0] if batch_sizes is None else batch_sizes.tolist()
    per_direction = layer.of_each(primals[3:])
    outputs, finals = [], []
    for d in range(layer.directions):
        own = slice(3 + d * per_direction, 3 + (d + 1) * per_direction)
        weights, weights_ = _named(primals[own]), _named(tangents[own])
        a = linear(x, weights["w_ih"], weights["b_ih"])
        a_ = _linear_tangent(x, x_, weights["w_ih"], weights_["w_ih"], weights_["b_ih"])
        steps = [t.unbind() if batch_sizes is None else t.split(sizes) for t in (a, torch.zeros_like(a) + a_)]
        initial = []
        for s, s_, size in zip(primals[1:3], tangents[1:3], layer.state_sizes(primals[3:]), strict=False):
            zeros = x.new_zeros(sizes[0], size)
            initial += [zeros if s is None else s[d], zeros if s_ is None else s_[d]]
        y_, final = _direction(layer.mode, sizes, steps, initial, weights, weights_, reverse=d == 1)
        outputs.append(torch.stack(y_) if batch_sizes is None else torch.cat(y_))
        finals.append(final[1::2])
    return torch.cat(outputs, -1), *(torch.stack(final) for final in zip(*finals, strict=True))


def _direction(mode, sizes, steps, initial, weights, weights_, reverse):
    """ḣ_t for every step, and the final states; a state is [h, ḣ] or, for an LSTM, [h, ḣ, c, ċ]."""
    order = range(len(sizes))[:: -1 if reverse else 1]
    state, ended, y_ = [s[: sizes[order[0]]] for s in initial], [], [None] * len(sizes)
    for t in order:
        active, before = sizes[t], state[0].shape[0]
        if active < before:  # the shortest sequences have ended
            ended.append([s[active:] for s in state])
            state = [s[:active] for s in state]
        elif active > before:  # backward in time, they only begin here
            state = [torch.cat([s, s_0[before:active]]) for s, s_0 in zip(state, initial, strict=True)]
        h, h_ = state[:2]
        b = linear(h, weights["w_hh"], weights["b_hh"])
        b_ = _linear_tangent(h, h_, weights["w_hh"], weights_["w_hh"], weights_["b_hh"])
        h, h_, *c = _CELLS[mode](steps[0][t], steps[1][t], b, b_, *state)
        w_hr = weights["w_hr"]
        if w_hr is not None:
            h, h_ = linear(h, w_hr), _linear_tangent(h, h_, w_hr, weights_["w_hr"])
        state, y_[t] = [h, h_, *c], h_
    return y_, [torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True)]


def _named(weights) -> dict[str, Any]:
    """The two to five weights of a direction by name."""
    names = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
    present = {2: names[:2], 3: names[:2] + names[4:], 4: names[:4], 5: names}[len(weights)]
    return dict.fromkeys(names) | dict(zip(present, weights, strict=True))


def _linear_tangent(x, x_, w, w_, b_=None):
    """The tangent of W x + b."""
    terms = [linear(x_, w)] if x_ is not None else []
    terms += [linear(x, w_)] if w_ is not None else []
    terms += [b_] if b_ is not None else []
    return sum(terms[1:], terms[0]) if terms else 0.0


def _sigmoid(a, a_):
    s = torch.sigmoid(a)
    return s, s * (1 - s) * a_


def _tanh(a, a_):
    s = torch.tanh(a)
    return s, (1 - s * s) * a_


# The cells with their tangents; a is the input's part of the pre-activations, b that of h.


def _rnn_tanh(a, a_, b, b_, h, h_):
    return _tanh(a + b, a_ + b_)


def _rnn_relu(a, a_, b, b_, h, h_):
    s = a + b
    return torch.relu(s), (s > 0) * (a_ + b_)


def _lstm(a, a_, b, b_, h, h_, c, c_):
    sizes = [2 * c.shape[-1], c.shape[-1], c.shape[-1]]
    gates = zip((a + b).split(sizes, -1), (a_ + b_).split(sizes, -1), strict=True)
    (i_f, i_f_), (g, g_), (o, o_) = (f(*gate) for f, gate in zip((_sigmoid, _tanh, _sigmoid), gates, strict=True))
    (i, f), (i_, f_) = i_f.chunk(2, -1), i_f_.chunk(2, -1)
    c, c_ = f * c + i * g, f_ * c + f * c_ + i_ * g + i * g_
    s, s_ = _tanh(c, c_)
    return o * s, o_ * s + o * s_, c, c_


def _gru(a, a_, b, b_, h, h_):
    sizes = [2 * h.shape[-1], h.shape[-1]]
    (a_rz, a_n), (a_rz_, a_n_), (b_rz, b_n), (b_rz_, b_n_) = (t.split(sizes, -1) for t in (a, a_, b, b_))
    r_z, r_z_ = _sigmoid(a_rz + b_rz, a_rz_ + b_rz_)
    (r, z), (r_, z_) = r_z.chunk(2, -1), r_z_.chunk(2, -1)
    n, n_ = _tanh(a_n + r * b_n, a_n_ + r_ * b_n + r * b_n_)
    return n + z * (h - n), n_ + z_ * (h - n) + z * (h_ - n_)


_CELLS = {"RNN_TANH": _rnn_tanh, "RNN_RELU": _rnn_relu, "LSTM": _lstm, "GRU": _gru}
