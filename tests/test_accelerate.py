"""`accelerate` turns torch's recurrent modules inside a model into ours, in place; `restore` turns them back."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

import rnn_ext
from tests.subject import CELLS, LAYERS
from tests.tolerances import assert_all_close, assert_close

each_module = pytest.mark.parametrize("layer", LAYERS + CELLS, ids=str)


class Tagger(nn.Module):
    """Every kind of layer and cell, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.encoder = nn.Sequential(nn.LSTM(4, 3, 2, dropout=0.5, bidirectional=True))
        self.layers = nn.ModuleList([nn.RNN(6, 3, nonlinearity="relu"), nn.GRU(3, 3, batch_first=True)])
        self.cells = nn.ModuleDict(
            {"rnn": nn.RNNCell(3, 3), "lstm": nn.LSTMCell(3, 3, bias=False), "gru": nn.GRUCell(3, 3)}
        )
        self.again = self.layers[0]
        self.readout = nn.Linear(3, 2)

    def forward(self, tokens):
        y, _ = self.encoder(self.embedding(tokens))
        y = self.layers[1](self.layers[0](y)[0])[0] + self.again(y)[0]
        h = self.cells["gru"](self.cells["rnn"](y[-1]))
        return self.readout(self.cells["lstm"](h)[0])


TOKENS = torch.randint(9, (5, 2))
NAMES = ["encoder.0", "layers.0", "layers.1", "cells.rnn", "cells.lstm", "cells.gru", "again"]


def train(model, steps=3):
    """A few steps of Adam. Returns the losses."""
    torch.manual_seed(3)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.1), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(TOKENS).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_everything_is_replaced_and_reported_and_computes_the_same():
    model = Tagger().eval()
    before, parameters, text = model(TOKENS), dict(model.named_parameters()), repr(model)
    report = rnn_ext.accelerate(model)
    assert [name for name, _, _ in report.replaced] == NAMES
    for name, old, new in report.replaced:
        module = model.get_submodule(name)
        assert type(module) is new and new.__module__.startswith("rnn_ext")
        assert old is getattr(nn, new.__name__)
        assert not module.training
    assert report.skipped == ()
    assert str(report).splitlines()[0] == "encoder.0: torch.nn.LSTM -> rnn_ext.LSTM"
    assert_close(model(TOKENS), before)
    assert {name: id(weight) for name, weight in model.named_parameters()} == {
        name: id(weight) for name, weight in parameters.items()
    }
    assert repr(model) == text


def test_shared_modules_stay_shared():
    model = Tagger()
    rnn_ext.accelerate(model)
    assert model.again is model.layers[0]
    assert isinstance(model.again, rnn_ext.RNN)


