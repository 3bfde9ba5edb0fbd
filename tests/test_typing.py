"""mypy takes a sample of ordinary use and infers the types of the results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rnn_ext
from tests.contract import promise
from tests.subject import LAYERS

pytest.importorskip("mypy", reason="mypy is not installed: pip install 'rnn_ext[test]'")

SAMPLE = """
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import assert_type

import rnn_ext

layer = rnn_ext.RNN(4, 3, num_layers=2, nonlinearity="relu", bias=True, batch_first=False, dropout=0.1,
                    bidirectional=True, device="cpu", dtype=torch.float32)
positional = rnn_ext.RNN(4, 3, 2, "tanh")

def padded(x: Tensor, h: Tensor) -> None:
    output, h_n = layer(x)
    assert_type(output, Tensor)
    assert_type(h_n, Tensor)
    assert_type(layer(x, h), tuple[Tensor, Tensor])
    assert_type(layer.forward(x, hx=h), tuple[Tensor, Tensor])

def packed(x: PackedSequence, h: Tensor) -> None:
    assert_type(layer(x, h), tuple[PackedSequence, Tensor])
    assert_type(layer.forward(x), tuple[PackedSequence, Tensor])

def steps(x: Tensor, h: Tensor) -> None:
    rnn = rnn_ext.RNNCell(4, 3, bias=False, nonlinearity="relu", device="cpu", dtype=torch.float32)
    lstm, gru = rnn_ext.LSTMCell(4, 3), rnn_ext.GRUCell(4, 3)
    assert_type(rnn(x), Tensor)
    assert_type(gru(x, h), Tensor)
    assert_type(lstm(x, (h, h)), tuple[Tensor, Tensor])
    assert_type(lstm.forward(x), tuple[Tensor, Tensor])
    cell_base: nn.RNNCellBase = gru
    assert_type(rnn.nonlinearity, str)

def around() -> None:
    base: nn.RNNBase = layer
    assert_type(layer.hidden_size, int)
    assert_type(layer.nonlinearity, str)

class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnn_ext.RNN(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(x)
        return output.sum()
"""

OWN = """
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import rnn_ext

layer, cell = rnn_ext.RNN(4, 3), rnn_ext.LSTMCell(4, 3)

def model(tagger: nn.Module) -> None:
    report = rnn_ext.accelerate(tagger)
    assert_type(report, rnn_ext.Replacements)
    for name, old, new in report.replaced:
        assert_type(name, str)
        assert_type(new, type[nn.Module])
    assert_type(rnn_ext.restore(tagger).skipped[0].reason, str)

def around(x: Tensor) -> None:
    told = rnn_ext.explain(layer, x)
    assert_type(told, rnn_ext.Explanation)
    assert_type(told.path, str)
    assert_type(told.threads, int)
    assert_type(rnn_ext.explain(cell, x, (x, x)).path, str)
    assert_type(rnn_ext.is_batch_invariant(), bool)
    assert_type(told.checkpoint_steps, int | None)
    assert_type(rnn_ext.checkpoint_steps(), int | None)
    rnn_ext.checkpoint_time(None)
    with rnn_ext.checkpoint_time(256):
        layer(x)
    rnn_ext.batch_invariant(True)
    with rnn_ext.batch_invariant():
        layer(x)
"""

WRONG = """
import rnn_ext
layer = rnn_ext.RNN(4, 3)
reveal_type(layer)
path: int = rnn_ext.explain(layer, None).path
"""


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> list[str]:
    """What mypy prints about these files, with settings of its own, as a user runs it on an installed package."""
    folder = tmp_path_factory.mktemp("typing")
    torchs_own = LAYERS[0].ours is LAYERS[0].theirs
    (folder / "sample.py").write_text(SAMPLE.replace("rnn_ext.", "nn.") if torchs_own else SAMPLE)
    (folder / "own.py").write_text(OWN)
    (folder / "wrong.py").write_text(WRONG)
    options = ["--strict", "--config-file=", "--follow-imports=silent"]
    root = Path(rnn_ext.__file__).parents[1]
    installed = root.name == "site-packages"  # where mypy looks anyway, and wants not to be told
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "sample.py", "own.py", "wrong.py"],
        cwd=folder,
        env=dict(os.environ) if installed else {**os.environ, "MYPYPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert result.stdout, result.stderr
    return result.stdout.splitlines()


@promise("Around it", "mypy infers the types of calls")
def test_mypy_infers_the_types_of_a_sample(findings):
    assert [line for line in findings if line.startswith("sample.py")] == []


def test_mypy_infers_the_types_of_what_is_ours_alone(findings):
    assert [line for line in findings if line.startswith("own.py")] == []


def test_mypy_finds_mistakes(findings):
    assert any('wrong.py:4: note: Revealed type is "rnn_ext.modules.RNN"' in line for line in findings), findings
    assert any("wrong.py:5: error: Incompatible types in assignment" in line for line in findings), findings
