"""The models: recurrent layers of torch.nn, or of a package with its interface, and what surrounds them."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .problem import Model


class DelayLine(nn.Module):
    """The first layer of a focused time-delay network: tanh(W [x_t, x_{t-1}, ..., x_{t-taps+1}] + b).

    No recurrence: all it knows of the past are the last inputs, zero before the first. Takes and returns what
    a recurrent layer does, [T, B, I] -> [T, B, H], but no state. A. Waibel et al., "Phoneme recognition using
    time-delay neural networks", IEEE Trans. ASSP 37 (1989).
    """

    def __init__(self, input_size: int, hidden_size: int, taps: int):
        super().__init__()
        self.taps = nn.Conv1d(input_size, hidden_size, taps)  # over time: one tap per position of the kernel

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        past = F.pad(x.permute(1, 2, 0), (self.taps.kernel_size[0] - 1, 0))  # [B, I, taps-1+T]
        return self.taps(past).tanh().permute(2, 0, 1), None


class StepByStep(nn.Module):
    """A cell called once a step from a Python loop, in place of a layer: [T, B, I] -> [T, B, H].

    The state is the cell's own: h [B, H], or h and c for an LSTMCell; zeros if None.
    """

    def __init__(self, cell: nn.RNNCellBase):
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state=None):
        if isinstance(x, PackedSequence):
            raise TypeError("a cell goes step by step through a padded batch, not a packed one")
        outputs = []
        for x_t in x:
            state = self.cell(x_t, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs), state


def recurrent(model: Model, layers: ModuleType) -> nn.Module:
    """The model's recurrent layers, of the module `layers`."""
    if model.cell.endswith("Cell"):
        if model.num_layers > 1 or model.bidirectional or model.batch_first:
            raise ValueError(f"{model.cell} goes step by step: one layer, one direction, time first")
        return StepByStep(getattr(layers, model.cell)(model.input_size, model.hidden_size))
    return getattr(layers, model.cell)(
        model.input_size,
        model.hidden_size,
        model.num_layers,
        batch_first=model.batch_first,
        bidirectional=model.bidirectional,
    )


class SequenceModel(nn.Module):
    """(Embedding ->) recurrent layers -> Linear, and maybe an encoder. `layers` has the recurrent layers."""

    def __init__(self, model: Model, layers: ModuleType):
        super().__init__()
        self.model = model
        if model.tokens is not None:
            self.embedding = nn.Embedding(model.tokens, model.input_size)
        if model.encoder:
            self.encoder = recurrent(model, layers)
        if model.cell == "delay":
            self.rnn: nn.Module = DelayLine(model.input_size, model.hidden_size, model.taps)
        else:
            self.rnn = recurrent(model, layers)
        directions = 2 if model.bidirectional else 1
        self.head = nn.Linear(directions * model.hidden_size, model.output_size)
        if model.normal_weights:
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter)

    def recurrent_layers(self) -> list[nn.Module]:
        """The stacks of recurrent layers, in the order of their use."""
        stacks = [self.encoder] if self.model.encoder else []
        return stacks if self.model.cell == "delay" else [*stacks, self.rnn]

    def encode(self, x: Tensor, lengths: Tensor):
        """The encoder's final state."""
        return self.encoder(self._layer_input(x, lengths))[1]

    def forward(self, x: Tensor, lengths: Tensor | None = None, state=None):
        features, state = self.rnn(self._layer_input(x, lengths), state)
        if self.model.readout == "last":
            h_n = state if isinstance(state, Tensor) else state[0]  # [L*D, B, H]
            features = h_n[-2:].transpose(0, 1).flatten(1) if self.model.bidirectional else h_n[-1]
        elif isinstance(features, PackedSequence):
            features, _ = pad_packed_sequence(features, self.model.batch_first)
        return self.head(features), state

    def _layer_input(self, x: Tensor, lengths: Tensor | None):
        if self.model.tokens is not None:
            x = self.embedding(x)
        if (
            lengths is None or self.model.cell == "delay"
        ):  # it never looks ahead, so padding behind does not matter
            return x
        return pack_padded_sequence(x, lengths, self.model.batch_first, enforce_sorted=False)
