"""From one start token to a whole melody: the network is fed its own output."""

import numpy as np

from .greedy import generate
from .problem import Batch, Model, Options, Problem, Task, Training, one_batch

# The first 16 notes of tunes in the public domain, each in a key that makes its first note its own.
PHRASES = {
    "Ode to Joy": "E4 E4 F4 G4 G4 F4 E4 D4 C4 C4 D4 E4 E4 D4 D4 E4",
    "Ah vous dirai-je, maman": "C4 C4 G4 G4 A4 A4 G4 F4 F4 E4 E4 D4 D4 C4 G4 G4",
    "Frère Jacques": "F4 G4 A4 F4 F4 G4 A4 F4 A4 Bb4 C5 A4 Bb4 C5 C5 D5",
    "Mary Had a Little Lamb": "B4 A4 G4 A4 B4 B4 B4 A4 A4 A4 B4 D5 D5 B4 A4 G4",
    "Jingle Bells": "A4 A4 A4 A4 A4 A4 A4 C5 F4 G4 A4 Bb4 Bb4 Bb4 Bb4 Bb4",
    "Au clair de la lune": "G4 G4 G4 A4 B4 A4 G4 B4 A4 A4 G4 G4 G4 G4 A4 B4",
    "Auld Lang Syne": "D4 G4 G4 G4 B4 A4 G4 A4 B4 G4 G4 B4 D5 E5 E5 D5",
    "London Bridge": "Bb4 C5 Bb4 Ab4 G4 Ab4 Bb4 F4 G4 Ab4 G4 Ab4 Bb4 Bb4 C5 Bb4",
}
NOTES = sorted({note for phrase in PHRASES.values() for note in phrase.split()})


def build(o: Options) -> Problem:
    phrases = np.array([[NOTES.index(note) for note in phrase.split()] for phrase in PHRASES.values()])
    notes = phrases[:, : o.length].T  # [T, B]

    def score(learner):
        same = generate(learner, notes[0], len(notes)) == notes
        return {"phrases": float(same.all(0).mean()), "notes": float(same.mean())}

    return Problem(
        Model(o.hidden // 4, o.hidden, len(NOTES), cell=o.cell, tokens=len(NOTES)),
        Training("cross_entropy", "Adam", o.lr, o.epochs),
        one_batch(Batch(notes[:-1], notes[1:])),  # in training it is fed the true notes (teacher forcing)
        score,
        reached=lambda losses, scores: scores["phrases"] == 1,
    )


def variant(name: str, title: str, cell: str) -> Task:
    return Task(
        name=name,
        id="B7",
        title=title,
        reached_when="all phrases reproduced note by note",
        options=dict(cell=cell, hidden=64, lr=0.003, epochs=300, length=16),
        build=build,
        numpy="forward",
        cells=("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"),
        charted="notes",
    )


TASKS = [
    variant("melody", "a melody from its first note", "RNN"),
    variant("melody_cell", "the same with a cell in a Python loop", "RNNCell"),
]