def test_training_goes_on_as_with_torch_dropout_included():
    ours, theirs = (Tagger() for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    rnn_ext.accelerate(ours)
    assert_close(train(ours), train(theirs), dtype=torch.float32)


def test_an_optimizer_made_before_steps_the_weights_that_are_used_after():
    model = nn.Sequential(nn.GRU(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rnn_ext.accelerate(model)
    before = model(torch.ones(5, 2, 4))[0]
    before.sum().backward()
    optimizer.step()
    assert not torch.equal(model(torch.ones(5, 2, 4))[0], before)


def test_restore_is_the_inverse():
    model = Tagger().eval()
    before, parameters = model(TOKENS), list(model.parameters())
    there = rnn_ext.accelerate(model)
    back = rnn_ext.restore(model)
    assert [(name, new, old) for name, old, new in back.replaced] == list(there.replaced)
    assert [type(model.get_submodule(name)) for name in NAMES] == [old for _, old, _ in there.replaced]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model(TOKENS), before)
    assert rnn_ext.restore(model).replaced == ()


@each_module
def test_a_model_that_is_itself_a_layer_becomes_ours(layer):
    module, expected = layer.make_theirs(4, 3), layer.make_ours(4, 3)
    report = rnn_ext.accelerate(module)
    assert type(module) is layer.ours
    assert [tuple(change) for change in report.replaced] == [("", layer.theirs, layer.ours)]
    assert str(report).startswith("(the model itself): torch.nn.")
    assert vars(module).keys() == vars(expected).keys(), "an attribute that one of them would lack"
    rnn_ext.restore(module)
    assert type(module) is layer.theirs


@each_module
def test_a_replaced_module_is_as_good_as_a_new_one(layer):
    theirs = layer.make_theirs(4, 3)
    module = copy.deepcopy(theirs)
    rnn_ext.accelerate(module)
    x = torch.randn(2, 4) if layer.is_cell else torch.randn(5, 2, 4)
    for copied in (
        module,
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        module.double().float(),
    ):
        results = []
        for m in (copied, theirs):
            m.zero_grad()
            y = layer.named_outputs(m(x))["h_n"]
            y.sum().backward()
            results.append([y, *(weight.grad for weight in m.parameters())])
        assert_all_close(*results)


def test_a_reference_from_elsewhere_sees_the_same_module():
    model = nn.Sequential(nn.LSTM(4, 3))
    kept = model[0]
    rnn_ext.accelerate(model)
    assert model[0] is kept and type(kept) is rnn_ext.LSTM


def test_hooks_buffers_and_attributes_stay():
    lstm, calls = nn.LSTM(4, 3), []
    lstm.register_forward_pre_hook(lambda *_: calls.append("before"))
    handle = lstm.register_forward_hook(lambda *_: calls.append("after"))
    lstm.register_full_backward_hook(lambda *_: calls.append("backward"))
    lstm.register_buffer("seen", torch.tensor(1))
    lstm.name = "encoder"
    model = nn.Sequential(lstm)
    rnn_ext.accelerate(model)
    model(torch.ones(5, 2, 4))[0].sum().backward()
    assert calls == ["before", "after", "backward"]
    assert "0.seen" in model.state_dict() and model[0].name == "encoder"
    handle.remove()
    model(torch.ones(5, 2, 4))
    assert calls == ["before", "after", "backward", "before"]


CHANGES = {
    "parametrized weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "two parametrizations": lambda m: (
        parametrizations.orthogonal(m, "weight_hh_l0"), parametrizations.weight_norm(m, "weight_ih_l0")
    ),
    "weight_norm by a hook": lambda m: weight_norm(m, "weight_hh_l0"),
    "pruning": lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=4),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("back", [False, True], ids=["accelerate", "and restore"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_reparametrized_weights_go_on_working(change, back):
    modules, x = [], torch.randn(5, 2, 4)
    for _ in range(2):
        torch.manual_seed(4)
        module = nn.GRU(4, 3)
        CHANGES[change](module)
        modules.append(module)
    ours, theirs = modules
    assert len(rnn_ext.accelerate(ours).replaced) == 1
    assert isinstance(ours, rnn_ext.GRU)
    if back:
        rnn_ext.restore(ours)
        assert isinstance(ours, nn.GRU)
    results = []
    for module in (ours, theirs):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        module(x)[0].sum().backward()
        optimizer.step()
        results.append(
            [module(x)[0], *(weight.grad for weight in module.parameters() if weight.grad is not None)]
        )
    assert_all_close(*results)


def test_parametrizations_can_be_removed_and_added_afterwards():
    module = nn.GRU(4, 3)
    parametrizations.orthogonal(module, "weight_hh_l0")
    rnn_ext.accelerate(module)
    assert isinstance(copy.deepcopy(module), rnn_ext.GRU)
    assert parametrize.type_before_parametrizations(module) is rnn_ext.GRU
    before = module(torch.ones(5, 2, 4))[0]
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is rnn_ext.GRU
    assert_close(module(torch.ones(5, 2, 4))[0], before)
    parametrizations.spectral_norm(module, "weight_hh_l0")
    rnn_ext.restore(module)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is nn.GRU


class Scaled(nn.LSTM):
    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return 2 * output, state


class Named(nn.GRUCell):
    """No forward of its own, but it may have anything else."""


def with_own_forward():
    module = nn.RNN(4, 3)
    module.forward = lambda input, hx=None: (input, hx)
    return module


LEFT_ALONE = {
    "a subclass with a forward": (lambda: Scaled(4, 3), "subclass of torch.nn.LSTM"),
    "a subclass without": (lambda: Named(4, 3), "subclass of torch.nn.GRUCell"),
    "a forward set on the instance": (with_own_forward, "it has forward of its own"),
}


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_may_behave_in_its_own_way_is_left_alone_and_told(case):
    make, reason = LEFT_ALONE[case]
    odd = make()
    model = nn.Sequential(nn.Sequential(odd), nn.LSTM(3, 3))
    with pytest.warns(UserWarning, match=f"rnn_ext.accelerate left alone 0.0 .*{reason}") as caught:
        report = rnn_ext.accelerate(model)
    assert caught[0].filename == __file__
    assert len(caught) == 1
    [(name, cls, told)] = report.skipped
    assert (name, cls) == ("0.0", type(odd)) and reason in told
    assert type(odd) is cls and model[0][0] is odd
    assert [name for name, _, _ in report.replaced] == ["1"]
    assert str(report).splitlines()[1].startswith("0.0: ") and "left as it is" in str(report)


def test_a_subclass_of_ours_is_left_alone_by_restore():
    class Own(rnn_ext.LSTM):
        pass

    model = nn.Sequential(Own(4, 3), rnn_ext.RNN(3, 3))
    with pytest.warns(UserWarning, match="derive it from torch.nn.LSTM"):
        report = rnn_ext.restore(model)
    assert [type(m) for m in model] == [Own, nn.RNN]
    assert len(report.skipped) == 1


def test_a_model_without_recurrent_modules_is_left_as_it_is_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = rnn_ext.accelerate(nn.Linear(4, 3))
    assert report.replaced == report.skipped == ()
    assert str(report) == "nothing to replace"


def test_what_is_not_a_module_is_refused():
    for function in (rnn_ext.accelerate, rnn_ext.restore):
        with pytest.raises(TypeError, match=f"{function.__name__}: expected a torch.nn.Module, got list"):
            function([nn.LSTM(4, 3)])


def test_a_compiled_model_may_be_accelerated_too():
    model, x = nn.Sequential(nn.GRU(4, 3)).eval(), torch.randn(5, 2, 4)
    compiled = torch.compile(model, backend="eager")
    before = compiled(x)[0]
    rnn_ext.accelerate(compiled)
    assert type(model[0]) is rnn_ext.GRU
    assert_close(compiled(x)[0], before)
    torch._dynamo.reset()
