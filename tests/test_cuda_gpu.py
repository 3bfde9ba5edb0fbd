"""The CUDA kernels on a GPU: what the emulator cannot show, and everything once more where it counts."""

from __future__ import annotations

import pytest
import torch

import rnn_ext
from rnn_ext._load import has_cuda
from tests.subject import GRU, LSTM, PROJECTED, Case, each_layer, gradients_of, named_outputs
from tests.tolerances import TOLERANCES, assert_close, assert_same_vector, relative_error

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(torch.cuda.is_available() and not has_cuda, reason="the CUDA library is not built"),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]
KINDS = ["stepwise", "grid", "cluster", "library"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def no_tf32():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def results(module, x, states, dtype, device, lengths=None):
    """Outputs and gradients, as float64 on the CPU, of one call with numbers of the dtype."""
    module = module.to(device, dtype)
    x = x.to(device, dtype).requires_grad_()
    states = [s.to(device, dtype).requires_grad_() for s in states]
    given = x
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    outputs = named_outputs(module(given, states[0] if len(states) == 1 else tuple(states)))
    loss = 0
    for out in outputs.values():
        loss = loss + (out.double() * torch.linspace(-1, 1, out.numel(), device=device).view_as(out)).sum()
    inputs = [x, *states, *module.parameters()]
    names = ["dx", *(f"ds{i}" for i in range(len(states))), *(name for name, _ in module.named_parameters())]
    gradients = torch.autograd.grad(loss, inputs)
    found = {**outputs, **dict(zip(names, gradients))}
    return {name: t.detach().double().cpu() for name, t in found.items()}


def rounded(module, dtype):
    """The module with weights that the dtype can hold."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(weight.to(dtype))
    return module


def assert_on_gpu_as_in_float64(layer, dtype, shape, options, lengths=None):
    T, B, I, H = shape
    torch.manual_seed(T + B + H)
    exact, ours = layer.make_theirs(I, H, dtype=torch.float64, **options), layer.make_ours(I, H, **options)
    ours.load_state_dict(rounded(exact, dtype).state_dict())
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    x = torch.randn(T, B, I).to(dtype)
    states = [torch.randn(shape).to(dtype) for shape in layer.state_shapes(rows, B, H)]
    expected = results(exact, x, states, torch.float64, "cpu", lengths)
    actual = results(ours, x, states, dtype, "cuda", lengths)
    for name, value in expected.items():
        if dtype in HALVES:  # by norm: single elements far from zero may be off by more than their tolerance
            assert relative_error(actual[name], value) < 3 * TOLERANCES[dtype].rtol, name
        else:
            assert_close(actual[name], value, dtype=dtype, scale=max(1.0, T**0.5, value.abs().max().item()))
            assert_same_vector(actual[name], value, torch.float32 if dtype == torch.float32 else dtype)


@each_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_layer
def test_results_are_those_of_float64_on_the_cpu(layer, dtype, kind, monkeypatch):
    if layer.options.get("nonlinearity") == "relu" and dtype in HALVES:
        pytest.skip("rounding to 16 bits moves numbers across the kink of ReLU")
    if layer.projected and kind not in ("stepwise", "library"):
        pytest.skip("a projection runs step by step alone")
    monkeypatch.setenv("RNN_EXT_CUDA_PLAN", kind)
    assert_on_gpu_as_in_float64(layer, dtype, (20, 9, 24, 136), {})
    assert_on_gpu_as_in_float64(layer, dtype, (7, 5, 24, 64), {"num_layers": 2, "bidirectional": True}, [7, 1, 3, 7, 2])


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 7, 5, 33), (5, 33, 3, 130), (40, 1, 8, 256), (10, 64, 16, 512)])
@each_layer
def test_any_size_finds_a_plan(layer, size):
    assert_on_gpu_as_in_float64(layer, torch.float32, size, {})


@pytest.mark.parametrize("hidden_size", [160, 768, 2048])  # the last two do not fit into registers
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_fragments_and_multiply_adds_agree(dtype, hidden_size, monkeypatch):
    """The layout of matrix fragments, which only a GPU can prove."""
    module = LSTM.make_ours(32, hidden_size, device="cuda", dtype=dtype)
    x, found = torch.randn(6, 19, 32, device="cuda", dtype=dtype), []
    for product in ("fma", "fragments", "held"):
        monkeypatch.setenv("RNN_EXT_CUDA_PRODUCT", product)
        y, state = module(x)
        found.append([y, *gradients_of(module, y.float().square().sum())])
    for fma, fragments, held in zip(*found):
        assert relative_error(fragments.cpu(), fma.cpu()) < TOLERANCES[dtype].rtol
        assert relative_error(held.cpu(), fma.cpu()) < TOLERANCES[dtype].rtol


@pytest.mark.parametrize("kind", ["stepwise", "grid", "cluster"])
def test_three_products_of_tf32_are_as_close_to_float64_as_multiply_adds(kind, monkeypatch):
    """Their layout too, and what the tensor cores do with the bits that do not fit a sum."""
    monkeypatch.setenv("RNN_EXT_CUDA_PLAN", kind)
    module = LSTM.make_ours(32, 256, device="cuda")
    x, errors = torch.randn(20, 24, 32, device="cuda"), []
    exact = LSTM.make_theirs(32, 256, device="cuda", dtype=torch.float64)
    exact.load_state_dict(module.state_dict())
    y, _ = exact(x.double())
    expected = [y, *gradients_of(exact, y.square().sum())]
    for product in ("fma", "fragments", "held"):
        monkeypatch.setenv("RNN_EXT_CUDA_PRODUCT", product)
        y, _ = module(x)
        found = [y, *gradients_of(module, y.square().sum())]
        errors.append(sum(relative_error(a.cpu(), e.cpu()) ** 2 for a, e in zip(found, expected)) ** 0.5)
    assert all(0 < error < 2 * errors[0] + 1e-6 for error in errors[1:])


@pytest.mark.parametrize("kind", ["", "stepwise", "cluster"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer", [PROJECTED, LSTM, GRU], ids=str)
def test_under_batch_invariant_a_sequence_does_not_see_the_batch(layer, dtype, kind, monkeypatch):
    if layer.projected and kind == "cluster":
        pytest.skip("a projection runs step by step alone")
    monkeypatch.setenv("RNN_EXT_CUDA_PLAN", kind)
    module = layer.make_ours(24, 160, 2, bidirectional=True, device="cuda", dtype=dtype)
    x = torch.randn(30, 37, 24, device="cuda", dtype=dtype)

    def run(x):
        x = x.requires_grad_()
        y, state = module(x)
        return [y, torch.autograd.grad(y.float().square().sum(), x)[0]]

    with rnn_ext.batch_invariant():
        together = run(x.clone())
        for b in (0, 20, 36):
            for all_of_them, alone in zip(together, run(x[:, b : b + 1].clone())):
                assert torch.equal(all_of_them[:, b], alone[:, 0])


@pytest.mark.parametrize("kind", ["", "stepwise"])
def test_more_steps_than_a_chunk_has(kind, monkeypatch):
    monkeypatch.setenv("RNN_EXT_CUDA_PLAN", kind)
    ours, theirs = LSTM.make_both(8, 256, device="cuda", bidirectional=True)
    x = torch.randn(1200, 64, 8, device="cuda")  # 600 MiB of W_ih x
    found = []
    for module in (ours, theirs):
        y, _ = module(x)
        found.append([y, *gradients_of(module, y.square().mean())])
    for a, b in zip(*found):
        assert relative_error(a.cpu(), b.cpu()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@each_layer
def test_results_are_cudnns(layer, dtype):
    ours, theirs = layer.make_both(48, 96, 2, device="cuda", dtype=dtype, bidirectional=True)
    x = torch.randn(30, 12, 48, device="cuda", dtype=dtype)
    expected = named_outputs(theirs(x))
    for name, output in named_outputs(ours(x)).items():
        assert relative_error(output.cpu(), expected[name].cpu()) < 10 * TOLERANCES[dtype].rtol


@each_layer
def test_gradcheck(layer):
    module = layer.make_ours(3, 5, 2, bidirectional=True, device="cuda", dtype=torch.float64)
    x = torch.randn(4, 2, 3, device="cuda", dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *w: module(x)[0], (x, *module.parameters()), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: module(x)[0], (x,), fast_mode=True)


def test_dropout_draws_torchs_masks():
    ours, theirs = LSTM.make_both(6, 8, 3, dropout=0.5, device="cuda")
    x, outputs = torch.randn(5, 4, 6, device="cuda"), []
    for module in (ours, theirs):
        torch.manual_seed(3)
        with torch.backends.cudnn.flags(enabled=False):
            outputs.append(module(x)[0])
    assert_close(outputs[0].cpu(), outputs[1].cpu())


def test_a_case_with_every_option_on_the_gpu_is_that_of_the_cpu():
    case = Case(GRU, 5, 12, 2, bidirectional=True, form="unsorted", lengths=(6, 2, 5))
    module = case.make(case.layer.ours)
    x = case.input()
    expected = named_outputs(module(x))
    for name, output in named_outputs(module.cuda()(x.to("cuda"))).items():
        assert_close(output.cpu(), expected[name])
