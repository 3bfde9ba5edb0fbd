"""ONNX Runtime as a third contestant for inference: one RNN node holding a torch module's weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

try:
    import onnx
    import onnxruntime
except ImportError:  # the column is then left out
    onnx = onnxruntime = None

OPSET = 17  # old enough for every ONNX Runtime of the last years; the RNN operator has not changed since 14
ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}


def available() -> bool:
    """Whether onnx and onnxruntime are installed."""
    return onnxruntime is not None


def rnn_model(module: torch.nn.Module) -> onnx.ModelProto:
    """An ONNX model that computes what a one-layer, one-direction torch.nn.RNN with bias computes.

    Input `x` (T, B, input_size), outputs `y` (T, 1, B, hidden_size) and `h_n` (1, B, hidden_size), all
    float32; T and B are free. Operator: https://onnx.ai/onnx/operators/onnx__RNN.html

    Raises:
        ValueError: more layers or directions, or no bias.
    """
    if module.num_layers != 1 or module.bidirectional or not module.bias:
        raise ValueError("rnn_model: expected one layer, one direction and bias")
    float32 = onnx.TensorProto.FLOAT
    input_size, hidden_size = module.input_size, module.hidden_size
    bias = torch.cat([module.bias_ih_l0, module.bias_hh_l0])
    weights = {"W": module.weight_ih_l0, "R": module.weight_hh_l0, "B": bias}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                "RNN",
                inputs=["x", "W", "R", "B"],
                outputs=["y", "h_n"],
                hidden_size=hidden_size,
                activations=[ACTIVATIONS[module.nonlinearity]],
            )
        ],
        "rnn",
        inputs=[onnx.helper.make_tensor_value_info("x", float32, ["T", "B", input_size])],
        outputs=[
            onnx.helper.make_tensor_value_info("y", float32, ["T", 1, "B", hidden_size]),
            onnx.helper.make_tensor_value_info("h_n", float32, [1, "B", hidden_size]),
        ],
        # The leading axis of every weight counts directions.
        initializer=[
            onnx.numpy_helper.from_array(value.detach().numpy()[np.newaxis], name) for name, value in weights.items()
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    model.ir_version = 8  # the version that goes with OPSET; a newer one is refused by older runtimes
    onnx.checker.check_model(model)
    return model


def contestant(module: torch.nn.Module, x: torch.Tensor, threads: int) -> Callable[[], list[np.ndarray]]:
    """A function that runs the module's ONNX twin on x (T, B, input_size), float32, and returns [y, h_n].

    y has torch's shape (T, B, hidden_size) but for an axis of one direction: (T, 1, B, hidden_size).
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Workers may spin while a call runs, but must not burn the other contestants' cores after it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = rnn_model(module).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {"x": x.detach().numpy()}
    return lambda: session.run(None, feed)
