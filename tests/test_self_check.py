"""`python -m rnn_ext` prints what runs here, and finds out whether it computes right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import rnn_ext
from rnn_ext import _C, call
from rnn_ext import __main__ as command
from rnn_ext.self_check import Check, checks
from tests.subject import CELLS, LAYERS

NAMES = [" ".join([row.ours.__name__, *row.options.values()]) for row in LAYERS + CELLS if not row.projected]


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(rnn_ext.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "rnn_ext", *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_every_check_passes_and_the_exit_status_is_0():
    result = run_command()
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith(("PASS", "FAIL"))]
    expected = [(name, dtype) for name in NAMES for dtype in ("float64", "float32")]
    assert [(line[6:19].strip(), line[20:28].strip()) for line in lines] == expected
    assert all(line.startswith("PASS") for line in lines)
    assert f"{len(expected)} of {len(expected)} passed" in result.stdout


@pytest.mark.parametrize("isa", _C.available_isas())
def test_json_has_the_facts_of_the_process_it_ran_in(isa):
    result = run_command("--json", "--no-check", RNN_EXT_ISA=isa)
    assert result.returncode == 0
    found = json.loads(result.stdout)
    assert found["versions"]["rnn_ext"] == rnn_ext.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert found["built_with"]["torch"] == _C.build_info()["torch"]
    assert found["instruction_sets"] == {"in_use": isa, "available": _C.available_isas(), "cap": isa}
    assert found["threads"] >= 1
    assert found["cuda"]["torch"] == torch.version.cuda
    assert "checks" not in found


def test_json_has_the_checks(capsys):
    assert command.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert [check["name"] for check in found["checks"][::2]] == NAMES
    assert all(check["passed"] and check["forward"] <= check["bound"] for check in found["checks"])


def test_no_check_prints_the_facts_alone(capsys):
    assert command.main(["--no-check"]) == 0
    printed = capsys.readouterr().out
    for fact in (
        rnn_ext.__version__,
        torch.__version__,
        _C.isa(),
        *_C.available_isas(),
        _C.build_info()["compiler"],
    ):
        assert str(fact) in printed
    assert "CUDA" in printed
    assert "PASS" not in printed


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as refused:
        command.main(["--no-such-option"])
    assert refused.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


def wrong_numbers(right, *args):
    """Outputs that are off by a thousandth."""
    return tuple(output * 1.001 for output in right(*args))


def wrong_gradients(right, *args):
    """Outputs whose gradients are off by a thousandth."""
    outputs = right(*args)
    for output in outputs:
        output.register_hook(lambda grad: grad * 1.001)
    return outputs


def not_a_number(right, *args):
    return tuple(output * float("nan") for output in right(*args))


def failing(right, *args):
    raise ValueError("broken on purpose")


def refusing(*args):
    raise RuntimeError("rnn_ext: no kernel")


@pytest.mark.parametrize(
    "fault", [wrong_numbers, wrong_gradients, not_a_number, failing], ids=lambda f: f.__name__
)
def test_a_fault_is_found(monkeypatch, capsys, fault):
    for way in ("recurrent", "differentiable"):
        monkeypatch.setattr(call, way, partial(fault, getattr(call, way)))
    assert command.main([]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("PASS", "FAIL"))]
    assert len(lines) == 2 * len(NAMES)
    assert all(line.startswith("FAIL") for line in lines)
    if fault is failing:
        assert all("ValueError: broken on purpose" in line for line in lines)


def test_a_kernel_that_is_not_used_is_a_fault(monkeypatch):
    """Else torch's operator would answer for it, and every number would be right."""
    monkeypatch.setattr(_C, "plain_call", lambda *args: NotImplemented)
    monkeypatch.setattr(call, "recurrent", refusing)
    monkeypatch.setattr("rnn_ext.route._warned", False)
    first = next(checks())
    assert not first.passed
    assert "SlowPathWarning" in first.error
    monkeypatch.setattr("rnn_ext.call.reason_for_torch", lambda tensors: "no kernel today")
    assert "no kernel today" in next(checks()).error


@pytest.mark.parametrize(
    ("forward", "backward", "error", "passed"),
    [
        (0.0, 1.0, None, True),
        (1.1, 0.0, None, False),
        (0.0, 1.1, None, False),
        (float("nan"), 0.0, None, False),
        (0.0, float("inf"), None, False),
        (None, None, "ValueError: broken", False),
    ],
)
def test_a_check_passes_within_its_bound_alone(forward, backward, error, passed):
    assert Check("RNN", "float32", forward, backward, 1.0, error).passed is passed
