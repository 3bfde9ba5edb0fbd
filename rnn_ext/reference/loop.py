"""Recurrent layers over a whole batch of sequences: the forward pass and backpropagation through time (BPTT).

Letters used for shapes:
    T  time steps          I  input size         L  layers
    B  batch               H  hidden size        D  directions (1, or 2 if bidirectional)
    G  gates of the cell   S  states of the cell  P  size of h: H, or that of its projection

Parameters are a dict with PyTorch's names, shapes and gate order
(https://docs.pytorch.org/docs/stable/generated/torch.nn.RNN.html), for layer k, and the same names with the
suffix "_reverse" for the direction that reads from the end:
    weight_ih_l{k}  [G*H, I], or [G*H, D*P] for k > 0
    weight_hh_l{k}  [G*H, P]
    bias_ih_l{k}    [G*H]      bias_hh_l{k}  [G*H]      either may be missing, and is zero then
    weight_hr_l{k}  [P, H]                              for a projection of the LSTM: h_t = W_hr (what the cell gives)
How many layers and directions there are, and whether h is projected, is read from the names.

The projection: H. Sak, A. Senior, F. Beaufays, "Long short-term memory recurrent neural network architectures for
large scale acoustic modeling", Interspeech 2014.

BPTT: P. Werbos, "Backpropagation through time: what it does and how to do it", Proc. IEEE 78 (1990).
"""

from typing import NamedTuple

import numpy as np

from .cells import Cell, State

Arrays = dict[str, np.ndarray]


class Run(NamedTuple):
    """What one direction of one layer remembers of its forward pass."""

    suffix: str  # "_l0", "_l0_reverse", "_l1", ...: the end of its parameters' names
    x: np.ndarray  # [T, B, I]  its input
    h_prev: np.ndarray  # [T, B, P]  the hidden state that entered step t
    out: np.ndarray  # [T, B, H]  the cell's h_t, before a projection
    saved: list  # T entries, each what the cell wants back in its backward step
    steps: range  # the order in which it walked through time


class Tape(NamedTuple):
    """What `forward` leaves for `backward`. It refers to the parameters: do not change them in between."""

    cell: Cell
    params: Arrays
    runs: list[Run]  # L*D of them, in the order of the state's rows
    active: np.ndarray  # [T, B, 1] bool: step t lies inside the sequence
    dropout_masks: list[np.ndarray] | None


def stack_of(params: Arrays) -> tuple[int, int]:
    """(L, D): how many layers and directions these parameters describe; (0, 1) for those of no layer."""
    directions = 2 if "weight_ih_l0_reverse" in params else 1
    layers = 0
    while f"weight_ih_l{layers}" in params:
        layers += 1
    return layers, directions


def param_shapes(
    cell: Cell, input_size: int, hidden_size: int, layers: int, directions: int, proj_size: int = 0
) -> dict[str, tuple]:
    """Name and shape of every parameter of a stack, in PyTorch's order. A proj_size of 0 is no projection."""
    shapes: dict[str, tuple] = {}
    rows, output_size = cell.gates * hidden_size, proj_size or hidden_size
    for layer in range(layers):
        columns = directions * output_size if layer else input_size
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[:directions]:
            shapes["weight_ih" + suffix], shapes["weight_hh" + suffix] = (rows, columns), (rows, output_size)
            shapes["bias_ih" + suffix] = shapes["bias_hh" + suffix] = (rows,)
            if proj_size:
                shapes["weight_hr" + suffix] = (proj_size, hidden_size)
    return shapes


