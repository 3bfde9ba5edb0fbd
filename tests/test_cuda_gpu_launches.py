"""Launches on a GPU: streams, graphs, races, errors, memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from rnn_ext._load import has_cuda
from tests.subject import GRU, LSTM, each_layer, gradients_of
from tests.tolerances import assert_close

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(torch.cuda.is_available() and not has_cuda, reason="the CUDA library is not built"),
]
each_kind = pytest.mark.parametrize("kind", ["stepwise", "grid", "cluster", "library"])


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_call_gives_the_same_bits(dtype, kind, monkeypatch):
    """A result that moves would be a race between blocks."""
    monkeypatch.setenv("RNN_EXT_CUDA_PLAN", kind)
    for layer in (LSTM, GRU):
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
def test_dropout_in_a_cuda_graph_draws_anew_at_every_replay(layer):
    module, x = layer.make_ours(16, 64, 2, dropout=0.5, device="cuda"), torch.randn(12, 4, 16, device="cuda")
    with torch.no_grad():
        module(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)[0]
        found = []
        for _ in range(2):
            graph.replay()
            found.append(y.clone())
    assert not torch.equal(*found)


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
    module = LSTM.make_ours(64, 256, device="cuda")
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
    module = LSTM.make_ours(8, 16, device="cuda")
    right = torch.randn(3, 2, 8, device="cuda")
    for bad in (right.cpu(), right[..., :7], right.double()):
        with pytest.raises((RuntimeError, ValueError)):
            module(bad)
    torch.cuda.synchronize()
    assert module(torch.randn(3, 2, 8, device="cuda"))[0].isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_tensors_device_is_used_whatever_the_current_one_is():
    module = GRU.make_ours(8, 16, device="cuda:1")
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
