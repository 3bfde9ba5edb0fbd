"""The one table of tolerances. What layers compute goes through it, but in test_contract_processes' own processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


class Tolerance(NamedTuple):
    """|actual - expected| <= atol * scale + rtol * |expected|, for each element."""

    rtol: float
    atol: float


# For numbers around one, after some hundred steps of a recurrence that forgets: 900, 170, 15 and 10 eps (an eps is
# 2.2e-16, 1.2e-7, 7.8e-3, 9.8e-4). A wrong kernel is off by far more. complex64 has no kernel, only torch's own op.
TOLERANCES = {
    torch.float64: Tolerance(rtol=1e-13, atol=1e-13),
    torch.float32: Tolerance(rtol=1e-5, atol=1e-5),
    torch.bfloat16: Tolerance(rtol=6e-2, atol=6e-2),
    torch.float16: Tolerance(rtol=5e-3, atol=5e-3),
    torch.complex64: Tolerance(rtol=1e-5, atol=1e-5),
}

NUMPY_DTYPES = {"float32": torch.float32, "complex64": torch.complex64, "bfloat16": torch.bfloat16}


def as_numpy(values) -> np.ndarray:
    """A torch tensor, array or nested list of numbers as an array of float64 or complex128."""
    if isinstance(values, torch.Tensor):
        values = values.detach()
        values = values.to(torch.complex128 if values.is_complex() else torch.float64).resolve_conj().numpy()
    values = np.asarray(values)
    return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def dtype_of(values) -> torch.dtype:
    """The torch dtype of a tensor or array; anything else, such as a list of Python numbers, is float64."""
    if isinstance(values, torch.Tensor):
        return values.dtype
    return NUMPY_DTYPES.get(np.asarray(values).dtype.name, torch.float64)


def coarser(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype with the widest tolerance."""
    return max(dtypes, key=lambda dtype: TOLERANCES[dtype].atol)


def assert_close(actual, expected, dtype: torch.dtype | None = None, scale: float = 1.0) -> None:
    """Asserts equal shapes and elements equal within the tolerance of `dtype`. NaN is close to nothing.

    actual, expected: torch tensors or NumPy arrays of floating point numbers (or lists of them).
    dtype: the precision of the computation; by default the coarser one of the two.
    scale: the size of the numbers that were added up on the way to these, where that is not one.
    """
    tolerance = TOLERANCES[dtype or coarser(dtype_of(actual), dtype_of(expected))]
    actual, expected = as_numpy(actual), as_numpy(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape} is not {expected.shape}"
    np.testing.assert_allclose(
        actual, expected, rtol=tolerance.rtol, atol=tolerance.atol * scale, equal_nan=False
    )


def assert_all_close(actual: Sequence, expected: Sequence) -> None:
    """Asserts that two lists of gradients are close, each on the scale of its own largest element."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected):
        assert_close(a, e, scale=max(1.0, np.abs(as_numpy(e)).max(initial=0.0)))


def relative_error(actual, exact) -> float:
    """RMS of actual - exact over the RMS of exact; 0 for two empty or all-zero arrays."""
    actual, exact = as_numpy(actual), as_numpy(exact)
    assert actual.shape == exact.shape, f"shape {actual.shape} is not {exact.shape}"
    error, size = np.linalg.norm(actual - exact), np.linalg.norm(exact)
    with np.errstate(divide="ignore"):
        return float(error / size) if error else 0.0


def cosine(actual, exact) -> float:
    """Cosine of the angle between two arrays taken as vectors; 1 for two empty or all-zero arrays."""
    actual, exact = as_numpy(actual).ravel(), as_numpy(exact).ravel()
    sizes = np.linalg.norm(actual) * np.linalg.norm(exact)
    return float(np.vdot(exact, actual).real / sizes) if sizes else float(not (actual.any() or exact.any()))


def assert_same_vector(actual, expected, dtype: torch.dtype) -> None:
    """Asserts that two arrays agree as a whole: relative norm of the difference and direction.

    A few elements may sit anywhere within their own bounds while a whole gradient leans to one side;
    this bound sees that.
    """
    rtol = TOLERANCES[dtype].rtol
    assert relative_error(actual, expected) <= rtol, f"relative error {relative_error(actual, expected):.2e}"
    assert cosine(actual, expected) >= 1 - rtol, f"cosine {cosine(actual, expected)}"
