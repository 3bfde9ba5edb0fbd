"""A cell in a loop: the steps' weight gradients are one sum, and to everybody who looks they are what torch's are."""

from __future__ import annotations

import gc
import threading
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from rnn_ext import loops, ops
from tests.subject import CELLS, DTYPES, HALVES, LAYERS
from tests.tolerances import assert_all_close, assert_same_vector

each_module = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)
each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)

I, H = 5, 36  # units enough for the steps of three sequences to wait, projected ones too


def random_steps(layer, time=6, batch=2, features=I, dtype=torch.float32):
    """The inputs of so many calls of one step."""
    one = () if layer.is_cell else (1,)
    return [torch.randn(*one, batch, features, dtype=dtype) for _ in range(time)]


def run(layer, module, steps, hx=None):
    """What a loop over the steps gives: y of each, which of a cell is h, and the last state."""
    outputs = []
    for x in steps:
        named = layer.named_outputs(module(x, hx))
        hx = layer.state(*(named[f"{s}_n"] for s in layer.states))
        outputs.append(named.get("y", named["h_n"]))
    return outputs, hx


def loss(layer, module, steps, hx=None):
    outputs, hx = run(layer, module, steps, hx)
    states = [hx] if len(layer.states) == 1 else hx
    return sum(t.square().sum() for t in (*outputs, *states))


def loss_of(layer, module, *steps):
    return loss(layer, module, steps)


def grads(module):
    return [w.grad for w in module.parameters()]


@pytest.fixture
def sums(monkeypatch):
    """Counts the sums over steps that were made."""
    made = []
    real = ops.gradients_of_loop
    monkeypatch.setattr(ops, "gradients_of_loop", lambda *args: made.append(args) or real(*args))
    return made


@pytest.mark.sanitize
@each_module
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "hidden_size"), [(1, 12), (1, H), (3, H)])
def test_every_gradient_is_that_of_torch_in_float64_and_the_steps_share_one_sum(
    layer, dtype, batch, hidden_size, sums, monkeypatch
):
    """Of more steps than may wait at a time."""
    if dtype in HALVES and layer.options.get("nonlinearity") == "relu":
        return  # a rounding error can change a derivative by one
    monkeypatch.setattr(loops, "ROWS", 16)
    time = 2 * loops.ROWS // batch + 5
    ours, theirs = layer.make_both(I, hidden_size, dtype=dtype)
    steps, hidden = random_steps(layer, time, batch, dtype=dtype), []
    for module in (ours, theirs.double()):
        kind = next(module.parameters()).dtype
        leaves = [x.to(kind, copy=True).requires_grad_() for x in steps]
        loss(layer, module, leaves).div(time).backward()
        hidden.append([x.grad for x in leaves])
    assert len(sums) == (0 if layer.projected else 1)  # a projection's gradient would need its weight once more
    for ours_and_theirs in zip(hidden[0] + grads(ours), hidden[1] + grads(theirs)):
        assert_same_vector(*ours_and_theirs, dtype)


@each_module
@pytest.mark.parametrize("bias", [True, False])
def test_steps_of_different_batches_with_and_without_states(layer, bias):
    ours, theirs = layer.make_both(I, 40, bias=bias)
    batches = [[random_steps(layer, batch=n)[0] for n in (3, 1, 5)] for _ in range(20)]
    for module in (ours, theirs):
        sum(loss(layer, module, [x]) for xs in batches for x in xs).backward()
    assert_all_close(grads(ours), grads(theirs))


@each_cell
def test_one_sequence_without_an_axis_for_it(cell, sums):
    ours, theirs = cell.make_both(I, H)
    steps = [x[0] for x in random_steps(cell)]
    for module in (ours, theirs):
        loss(cell, module, steps).backward()
    assert len(sums) == 1
    assert_all_close(grads(ours), grads(theirs))


@pytest.mark.sanitize
@each_cell
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sum_has_the_same_bits_with_any_number_of_threads(cell, dtype):
    module, steps, found = cell.make_ours(40, 130, dtype=dtype), random_steps(cell, 30, 5, 40, dtype), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(torch.autograd.grad(loss(cell, module, steps), list(module.parameters())))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@each_cell
