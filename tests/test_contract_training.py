"""Contract: what stands around a module in training, from hooks and optimizers to the profiler."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.contract import promise
from tests.subject import CELLS, LAYERS, gradients_of
from tests.tolerances import assert_all_close, assert_close

each_module = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)


def gradients(layer, module, x):
    return gradients_of(module, layer.total(module(x)))


OPTIMIZERS = {
    "SGD": lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9),
    "Adam, foreach": lambda weights: torch.optim.Adam(weights, lr=0.01, foreach=True),
    "AdamW, fused": lambda weights: torch.optim.AdamW(weights, lr=0.01, fused=True),
}


@promise("Around it", "optimizers and `clip_grad_norm_`")
@each_module
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_and_clipping_train_as_with_torch(layer, make_optimizer):
    x, results = layer.random_input(4, dtype=torch.float64), []
    for module in layer.make_both(4, 3, dtype=torch.float64):
        optimizer, norms = make_optimizer(module.parameters()), []
        for _ in range(3):
            optimizer.zero_grad()
            layer.total(module(x)).backward()
            norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm=0.1))
            optimizer.step()
        results.append([*module.parameters(), torch.stack(norms)])
    assert_all_close(*results)


@promise("Around it", "`GradScaler`, with autocast")
@each_module
def test_a_grad_scaler_steps_skips_and_unscales(layer):
    module, x = layer.make_ours(4, 3), layer.random_input(4)
    expected = gradients(layer, module, x)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=1024.0), torch.optim.SGD(module.parameters(), lr=0.01)
    before = copy.deepcopy(list(module.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer.total(module(x))
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for weight, gradient in zip(module.parameters(), expected):
        assert weight.grad.dtype == torch.float32
        assert_close(weight.grad, gradient, torch.bfloat16, scale=max(1.0, gradient.abs().max().item()))
    scaler.step(optimizer)
    assert any(not torch.equal(weight, old) for weight, old in zip(module.parameters(), before))
    scaler.update()

    before = copy.deepcopy(list(module.parameters()))
    scaler.scale(float("inf") * layer.total(module(x))).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(weight, old) for weight, old in zip(module.parameters(), before))
    assert scaler.get_scale() == 512.0


@promise("Around it", "activation checkpointing, dropout included")
@each_module
def test_checkpointing_draws_the_same_dropout_again(layer):
    options = {} if layer.is_cell else {"num_layers": 3, "dropout": 0.4}
    module, x, results = layer.make_ours(4, 3, **options), layer.random_input(4), []
    for run in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
        torch.manual_seed(5)
        results.append(gradients_of(module, layer.total(run(x))))
    assert all(torch.equal(*pair) for pair in zip(*results))


@promise("Around it", "`save_on_cpu` and other hooks on saved tensors")
@each_module
def test_hooks_on_saved_tensors_see_all_of_them(layer):
    module, x, seen = layer.make_ours(4, 3), layer.random_input(4), []
    expected = gradients(layer, module, x)
    with torch.autograd.graph.save_on_cpu():
        assert all(torch.equal(*pair) for pair in zip(gradients(layer, module, x), expected))

    def pack(tensor):
        seen.append(tensor)
        return tensor.numpy(force=True)  # what comes back is another tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        assert all(torch.equal(*pair) for pair in zip(gradients(layer, module, x), expected))
    assert seen


@promise("Around it", "forward and full backward hooks")
@each_module
def test_hooks_see_and_change_the_call(layer):
    module, x, seen = layer.make_ours(4, 3), layer.random_input(4, requires_grad=True), []
    layer.total(module(x)).backward()
    expected, x.grad = x.grad, None
    module.register_forward_pre_hook(lambda module, args: seen.append("before"))
    module.register_forward_hook(lambda module, args, output: seen.append("after"))
    module.register_full_backward_pre_hook(lambda module, dy: seen.append("before backward"))
    module.register_full_backward_hook(lambda module, dx, dy: (seen.append("after backward"), (2 * dx[0],))[1])
    layer.total(module(x)).backward()
    assert seen == ["before", "after", "before backward", "after backward"]
    assert_close(x.grad, 2 * expected)


@promise("Around it", "the profiler names the recurrent operator, forward and backward")
@each_module
def test_the_profiler_shows_readable_names(layer):
    module, x = layer.make_ours(4, 3), layer.random_input(4)
    module(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer.total(module(x)).backward()
    names = [event.key for event in profile.key_averages() if re.search("rnn|lstm|gru|recurrent", event.key, re.I)]
    assert [name for name in names if re.search("backward", name, re.I)], names
    assert [name for name in names if not re.search("backward", name, re.I)], names


@promise("Around it", "`torch.use_deterministic_algorithms(True)`")
@each_module
def test_deterministic_algorithms_change_nothing(layer):
    """In this mode torch fills new memory with NaN: what is read before it is written shows."""
    options = {} if layer.is_cell else {"num_layers": 2, "bidirectional": True}
    module, x = layer.make_ours(7, 19, **options), layer.random_input(7, batch=5)
    expected = gradients(layer, module, x)
    torch.use_deterministic_algorithms(True)
    try:
        actual = gradients(layer, module, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(actual, expected))
