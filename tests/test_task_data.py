"""The tasks' data and models: what is asked, and that the answer is not given away."""

import io
import tokenize
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.tasks import names, pos_toy, reverse, token_tags
from benchmarks.tasks.counting_ones import even_ones
from benchmarks.tasks.greedy import generate
from benchmarks.tasks.models import DelayLine, SequenceModel, StepByStep
from benchmarks.tasks.problem import Model
from benchmarks.tasks.registry import TASKS
from tests.tolerances import assert_close


def test_even_ones_counts_the_window():
    bits = np.array([1, 0, 1, 1, 0, 0, 0])[:, None]
    assert even_ones(bits, 3).ravel().tolist() == [0, 0, 1, 1, 1, 0, 1]


def test_a_delay_line_knows_its_last_inputs_and_no_more():
    line, x = DelayLine(1, 4, taps=3), torch.randn(8, 1, 1)
    before, _ = line(x)
    x[2] += 1
    after, _ = line(x)
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [False, False, True, True, True, False, False, False]


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_a_cell_step_by_step_does_what_the_layer_does(name):
    layer, cell = getattr(nn, name)(3, 5), getattr(nn, name + "Cell")(3, 5)
    cell.load_state_dict({key: layer.state_dict()[key + "_l0"] for key in cell.state_dict()})
    x = torch.randn(7, 2, 3)
    (output, state), (expected, last) = StepByStep(cell)(x), layer(x)
    assert_close(output, expected)
    assert_close(state[0] if name == "LSTM" else state, (last[0] if name == "LSTM" else last)[0])


def test_a_cell_refuses_what_only_layers_do():
    packed = nn.utils.rnn.pack_sequence([torch.randn(2, 3)])
    with pytest.raises(TypeError, match="step by step"):
        StepByStep(nn.RNNCell(3, 5))(packed)
    for changed in (dict(num_layers=2), dict(bidirectional=True), dict(batch_first=True)):
        with pytest.raises(ValueError, match="RNNCell goes step by step"):
            SequenceModel(Model(3, 5, 2, cell="RNNCell", **changed), nn)


def test_generate_feeds_the_best_token_back_and_carries_the_state():
    class Counter:
        """Its next token is the last one and the number of the call, added up."""

        def predict(self, x, lengths=None, state=None):
            calls = 1 if state is None else state + 1
            return np.eye(20)[x + calls], calls

    assert generate(Counter(), np.array([3, 5]), 4).T.tolist() == [[3, 4, 6, 9], [5, 6, 8, 11]]


def test_pos_toy_has_the_two_sentences_with_nine_words_and_a_new_state_each_time():
    problem = TASKS["pos_toy"].problem("torch")
    spoken = [
        [(pos_toy.WORDS[w], pos_toy.TAGS[t]) for w, t in zip(batch.x[:, 0], batch.y[:, 0])]
        for batch in problem.batches(0)
    ]
    assert spoken == [
        [("The", "DET"), ("dog", "NN"), ("ate", "V"), ("the", "DET"), ("apple", "NN")],
        [("Everybody", "NN"), ("read", "V"), ("that", "DET"), ("book", "NN")],
    ]
    assert problem.model.tokens == 9
    h = [batch.state[0] for epoch in (0, 1) for batch in problem.batches(epoch)]
    assert len({state.tobytes() for state in h}) == 4


def test_reverse_asks_for_strings_that_are_not_in_training():
    batch = reverse.collate([(1, 2, 3, 4), (5, 6, 7, 8, 9)])
    assert batch.source.x.T.tolist() == [[1, 2, 3, 4, 10], [5, 6, 7, 8, 9]]
    assert batch.y.T.tolist() == [[4, 3, 2, 1, 10, 10], [9, 8, 7, 6, 5, 10]]
    assert batch.x.T.tolist() == [[10, 4, 3, 2, 1, 10], [10, 9, 8, 7, 6, 5]]
    assert (batch.source.lengths.tolist(), batch.lengths.tolist()) == ([4, 5], [5, 6])

    strings = reverse.draw(np.random.default_rng(0), 3000, 10)
    assert len(set(strings)) == 3000  # so that the first of them are unseen in the others
    assert {len(string) for string in strings} == set(range(4, 11))