def state_widths(cell: Cell, params: Arrays) -> tuple[int, ...]:
    """Size of each state: P of h, H of the others."""
    rows, output_size = params["weight_hh_l0"].shape
    return (output_size, *[rows // cell.gates] * (cell.states - 1))


def forward(
    cell: Cell,
    x: np.ndarray,
    params: Arrays,
    initial_state: State | None = None,
    lengths=None,
    dropout_masks: list[np.ndarray] | None = None,
) -> tuple[np.ndarray, State, Tape]:
    """Run the stack over x.

    cell           a cell of cells.py, e.g. RNNCell(tanh)
    x              [T, B, I], float32 or float64; every result has its dtype
    initial_state  S arrays [L*D, B, P], but H for any behind the first; zeros if None
    lengths        B integers in 1..T, in any order; T for all if None. Past its length a sequence does not
                   exist: its state stands still, its output is zero, what x holds there is not read
    dropout_masks  L-1 arrays [T, B, D*P], multiplied onto the output of each layer but the last
                   (1/(1-p) where kept, 0 where dropped); nothing is dropped if None

    Returns the output [T, B, D*P] (forward direction first), the final state (shaped as the initial one: after the
    last step of each sequence, or after its first for the reverse direction) and the tape for `backward`.
    Raises ValueError if a shape or a length does not fit.
    """
    L, D = stack_of(params)
    _check_input(cell, x, params, L, D)
    T, B, _ = x.shape
    state_shapes = [(L * D, B, n) for n in state_widths(cell, params)]
    if initial_state is None:
        initial_state = tuple(np.zeros(shape, x.dtype) for shape in state_shapes)
    _check_arrays("initial_state", initial_state, state_shapes)
    if dropout_masks is not None:
        P = state_shapes[0][-1]
        _check_arrays("dropout_masks", dropout_masks, [(T, B, D * P)] * (L - 1))
    active = _active(lengths, T, B)

    runs: list[Run] = []
    final: list[State] = []
    layer_input = np.where(active, x, 0)  # whatever the padding holds, NaN included, must not enter a product
    for layer in range(L):
        if layer > 0 and dropout_masks is not None:
            layer_input = layer_input * dropout_masks[layer - 1]
        outputs = []
        for direction in range(D):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            steps = range(T - 1, -1, -1) if direction else range(T)
            state = tuple(s[len(runs)] for s in initial_state)
            y, state, run = _forward_direction(cell, layer_input, params, suffix, state, steps, active)
            outputs.append(y)
            final.append(state)
            runs.append(run)
        layer_input = np.concatenate(outputs, axis=2)  # [T, B, D*P]
    final_state = tuple(np.stack(rows) for rows in zip(*final, strict=True))
    return layer_input, final_state, Tape(cell, params, runs, active, dropout_masks)


def backward(
    tape: Tape, d_output: np.ndarray | None = None, d_final_state: State | None = None
) -> tuple[np.ndarray, State, Arrays]:
    """Send the gradients of a loss back through `forward`.

    d_output       [T, B, D*P], gradient of the loss in the output; zeros if None
    d_final_state  S arrays, gradient in the final state and shaped like it; zeros if None

    Returns d_x [T, B, I], d_initial_state (shaped like it, too) and the gradients of the parameters under
    their names. Each is a plain sum over time and batch: a mean belongs into the loss, once.
    Raises ValueError if a shape does not fit.
    """
    L, D = stack_of(tape.params)
    T, B, P = tape.runs[0].h_prev.shape
    dtype = tape.runs[0].x.dtype
    d_layer = np.zeros((T, B, D * P), dtype) if d_output is None else d_output
    state_shapes = [(L * D, B, n) for n in state_widths(tape.cell, tape.params)]
    if d_final_state is None:
        d_final_state = tuple(np.zeros(shape, dtype) for shape in state_shapes)
    _check_shape("d_output", d_layer, (T, B, D * P))
    _check_arrays("d_final_state", d_final_state, state_shapes)

    grads: Arrays = {}
    d_initial: list[State] = [()] * (L * D)
    for layer in reversed(range(L)):
        d_inputs = []
        for direction in range(D):
            row = layer * D + direction
            dy = d_layer[..., direction * P : (direction + 1) * P]  # this direction's share of the output
            d_state = tuple(s[row] for s in d_final_state)
            dx, d_initial[row] = _backward_direction(tape, tape.runs[row], dy, d_state, grads)
            d_inputs.append(dx)
        d_layer = np.sum(d_inputs, axis=0)  # both directions read the same input
        if layer > 0 and tape.dropout_masks is not None:
            d_layer = d_layer * tape.dropout_masks[layer - 1]
    d_initial_state = tuple(np.stack(rows) for rows in zip(*d_initial, strict=True))
    return d_layer, d_initial_state, {name: grads[name] for name in tape.params}


def _forward_direction(cell, x, params, suffix, state, steps, active):
    """One direction of one layer: x [T, B, I] and a state of S arrays [B, P or H] -> y [T, B, P], state, Run."""
    W_ih, W_hh = params["weight_ih" + suffix], params["weight_hh" + suffix]
    b_ih, b_hh = params.get("bias_ih" + suffix, 0), params.get("bias_hh" + suffix, 0)
    W_hr = params.get("weight_hr" + suffix)
    (T, B, _), (rows, P) = x.shape, W_hh.shape

    gates_x = x @ W_ih.T + b_ih  # [T, B, G*H]: needs no past, so all steps at once
    y, h_prev, saved = np.zeros((T, B, P), x.dtype), np.zeros((T, B, P), x.dtype), [None] * T
    out = np.zeros((T, B, rows // cell.gates), x.dtype)
    for t in steps:
        h_prev[t] = state[0]
        gates_h = state[0] @ W_hh.T + b_hh  # [B, G*H]
        new, saved[t] = cell.forward(gates_x[t], gates_h, state)
        out[t] = new[0]
        if W_hr is not None:
            new = (out[t] @ W_hr.T, *new[1:])
        y[t] = np.where(active[t], new[0], 0)
        state = tuple(np.where(active[t], n, s) for n, s in zip(new, state, strict=True))
    return y, state, Run(suffix, x, h_prev, out, saved, steps)


def _backward_direction(tape, run, dy, d_state, grads):
    """The same walk in the opposite order: dy [T, B, P] and d_state of S arrays [B, P or H] -> dx, d_state.

    Puts the gradients of this direction's parameters into grads.
    """
    W_ih, W_hh = tape.params["weight_ih" + run.suffix], tape.params["weight_hh" + run.suffix]
    W_hr = tape.params.get("weight_hr" + run.suffix)
    T, B, _ = run.h_prev.shape
    d_h = np.zeros_like(run.h_prev)
    d_gates_x = np.zeros((T, B, W_ih.shape[0]), run.x.dtype)
    d_gates_h = np.zeros((T, B, W_hh.shape[0]), run.x.dtype)
    for t in reversed(run.steps):
        on = tape.active[t]
        # h_t is used twice: as this step's output and by the next step. Its gradient is the sum of both.
        d_new = (d_state[0] + dy[t], *d_state[1:])
        d_h[t] = np.where(on, d_new[0], 0)
        if W_hr is not None:
            d_new = (d_h[t] @ W_hr, *d_new[1:])  # h_t = W_hr out
        d_gx, d_gh, d_prev = tape.cell.backward(d_new, run.saved[t])
        d_gates_x[t], d_gates_h[t] = np.where(on, d_gx, 0), np.where(on, d_gh, 0)
        d_prev = (d_prev[0] + d_gh @ W_hh, *d_prev[1:])  # gates_h = W_hh h_{t-1} + b_hh
        d_state = tuple(np.where(on, p, d) for p, d in zip(d_prev, d_state, strict=True))

    # The weights are the same at every step, so their gradients are sums over t (and over the batch):
    #     dW_ih = sum_t d_gates_x[t]^T x[t]        dW_hh = sum_t d_gates_h[t]^T h[t-1]
    grads["weight_ih" + run.suffix] = _sum_of_outer_products(d_gates_x, run.x)
    grads["weight_hh" + run.suffix] = _sum_of_outer_products(d_gates_h, run.h_prev)
    grads["bias_ih" + run.suffix] = d_gates_x.sum((0, 1))
    grads["bias_hh" + run.suffix] = d_gates_h.sum((0, 1))
    if W_hr is not None:
        grads["weight_hr" + run.suffix] = _sum_of_outer_products(d_h, run.out)
    return d_gates_x @ W_ih, d_state  # gates_x = W_ih x + b_ih


def _sum_of_outer_products(left, right):
    """left [T, B, M], right [T, B, N] -> [M, N], summed over T and B in one product."""
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])


def _active(lengths, T, B):
    """[T, B, 1] bool: is step t inside sequence b?"""
    lengths = np.full(B, T) if lengths is None else np.asarray(lengths)
    if lengths.shape != (B,) or (lengths < 1).any() or (lengths > T).any():
        raise ValueError(f"lengths: expected {B} integers in 1..{T}, got {lengths.tolist()}")
    return (np.arange(T)[:, None] < lengths)[..., None]


def _check_input(cell, x, params, L, D):
    """Refuse what NumPy would broadcast into a wrong answer; here and in the two functions below."""
    if x.ndim != 3 or x.dtype not in (np.float32, np.float64):
        raise ValueError(f"x: expected float32 or float64 [T, B, I], got {x.dtype} of {x.ndim} dimensions")
    if missing := [name for name in ("weight_ih_l0", "weight_hh_l0") if name not in params]:
        raise ValueError(f"params: {', '.join(missing)} missing")
    rows, P = params["weight_hh_l0"].shape
    shapes = param_shapes(cell, x.shape[2], rows // cell.gates, L, D, P if "weight_hr_l0" in params else 0)
    if missing := [name for name in shapes if name not in params and not name.startswith("bias")]:
        raise ValueError(f"params: {', '.join(missing)} missing")
    for name, p in params.items():
        _check_shape(name, p, shapes.get(name))


def _check_arrays(name, arrays, shapes):
    if len(arrays) != len(shapes):
        raise ValueError(f"{name}: expected {len(shapes)} arrays, got {len(arrays)}")
    for i, (array, shape) in enumerate(zip(arrays, shapes, strict=True)):
        _check_shape(f"{name}[{i}]", array, shape)


def _check_shape(name, array, shape):
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