def test_a_sum_is_handed_over(cell, sums):
    """Autograd would copy what somebody else has too."""
    module = cell.make_ours(I, H)
    loss(cell, module, random_steps(cell)).backward()
    [(steps, dtype)] = sums
    assert ops.gradients_of_loop(steps, dtype) == []


@each_module
def test_a_single_step_has_no_sum(layer, sums):
    module, steps = layer.make_ours(I, H), random_steps(layer)
    for x in steps:
        loss(layer, module, [x]).backward()
    assert not sums


@each_cell
def test_where_a_sum_would_cost_more_there_is_none(cell, sums):
    module = cell.make_ours(I, H)
    loss(cell, module, random_steps(cell, batch=H)).backward()
    assert not sums


@each_module
@pytest.mark.parametrize("used", ["the last state", "the first output", "c alone"])
def test_gradients_of_some_outputs_alone(layer, used):
    if used == "c alone" and len(layer.states) == 1:
        return
    ours, theirs = layer.make_both(I, H)
    steps = random_steps(layer)
    for module in (ours, theirs):
        outputs, hx = run(layer, module, steps)
        states = [hx] if len(layer.states) == 1 else hx
        {"the last state": states[0], "the first output": outputs[0], "c alone": states[-1]}[used].sum().backward()
    # Of an LSTM's projection, which c_n does not depend on in the last step, torch knows it, and gives what is left.
    assert_all_close(grads(ours), grads(theirs))


@each_cell
def test_a_graph_that_is_kept_gives_the_same_gradients_again(cell):
    module, steps = cell.make_ours(I, H), random_steps(cell)
    total = loss(cell, module, steps)
    total.backward(retain_graph=True)
    first = [g.clone() for g in grads(module)]
    module.zero_grad()
    total.backward()
    assert all(torch.equal(a, b) for a, b in zip(first, grads(module)))


@each_cell
def test_gradients_add_up_over_passes(cell):
    """As where small batches make a large one."""
    module, parts = cell.make_ours(I, H), [random_steps(cell) for _ in range(3)]
    totals = [loss(cell, module, part) for part in parts]  # all of these graphs at once
    found = [torch.autograd.grad(total, list(module.parameters()), retain_graph=True) for total in totals]
    for total in totals:
        total.backward()
    assert_all_close(grads(module), [sum(g) for g in zip(*found)])


def token_of(module):
    """The token that the next step would take, if it is there already."""
    weights = [*map(id, module.parameters())]
    found = [reference() for (_, *ids), reference in loops._tokens.items() if ids == weights]
    return next((token for token in found if token is not None), None)


@each_cell
def test_who_asks_for_the_state_alone_leaves_nothing_behind(cell, sums):
    module, steps = cell.make_ours(I, H), random_steps(cell)
    hx = cell.state(*[torch.randn(2, H, requires_grad=True) for _ in cell.states])
    total = loss(cell, module, steps, hx)
    node = token_of(module).grad_fn
    torch.autograd.grad(total, hx, retain_graph=True)
    assert not sums
    assert not node.passes
    [dW] = torch.autograd.grad(total, [module.weight_hh], retain_graph=True)
    total.backward()
    assert torch.equal(dW, module.weight_hh.grad)
    assert len(sums) == 2
    assert not node.passes


@each_cell
def test_the_token_lives_as_long_as_the_graph(cell):
    module = cell.make_ours(I, H)
    total = loss(cell, module, random_steps(cell))
    assert isinstance(token_of(module), torch.Tensor)
    del total
    gc.collect()
    assert token_of(module) is None


@each_cell
@pytest.mark.parametrize("retain_graph", [False, True])
def test_after_backward_the_next_loop_has_a_node_of_its_own(cell, retain_graph):
    """Though the graph of the last one is alive, as its loss is in most training loops."""
    module, steps = cell.make_ours(I, H), random_steps(cell)
    first = loss(cell, module, steps)
    token = token_of(module)
    first.backward(retain_graph=retain_graph)
    second = loss(cell, module, steps)
    assert isinstance(token_of(module), torch.Tensor)
    assert token_of(module) is not token
    before = [g.clone() for g in grads(module)]
    module.zero_grad()
    second.backward()
    assert all(torch.equal(a, b) for a, b in zip(before, grads(module)))


