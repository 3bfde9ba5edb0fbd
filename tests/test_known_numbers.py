"""Small examples whose numbers are known: published ones, and ones that can be worked out by hand."""

import numpy as np
import pytest
import torch

import rnn_ext
from rnn_ext import reference as ref
from tests.tolerances import assert_close

LAYERS = pytest.mark.parametrize("RNN", [torch.nn.RNN, rnn_ext.RNN], ids=["torch.nn", "rnn_ext"])
PRINTED = 6e4  # numbers printed to eight decimals are off by up to 5e-9; float64 is held to 1e-13


def parameters(W_xh, W_hh, b):
    """Weights of a = W_xh x + W_hh h + b as the parameters of a layer, all of the bias in bias_ih."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    arrays = (np.array(a, dtype=float) for a in (W_xh, W_hh, b, np.zeros_like(b)))
    return dict(zip(names, arrays, strict=True))


def states(RNN, x, params):
    """All hidden states [T, B, H] from zero: by the layer, or by the reference where RNN is None."""
    if RNN is None:
        return ref.forward(ref.RNNCell(), x, params)[0]
    rnn = RNN(x.shape[2], params["weight_hh_l0"].shape[0]).double()
    rnn.load_state_dict({name: torch.from_numpy(p) for name, p in params.items()})
    return rnn(torch.from_numpy(x))[0].detach().numpy()


ALL = pytest.mark.parametrize(
    "RNN", [None, torch.nn.RNN, rnn_ext.RNN], ids=["reference", "torch.nn", "rnn_ext"]
)


# A1. Shared parameters: input 4, hidden 3, length 10.


def test_one_bias_vector_makes_24_parameters_whatever_the_length():
    params = ref.init_params(ref.RNNCell(), 4, 3)
    del params["bias_hh_l0"]
    assert sum(p.size for p in params.values()) == 4 * 3 + 3 * 3 + 3 == 24
    for length in (1, 10):
        y, _, tape = ref.forward(ref.RNNCell(), np.ones((length, 1, 4)), params)
        *_, grads = ref.backward(tape, y)
        assert sum(g.size for g in grads.values()) == 24


@LAYERS
def test_the_layers_carry_two_bias_vectors_and_27_parameters(RNN):
    rnn = RNN(4, 3)
    for length in (1, 10):
        rnn(torch.ones(length, 1, 4))[0].sum().backward()
        assert sum(p.grad.numel() for p in rnn.parameters()) == 27
    assert sum(p.size for p in ref.init_params(ref.RNNCell(), 4, 3).values()) == 27


# A2 to A4. Forward passes.


@ALL
def test_manual_forward(RNN):
    x = np.array([[0.5, -1.0], [1.0, 0.0], [-0.5, 0.5]])[:, None]
    params = parameters([[0.6, -0.2], [0.1, 0.5]], [[0.3, 0.4], [-0.2, 0.2]], [0.0, 0.1])
    expected = [[0.46211716, -0.33637554], [0.53994993, 0.04027965], [-0.21833125, 0.19743869]]
    assert_close(states(RNN, x, params)[:, 0], expected, scale=PRINTED)


@ALL
def test_small_sequence_forward(RNN):
    x = np.array([[1, 2], [2, 3], [3, 4]])[:, None] / 100
    W_x = np.array([[1, 3, 5, 7], [3, 5, 7, 8]]) / 100
    W_h = np.array([[1, 3, 5, 7], [2, 4, 6, 8], [3, 5, 7, 8], [4, 6, 8, 10]]) / 100
    h = states(RNN, x, parameters(W_x.T, W_h.T, np.ones(4)))
    assert_close(h[-1, 0], [0.79494228, 0.81839002, 0.83939649, 0.85584174], scale=PRINTED)


@ALL
def test_batch_forward(RNN):
    np.random.seed(0)
    x = np.random.randn(4, 5, 3)  # [B, T, I]
    np.random.seed(42)
    W_x, W_h = np.random.randn(3, 6) * 0.01, np.random.randn(6, 6) * 0.01
    h = states(RNN, x.swapaxes(0, 1).copy(), parameters(W_x.T, W_h.T, np.zeros(6)))
    expected = [
        [0.01744804, -0.01809214, -0.00733537, 0.02353047, -0.01589661, -0.00291828],
        [0.02475063, 0.01492887, -0.00131434, 0.01434083, -0.00562717, -0.00838413],
        [0.0045935, 0.0196712, 0.01454075, 0.00940329, 0.00687638, -0.00491381],
        [-0.02007635, -0.02387972, -0.0103665, -0.01783901, -0.00104322, 0.00930331],
    ]
    assert_close(h[0], expected, scale=PRINTED)


# A5. A classifier on the last state.


def classifier():
    """x [T, B, I] = [5, 2, 4], labels [B] of 3 classes, parameters and readout."""
    np.random.seed(0)
    x, y = np.random.randn(2, 5, 4), np.random.randint(0, 3, size=2)
    np.random.seed(0)
    W_x, W_h = np.random.randn(4, 6) * 0.01, np.random.randn(6, 6) * 0.01
    W_out = np.random.randn(6, 3) * 0.01
    return x.swapaxes(0, 1).copy(), y, parameters(W_x.T, W_h.T, np.zeros(6)), W_out.T, np.zeros(3)


@ALL
def test_classifier_loss(RNN):
    x, y, params, W_out, b_out = classifier()
    scores = ref.linear(states(RNN, x, params)[-1], W_out, b_out)
    plain, _ = ref.cross_entropy(scores, y)
    guarded = -np.log(ref.softmax(scores)[np.arange(2), y] + 1e-12).mean()
    # The two differ by 3e-12, less than the table of tolerances lets pass: count in ulps.
    np.testing.assert_array_max_ulp(
        np.array([plain, guarded]), np.array([1.0985512704791445, 1.0985512704761449]), maxulp=4
    )


def test_the_batch_divides_the_gradient_once():
    x, y, params, W_out, b_out = classifier()

    def loss():
        h, _, tape = ref.forward(ref.RNNCell(), x, params)
        return *ref.cross_entropy(ref.linear(h[-1], W_out, b_out), y), h, tape

    _, d_scores, h, tape = loss()
    dy = np.zeros_like(h)
    dy[-1], _ = ref.linear_backward(d_scores, h[-1], W_out)
    *_, grads = ref.backward(tape, dy)
    W, step = params["weight_ih_l0"], 1e-4
    slope = np.zeros_like(W)
    for index in np.ndindex(W.shape):
        value = W[index]
        W[index] = value + step
        above, *_ = loss()
        W[index] = value - step
        below, *_ = loss()
        W[index], slope[index] = value, (above - below) / (2 * step)
    assert_close(grads["weight_ih_l0"], slope, scale=1e4)  # central differences err by about step^2
    assert np.abs(slope).max() > 1e-3


# A6. The last step is the final state: "hello", one-hot over its four letters.


def hello():
    return np.eye(4)[["helo".index(letter) for letter in "hello"]][None]  # [1, 5, 4], batch first


@LAYERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_step_equals_the_final_state(RNN, dtype):
    out, h_n = RNN(4, 2, batch_first=True).to(dtype)(torch.from_numpy(hello()).to(dtype))
    assert out.shape == (1, 5, 2)
    assert torch.equal(out[:, -1], h_n[0])


def test_the_last_step_of_the_reference_equals_its_final_state():
    params = ref.init_params(ref.RNNCell(), 4, 2)
    out, (h_n,), _ = ref.forward(ref.RNNCell(), hello().swapaxes(0, 1), params)
    assert np.array_equal(out[-1], h_n[0])


# A7. The activation is a pair (function, derivative of the output).


def test_an_activation_of_ones_own():
    identity = (lambda a: a, np.ones_like)
    params = parameters([[2.0]], [[0.5]], [1.0])
    y, _, tape = ref.forward(ref.RNNCell(identity), np.array([[[1.0]], [[3.0]]]), params)
    assert_close(y.ravel(), [3.0, 8.5])  # 2*1 + 1, then 2*3 + 0.5*3 + 1
    dx, (dh0,), grads = ref.backward(tape, np.array([[[0.0]], [[1.0]]]))
    assert_close(dx.ravel(), [2 * 0.5, 2.0])
    assert_close(dh0.ravel(), [0.5 * 0.5])
    assert_close(grads["weight_hh_l0"].ravel(), [3.0])  # h_1 * 1 + h_0 * 0.5, with h_0 = 0
    assert_close(grads["bias_ih_l0"], [1.5])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@LAYERS
def test_the_activations_that_come_along_are_those_of_the_layers(RNN, nonlinearity):
    rnn = RNN(4, 2, nonlinearity=nonlinearity).double()
    params = {name: p.detach().numpy() for name, p in rnn.named_parameters()}
    x = hello().swapaxes(0, 1).copy()
    y, _, _ = ref.forward(ref.RNNCell(getattr(ref, nonlinearity)), x, params)
    assert_close(y, rnn(torch.from_numpy(x))[0])
