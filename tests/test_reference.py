"""The NumPy reference against finite differences, against torch.nn.RNN, and on its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn_ext import reference as ref
from tests.tolerances import assert_close

T, B, INPUT, HIDDEN = 6, 4, 3, 5
LENGTHS = [4, 6, 1, 3]
ACTIVATIONS = {"tanh": ref.tanh, "relu": ref.relu}
# f(a) = a / (1 + |a|), f'(a) = (1 - |f(a)|)^2: a smooth activation that the package does not have
softsign = (lambda a: a / (1 + np.abs(a)), lambda y: (1 - np.abs(y)) ** 2)

STACKS = pytest.mark.parametrize("layers, directions", [(1, 1), (1, 2), (3, 1), (2, 2)])


def stack(cell, layers=1, directions=1, seed=0, proj_size=0):
    """Parameters, input, initial h and gradients of output and final h, in float64."""
    rng, output = np.random.default_rng(seed), proj_size or HIDDEN
    params = ref.init_params(cell, INPUT, HIDDEN, layers, directions, seed, proj_size=proj_size)
    state = (layers * directions, B, output)
    x, h0 = rng.standard_normal((T, B, INPUT)), rng.standard_normal(state)
    return params, x, h0, rng.standard_normal((T, B, directions * output)), rng.standard_normal(state)


def masks(layers, directions, p=0.4, seed=1):
    kept = np.random.default_rng(seed).random((layers - 1, T, B, directions * HIDDEN)) > p
    return list(kept / (1 - p))


def finite_difference(f, array, step=1e-6):
    """d f() / d array by central differences: array is changed in place and put back."""
    slope = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + step
        above = f()
        array[index] = value - step
        below = f()
        array[index] = value
        slope[index] = (above - below) / (2 * step)
    return slope


def assert_is_slope(gradient, f, array):
    """Central differences at step 1e-6 leave an error of about 1e-9: 1e5 times what float64 can hold."""
    assert_close(gradient, finite_difference(f, array), scale=1e5)


def torch_twin(params, layers, directions, nonlinearity="tanh"):
    rnn = torch.nn.RNN(
        INPUT, HIDDEN, layers, nonlinearity, bidirectional=directions == 2, bias="bias_ih_l0" in params
    ).double()
    rnn.load_state_dict({name: torch.from_numpy(p) for name, p in params.items()})
    return rnn


def assert_agrees_with_torch(rnn, results, x, h0, dy, dh, lengths=None):
    """Output, final state and every gradient of the reference are those of torch.nn.RNN."""
    y, (h,), dx, (dh0,), grads = results
    x, h0 = (torch.tensor(a, requires_grad=True) for a in (x, h0))
    packed = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
    torch_y, torch_h = rnn(packed, h0)
    if lengths is not None:
        torch_y, _ = pad_packed_sequence(torch_y, total_length=T)
    assert_close(y, torch_y)
    assert_close(h, torch_h)
    torch.autograd.backward([torch_y, torch_h], [torch.from_numpy(dy), torch.from_numpy(dh)])
    assert_close(dx, x.grad, scale=10)
    assert_close(dh0, h0.grad, scale=10)
    assert list(grads) == [name for name, _ in rnn.named_parameters()]
    for name, parameter in rnn.named_parameters():
        assert_close(grads[name], parameter.grad, scale=10)


def run(cell, params, x, h0, dy, dh, lengths=None, dropout_masks=None):
    y, h, tape = ref.forward(cell, x, params, (h0,), lengths, dropout_masks)
    return y, h, *ref.backward(tape, dy, (dh,))


@STACKS
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
def test_forward_and_backward_are_those_of_torch(layers, directions, lengths, nonlinearity):
    cell = ref.RNNCell(ACTIVATIONS[nonlinearity])
    params, x, h0, dy, dh = stack(cell, layers, directions)
    rnn = torch_twin(params, layers, directions, nonlinearity)
    assert_agrees_with_torch(rnn, run(cell, params, x, h0, dy, dh, lengths), x, h0, dy, dh, lengths)


def test_a_stack_without_bias_is_that_of_torch():
    cell = ref.RNNCell()
    params, x, h0, dy, dh = stack(cell, 2, 2)
    params = {name: p for name, p in params.items() if name.startswith("weight")}
    assert_agrees_with_torch(torch_twin(params, 2, 2), run(cell, params, x, h0, dy, dh), x, h0, dy, dh)


GATED = pytest.mark.parametrize("name, proj_size", [("LSTM", 0), ("LSTM", 2), ("GRU", 0)])


@STACKS
@pytest.mark.parametrize("lengths", [None, LENGTHS])
@GATED
def test_gated_cells_are_those_of_torch(name, proj_size, layers, directions, lengths):
    cell = ref.CELLS[name]()
    params, x, h0, dy, dh = stack(cell, layers, directions, proj_size=proj_size)
    rng, shape = np.random.default_rng(5), (layers * directions, B, HIDDEN)
    start = [h0, *(rng.standard_normal(shape) for _ in range(cell.states - 1))]
    d_final = [dh, *(rng.standard_normal(shape) for _ in range(cell.states - 1))]
    y, final, tape = ref.forward(cell, x, params, tuple(start), lengths)
    dx, d_start, grads = ref.backward(tape, dy, tuple(d_final))

    options = {"bidirectional": directions == 2, **({"proj_size": proj_size} if proj_size else {})}
    twin = getattr(torch.nn, name)(INPUT, HIDDEN, layers, **options).double()
    twin.load_state_dict({key: torch.from_numpy(p) for key, p in params.items()})
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, *start)]
    packed = leaves[0] if lengths is None else pack_padded_sequence(leaves[0], lengths, enforce_sorted=False)
    twin_y, twin_final = twin(packed, tuple(leaves[1:]) if cell.states == 2 else leaves[1])
    if lengths is not None:
        twin_y, _ = pad_packed_sequence(twin_y, total_length=T)
    twin_final = twin_final if cell.states == 2 else (twin_final,)
    outputs = [twin_y, *twin_final]
    torch.autograd.backward(outputs, [torch.from_numpy(d) for d in (dy, *d_final)])
    for ours, theirs in zip((y, *final), outputs, strict=True):
        assert_close(ours, theirs)
    for ours, leaf in zip((dx, *d_start), leaves, strict=True):
        assert_close(ours, leaf.grad, scale=10)
    for key, parameter in twin.named_parameters():
        assert_close(grads[key], parameter.grad, scale=10)


@GATED
def test_every_gradient_of_a_gated_cell_is_the_slope_of_the_loss(name, proj_size):
    cell = ref.CELLS[name]()
    params, x, h0, dy, _ = stack(cell, 2, 2, proj_size=proj_size)
    start = (h0, np.random.default_rng(5).standard_normal((4, B, HIDDEN)))[: cell.states]

    def loss():
        return (ref.forward(cell, x, params, start, LENGTHS)[0] * dy).sum()

    dx, d_start, grads = ref.backward(ref.forward(cell, x, params, start, LENGTHS)[2], dy, None)
    assert_is_slope(dx, loss, x)
    for gradient, state in zip(d_start, start, strict=True):
        assert_is_slope(gradient, loss, state)
    for key, values in params.items():
        assert_is_slope(grads[key], loss, values)


@STACKS
@pytest.mark.parametrize("activation", [ref.tanh, softsign], ids=["tanh", "own"])
def test_every_gradient_is_the_slope_of_the_loss(layers, directions, activation):
    cell = ref.RNNCell(activation)
    params, x, h0, dy, dh = stack(cell, layers, directions)
    dropout_masks = masks(layers, directions)

    def loss():
        y, (h,), _ = ref.forward(cell, x, params, (h0,), LENGTHS, dropout_masks)
        return float((dy * y).sum() + (dh * h).sum())

    _, _, dx, (dh0,), grads = run(cell, params, x, h0, dy, dh, LENGTHS, dropout_masks)
    assert_is_slope(dx, loss, x)
    assert_is_slope(dh0, loss, h0)
    for name, p in params.items():
        assert_is_slope(grads[name], loss, p)


def test_relu_has_no_slope_at_zero():
    assert_close(ref.relu.derivative(ref.relu.function(np.array([-1.0, 0.0, 2.0]))), np.array([0.0, 0.0, 1.0]))


def test_missing_states_and_gradients_are_zeros():
    cell = ref.RNNCell()
    params, x, h0, dy, dh = stack(cell, 2, 2)
    y, (h,), tape = ref.forward(cell, x, params)
    assert_close(y, ref.forward(cell, x, params, (np.zeros_like(h0),))[0])
    only_output, only_state = ref.backward(tape, dy), ref.backward(tape, None, (dh,))
    both = ref.backward(tape, dy, (dh,))
    assert_close(only_output[0] + only_state[0], both[0])  # backward is linear in what it is given


def test_every_sequence_of_a_ragged_batch_is_as_if_alone():
    cell = ref.RNNCell()
    params, x, h0, dy, dh = stack(cell, 2, 2)
    for b, length in enumerate(LENGTHS):
        x[length:, b] = np.nan  # padding is never read
    y, (h,), dx, (dh0,), grads = run(cell, params, x, h0, dy, dh, LENGTHS)
    total = {name: np.zeros_like(g) for name, g in grads.items()}
    for b, length in enumerate(LENGTHS):
        alone = slice(None, length), slice(b, b + 1)
        state = np.s_[:, b : b + 1]
        yb, (hb,), dxb, (dh0b,), gb = run(cell, params, x[alone], h0[state], dy[alone], dh[state])
        for whole, part in ((y[alone], yb), (h[state], hb), (dx[alone], dxb), (dh0[state], dh0b)):
            assert_close(whole, part)
        assert not y[length:, b].any() and not dx[length:, b].any()
        for name in total:
            total[name] += gb[name]
    for name in total:
        assert_close(grads[name], total[name], scale=10)


def test_a_projection_without_its_weight_is_refused():
    cell = ref.LSTMCell()
    params, x, *_ = stack(cell, proj_size=2)
    assert ref.forward(cell, x, params)[0].shape == (T, B, 2)
    del params["weight_hr_l0"]
    with pytest.raises(ValueError, match=r"weight_hh_l0: expected shape \(20, 5\), got \(20, 2\)"):
        ref.forward(cell, x, params)


def test_a_missing_bias_is_zero_and_a_missing_weight_is_refused():
    cell = ref.GRUCell()
    params, x, *_ = stack(cell, layers=2, directions=2)
    biases = [name for name in params if name.startswith("bias")]
    without = ref.forward(cell, x, {name: p for name, p in params.items() if name not in biases})[0]
    assert_close(without, ref.forward(cell, x, params | {name: 0 * params[name] for name in biases})[0])
    del params["weight_hh_l1_reverse"]
    with pytest.raises(ValueError, match="params: weight_hh_l1_reverse missing"):
        ref.forward(cell, x, params)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept(dtype):
    cell = ref.RNNCell()
    params, *arrays = stack(cell, 2, 2)
    params = {name: p.astype(dtype) for name, p in params.items()}
    y, (h,), dx, (dh0,), grads = run(cell, params, *(a.astype(dtype) for a in arrays), LENGTHS)
    assert {a.dtype for a in (y, h, dx, dh0, *grads.values())} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(lengths=[1, 2, 3]), "lengths: expected 4 integers in 1..6, got"),
        (dict(lengths=[0, 2, 3, 4]), "lengths: expected 4 integers in 1..6, got"),
        (dict(lengths=[1, 2, 3, 7]), "lengths: expected 4 integers in 1..6, got"),
        (dict(x=np.zeros((T, B, INPUT + 1))), r"weight_ih_l0: expected shape \(5, 4\), got \(5, 3\)"),
        (dict(initial_state=(np.zeros((1, B, HIDDEN)),)), r"initial_state\[0\]: expected shape \(2, 4, 5\)"),
        (dict(initial_state=(np.zeros((2, B, HIDDEN)),) * 2), "initial_state: expected 1 arrays, got 2"),
        (dict(dropout_masks=[]), "dropout_masks: expected 1 arrays, got 0"),
        (dict(dropout_masks=[np.ones(HIDDEN)]), r"dropout_masks\[0\]: expected shape \(6, 4, 5\)"),
        (dict(x=np.zeros((T, B, INPUT), int)), r"x: expected float32 or float64 \[T, B, I\], got int64 of 3"),
        (dict(x=np.zeros((B, INPUT))), r"x: expected float32 or float64 \[T, B, I\], got float64 of 2"),
        (dict(params={}), "params: weight_ih_l0, weight_hh_l0 missing"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    cell = ref.RNNCell()
    params, x, *_ = stack(cell, layers=2)
    with pytest.raises(ValueError, match=message):
        ref.forward(cell, **{"x": x, "params": params, **change})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(d_output=np.ones((T, B, 4 * HIDDEN))), r"d_output: expected shape \(6, 4, 10\), got \(6, 4, 20\)"),
        (dict(d_output=np.ones((T, 1, 2 * HIDDEN))), r"d_output: expected shape \(6, 4, 10\), got \(6, 1, 10\)"),
        (dict(d_final_state=(np.ones((2, 1, HIDDEN)),)), r"d_final_state\[0\]: expected shape \(2, 4, 5\)"),
        (dict(d_final_state=(np.ones((2, B, HIDDEN)),) * 2), "d_final_state: expected 1 arrays, got 2"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(change, message):
    cell = ref.RNNCell()
    params, x, *_ = stack(cell, directions=2)
    tape = ref.forward(cell, x, params)[2]
    with pytest.raises(ValueError, match=message):
        ref.backward(tape, **change)


LOSSES = {
    "cross_entropy": (torch.nn.functional.cross_entropy, lambda rng: rng.integers(0, 3, 7)),
    "binary_cross_entropy": (
        torch.nn.functional.binary_cross_entropy_with_logits,
        lambda rng: rng.integers(0, 2, (7, 3)).astype(float),
    ),
    "mean_squared_error": (torch.nn.functional.mse_loss, lambda rng: rng.standard_normal((7, 3))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_those_of_torch(name):
    rng = np.random.default_rng(0)
    torch_loss, draw = LOSSES[name]
    scores, target = 30 * rng.standard_normal((7, 3)), draw(rng)
    loss, d_scores = getattr(ref, name)(scores, target)
    torch_scores = torch.tensor(scores, requires_grad=True)
    expected = torch_loss(torch_scores, torch.from_numpy(target))
    expected.backward()
    assert_close([loss], [expected.item()])
    assert_close(d_scores, torch_scores.grad)


@pytest.mark.parametrize("target", [[0, 3], [-1, 0]])
def test_a_class_that_there_is_not_is_refused(target):
    with pytest.raises(ValueError, match=r"target: expected classes in 0\.\.2, got"):
        ref.cross_entropy(np.zeros((2, 3)), np.array(target))


def test_linear_backward_is_the_slope():
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (rng.standard_normal(s) for s in [(T, B, INPUT), (2, INPUT), (2,), (T, B, 2)])
    dx, grads = ref.linear_backward(dy, x, weight)

    def loss():
        return float((dy * ref.linear(x, weight, bias)).sum())

    for gradient, array in ((dx, x), (grads["weight"], weight), (grads["bias"], bias)):
        assert_is_slope(gradient, loss, array)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_clipping_and_optimizers_step_as_those_of_torch(optimizer):
    rng = np.random.default_rng(0)
    params = {"a": rng.standard_normal((3, 2)), "b": rng.standard_normal(4)}
    torch_params = [torch.tensor(p, requires_grad=True) for p in params.values()]
    ours = getattr(ref, optimizer)(params, lr=0.1)
    theirs = getattr(torch.optim, optimizer)(torch_params, lr=0.1)
    for size in (0.1, 1.0, 10.0):  # some below the clipping norm, some above
        grads = {name: size * rng.standard_normal(p.shape) for name, p in params.items()}
        for p, g in zip(torch_params, grads.values(), strict=True):
            p.grad = torch.tensor(g)
        norm = torch.nn.utils.clip_grad_norm_(torch_params, 2.0)
        assert_close([ref.clip_grad_norm(grads, 2.0)], [norm.item()])
        ours.step(grads)
        theirs.step()
        for p, expected in zip(params.values(), torch_params, strict=True):
            assert_close(p, expected)


def test_the_reference_needs_neither_torch_nor_the_extension():
    package = Path(ref.__file__).parent
    script = (
        "import sys; sys.modules['torch'] = sys.modules['rnn_ext'] = None\n"
        "import reference, numpy as np\n"
        "params = reference.init_params(reference.RNNCell(), 2, 3)\n"
        "print(reference.forward(reference.RNNCell(), np.ones((4, 1, 2)), params)[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=package.parent, capture_output=True, text=True)
    assert done.stdout.strip() == "(4, 1, 3)", done.stderr
