"""What it takes to train: a readout, three losses, gradient clipping, two optimizers.

Every loss returns (loss, d_scores). It is a mean over N entries: N divides here and nowhere else.
Parameters and gradients are dicts of arrays with the same keys; an optimizer changes the arrays in place.
"""

import math

import numpy as np

from .cells import sigmoid
from .loop import Arrays, param_shapes


def init_params(cell, input_size, hidden_size, layers=1, directions=1, seed=0, dtype=np.float64, proj_size=0) -> Arrays:
    """Parameters for `loop.forward`, uniform in +-1/sqrt(H) as PyTorch's recurrent layers start.

    cell                            a cell of cells.py; the sizes, layers L, directions D and projection P (0: none)
                                    as in loop.py
    seed, dtype                     of the numbers; float32 or float64
    """
    rng, bound = np.random.default_rng(seed), 1 / math.sqrt(hidden_size)
    shapes = param_shapes(cell, input_size, hidden_size, layers, directions, proj_size)
    return {name: rng.uniform(-bound, bound, shape).astype(dtype) for name, shape in shapes.items()}


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """y = x W^T + b: x [..., I], weight [O, I], bias [O] -> [..., O]."""
    return x @ weight.T + bias


def linear_backward(dy: np.ndarray, x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """dy [..., O], x [..., I] -> dx [..., I] and the gradients of weight [O, I] and bias [O]."""
    rows_dy, rows_x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return dy @ weight, {"weight": rows_dy.T @ rows_x, "bias": rows_dy.sum(0)}


def softmax(scores: np.ndarray) -> np.ndarray:
    """p_k = exp(s_k) / sum_j exp(s_j) over the last axis of scores [.., K]; the largest comes off first (overflow)."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(scores: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Softmax cross-entropy: scores [N, K], target [N] integers in 0..K-1.

    loss = -mean_n log p[n, target_n],  p = softmax(scores)
    d loss / d scores = (p - onehot(target)) / N
    C. Bishop, "Pattern Recognition and Machine Learning" (2006), section 4.3.4, divided by N.
    Raises ValueError for a class that there is not.
    """
    N, target = len(target), np.asarray(target)
    if ((target < 0) | (target >= scores.shape[-1])).any():
        raise ValueError(f"target: expected classes in 0..{scores.shape[-1] - 1}, got {target.min()}..{target.max()}")
    shifted = scores - scores.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    d_scores = np.exp(log_p)
    d_scores[np.arange(N), target] -= 1
    return float(-log_p[np.arange(N), target].mean()), d_scores / N


def binary_cross_entropy(scores: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Sigmoid and binary cross-entropy in one: scores a and targets y in {0, 1} of the same shape, N entries.

    loss = -mean(y log p + (1-y) log(1-p)),  p = sigmoid(a)
         = mean(max(a, 0) - a y + log(1 + exp(-|a|))), which never takes the log of 0
    d loss / d a = (p - y) / N
    Bishop (2006), section 4.3.2, divided by N.
    """
    loss = np.maximum(scores, 0) - scores * target + np.log1p(np.exp(-np.abs(scores)))
    return float(loss.mean()), (sigmoid(scores) - target) / scores.size


def mean_squared_error(scores: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """loss = mean((s - y)^2), d loss / d s = 2 (s - y) / N: both of one shape, N entries."""
    difference = scores - target
    return float((difference * difference).mean()), 2 * difference / difference.size


def clip_grad_norm(grads: Arrays, max_norm: float) -> float:
    """Scale all gradients in place so that their common 2-norm is at most max_norm; returns the norm before.

    R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
    The small 1e-6 is PyTorch's (torch.nn.utils.clip_grad_norm_).
    """
    norm = math.sqrt(sum(float((g * g).sum()) for g in grads.values()))
    scale = min(1.0, max_norm / (norm + 1e-6))
    for g in grads.values():
        g *= scale
    return norm


class SGD:
    """Gradient descent, p <- p - lr g, without momentum (torch.optim.SGD)."""

    def __init__(self, params: Arrays, lr: float):
        self.params, self.lr = params, lr

    def step(self, grads: Arrays) -> None:
        """Change the parameters in place; grads has their names and shapes."""
        for name, p in self.params.items():
            p -= self.lr * grads[name]


class Adam:
    """D. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1:

    m <- b1 m + (1-b1) g            v <- b2 v + (1-b2) g^2
    p <- p - lr (m / (1-b1^k)) / (sqrt(v / (1-b2^k)) + eps)      at update k = 1, 2, ...
    """

    def __init__(self, params: Arrays, lr: float, betas=(0.9, 0.999), eps: float = 1e-8):
        self.params, self.lr, self.betas, self.eps = params, lr, betas, eps
        self.m = {name: np.zeros_like(p) for name, p in params.items()}
        self.v = {name: np.zeros_like(p) for name, p in params.items()}
        self.updates = 0

    def step(self, grads: Arrays) -> None:
        """Change the parameters in place; grads has their names and shapes."""
        self.updates += 1
        b1, b2 = self.betas
        lr = self.lr / (1 - b1**self.updates)
        root = math.sqrt(1 - b2**self.updates)
        for name, p in self.params.items():
            m, v, g = self.m[name], self.v[name], grads[name]
            m += (1 - b1) * (g - m)
            v += (1 - b2) * (g * g - v)
            p -= lr * m / (np.sqrt(v) / root + self.eps)
