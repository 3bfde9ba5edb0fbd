"""Contract: torch.compile, torch.export, AOTInductor and ONNX. How layers compile is in test_binding too."""

from __future__ import annotations

import copy
import logging
import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from tests.contract import promise
from tests.subject import CELLS, LAYERS, each_layer, gradients_of
from tests.tolerances import assert_all_close, assert_close

each_module = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)


@pytest.fixture(autouse=True)
def nothing_compiled_before_or_after(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function, backend="aot_eager", **options):
    return torch.compile(function, fullgraph=True, backend=backend, **options)


@promise("Around it", "`torch.compile(fullgraph=True)`, forward and backward")
@pytest.mark.parametrize("layer", CELLS, ids=str)
def test_a_compiled_cell_needs_no_graph_break(layer):
    module, x = layer.make_ours(4, 3), layer.random_input(4)
    expected = gradients_of(module, layer.total(module(x)))
    assert_all_close(gradients_of(module, compiled(lambda x: layer.total(module(x)))(x)), expected)


class Tagger(nn.Module):
    """A recurrent layer between an embedding and a linear layer, or the layer's cell in a loop."""

    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer
        self.embedding, self.recurrent = nn.Embedding(11, 8), layer.make_ours(8, 6)
        self.linear = nn.Linear(layer.output_size(6), 11)

    def forward(self, tokens):
        x = self.embedding(tokens)
        if self.layer.is_cell:
            steps, state = [], None
            for x_t in x:
                state = self.recurrent(x_t, state)
                steps.append(self.layer.named_outputs(state)["h_n"])
            y = torch.stack(steps)
        else:
            y, _ = self.recurrent(x)
        return nn.functional.cross_entropy(self.linear(y).flatten(0, 1), tokens.flatten())


@promise("Around it", "a model compiled by inductor trains as it does in eager mode")
@pytest.mark.parametrize("layer", [
    pytest.param(row, marks=[] if row.ours.__name__ == "LSTM" else pytest.mark.slow, id=str(row))
    for row in {row.ours: row for row in LAYERS + CELLS}.values()
])  # fmt: skip
def test_a_model_compiled_by_inductor_trains_as_in_eager_mode(layer):
    eager, tokens, losses = Tagger(layer), torch.randint(11, (3, 5)), []
    for model in (eager, compiled(copy.deepcopy(eager), backend="inductor")):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(tokens)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert_close(losses[3:], losses[:3], torch.float32)


@promise("Around it", "autocast inside a compiled function")
@each_module
def test_autocast_inside_a_compiled_function(layer):
    module, x = layer.make_ours(4, 3), layer.random_input(4)

    def call(x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer.named_outputs(module(x))

    actual, expected = compiled(call)(x), call(x)
    for name, output in expected.items():
        assert actual[name].dtype == output.dtype == torch.bfloat16
        assert_close(actual[name], output)
    gradients = [gradients_of(module, sum(y.float().sum() for y in outputs.values())) for outputs in (actual, expected)]
    for actual, expected in zip(*gradients):
        assert_close(actual, expected, torch.bfloat16, scale=max(1.0, expected.abs().max().item()))


@promise("Around it", "packed input compiled without a graph break")
@each_layer
@pytest.mark.parametrize("given_state", [False, True])
def test_packed_input_compiles_without_a_graph_break(layer, given_state):
    module = layer.make_ours(4, 3)
    step = compiled(lambda x, hx: layer.total(module(x, hx)), dynamic=True)
    for lengths in ([2, 4], [5, 1, 3]):
        x = pack_sequence([torch.randn(length, 4) for length in lengths], enforce_sorted=False)
        states = [torch.randn(shape) for shape in layer.state_shapes(1, len(lengths), 3)]
        hx = layer.state(*states) if given_state else None
        expected = gradients_of(module, layer.total(module(x, hx)))
        assert_all_close(gradients_of(module, step(x, hx)), expected)


TIME, BATCH = torch.export.Dim("time", min=2, max=4096), torch.export.Dim("batch", min=2, max=4096)


def export(layer, module):
    """The exported program of a module: of any length and batch size."""
    dynamic = {0: BATCH} if layer.is_cell else {0: TIME, 1: BATCH}
    return torch.export.export(module, (layer.random_input(4),), dynamic_shapes=(dynamic,))


@promise("Around it", "`torch.export` for any length and batch size, in one operator")
@each_module
def test_an_exported_program_takes_any_length_in_one_operator(layer):
    options = {} if layer.is_cell else {"num_layers": 2, "bidirectional": True}
    module = layer.make_ours(4, 3, **options).eval()
    program = export(layer, module)
    operators = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert len([name for name in operators if re.search("rnn_|lstm|gru", name)]) == 1, operators
    for time, batch in ((9, 2), (40, 7)):
        x = layer.random_input(4, batch, time)
        actual, expected = (layer.named_outputs(run(x)) for run in (program.module(), module))
        assert all(torch.equal(actual[name], output) for name, output in expected.items())


@promise("Around it", "AOTInductor packages for any length and batch size")
@pytest.mark.slow
@pytest.mark.parametrize("layer", [LAYERS[-2]], ids=str)
def test_an_aot_inductor_package_takes_any_length(layer, tmp_path):
    module = layer.make_ours(4, 3, 2).eval()
    path = torch._inductor.aoti_compile_and_package(export(layer, module), package_path=str(tmp_path / "module.pt2"))
    run = torch._inductor.aoti_load_package(path)
    for time, batch in ((5, 2), (9, 7)):
        x = torch.randn(time, batch, 4)
        actual, expected = layer.named_outputs(run(x)), layer.named_outputs(module(x))
        for name, output in expected.items():
            assert_close(actual[name], output)


@promise("Around it", "ONNX export by both exporters, run in ONNX Runtime")
@pytest.mark.parametrize("layer", [row for row in LAYERS + CELLS if not row.projected], ids=str)
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.filterwarnings("ignore")
def test_an_onnx_export_computes_the_same(layer, dynamo, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'rnn_ext[test]'")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'rnn_ext[test]'")
    module, x, path = layer.make_ours(4, 3).eval(), layer.random_input(4), tmp_path / "module.onnx"
    logging.disable(logging.WARNING)
    try:
        torch.onnx.export(module, (x,), str(path), input_names=["x"], dynamo=dynamo, verbose=False)
    finally:
        logging.disable(logging.NOTSET)
    outputs = runtime.InferenceSession(str(path)).run(None, {"x": x.numpy()})
    for actual, expected in zip(outputs, layer.named_outputs(module(x)).values(), strict=True):
        assert_close(actual, expected)
