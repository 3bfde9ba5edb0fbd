"""The ways to multiply: the choice between them, and that tiles keep the meaning of numbers that bfloat16 lacks."""

from __future__ import annotations

import pytest
import torch

import rnn_ext
from tests.strategies import EDGE_CASES
from tests.subject import run_python
from tests.test_isa import WIDE_CASES, check_against_float64
from tests.tolerances import assert_close

needs_tiles = pytest.mark.skipif(rnn_ext._C.isa() != "amx", reason="the instruction set in use has no AMX tiles")

needs_pairs = pytest.mark.skipif(
    not rnn_ext._C.multiplies_bfloat16(), reason="the instruction set in use is not avx512, or has no quick AVX512_BF16"
)


@pytest.fixture(autouse=True)
def product_as_before():
    before = rnn_ext.float32_product()
    yield
    rnn_ext.set_float32_product(before)


def by(product: str, layer, x: torch.Tensor) -> torch.Tensor:
    """The layer's output with that product."""
    rnn_ext.set_float32_product(product)
    with torch.no_grad():
        return layer(x)[0]


def large_batch() -> tuple[rnn_ext.RNN, torch.Tensor]:
    torch.manual_seed(0)
    return rnn_ext.RNN(40, 272, nonlinearity="relu"), torch.randn(6, 32, 40)


def test_the_product_set_is_the_product_told():
    for product in ("fma", "auto"):
        rnn_ext.set_float32_product(product)
        assert rnn_ext.float32_product() == product


def test_a_product_of_another_name_is_refused():
    with pytest.raises(ValueError, match="expected one of auto, fma, amx, got 'tf32'"):
        rnn_ext.set_float32_product("tf32")


def test_tiles_are_refused_where_there_are_none():
    code = "import rnn_ext; rnn_ext.set_float32_product('amx')"
    with pytest.raises(AssertionError, match="RuntimeError: set_float32_product: no AMX tiles"):
        run_python(code, RNN_EXT_ISA="baseline", RNN_EXT_FLOAT32_PRODUCT="")


def test_the_environment_sets_the_product_and_refuses_what_it_does_not_know():
    told = run_python("import rnn_ext; print(rnn_ext.float32_product())", RNN_EXT_FLOAT32_PRODUCT="fma")
    assert told == "fma"
    with pytest.raises(AssertionError, match="ImportError: RNN_EXT_FLOAT32_PRODUCT: .*got 'fast'"):
        run_python("import rnn_ext", RNN_EXT_FLOAT32_PRODUCT="fast")


@needs_tiles
def test_tiles_are_taken_for_large_batches_and_never_under_batch_invariant():
    layer, x = large_batch()
    rnn_ext.set_float32_product("auto")
    assert rnn_ext.explain(layer, x).product == "amx"
    assert rnn_ext.explain(layer, x[:, :2]).product == "fma"
    assert rnn_ext.explain(layer.double(), x.double()).product == "fma"
    with rnn_ext.batch_invariant():
        assert rnn_ext.explain(layer.float(), x).product == "fma"


@needs_tiles
@pytest.mark.parametrize(
    "batch, hidden_size, product",
    [(32, 256, "amx"), (64, 250, "amx"), (20, 256, "fma"), (40, 256, "fma"), (32, 257, "fma")],
)
def test_float32_takes_tiles_that_are_nearly_full(batch, hidden_size, product):
    rnn_ext.set_float32_product("auto")
    assert rnn_ext.explain(rnn_ext.GRU(40, hidden_size), torch.randn(6, batch, 40)).product == product


# Emulated tiles are slow under a sanitizer: there a third of the cases.
TILE_CASES = [
    pytest.param(case, id=str(case), marks=[pytest.mark.sanitize] if i % 3 == 0 else [])
    for i, case in enumerate(c for c in EDGE_CASES + WIDE_CASES if c.dtype != torch.float64)
]


@needs_tiles
@pytest.mark.parametrize("case", TILE_CASES)
def test_a_layer_on_tiles_is_right(case):
    rnn_ext.set_float32_product("amx")
    check_against_float64(case)


@needs_tiles
def test_tiles_are_closer_to_float64_than_multiply_adds():
    layer, x = large_batch()
    errors = {product: by(product, layer, x).double() for product in ("fma", "amx")}
    exact = layer.double()(x.double())[0]
    rms = {product: (y - exact).square().mean().sqrt().item() for product, y in errors.items()}
    assert 0 < rms["amx"] <= rms["fma"]


@needs_tiles
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")], ids=str)
def test_infinities_and_nan_mean_what_they_mean_to_multiply_adds_and_stay_in_their_sequence(value):
    layer, x = large_batch()
    clean = by("amx", layer, x)
    x[2, 5, 7] = value
    y, expected = by("amx", layer, x), by("fma", layer, x)
    others = [b for b in range(32) if b != 5]
    assert torch.equal(y[:, others], clean[:, others])
    assert torch.equal(y[:2, 5], clean[:2, 5])
    assert not expected[2, 5].isfinite().all()
    for same in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(same(y[2:4, 5]), same(expected[2:4, 5]))


