"""float32 in three products of TF32 on the tensor cores, under the emulator, whose sums cut off what does not fit."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_emulator.device import GRU, LSTM, assert_equals_reference, plan
from tests.subject import Case


def float32_errors(emulator, layer, hidden_size, batch) -> dict[str, float]:
    """By product: the RMS error of y, states and input gradients against float64, over their size."""
    case, errors = Case(layer, 40, hidden_size, lengths=(3,) * batch), {}
    exact = [*(found := case.run_theirs(torch.float64))[0].values(), found[1]["x"]]
    for product in ("fma", "fragments"):
        emulator.plan("stepwise", product)
        outputs, gradients = case.run_ours()
        pairs = list(zip([*outputs.values(), gradients["x"]], exact))
        squares = sum((a.double() - e).square().sum() for a, e in pairs) / sum(e.square().sum() for _, e in pairs)
        errors[product] = squares.sqrt().item()
    return errors


@pytest.mark.parametrize("batch, hidden_size", [(8, 16), (9, 130), pytest.param(24, 256, marks=pytest.mark.slow)])
@pytest.mark.parametrize("layer", [LSTM, GRU], ids=str)
def test_three_products_of_tf32_are_as_close_to_float64_as_multiply_adds(emulator, layer, batch, hidden_size):
    emulator.device(multiprocessors=24, shared_bytes=227 << 10)
    errors = float32_errors(emulator, layer, hidden_size, batch)
    assert 0 < errors["fragments"] < 2 * errors["fma"]


@pytest.mark.sanitize
@pytest.mark.parametrize("kind", ["stepwise", "grid", "cluster"])
@pytest.mark.parametrize("batch, hidden_size", [(1, 8), (9, 24)])
def test_float32_by_fragments_equals_the_reference(emulator, kind, batch, hidden_size):
    emulator.plan(kind, "fragments")
    assert "tensor cores" in plan("GRU", 5, batch, hidden_size, 4)
    assert_equals_reference(emulator, GRU, hidden_size, batch, torch.float32, True)


def test_float32_goes_to_the_tensor_cores_with_the_batch_and_never_under_fma(emulator, monkeypatch):
    emulator.device(multiprocessors=132, shared_bytes=232_448, cluster_blocks=16)
    assert plan("LSTM", 100, 64, 256, 4).count("tensor cores") == 2
    assert "tensor cores" not in plan("LSTM", 100, 7, 256, 4)
    monkeypatch.setenv("RNN_EXT_FLOAT32_PRODUCT", "fma")
    assert "tensor cores" not in plan("LSTM", 100, 64, 256, 4)
    assert "tensor cores" in plan("LSTM", 100, 64, 256, 2)