def test_tokens_of_graphs_that_are_gone_are_forgotten():
    cell, alive = CELLS[0], []
    for _ in range(2500):
        outputs, _ = run(cell, cell.make_ours(1, 8), random_steps(cell, 2, 1, 1))
        alive = alive or outputs
    assert len(loops._tokens) <= 1000
    assert sum(reference() is not None for reference in loops._tokens.values()) < 10


@each_cell
def test_derivatives_of_gradients(cell):
    module = cell.make_ours(2, 16, dtype=torch.float64)
    steps = random_steps(cell, 3, features=2, dtype=torch.float64)
    weights = list(module.parameters())

    def call(*weights):
        return loss(cell, module, steps)

    assert gradcheck(call, weights, fast_mode=True)
    assert gradgradcheck(call, weights, fast_mode=True)


@each_cell
def test_batched_gradients(cell):
    ours, theirs = cell.make_both(I, H)
    steps, found = random_steps(cell), []
    rows = torch.randn(3, 2, H)
    for module in (ours, theirs):
        y = run(cell, module, steps)[0][-1]
        found.append(
            torch.autograd.grad(y, list(module.parameters()), rows, is_grads_batched=module is ours)
            if module is ours
            else [
                torch.stack(g)
                for g in zip(*(torch.autograd.grad(y, list(module.parameters()), r, retain_graph=True) for r in rows))
            ]
        )
    assert_all_close(*found)


@each_cell
def test_a_hook_on_a_weight_sees_the_whole_gradient_once(cell):
    module, seen = cell.make_ours(I, H), []
    module.weight_ih.register_hook(lambda grad: seen.append(grad.clone()) or 2 * grad)
    loss(cell, module, random_steps(cell)).backward()
    assert len(seen) == 1
    assert torch.equal(module.weight_ih.grad, 2 * seen[0])


@each_cell
def test_a_weight_that_is_changed_before_backward_raises(cell):
    module = cell.make_ours(I, H)
    total = loss(cell, module, random_steps(cell))
    with torch.no_grad():
        module.weight_hh.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@each_cell
def test_after_an_error_in_backward_nothing_is_kept_and_the_next_pass_is_right(cell):
    module, steps = cell.make_ours(I, H), random_steps(cell)
    x = steps[0].requires_grad_()
    total = loss(cell, module, steps)
    expected = torch.autograd.grad(total, list(module.parameters()), retain_graph=True)
    node = token_of(module).grad_fn
    handle = x.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        total.backward(retain_graph=True)
    assert not node.passes
    handle.remove()
    module.zero_grad()
    total.backward()
    assert_all_close(grads(module), expected)


def test_tied_weights_of_two_kinds_of_cells_in_one_loop():
    tanh, relu = CELLS[:2]
    steps, found = random_steps(tanh, 8), []
    theirs = [cell.make_theirs(I, H) for cell in (tanh, relu)]
    ours = [cell.make_ours(I, H) for cell in (tanh, relu)]
    ours[0].load_state_dict(theirs[0].state_dict())
    for pair in (ours, theirs):
        for name, weight in list(pair[0].named_parameters()):
            setattr(pair[1], name, weight)
        h, total = None, 0.0
        for i, x in enumerate(steps):
            h = pair[i // 2 % 2](x, h)
            total = total + h.square().sum()
        total.backward()
        found.append(grads(pair[0]))
    assert_all_close(*found)


@each_cell
def test_a_compiler_at_work_elsewhere_loses_no_step(cell, monkeypatch):
    """Of another thread's that begins while half of the steps are done: torch tells it to all threads."""
    module, steps = cell.make_ours(I, H), random_steps(cell, 8)
    expected = torch.autograd.grad(loss(cell, module, steps), list(module.parameters()))
    steps[4].requires_grad_()
    steps[4].register_hook(lambda grad: monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True))
    total = loss(cell, module, steps)
    assert_all_close(torch.autograd.grad(total, list(module.parameters())), expected)


@each_cell
def test_weights_whose_memory_is_given_back_after_their_last_step(cell):
    """As FSDP does once a module's part of backward is done."""
    ours, theirs = cell.make_both(I, H)
    steps, states = random_steps(cell), [torch.randn(2, H) for _ in cell.states]
    for module in (ours, theirs):
        hx = [s.clone().requires_grad_() for s in states]
        if module is ours:
            hx[0].register_hook(lambda grad: [w.untyped_storage().resize_(0) for w in ours.parameters()] and None)
        loss(cell, module, steps, cell.state(*hx)).backward()
    assert_all_close(grads(ours), grads(theirs))


