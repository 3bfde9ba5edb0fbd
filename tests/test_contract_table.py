"""The README's table of promises is the one that the tests write."""

from __future__ import annotations

import pytest

from tests.contract import CELL_CLASSES, CLASSES, README, SECTIONS, SUBJECTS, promises, readme_table, table, verdict
from tests.subject import CELLS, LAYERS, SUBJECT_VARIABLE, run_python

needs_readme = pytest.mark.skipif(not README.exists(), reason="these tests run apart from the sources")


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@needs_readme
def test_the_readme_has_a_line_for_every_promise_and_no_other():
    kept = dict.fromkeys(CLASSES, True)
    expected = table({subject: {text: kept for texts in promises().values() for text in texts} for subject in SUBJECTS})
    assert [cells_of(line)[0] for line in readme_table()] == [cells_of(line)[0] for line in expected]


@needs_readme
def test_the_readme_has_a_verdict_for_every_promise_and_rnn_ext_keeps_all():
    lines = [cells_of(line) for line in readme_table()[2:]]
    verdicts = {text: found for text, *found in lines if not text.startswith("**")}
    assert len(verdicts) == sum(map(len, promises().values()))
    assert {text: found[1] for text, found in verdicts.items() if found[1] != "yes"} == {}
    assert all(found[0] for found in verdicts.values())


def test_every_section_has_promises_and_no_text_stands_in_two():
    texts = [text for section in promises().values() for text in section]
    assert all(promises()[section] for section in SECTIONS)
    assert len(set(texts)) == len(texts)
    assert not any("|" in text for text in texts)


@pytest.mark.parametrize(("broken", "words"), [
    ([], "yes"),
    (CLASSES, "no"),
    (["GRU"], "not GRU"),
    (["GRU", "GRUCell"], "not GRU, GRUCell"),
    ([name for name in CLASSES if name not in CELL_CLASSES], "cells only"),
    (CELL_CLASSES, "layers only"),
    ([name for name in CLASSES if name != "LSTM"], "LSTM only"),
])  # fmt: skip
def test_a_verdict_names_the_classes_that_keep_a_promise_or_break_it(broken, words):
    assert verdict({name: name not in broken for name in CLASSES}) == words


def test_torchs_classes_can_stand_in_the_place_of_ours():
    printed = run_python(
        "from tests.subject import CELLS, LAYERS; print(sum(row.ours is row.theirs for row in LAYERS + CELLS))",
        **{SUBJECT_VARIABLE: "torch.nn"},
    )
    assert printed == str(len(LAYERS + CELLS))
