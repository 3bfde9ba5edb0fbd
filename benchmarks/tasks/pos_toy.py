"""Part-of-speech tags of two sentences, from whatever state the LSTM happens to start."""

import numpy as np

from .problem import Batch, Model, Options, Problem, Task, Training

SENTENCES = {
    "The dog ate the apple": "DET NN V DET NN",
    "Everybody read that book": "NN V DET NN",
}
WORDS = list(dict.fromkeys(word for sentence in SENTENCES for word in sentence.split()))
TAGS = ["DET", "NN", "V"]
STARTS = 100  # the first is the test; the others tell how much the random state matters


def build(o: Options) -> Problem:
    def batch(sentence: str, count: int, rng: np.random.Generator) -> Batch:
        """The sentence `count` times, each from a state of its own: x and y [T, count]."""
        x = [WORDS.index(word) for word in sentence.split()]
        y = [TAGS.index(tag) for tag in SENTENCES[sentence].split()]
        h, c = rng.standard_normal((2, 1, count, o.hidden)).astype(o.dtype)
        return Batch(np.array([x] * count).T, np.array([y] * count).T, state=(h, c))

    def batches(epoch):
        rng = np.random.default_rng([o.seed, epoch])
        return [batch(sentence, 1, rng) for sentence in SENTENCES]

    rng = np.random.default_rng(o.seed)
    tests = [batch(sentence, STARTS, rng) for sentence in SENTENCES]

    def score(learner):
        right = np.array(
            [(learner.predict(t.x, state=learner.start(t))[0].argmax(-1) == t.y).all(0) for t in tests]
        )
        return {"sentences": float(right[:, 0].mean()), f"from {STARTS} states": float(right.mean())}

    return Problem(
        Model(o.hidden, o.hidden, len(TAGS), cell=o.cell, tokens=len(WORDS)),
        Training("cross_entropy", "SGD", o.lr, o.epochs),
        batches,
        score,
        reached=lambda losses, scores: scores["sentences"] == 1,
    )


TASKS = [
    Task(
        name="pos_toy",
        id="B6",
        title="part-of-speech tags from a random state",
        reached_when="both sentences tagged right",
        options=dict(cell="LSTM", hidden=6, lr=0.1, epochs=300),
        build=build,
        numpy="forward",
        cells=("LSTM",),
        charted=f"from {STARTS} states",
    )
]
