"""Cells under autograd and its transforms, compiled, under autocast; and bit for bit a step of their layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import rnn_ext
from tests.contract import promise
from tests.subject import CELLS, DTYPES, HALVES, LAYERS, Case
from tests.test_cells import loop, states_of
from tests.test_gradients import as_function
from tests.tolerances import assert_all_close, assert_close

each_cell = pytest.mark.parametrize("cell", CELLS, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

OPTIONS = {
    "batched": {},
    "no bias": {"bias": False},
    "no state given": {"given_state": False},
    "unbatched": {"form": "unbatched", "lengths": (1,)},
    "strided": {"layout": "gaps"},
    "more than four rows": {"lengths": (1,) * 5},
}


@promise("Autograd", "`gradcheck` and `gradgradcheck`")
@each_cell
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradcheck_and_gradgradcheck(cell, options):
    call, values = as_function(replace(Case(cell, 2, 3, dtype=torch.float64, lengths=(1, 1)), **options))
    assert gradcheck(call, values)
    assert gradgradcheck(call, values, fast_mode=True)


@each_cell
def test_gradcheck_through_a_loop(cell):
    module = cell.make_ours(2, 3, dtype=torch.float64)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: loop(cell, module, x)[0], (x, *module.parameters()))


@each_cell
def test_a_state_may_be_changed_in_place_where_torchs_may(cell):
    """As where an environment starts anew between two steps: an RNN's is what its derivative is computed from."""
    if "nonlinearity" in cell.options:
        for module in cell.make_both(4, 3):
            h = module(torch.ones(2, 4))
            h.mul_(2)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                h.sum().backward()
        return
    module, keep, results = cell.make_ours(4, 3), torch.tensor([[1.0], [0.0]]), []
    for mask in (lambda s: s.mul_(keep), lambda s: s * keep):
        states = [mask(s) for s in cell.named_outputs(module(torch.ones(2, 4))).values()]
        y = cell.named_outputs(module(torch.ones(2, 4), cell.state(*states)))["h_n"]
        results.append(torch.autograd.grad(y.sum(), list(module.parameters())))
    assert_all_close(*results)


@promise("Around it", "compiled once for every length and batch size")
@each_cell
def test_a_compiled_loop_has_no_graph_break_and_no_graph_for_each_batch_size(cell):
    module = cell.make_ours(4, 3)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda x: loop(cell, module, x)[0], backend=backend, fullgraph=True)
    for batch in (2, 5, 6, 7):
        x = torch.randn(3, batch, 4)
        y = compiled(x)
        assert_close(y, loop(cell, module, x)[0])
        y.sum().backward()
    assert len(graphs) == 2  # the first size, and then any
    torch._dynamo.reset()


@promise("Forward", "autocast: output in its dtype, gradients in the weights'")
@each_cell
def test_autocast_gives_its_dtype(cell):
    module, x, h = cell.make_ours(4, 3), torch.randn(2, 4), states_of(cell, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = cell.named_outputs(module(x, h))
    expected = cell.named_outputs(module(x, h))
    for name, output in outputs.items():
        assert output.dtype == torch.bfloat16
        assert_close(output, expected[name])


# The layer of each cell: the last row of its class with the same options.
ROWS = {(f"{layer.ours.__name__}Cell", *layer.options.values()): layer for layer in LAYERS}
PAIRS = [(cell, ROWS[(cell.ours.__name__, *cell.options.values())]) for cell in CELLS]
each_cell_and_layer = pytest.mark.parametrize(("cell", "layer"), PAIRS, ids=str)


@each_cell_and_layer
@each_dtype
@pytest.mark.parametrize("shape", [(1, 3, 5), (5, 17, 33), (9, 64, 64), (40, 70, 100), (33, 131, 300)], ids=str)
def test_a_loop_of_cells_is_bitwise_the_layer(cell, layer, dtype, shape):
    if dtype in HALVES and len(cell.states) > 1:
        pytest.skip("the cell state is float32 within a call and half as wide between calls")
    batch, input_size, hidden_size = shape
    step, whole = (m.make_ours(input_size, hidden_size, dtype=dtype) for m in (cell, layer))
    whole.load_state_dict({f"{name}_l0": weight for name, weight in step.state_dict().items()})
    x = torch.randn(6, batch, input_size, dtype=dtype)
    with rnn_ext.batch_invariant(), torch.no_grad():
        assert torch.equal(loop(cell, step, x)[0], whole(x)[0])


@each_cell
@each_dtype
@pytest.mark.parametrize("shape", [(6, 7, 9), (17, 64, 64), (33, 70, 300)], ids=str)
def test_a_sequence_depends_neither_on_the_rest_of_the_batch_nor_on_the_threads(cell, dtype, shape):
    batch, input_size, hidden_size = shape
    module = cell.make_ours(input_size, hidden_size, dtype=dtype)
    inputs = [torch.randn(batch, input_size, dtype=dtype)]
    inputs += [torch.randn(batch, hidden_size, dtype=dtype) for _ in cell.states]

    def run(part):
        leaves = [t[part].clone().requires_grad_() for t in inputs]
        outputs = list(cell.named_outputs(module(leaves[0], cell.state(*leaves[1:]))).values())
        return [*outputs, *torch.autograd.grad(sum(y.square().sum() for y in outputs), leaves)]

    with rnn_ext.batch_invariant():
        torch.set_num_threads(1)
        whole = run(slice(None))
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for part in (slice(None), [0], [batch - 1, 2], slice(1, batch)):
                assert all(torch.equal(a, w[part]) for a, w in zip(run(part), whole, strict=True))


@each_cell
@each_dtype
def test_rows_on_weights_as_they_lie_do_not_depend_on_each_other(cell, dtype):
    """Without the promise, too: at these sizes a batch of five (four in bfloat16) and all smaller ones go one way."""
    module, batch = cell.make_ours(257, 257, dtype=dtype), 4 if dtype == torch.bfloat16 else 5
    x, states = torch.randn(batch, 257, dtype=dtype), [torch.randn(batch, 257, dtype=dtype) for _ in cell.states]
    whole = cell.named_outputs(module(x, cell.state(*states)))
    for part in ([0], [batch - 1, 2], [3, 1, 0], slice(1, batch)):
        alone = cell.named_outputs(module(x[part], cell.state(*[s[part] for s in states])))
        for name, expected in whole.items():
            assert torch.equal(alone[name], expected[part]), (name, part)


@each_cell
@each_dtype
@pytest.mark.parametrize("batch", [1, 5, 33, 70])
def test_one_step_has_the_same_bits_with_any_number_of_threads(cell, dtype, batch):
    module, results = cell.make_ours(131, 257, dtype=dtype), []
    inputs = [torch.randn(batch, n, dtype=dtype) for n in (131, *[257 for _ in cell.states])]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = [t.clone().requires_grad_() for t in inputs]
        outputs = list(cell.named_outputs(module(leaves[0], cell.state(*leaves[1:]))).values())
        sources = [*leaves, *module.parameters()]
        results.append([*outputs, *torch.autograd.grad(sum(y.square().sum() for y in outputs), sources)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