def test_reverse_counts_a_string_as_exact_with_all_its_digits_and_its_end():
    class Oracle:
        """Writes the right answers but for one digit of the first string."""

        def start(self, batch):
            self.y = batch.y.copy()
            self.y[2, 0] = (self.y[2, 0] + 1) % 10
            return 0

        def predict(self, x, lengths=None, state=None):
            return np.eye(11)[self.y[state]][None], state + 1

    problem = TASKS["reverse"].problem("torch", sequences=10)
    assert problem.score(Oracle()) == {"exact": 1 - 1 / reverse.UNSEEN}


def test_no_part_of_a_test_name_occurs_in_training():
    seen, unseen = names.people(450, seed=0)
    assert (len(seen), len(unseen)) == (360, 90)
    words = [{word for name, _ in split for word in name.split()} for split in (seen, unseen)]
    assert not words[0] & words[1]
    counts = np.bincount([language for _, language in unseen])
    assert counts.tolist() == [10] * len(names.LOCALES)
    assert names.people(450, seed=0) == (seen, unseen)


def test_names_come_padded_with_their_lengths():
    batch = names.collate([("ab", 3), ("b", 1)], {"a": 1, "b": 2})
    assert batch.x.T.tolist() == [[1, 2], [2, 0]]
    assert (batch.y.tolist(), batch.lengths.tolist()) == ([3, 1], [2, 1])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("names", dict(sequences=10**7), "too few names for"),
        ("reverse", dict(length=4, sequences=9600), "10100 strings of 4 to 4 digits are not to be had"),
        ("reverse", dict(length=3), "3 digits are not to be had"),
    ],
)
def test_more_data_than_there_is_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        TASKS[name].problem("torch", **options)


def test_more_source_than_there_is_is_refused(monkeypatch):
    seen, test = token_tags.split_files(seed=0)
    monkeypatch.setattr(token_tags, "split_files", lambda seed: (seen[:1], test[:1]))
    with pytest.raises(ValueError, match="the standard library has .* asked for 10000"):
        TASKS["token_tags"].problem("torch", sequences=10000)


def test_the_class_of_a_token_depends_on_its_neighbours():
    source = 'def f(x):  # note\n    return x.real + int("1") + 2\n'
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    words = ["", *(token.string for token in tokens), ""]
    classes = [token_tags.class_of(t, before, after) for t, before, after in zip(tokens, words, words[2:])]
    found = [(word, kind) for word, kind in zip(words[1:], classes) if kind not in ("operator", "layout")]
    assert found == [
        ("def", "keyword"),
        ("f", "definition"),
        ("x", "name"),
        ("# note", "comment"),
        ("return", "keyword"),
        ("x", "name"),
        ("real", "attribute"),
        ("int", "call"),
        ('"1"', "string"),
        ("2", "number"),
    ]


def test_a_source_file_is_cut_into_statements_and_long_ones_again(tmp_path):
    path = tmp_path / "source.py"
    path.write_text("a = 1\n" * (2 * token_tags.STATEMENTS) + f"b = [{'1, ' * 50}]\n" + "c = 2\n" * 9)
    lengths = [len(piece) for piece in token_tags.pieces(path, 40)]
    assert lengths[:2] == [4 * token_tags.STATEMENTS] * 2  # a, =, 1 and the end of the line
    assert max(lengths) == 40


def test_token_tags_tests_on_other_files_than_it_learns_from():
    problem = TASKS["token_tags"].problem("torch", sequences=50)
    batches = problem.batches(0)
    assert sum(len(batch.lengths) for batch in batches) == 50
    assert len({length for batch in batches for length in batch.lengths.tolist()}) > 5
    seen, test = token_tags.split_files(seed=0)
    assert not set(seen) & set(test) and len(seen) > len(test) > 10


def test_char_lm_goes_on_in_the_next_batch():
    problem = TASKS["char_lm"].problem("torch")
    for before, after in pairwise(problem.batches(0)[:3]):
        assert np.array_equal(before.x[1:], before.y[:-1])
        assert np.array_equal(before.y[-1], after.x[0])
