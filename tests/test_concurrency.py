"""Several Python threads at once, and processes that fork."""

from __future__ import annotations

import threading

import pytest
import torch

from tests.subject import LAYERS, gradients_of, run_python

each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)
each_class = pytest.mark.parametrize("layer", {layer.ours: layer for layer in LAYERS}.values(), ids=str)


@each_layer
def test_python_threads_may_share_a_module(layer):
    module, x = layer.make_ours(32, 64, 2), torch.randn(20, 8, 32)
    expected, failures = gradients_of(module, module(x)[0].sum()), []

    def work() -> None:
        for _ in range(10):
            actual = gradients_of(module, module(x)[0].sum())
            if not all(torch.equal(a, e) for a, e in zip(actual, expected)):
                failures.append("other bits")

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not any(worker.is_alive() for worker in workers)
    assert not failures


@each_class
def test_workers_that_fork_after_the_parent_has_computed(layer):
    printed = run_python(f"""
import torch, rnn_ext
from torch.utils.data import DataLoader, Dataset
torch.manual_seed(0)
module = rnn_ext.{layer.ours.__name__}(8, 64)
x = torch.randn(30, 40, 8)
expected = module(x)[0]
expected.sum().backward()

class Encoded(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        y = module(x)[0]
        y.sum().backward()
        return y.detach()

loader = DataLoader(Encoded(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
print(all(torch.allclose(y, expected) for y in loader))
""")
    assert printed == "True"
