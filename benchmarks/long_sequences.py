"""Peak memory and time of a training step on long sequences, with and without checkpoint_time.

    python -m benchmarks.long_sequences --cell LSTM GRU --time 10000 100000 --steps 256 1024
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch

import rnn_ext
from benchmarks import memory
from benchmarks.pairs import interleave, ratio_interval


def training_step(layer, x: torch.Tensor, dy: torch.Tensor, steps: int | None) -> Callable[[], object]:
    """Forward and backward of one call, whose gradients are given back at once."""

    def run() -> None:
        with rnn_ext.checkpoint_time(steps):
            y, _ = layer(x)
        torch.autograd.grad(y, [x, *layer.parameters()], dy)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs="+", default=["LSTM", "GRU"], choices=["RNN", "LSTM", "GRU"])
    parser.add_argument("--time", nargs="+", type=int, default=[10_000, 100_000], help="lengths")
    parser.add_argument("--steps", nargs="+", type=int, default=[256, 1024], help="of checkpoint_time")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=64, help="of input and state")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of timing for each length")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for cell in options.cell:
        layer = getattr(rnn_ext, cell)(
            options.size, options.size, options.layers, bidirectional=options.bidirectional
        )
        for time in options.time:
            x = torch.randn(time, options.batch, options.size, requires_grad=True)
            dy = torch.randn(time, options.batch, options.size * (2 if options.bidirectional else 1))
            runs = {steps: training_step(layer, x, dy, steps) for steps in (None, *options.steps)}
            for run in runs.values():
                run()
            results = (x.nbytes + dy.nbytes) / 1e6  # the gradient of x and the output
            seconds = interleave({str(steps): run for steps, run in runs.items()}, options.budget).seconds
            for steps, run in runs.items():
                ratio = ratio_interval(seconds[str(steps)], seconds["None"])
                peak = f"peak {memory.peak_bytes(run) / 1e6:.1f} MB, " if memory.available() else ""
                print(
                    f"{cell} T={time} steps={steps}: {peak}output and dx are {results:.1f} MB; "
                    f"{median(seconds[str(steps)]) * 1e3:.1f} ms, {ratio.median:.2f} times "
                    f"[{ratio.low:.2f}, {ratio.high:.2f}] the ordinary call",
                    flush=True,
                )


if __name__ == "__main__":
    main()
