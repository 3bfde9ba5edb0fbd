"""ONNX Runtime as a further contestant for inference: one recurrent node holding a torch module's weights."""

from __future__ import annotations

import numpy as np
import torch

try:
    import onnx
    import onnxruntime
except ImportError:  # the column is then left out
    onnx = onnxruntime = None

OPSET = 17  # old enough for every ONNX Runtime of the last years; the operators have not changed since 14
# By torch's mode: the operator, its attributes, and where each of its gates stands in torch's order. In ONNX
# the gates are i, o, f, c and z, r, h (https://onnx.ai/onnx/operators/onnx__LSTM.html and onnx__GRU.html), in
# torch i, f, g, o and r, z, n; torch's GRU resets after the product.
OPERATORS = {
    "RNN_TANH": ("RNN", {"activations": ["Tanh"]}, [0]),
    "RNN_RELU": ("RNN", {"activations": ["Relu"]}, [0]),
    "LSTM": ("LSTM", {}, [0, 3, 1, 2]),
    "GRU": ("GRU", {"linear_before_reset": 1}, [1, 0, 2]),
}


def available() -> bool:
    """Whether onnx and onnxruntime are installed."""
    return onnxruntime is not None


def model_of(module: torch.nn.RNNBase) -> onnx.ModelProto:
    """An ONNX model of a torch.nn.RNN, LSTM or GRU with one layer, one direction and bias.

    Input `x` [T, B, input_size], outputs `y` [T, 1, B, hidden_size], `h_n` and for an LSTM `c_n`
    [1, B, hidden_size], all float32; T and B are free.

    Raises:
        ValueError: more layers or directions, a projection, or no bias.
    """
    if module.num_layers != 1 or module.bidirectional or module.proj_size or not module.bias:
        raise ValueError("model_of: expected one layer, one direction, bias and no projection")
    operator, attributes, gates = OPERATORS[module.mode]

    def reordered(*parameters: torch.Tensor) -> np.ndarray:
        """Parameters [gates * H, ...] with the operator's order of gates, one after the other in [1, ...]."""
        parts = [
            parameter.detach().unflatten(0, (len(gates), -1))[gates].flatten(0, 1) for parameter in parameters
        ]
        return torch.cat(parts).unsqueeze(0).numpy()  # the leading axis counts directions

    weights = {
        "W": reordered(module.weight_ih_l0),
        "R": reordered(module.weight_hh_l0),
        "B": reordered(module.bias_ih_l0, module.bias_hh_l0),
    }
    outputs = ["y", "h_n", "c_n"] if operator == "LSTM" else ["y", "h_n"]
    hidden_size = module.hidden_size
    shapes = {"y": ["T", 1, "B", hidden_size], "h_n": [1, "B", hidden_size], "c_n": [1, "B", hidden_size]}

    def described(name: str, shape: list) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    node = onnx.helper.make_node(operator, ["x", *weights], outputs, hidden_size=hidden_size, **attributes)
    graph = onnx.helper.make_graph(
        [node],
        operator,
        [described("x", ["T", "B", module.input_size])],
        [described(name, shapes[name]) for name in outputs],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    model.ir_version = 8  # the version that goes with OPSET; a newer one is refused by older runtimes
    onnx.checker.check_model(model)
    return model


class OnnxRuntime:
    """The ONNX twin of a module on one input.

    Args:
        module: as for `model_of`.
        x: input [T, B, input_size], float32.
        threads: how many ONNX Runtime may use.
    """

    def __init__(self, module: torch.nn.RNNBase, x: torch.Tensor, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Workers may spin while a call runs, but must not burn the other contestants' cores after it.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        model = model_of(module).SerializeToString()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._feed = {"x": x.detach().numpy()}

    def run(self) -> list[np.ndarray]:
        """One call, its outputs as the model names them."""
        return self._session.run(None, self._feed)

    def results(self) -> list[torch.Tensor]:
        """One call's outputs in torch's shapes: y [T, B, hidden_size] and the final states."""
        y, *states = map(torch.from_numpy, self.run())
        return [y.squeeze(1), *states]
