"""Error against float64, pooled over many calls, is no more than 1.5 times torch's own or one eps."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from tests.subject import HALVES, LAYERS, Case, Layer, each_layer
from tests.tolerances import assert_close, assert_same_vector, cosine, relative_error

CALLS = {torch.float32: 40, torch.bfloat16: 16, torch.float16: 16}  # torch is slow at the halves
MORE_CALLS = 160


def calls(layer: Layer, dtype: torch.dtype, count: int) -> list[Case]:
    """Calls spread over the space: sizes on a logarithmic scale, every form, layers and directions."""
    choose = random.Random(1)

    def size(largest: int) -> int:
        return round(math.exp(choose.uniform(math.log(2), math.log(largest))))

    result = []
    for seed in range(count):
        form = choose.choice(["batched", "batched", "unbatched", "unsorted"])
        time, batch = size(150), 1 if form == "unbatched" else size(40)
        lengths = [choose.randint(1, time) if form == "unsorted" else time for _ in range(batch)]
        result.append(
            Case(
                layer, size(200), size(200), choose.choice([1, 1, 2, 3]), bias=choose.random() < 0.8,
                bidirectional=choose.random() < 0.3, given_state=choose.random() < 0.5,
                dtype=dtype, form=form, lengths=tuple(lengths), seed=seed,
            )
        )  # fmt: skip
    return result


def relative_errors(actual: dict, exact: dict) -> list[float]:
    return [relative_error(actual[name], exact[name]) for name in exact]


def smooth(case: Case, *runs: tuple[dict, dict]) -> bool:
    """Whether the gradients of these runs are those of one smooth function.

    A unit of ReLU that rounding puts on the other side of zero changes the gradient more than rounding does.
    In a half precision that happens in most calls, and the pool averages over it; in float32 in few, by chance.
    """
    if not case.kinked or case.dtype in HALVES:
        return True
    active = [outputs["y"] > 0 for outputs, _ in runs]
    return case.num_layers == 1 and all(torch.equal(units, active[0]) for units in active)


def pooled(errors: list[float]) -> float:
    """Root of the mean of squares."""
    return float(np.sqrt(np.mean(np.square(errors))))


def assert_as_accurate(ours: list[float], theirs: list[float], dtype: torch.dtype) -> None:
    bound = 1.5 * max(pooled(theirs), torch.finfo(dtype).eps)
    assert pooled(ours) <= bound, f"pooled error {pooled(ours):.2e}, torch's {pooled(theirs):.2e}"


@each_layer
@pytest.mark.parametrize(
    "dtype, count",
    [*CALLS.items(), *(pytest.param(dtype, MORE_CALLS, marks=pytest.mark.slow) for dtype in CALLS)],
    ids=str,
)
def test_the_error_is_as_small_as_torchs(layer, dtype, count):
    """Each call on one thread or on two, which may take different plans."""
    our_errors, their_errors = ([], []), ([], [])  # of outputs, of gradients
    for case in calls(layer, dtype, count):
        torch.set_num_threads(1 + case.seed % 2)
        ours, theirs, exact = case.run_ours(), case.run_theirs(), case.run_theirs(torch.float64)
        for part in (0, 1) if smooth(case, ours, theirs, exact) else (0,):
            our_errors[part].extend(relative_errors(ours[part], exact[part]))
            their_errors[part].extend(relative_errors(theirs[part], exact[part]))
    assert len(our_errors[0]) == (1 + len(layer.states)) * count
    assert len(our_errors[1]) >= count, "too few gradients left to compare"
    for ours, theirs in zip(our_errors, their_errors):
        assert_as_accurate(ours, theirs, dtype)


@each_layer
def test_the_error_does_not_grow_with_length(layer):
    case = Case(layer, 16, 32, lengths=(2000,) * 3)
    exact = case.run_theirs(torch.float64)[0]["y"]
    y = case.run_ours()[0]["y"]
    assert relative_error(y[-100:], exact[-100:]) <= 1.5 * max(relative_error(y[:100], exact[:100]), 2**-23)


# The comparison itself.


def test_the_calls_reach_small_and_large_sizes_and_every_form():
    all_calls = calls(LAYERS[0], torch.float32, CALLS[torch.float32])
    assert {case.form for case in all_calls} == {"batched", "unbatched", "unsorted"}
    assert {case.num_layers for case in all_calls} == {1, 2, 3}
    for size in ("input_size", "hidden_size"):
        assert min(getattr(case, size) for case in all_calls) <= 3
        assert max(getattr(case, size) for case in all_calls) >= 150
    assert max(max(case.lengths) for case in all_calls) >= 100
    assert max(len(case.lengths) for case in all_calls) >= 32


def test_an_error_of_twice_torchs_is_refused():
    eps = torch.finfo(torch.float32).eps
    theirs = [3 * eps] * 10
    assert_as_accurate(theirs, theirs, torch.float32)
    with pytest.raises(AssertionError, match="pooled error"):
        assert_as_accurate([6 * eps] * 10, theirs, torch.float32)


def test_an_error_below_one_eps_is_accepted_however_small_torchs_is():
    eps = torch.finfo(torch.bfloat16).eps
    assert_as_accurate([eps], [0.0], torch.bfloat16)
    with pytest.raises(AssertionError):
        assert_as_accurate([2 * eps], [0.0], torch.bfloat16)


def test_nan_is_refused_everywhere():
    nan = float("nan")
    with pytest.raises(AssertionError):
        assert_as_accurate([nan, 0.0], [1.0, 1.0], torch.float32)
    with pytest.raises(AssertionError):
        assert_close([nan], [nan])
    with pytest.raises(AssertionError):
        assert_same_vector([nan, 1.0], [1.0, 1.0], torch.float64)


def test_assert_close_refuses_other_shapes_and_differences_above_the_table():
    ones = torch.ones(3)
    assert_close(ones, np.ones(3))
    assert_close(ones + 1e-6, ones)
    for wrong in (ones + 1e-4, ones[:2], ones[None], ones[0]):
        with pytest.raises(AssertionError):
            assert_close(wrong, ones)
    with pytest.raises(AssertionError):
        assert_close(ones.double() + 1e-6, ones.double())


def test_scale_widens_the_absolute_part_only():
    zeros, large = torch.zeros(3), torch.full((3,), 1e6)
    assert_close(zeros + 5e-4, zeros, scale=100)
    with pytest.raises(AssertionError):
        assert_close(zeros + 5e-4, zeros)
    with pytest.raises(AssertionError):
        assert_close(large * 1.001, large, scale=100)


def test_relative_error_and_cosine_of_known_vectors():
    exact = torch.tensor([3.0, 4.0])
    assert relative_error(exact, exact) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
    assert cosine(exact, 2 * exact) == pytest.approx(1)
    assert cosine(exact, -exact) == pytest.approx(-1)
    assert cosine(torch.tensor([4.0, -3.0]), exact) == pytest.approx(0)
    assert cosine(torch.zeros(2), exact) == 0


def test_a_lean_that_each_element_hides_is_seen_in_the_whole():
    """All elements too large by a little less than their bound."""
    exact = torch.full((1000,), 1e-6)
    leaning = exact + 8e-6
    assert_close(leaning, exact)
    with pytest.raises(AssertionError, match="relative error"):
        assert_same_vector(leaning, exact, torch.float32)