@each_cell
def test_hooks_of_weights_that_were_converted_while_a_graph_lives_run_once(cell):
    module, steps, seen = cell.make_ours(I, H), random_steps(cell), []
    alive = loss(cell, module, steps)
    module.half().float()  # after which autograd adds gradients up elsewhere
    for weight in module.parameters():
        weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.norm()))
    loss(cell, module, steps).backward()
    assert len(seen) == len(list(module.parameters()))
    assert alive.requires_grad


@each_cell
def test_weights_that_need_no_gradient_halfway(cell):
    ours, theirs = cell.make_both(I, H)
    steps = random_steps(cell, 9)
    for module in (ours, theirs):
        outputs = []
        for part in (steps[:3], steps[3:6], steps[6:]):
            module.weight_hh.requires_grad_(part is not steps[3:6] and len(outputs) != 1)
            outputs.append(loss(cell, module, part))
        module.weight_hh.requires_grad_()
        sum(outputs).backward()
    assert_all_close(grads(ours), grads(theirs))


@each_cell
def test_weights_of_another_type_while_the_graph_of_the_old_ones_lives(cell):
    ours, theirs = cell.make_both(I, H)
    steps = random_steps(cell)
    alive = [loss(cell, module, steps) for module in (ours, theirs)]
    for module in (ours, theirs):
        loss(cell, module.double(), [x.double() for x in steps]).backward()
    assert_all_close(grads(ours), grads(theirs))
    assert all(total.requires_grad for total in alive)


@each_cell
@pytest.mark.parametrize("reentrant", [True, False])
def test_steps_inside_activation_checkpoints(cell, reentrant):
    ours, theirs = cell.make_both(I, H)
    steps = [x.requires_grad_() for x in random_steps(cell, 9)]
    for module in (ours, theirs):
        total = loss(cell, module, steps[:3])
        for part in (steps[3:6], steps[6:]):
            total = total + checkpoint(partial(loss_of, cell, module), *part, use_reentrant=reentrant)
        total.backward()
    assert_all_close(grads(ours), grads(theirs))


@each_cell
def test_a_backward_inside_of_backward(cell):
    ours, theirs = cell.make_both(I, H)
    steps = random_steps(cell)
    for module in (ours, theirs):
        outputs, _ = run(cell, module, steps)

        def again(grad, module=module):
            with torch.enable_grad():
                loss(cell, module, steps).backward()

        outputs[2].register_hook(again)
        sum(y.square().sum() for y in outputs).backward()
    assert_all_close(grads(ours), grads(theirs))


@each_cell
def test_saved_tensors_that_are_kept_elsewhere(cell):
    ours, theirs = cell.make_both(I, H)
    steps = random_steps(cell)
    for module in (ours, theirs):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(), torch.from_numpy):
            total = loss(cell, module, steps)
        total.backward()
    assert_all_close(grads(ours), grads(theirs))


@each_cell
def test_two_threads_with_one_cell(cell):
    module, parts = cell.make_ours(I, H), [random_steps(cell, 40) for _ in range(2)]
    expected = [torch.autograd.grad(loss(cell, module, part), list(module.parameters())) for part in parts]
    found = [None, None]
    start = threading.Barrier(2)

    def work(i):
        total = loss(cell, module, parts[i])
        start.wait()
        found[i] = torch.autograd.grad(total, list(module.parameters()))

    for _ in range(5):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_all_close(found[0], expected[0])
        assert_all_close(found[1], expected[1])


@each_cell
def test_compiled_autograd(cell):
    """Twice, and beside the graph of an ordinary pass."""
    ours, theirs = cell.make_both(I, H)
    steps, alive = random_steps(cell), []
    for compiled in (False, True, True):
        ours.zero_grad(), theirs.zero_grad()
        totals = [loss(cell, module, steps) for module in (ours, theirs)]
        alive += totals
        compiler = torch.compile(backend="eager")
        with torch._dynamo.compiled_autograd._enable(compiler) if compiled else nullcontext():
            totals[0].backward()
        totals[1].backward()
        assert_all_close(grads(ours), grads(theirs))
