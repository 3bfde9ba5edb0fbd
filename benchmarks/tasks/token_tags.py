"""Classes of the tokens of Python source: the standard library's, each token hashed by its characters."""

import keyword
import sysconfig
import tokenize
import zlib
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from .batching import inside, pad, shuffled
from .problem import Batch, Model, Options, Problem, Task, Training

CLASSES = "layout operator number string comment keyword definition attribute call name".split()
STATEMENTS = 6  # in a sequence; fewer where they are long
Tokens = list[tuple[str, str]]  # with their classes


def class_of(token: tokenize.TokenInfo, before: str, after: str) -> str:
    """One of CLASSES. What a name is depends on its neighbours, so that a reader needs both directions."""
    kind = tokenize.tok_name[token.type]
    if kind == "NAME":
        if keyword.iskeyword(token.string):
            return "keyword"
        if before in ("def", "class"):
            return "definition"
        if before == ".":
            return "attribute"
        return "call" if after == "(" else "name"
    if "STRING" in kind:  # newer Pythons have several kinds of them
        return "string"
    return {"OP": "operator", "NUMBER": "number", "COMMENT": "comment"}.get(kind, "layout")


def split_files(seed: int) -> tuple[list[Path], list[Path]]:
    """The standard library's modules to learn from, and a fifth of all to test on."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    files = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    return files[len(files) // 5 :], files[: len(files) // 5]


@cache  # one backend after the other asks for the same files
def pieces(path: Path, longest: int) -> list[Tokens]:
    """A file in sequences of STATEMENTS statements, cut at `longest` tokens; its last few are left out."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    words = [token.string for token in tokens]
    found: list[Tokens] = []
    piece: Tokens = []
    ends = 0
    for token, before, after in zip(tokens, ["", *words], [*words[1:], ""]):
        piece.append((token.string, class_of(token, before, after)))
        ends += token.type == tokenize.NEWLINE
        if ends == STATEMENTS or len(piece) == longest:
            found.append(piece)
            piece, ends = [], 0
    return found


def collate(sequences: list[Tokens], buckets: int) -> Batch:
    """Sequences of any lengths, padded at the end: x and y [T, B]."""
    x, lengths = pad([[zlib.crc32(token.encode()) % buckets for token, _ in s] for s in sequences])
    y, _ = pad([[CLASSES.index(name) for _, name in s] for s in sequences])
    return Batch(x, y, lengths)


def accuracy(batch: Batch, guessed: np.ndarray) -> float:
    """Share of the tokens [T, B] guessed right, padding left out."""
    return float((guessed == batch.y)[inside(batch.lengths, len(batch.y))].mean())


def by_hash_alone(batches: list[Batch], buckets: int) -> np.ndarray:
    """The most frequent class of each hash [buckets]: what can be known without the neighbours."""
    counts = np.zeros((buckets, len(CLASSES)), int)
    for x, y, lengths, *_ in batches:
        known = inside(lengths, len(y))
        np.add.at(counts, (x[known], y[known]), 1)
    return counts.argmax(-1)


def build(o: Options) -> Problem:
    def load(files: list[Path], count: int) -> list[Tokens]:
        found = list(islice((piece for path in files for piece in pieces(path, o.length)), count))
        if len(found) < count:
            raise ValueError(f"the standard library has {len(found)} sequences, asked for {count}")
        return found

    seen_files, test_files = split_files(o.seed)
    seen = load(seen_files, o.sequences)
    test = collate(load(test_files, o.sequences // 5), o.buckets)

    def batches(epoch):
        parts = shuffled(len(seen), o.batch, o.seed, epoch)
        return [collate([seen[i] for i in part], o.buckets) for part in parts]

    guess = by_hash_alone(batches(0), o.buckets)

    def score(learner):
        scores, _ = learner.predict(test.x, test.lengths)
        return {
            "test accuracy": accuracy(test, scores.argmax(-1)),
            "by hash alone": accuracy(test, guess[test.x]),
        }

    return Problem(
        Model(
            o.hidden // 2,
            o.hidden,
            len(CLASSES),
            cell=o.cell,
            num_layers=o.layers,
            bidirectional=True,
            tokens=o.buckets,
        ),
        Training("cross_entropy", "Adam", o.lr, o.epochs, clip=1, seconds=o.seconds),
        batches,
        score,
        reached=lambda losses, scores: scores["test accuracy"] >= o.goal,
        score_from=1,
    )


TASKS = [
    Task(
        name="token_tags",
        id="C4",
        title=f"which of {len(CLASSES)} classes each token of Python source is",
        reached_when="accuracy >= 0.95 on files not seen in training",
        options=dict(
            cell="LSTM",
            hidden=64,
            layers=2,
            lr=0.003,
            epochs=3,
            batch=16,
            sequences=2000,
            length=100,
            buckets=1000,
            seconds=40,
            goal=0.95,
        ),
        build=build,
        quick=dict(epochs=1),
        backends=("torch", "rnn_ext"),
    )
]