@needs_tiles
def test_weights_that_are_infinite_mean_what_they_mean_to_multiply_adds():
    layer, x = large_batch()
    with torch.no_grad():
        layer.weight_ih_l0[3, 2] = float("inf")
    y, expected = by("amx", layer, x)[0], by("fma", layer, x)[0]
    assert y.isposinf().any()
    assert torch.equal(y.isposinf(), expected.isposinf()) and torch.equal(y.isnan(), expected.isnan())


@needs_tiles
def test_the_largest_numbers_do_not_overflow_in_their_parts():
    layer, x = large_batch()
    x[:, 4] = torch.finfo(torch.float32).max
    with torch.no_grad():
        layer.weight_ih_l0 *= 1e-3
    y, expected = by("amx", layer, x[:1]), by("fma", layer, x[:1])
    assert y.isfinite().all()
    largest = expected.abs().max()
    assert_close(y / largest, expected / largest, torch.float32)


@needs_tiles
def test_the_smallest_numbers_count_as_zero():
    layer, x = large_batch()
    with torch.no_grad():
        layer.bias_ih_l0.zero_(), layer.bias_hh_l0.zero_()
    y = by("amx", layer, (x * 1e-39)[:1])
    assert (y == 0).all()


@needs_tiles
def test_gradients_of_infinite_outputs_mean_what_they_mean_to_multiply_adds():
    layer, x = large_batch()
    x.requires_grad_()
    found = {}
    for product in ("fma", "amx"):
        rnn_ext.set_float32_product(product)
        dy = torch.ones(6, 32, layer.hidden_size)
        dy[3, 5, 7] = float("inf")
        found[product] = torch.autograd.grad(layer(x)[0], [x, *layer.parameters()], dy)
    for a, b in zip(found["amx"], found["fma"], strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


@needs_pairs
def test_bfloat16_is_multiplied_in_pairs_whatever_the_batch():
    layer, x = large_batch()
    rnn_ext.set_float32_product("auto")
    assert rnn_ext.explain(layer, x).product == "fma"
    assert rnn_ext.explain(layer.double(), x.double()).product == "fma"
    layer, x = layer.bfloat16(), x.bfloat16()
    assert "products by bf16" in str(rnn_ext.explain(layer, x))
    assert rnn_ext.explain(layer, x[:, :1]).product == "bf16"
    assert rnn_ext.explain(layer, x[:2, :1]).product == "fma"  # few rows: the weights as they lie
    with rnn_ext.batch_invariant():
        assert rnn_ext.explain(layer, x[:2, :1]).product == "bf16"
    rnn_ext.set_float32_product("fma")
    assert rnn_ext.explain(layer, x).product == "fma"


@needs_pairs
def test_a_set_below_avx512_multiplies_bfloat16_by_multiply_adds():
    code = "import rnn_ext; print(rnn_ext._C.multiplies_bfloat16())"
    assert run_python(code, RNN_EXT_ISA="avx2") == "False"


@needs_pairs
@pytest.mark.sanitize
@pytest.mark.parametrize("case", [c for c in EDGE_CASES + WIDE_CASES if c.dtype == torch.bfloat16], ids=str)
def test_a_layer_on_pairs_is_right(case):
    rnn_ext.set_float32_product("auto")
    with rnn_ext.batch_invariant():  # few rows too
        check_against_float64(case)


@needs_pairs
@pytest.mark.sanitize
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")], ids=str)
@pytest.mark.parametrize("where", ["x", "weight_ih_l0", "weight_hh_l0", "dy"])
@pytest.mark.parametrize("sizes", [(7, 19), (32, 64)], ids=str)
def test_pairs_of_what_is_not_finite_mean_what_they_mean_to_multiply_adds(value, where, sizes):
    """At odd sizes the last number of a row has no neighbour."""
    torch.manual_seed(0)
    layer = rnn_ext.RNN(*sizes, dtype=torch.bfloat16)
    x, dy = torch.randn(6, 13, sizes[0]).bfloat16(), torch.randn(6, 13, sizes[1]).bfloat16()
    with torch.no_grad():
        {"x": x, "dy": dy, **dict(layer.named_parameters())}[where][..., 2, -1] = value
    results = {}
    for product in ("auto", "fma"):
        rnn_ext.set_float32_product(product)
        leaf = x.clone().requires_grad_()
        y, _ = layer(leaf)
        results[product] = [y, *torch.autograd.grad(y, [leaf, *layer.parameters()], dy)]
    assert not all(result.isfinite().all() for result in results["fma"])
    for actual, expected in zip(results["auto"], results["fma"], strict=True):
        assert torch.equal(actual.isfinite(), expected.isfinite())
        assert torch.equal(actual.isnan(), expected.isnan())


@needs_pairs
@pytest.mark.parametrize("sizes", [(1, 1), (31, 33), (66, 70)], ids=str)
def test_pairs_give_the_numbers_of_multiply_adds(sizes):
    """Of small integers, every product and sum is exact."""
    layer = rnn_ext.RNN(*sizes, nonlinearity="relu", bias=False, dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randint(-1, 2, weight.shape))
    x = torch.randint(-2, 3, (1, 27, sizes[0])).bfloat16()
    with rnn_ext.batch_invariant():
        for batch in range(1, 28):
            assert torch.equal(by("auto", layer, x[:, :batch]), by("fma", layer, x[:, :batch]))
