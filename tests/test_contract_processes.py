"""Contract: distributed training, shared memory, forked workers and Python threads."""

from __future__ import annotations

import importlib
import os
import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.contract import promise
from tests.subject import CELLS, LAYERS, gradients_of, run_python

each_module = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)
CLASSES = {row.ours: row for row in LAYERS + CELLS}  # the last row of each class
PATHS = [row.path for row in CLASSES.values()]


def class_at(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


# Two processes that train on half of the batch each, against one that trains on all of it.


def loss_of(result):
    result = result if isinstance(result, torch.Tensor) else result[0]
    return result.square().mean()


def under_ddp(module):
    wrapped = DistributedDataParallel(module)
    return wrapped, lambda weight: weight.grad


def under_fsdp(module):
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    return module, lambda weight: weight.grad.full_tensor()


def train_on_half(rank: int, store: str, wrap, paths) -> None:
    """One of the two processes: it fails where a gradient is not that of the whole batch."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    for path in paths:
        torch.manual_seed(0)
        module, whole = class_at(path)(4, 6), class_at(path)(4, 6)
        whole.load_state_dict(module.state_dict())
        x = torch.randn((8, 4) if path.endswith("Cell") else (5, 8, 4))
        loss_of(whole(x)).backward()
        wrapped, gradient_of = wrap(module)
        loss_of(wrapped(x.chunk(2, dim=-2)[rank])).backward()
        for (name, weight), expected in zip(module.named_parameters(), whole.parameters(), strict=True):
            at = f"{path}.{name}"
            torch.testing.assert_close(gradient_of(weight), expected.grad, msg=lambda m, at=at: f"{at}: {m}")
    dist.barrier()  # neither leaves while the other may still need it
    os._exit(0)  # an ordinary exit may hang or abort in gloo, whose groups the modules still hold


def run_in_two_processes(tmp_path, wrap) -> None:
    context = torch.multiprocessing.spawn(train_on_half, (str(tmp_path / "store"), wrap, PATHS), nprocs=2, join=False)
    try:
        while not context.join(timeout=120, grace_period=10):
            assert not all(process.is_alive() for process in context.processes), "the processes hang"
    finally:
        for process in context.processes:
            process.kill()
            process.join()


needs_gloo = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")


@promise("Around it", "DistributedDataParallel")
@needs_gloo
def test_two_processes_under_ddp_get_the_gradients_of_the_whole_batch(tmp_path):
    run_in_two_processes(tmp_path, under_ddp)


@promise("Around it", "FSDP2, `fully_shard`")
@needs_gloo
def test_two_processes_under_fsdp_get_the_gradients_of_the_whole_batch(tmp_path):
    run_in_two_processes(tmp_path, under_fsdp)


# Processes that fork, memory that is shared, threads of Python


@promise("Around it", "forked DataLoader workers")
def test_workers_that_fork_after_the_parent_has_computed():
    printed = run_python(f"""
import importlib, torch
from torch.utils.data import DataLoader, Dataset
torch.manual_seed(0)

def make(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(8, 64)

def run(module):
    x = torch.ones(40, 8) if "Cell" in type(module).__name__ else torch.ones(30, 40, 8)
    y = module(x)
    return y if isinstance(y, torch.Tensor) else y[0]

modules = [make(path) for path in {PATHS}]
expected = [run(module) for module in modules]
for y in expected:
    y.sum().backward()

class Encoded(Dataset):
    def __len__(self):
        return 4 * len(modules)
    def __getitem__(self, index):
        y = run(modules[index // 4])
        y.sum().backward()
        return y.detach()

loader = DataLoader(Encoded(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
print([torch.allclose(y, expected[i // 4]) for i, y in enumerate(loader)].count(True))
""")
    assert printed == str(4 * len(PATHS))


def test_a_fork_while_a_thread_changes_a_setting_leaves_the_child_able_to_change_it():
    printed = run_python("""
import os, signal, threading, time
import rnn_ext
from rnn_ext import settings

changing = threading.Event()

def change():
    with settings._changing:
        changing.set()
        time.sleep(0.3)

threading.Thread(target=change).start()
changing.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    with rnn_ext.batch_invariant():
        os._exit(0)
print(os.waitpid(child, 0)[1])
""")
    assert printed == "0"


def halve_biases(module) -> None:
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "bias" in name:
                weight.mul_(0.5)


@promise("Around it", "`share_memory`: a child's step is the parent's")
def test_a_child_trains_the_parents_weights_in_shared_memory():
    modules = torch.nn.ModuleList(row.make_ours(4, 3) for row in CLASSES.values()).share_memory()
    before = [weight.clone() for weight in modules.parameters()]
    child = torch.multiprocessing.get_context("spawn").Process(target=halve_biases, args=(modules,))
    child.start()
    child.join(timeout=120)
    assert child.exitcode == 0
    names = [name for name, _ in modules.named_parameters()]
    for name, weight, old in zip(names, modules.parameters(), before):
        assert torch.equal(weight, old * 0.5 if "bias" in name else old), name
    for row, module in zip(CLASSES.values(), modules):
        reference, x = row.make_theirs(4, 3), row.random_input(4)
        reference.load_state_dict(module.state_dict())
        torch.testing.assert_close(row.total(module(x)), row.total(reference(x)))


@promise("Around it", "calls from eight Python threads at once")
@each_module
def test_eight_python_threads_may_share_a_module(layer):
    module, x, failures = layer.make_ours(32, 64), layer.random_input(32, batch=8, time=20), []
    expected = gradients_of(module, layer.total(module(x)))

    def work() -> None:
        for _ in range(10):
            actual = gradients_of(module, layer.total(module(x)))
            if not all(torch.equal(a, e) for a, e in zip(actual, expected)):
                failures.append("other bits")

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not any(worker.is_alive() for worker in workers)
    assert not failures


@promise("Around it", "the same bits with any number of threads")
@each_module
def test_the_number_of_threads_changes_no_bit(layer):
    module, x, results = layer.make_ours(32, 64), layer.random_input(32, batch=33, time=40), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = layer.named_outputs(module(x))["h_n"]
        results.append([y, *gradients_of(module, y.square().sum())])
    assert all(torch.equal(a, e) for result in results[1:] for a, e in zip(result, results[0]))
