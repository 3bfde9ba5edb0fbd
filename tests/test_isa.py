"""Every instruction set of the machine computes the same layers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from rnn_ext import _C
from tests.strategies import EDGE_CASES
from tests.subject import DTYPES, HALVES, LAYERS, Case, run_python
from tests.tolerances import assert_close

# Wide enough for every plan, and off the widths of vectors and tiles.
WIDE_CASES = [
    Case(layer, input_size, hidden_size, 2, dtype=dtype, lengths=lengths, form=form, bidirectional=True)
    for layer in LAYERS
    for dtype in DTYPES
    for input_size, hidden_size, lengths, form in [
        (67, 130, (9,) * 45, "batched"), (256, 256, (5,), "batched"), (19, 131, (12, 1, 30, 7, 7), "unsorted"),
        (67, 130, (1,) * 7, "batched"), (67, 130, (1,) * 33, "batched"),
    ]
]  # fmt: skip


def check_against_float64(case: Case, threads: Sequence[int] | None = None) -> None:
    """On each of these numbers of threads; by default on as many as there are."""
    exact_outputs, exact_gradients = case.run_theirs(torch.float64)
    for number in threads or [torch.get_num_threads()]:
        torch.set_num_threads(number)
        outputs, gradients = case.run_ours()
        for name, exact in exact_outputs.items():
            assert_close(outputs[name], exact)
        if case.kinked and case.dtype in HALVES:
            continue  # either side of the kink is right at this precision
        for name, exact in exact_gradients.items():
            assert_close(gradients[name], exact, scale=case.scale(name, exact))


def check_all(isa: str) -> int:
    """Runs in a process with this instruction set: all cases against float64. Returns how many there were."""
    assert _C.isa() == isa
    for case in EDGE_CASES:  # too little work for a second thread
        check_against_float64(case, threads=[1])
    for case in WIDE_CASES:
        check_against_float64(case, threads=[1, 2])
    return len(EDGE_CASES) + len(WIDE_CASES)


@pytest.mark.parametrize("case", WIDE_CASES, ids=str)
def test_the_instruction_set_in_use_is_right_in_every_plan(case):
    check_against_float64(case, threads=[1, 2])


@pytest.mark.parametrize("isa", [isa for isa in _C.available_isas() if isa != _C.isa()])
def test_every_other_instruction_set_is_right(isa):
    code = f"from tests.test_isa import check_all; print(check_all({isa!r}))"
    assert run_python(code, RNN_EXT_ISA=isa) == str(len(EDGE_CASES) + len(WIDE_CASES))
