"""The CUDA kernels on a GPU: what the emulator cannot show, and everything once more where it counts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from rnn_ext._load import has_cuda
from tests.subject import LAYERS, Case, gradients_of, named_outputs
from tests.tolerances import TOLERANCES, assert_close, assert_same_vector, relative_error

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(torch.cuda.is_available() and not has_cuda, reason="the CUDA library is not built"),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALVES = [torch.bfloat16, torch.float16]
KINDS = ["stepwise", "grid", "cluster", "library"]
# A projection has no CUDA kernel.
ON_CUDA = [layer for layer in LAYERS if not layer.projected]
each_layer = pytest.mark.parametrize("layer", ON_CUDA, ids=str)
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
    states = [torch.randn(rows, B, H).to(dtype) for _ in layer.states]
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
    monkeypatch.setenv("RNN_EXT_CUDA_PLAN", kind)
    assert_on_gpu_as_in_float64(layer, dtype, (20, 9, 24, 136), {})
    assert_on_gpu_as_in_float64(layer, dtype, (7, 5, 24, 64), {"num_layers": 2, "bidirectional": True}, [7, 1, 3, 7, 2])


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (3, 7, 5, 33), (5, 33, 3, 130), (40, 1, 8, 256), (10, 64, 16, 512)])
@each_layer
def test_any_size_finds_a_plan(layer, size):
    assert_on_gpu_as_in_float64(layer, torch.float32, size, {})


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_fragments_and_multiply_adds_agree(dtype, monkeypatch):
    """The layout of matrix fragments, which only a GPU can prove."""
    torch.manual_seed(0)
    module = ON_CUDA[2].make_ours(32, 160, device="cuda", dtype=dtype)
    x, found = torch.randn(6, 19, 32, device="cuda", dtype=dtype), []
    for product in ("fma", "fragments", "held"):
        monkeypatch.setenv("RNN_EXT_CUDA_PRODUCT", product)
        y, state = module(x)
        found.append([y, *gradients_of(module, y.float().square().sum())])
    for fma, fragments, held in zip(*found):
        assert relative_error(fragments.cpu(), fma.cpu()) < TOLERANCES[dtype].rtol
        assert relative_error(held.cpu(), fma.cpu()) < TOLERANCES[dtype].rtol


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


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_call_gives_the_same_bits(dtype, kind, monkeypatch):
    """A result that moves would be a race between blocks."""
    monkeypatch.setenv("RNN_EXT_CUDA_PLAN", kind)
    for layer in ON_CUDA[2:]:
        module = layer.make_ours(64, 256, device="cuda", dtype=dtype)
        x = torch.randn(300, 16, 64, device="cuda", dtype=dtype)
        first = None
        for _ in range(10):
            y, _ = module(x)
            found = [y, *gradients_of(module, y.float().square().sum())]
            first = first or found
            assert all(torch.equal(a, b) for a, b in zip(found, first))


@each_layer
def test_a_cuda_graph_replays_forward_and_backward(layer):
    module = layer.make_ours(16, 64, device="cuda")
    x = torch.randn(12, 4, 16, device="cuda", requires_grad=True)

    def call():
        y, _ = module(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        for replayed, expected in zip(captured, call()):
            assert_close(replayed.cpu(), expected.cpu(), scale=max(1.0, expected.abs().max().item()))


@each_layer
def test_a_packed_batch_in_a_cuda_graph(layer):
    module = layer.make_ours(16, 64, device="cuda")
    x = torch.nn.utils.rnn.pack_sequence([torch.randn(n, 16, device="cuda") for n in (9, 5, 2)])
    with torch.no_grad():
        expected = module(x)[0].data
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)[0].data
    y.zero_()
    graph.replay()
    assert_close(y.cpu(), expected.cpu())


def test_another_stream_is_the_one_that_is_used():
    module = ON_CUDA[2].make_ours(64, 256, device="cuda")
    x = torch.randn(50, 8, 64, device="cuda")
    expected = module(x)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = x * 0
        torch.cuda._sleep(50_000_000)
        late += x  # only work on this stream, after this, sees x
        y = module(late)[0]
    stream.synchronize()
    assert torch.equal(y, expected)


def test_bad_input_raises_and_leaves_the_device_usable():
    module = ON_CUDA[2].make_ours(8, 16, device="cuda")
    right = torch.randn(3, 2, 8, device="cuda")
    for bad in (right.cpu(), right[..., :7], right.double()):
        with pytest.raises((RuntimeError, ValueError)):
            module(bad)
    torch.cuda.synchronize()
    assert module(torch.randn(3, 2, 8, device="cuda"))[0].isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_tensors_device_is_used_whatever_the_current_one_is():
    module = ON_CUDA[3].make_ours(8, 16, device="cuda:1")
    y, _ = module(torch.randn(3, 2, 8, device="cuda:1"))
    assert y.device.index == 1 and y.isfinite().all()


@pytest.mark.parametrize("kind", ["stepwise", "grid"])
def test_the_memory_checker_finds_nothing(kind):
    checker = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if checker is None:
        pytest.skip("compute-sanitizer is not installed")
    code = (
        "import torch, rnn_ext\n"
        "for cls in (rnn_ext.LSTM, rnn_ext.GRU):\n"
        "    module = cls(5, 33, 2, bidirectional=True, device='cuda')\n"
        "    module(torch.randn(4, 3, 5, device='cuda'))[0].sum().backward()\n"
        "torch.cuda.synchronize()\n"
    )
    environment = {**os.environ, "RNN_EXT_CUDA_PLAN": kind, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [checker, "--error-exitcode", "9", sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    if "Device not supported" in run.stdout + run.stderr:
        pytest.skip("compute-sanitizer does not support this device")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


def test_dropout_draws_torchs_masks():
    ours, theirs = ON_CUDA[2].make_both(6, 8, 3, dropout=0.5, device="cuda")
    x, outputs = torch.randn(5, 4, 6, device="cuda"), []
    for module in (ours, theirs):
        torch.manual_seed(3)
        with torch.backends.cudnn.flags(enabled=False):
            outputs.append(module(x)[0])
    assert_close(outputs[0].cpu(), outputs[1].cpu())


def test_a_case_with_every_option_on_the_gpu_is_that_of_the_cpu():
    case = Case(ON_CUDA[3], 5, 12, 2, bidirectional=True, form="unsorted", lengths=(6, 2, 5))
    module = case.make(case.layer.ours)
    x = case.input()
    expected = named_outputs(module(x))
    for name, output in named_outputs(module.cuda()(x.to("cuda"))).items():
        assert_close(output.cpu(), expected[name])
