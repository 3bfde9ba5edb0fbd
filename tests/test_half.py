"""Every number of a half precision is read and written as torch reads and writes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rnn_ext
from tests.subject import HALVES

pytestmark = pytest.mark.sanitize
each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


def every_number(dtype: torch.dtype) -> Tensor:
    """All 65,536 of them, NaN and infinity and those without an exponent among them."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def by_one_unit(nonlinearity: str, x: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """The outputs of one unit whose whole input is x times the weight; and x times the weight in float32."""
    unit = rnn_ext.RNN(1, 1, nonlinearity=nonlinearity, bias=False, dtype=x.dtype)
    with torch.no_grad():
        unit.weight_ih_l0.fill_(weight)
        unit.weight_hh_l0.zero_()
        y, _ = unit(x.reshape(1, -1, 1))
        return y.flatten(), x.float() * unit.weight_ih_l0.float().flatten()


@pytest.fixture
def multiply_adds():
    """Which know no number as zero but zero."""
    before = rnn_ext.float32_product()
    rnn_ext.set_float32_product("fma")
    yield
    rnn_ext.set_float32_product(before)


@each_half
@pytest.mark.parametrize("weight", [1.0, -1.0, 1 / 3, -3.14159, 1000.0, 2.0**-14, 2.0**-20, 2.0**-24])
def test_every_product_that_is_not_negative_is_rounded_to_nearest_even(multiply_adds, dtype, weight):
    """ReLU hands on what it gets: exact products of two halves, from below the least of them to above the largest."""
    x = every_number(dtype)
    y, product = by_one_unit("relu", x, weight)
    kept = (product > 0) & (product >= torch.finfo(torch.float32).tiny)
    assert torch.equal(y[kept], product[kept].to(dtype))
    assert torch.equal(y.isnan(), product.isnan())


@each_half
def test_negative_numbers_are_the_mirror_of_positive_ones(multiply_adds, dtype):
    x = every_number(dtype)
    y, _ = by_one_unit("tanh", x, 0.7)
    mirrored, _ = by_one_unit("tanh", -x, 0.7)
    numbers = ~x.isnan()
    assert torch.equal(y[numbers], -mirrored[numbers])
    assert y[~numbers].isnan().all()


@each_half
def test_a_gradient_of_an_output_is_read_exactly(multiply_adds, dtype):
    """The gradient of a sum of products with one is the sum of what came in."""
    dy = every_number(dtype)
    dy = dy[dy.isfinite()]
    unit = rnn_ext.RNN(1, 1, nonlinearity="relu", bias=False, dtype=dtype)
    with torch.no_grad():
        unit.weight_ih_l0.fill_(1), unit.weight_hh_l0.zero_()
    x = torch.ones(1, len(dy), 1, dtype=dtype, requires_grad=True)
    unit(x)[0].backward(dy.reshape(x.shape))
    assert torch.equal(x.grad.flatten(), dy)
