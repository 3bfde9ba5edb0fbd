"""The grids: which shapes are timed, how a layer is called on them, and what that takes in operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

TOY_HIDDEN_SIZE = 32  # below it a call's fixed cost in Python and PyTorch is the time, not the products


class Point(NamedTuple):
    """One shape: batch size, time steps, input size, hidden size."""

    batch: int
    steps: int
    input_size: int
    hidden_size: int

    def __str__(self) -> str:
        return "×".join(map(str, self))

    @property
    def toy(self) -> bool:
        return self.hidden_size < TOY_HIDDEN_SIZE


@dataclass(frozen=True)
class Grid:
    """Shapes, and the way a layer is built and called on them.

    Attributes:
        purpose: what the grid shows, in a line.
        points: its shapes.
        call: "padded" for x [T, B, I]; "packed" for a PackedSequence with the lengths of `lengths`; "steps"
            for a cell in a Python loop over T; "linear" for rnn_ext alone over several T.
        dtype: of weights and input, unless told otherwise.
        num_layers, bidirectional: of the layer.
    """

    purpose: str
    points: tuple[Point, ...]
    call: Literal["padded", "packed", "steps", "linear"] = "padded"
    dtype: str = "float32"
    num_layers: int = 1
    bidirectional: bool = False

    def lengths(self, point: Point) -> torch.Tensor:
        """Lengths of a point's sequences, [B]: T each, or when packed uniform in T/4..T, always the same."""
        if self.call != "packed":
            return torch.full((point.batch,), point.steps)
        shortest = -(-point.steps // 4)
        return torch.randint(
            shortest, point.steps + 1, (point.batch,), generator=torch.Generator().manual_seed(0)
        )

    def flops(self, point: Point, mode: str, gates: int) -> int:
        """Floating-point operations of the matrix products of one call; a multiply-add counts as two.

        Forward takes x W_ih^T and h W_hh^T, 2 gates H (inputs + H) for each step of each sequence, in every
        layer and direction. Training adds as much again twice: for the gradients of x and h, and for those of
        the weights.
        """
        directions = 2 if self.bidirectional else 1
        inputs = point.input_size + (self.num_layers - 1) * directions * point.hidden_size
        columns = inputs + self.num_layers * point.hidden_size
        rows = int(self.lengths(point).sum())
        forward = 2 * rows * directions * gates * point.hidden_size * columns
        return forward * {"inference": 1, "training": 3}[mode]


def points(*shapes: tuple[int, int, int, int]) -> tuple[Point, ...]:
    """Shapes as points."""
    return tuple(Point(*shape) for shape in shapes)


PADDED = points(
    (1, 6, 5, 4),
    (2, 5, 4, 6),
    (16, 5, 1, 16),
    (100, 4, 1, 8),
    (32, 10, 1, 20),
    (1, 1, 256, 256),
    (1, 100, 64, 64),
    (1, 1000, 128, 128),
    (1, 200, 512, 512),
    (8, 100, 256, 256),
    (32, 100, 64, 64),
    (32, 100, 128, 128),
    (32, 100, 256, 256),
    (64, 100, 512, 512),
    (128, 50, 1024, 1024),
    (256, 128, 128, 128),
    (64, 1000, 64, 64),
)
UNTUNED = points(
    (7, 93, 37, 100),
    (3, 250, 1, 200),
    (48, 60, 700, 90),
    (20, 77, 513, 257),
    (96, 33, 65, 129),
    (1, 310, 5, 301),
    (5, 41, 900, 50),
    (150, 19, 3, 75),
)
STEPS = points((1, 50, 64, 64), (1, 50, 512, 512), (32, 50, 64, 64), (32, 50, 512, 512))
STACK = points((16, 113, 128, 128), (32, 87, 512, 512))
TORCHS_FLOAT16 = 3_200  # rows: with twice as many at H 512, torch takes 4 to more than 9 seconds for a training step
LINEAR = points((1, 1_000, 64, 64), (1, 10_000, 64, 64), (1, 100_000, 64, 64))

GRIDS = {
    "padded": Grid("one layer on padded batches", PADDED),
    "packed": Grid(
        "one layer on packed sequences, lengths uniform in T/4..T",
        tuple(point for point in PADDED if point.batch >= 2 and point.steps >= 5),
        call="packed",
    ),
    "steps": Grid("a cell in a Python loop of T steps", STEPS, call="steps"),
    "stack": Grid("three layers in both directions", STACK, num_layers=3, bidirectional=True),
    "untuned": Grid("one layer on shapes that nothing was tuned for", UNTUNED),
    "bfloat16": Grid(
        "one layer on padded batches in bfloat16",
        tuple(point for point in PADDED if point.hidden_size >= 64),
        dtype="bfloat16",
    ),
    "float16": Grid(
        "one layer on padded batches in float16",
        tuple(point for point in PADDED if point.hidden_size >= 64 and point.batch * point.steps <= TORCHS_FLOAT16),
        dtype="float16",
    ),
    "linear": Grid("cost over the length, rnn_ext alone on one thread", LINEAR, call="linear"),
}
