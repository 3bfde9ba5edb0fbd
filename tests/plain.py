"""Every layer and cell in plain PyTorch, one sequence and one step at a time: any transform of it is right."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.subject import Case


def as_function(case: Case):
    """The case's call as a function of x (packed: its data), the states and the weights; like `as_function` of ours."""
    lengths, num_states = list(case.lengths), len(case.state())
    if case.form == "unsorted":
        x = case.input()
        lengths = sorted(lengths, reverse=True)
        order, back = x.sorted_indices, x.unsorted_indices
    names = [name for name, _ in case.make(case.layer.theirs).named_parameters()]

    def call(x, *rest):
        states, weights = list(rest[:num_states]), dict(zip(names, rest[num_states:], strict=True))
        if case.form == "unbatched":
            x, states = x.unsqueeze(-2), [s.unsqueeze(-2) for s in states]
        if case.layer.is_cell:
            x, states = x.unsqueeze(0), [s.unsqueeze(0) for s in states]
            weights = {f"{name}_l0": weight for name, weight in weights.items()}
        if case.form == "unsorted":
            states = [s[:, order] for s in states]
        sequences = unpack(x, lengths) if case.packed else [x[:, b] for b in range(x.shape[1])]
        y, *finals = stack(case, sequences, states, weights)
        y = pack(y, lengths) if case.packed else torch.stack(y, 1)
        if case.form == "unsorted":
            finals = [s[:, back] for s in finals]
        if case.form == "unbatched":
            y, finals = y.squeeze(-2), [s.squeeze(-2) for s in finals]
        if case.layer.is_cell:
            return tuple(s.squeeze(0) for s in finals)
        return y, *finals

    return call


def unpack(data: Tensor, lengths: list[int]) -> list[Tensor]:
    """The sequences in the data of a PackedSequence; lengths do not increase."""
    rows, row = [[] for _ in lengths], 0
    for t in range(lengths[0]):
        for b, length in enumerate(lengths):
            if t < length:
                rows[b].append(data[row])
                row += 1
    return [torch.stack(own) for own in rows]


def pack(sequences: list[Tensor], lengths: list[int]) -> Tensor:
    """The inverse of `unpack`."""
    return torch.stack([s[t] for t in range(lengths[0]) for s, length in zip(sequences, lengths) if t < length])


def stack(case: Case, sequences, states, weights):
    """All layers and directions. Returns the outputs of the sequences and the final states, [L*D, B, ...] each."""
    torch.manual_seed(case.seed)  # dropout draws as the module does
    finals, directions = [], 2 if case.bidirectional else 1
    for layer in range(case.num_layers):
        outputs = []
        for d in range(directions):
            suffix = f"_l{layer}" + "_reverse" * d
            own = {name.removesuffix(suffix): w for name, w in weights.items() if name.endswith(suffix)}
            initial = [[s[layer * directions + d, b] for s in states] for b in range(len(sequences))]
            results = [run(case, s, start, own, d == 1) for s, start in zip(sequences, initial)]
            outputs.append([y for y, _ in results])
            finals.append([torch.stack(parts) for parts in zip(*(final for _, final in results))])
        sequences = [torch.cat(parts, -1) for parts in zip(*outputs)]
        if case.training and case.dropout and layer < case.num_layers - 1:
            shape = (sum(case.lengths),) if case.packed else (max(case.lengths), len(case.lengths))
            keep = 1 - case.dropout
            mask = torch.empty(*shape, sequences[0].shape[-1], dtype=case.dtype).bernoulli(keep) / keep
            masks = unpack(mask, sorted(case.lengths, reverse=True)) if case.packed else mask.unbind(1)
            sequences = [s * m for s, m in zip(sequences, masks)]
    return sequences, *(torch.stack(parts) for parts in zip(*finals))


def run(case: Case, x, initial, weights, reverse: bool):
    """One direction of a layer on one sequence [T, I]: its outputs [T, P] and its final state [h] or [h, c]."""
    w_ih, w_hh, w_hr = weights["weight_ih"], weights["weight_hh"], weights.get("weight_hr")
    b_ih, b_hh = weights.get("bias_ih", 0.0), weights.get("bias_hh", 0.0)
    name = case.layer.ours.__name__.removesuffix("Cell")
    gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[name]
    sizes = (w_hh.shape[1], w_hh.shape[0] // gates)
    h, c = [*initial, *(x.new_zeros(size) for size in sizes[len(initial) :])]
    y = [None] * len(x)
    for t in range(len(x))[:: -1 if reverse else 1]:
        a, b = w_ih @ x[t] + b_ih, w_hh @ h + b_hh
        if name == "RNN":
            h = getattr(torch, case.layer.options["nonlinearity"])(a + b)
        elif name == "LSTM":
            i, f, g, o = (a + b).chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            h = h if w_hr is None else w_hr @ h
        elif name == "GRU":
            (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3), b.chunk(3)
            z, n = torch.sigmoid(a_z + b_z), torch.tanh(a_n + torch.sigmoid(a_r + b_r) * b_n)
            h = (1 - z) * n + z * h
        else:
            raise NotImplementedError(name)
        y[t] = h
    return torch.stack(y), [h, c][: 2 if name == "LSTM" else 1]
