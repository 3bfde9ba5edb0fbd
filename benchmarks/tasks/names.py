"""The language of a person's name from its letters; the names are those of the package faker."""

from functools import cache

import numpy as np

from .batching import pad, shuffled
from .problem import Batch, Model, Options, Problem, Task, Training, accuracy

LOCALES = ["de_DE", "en_GB", "es_ES", "fi_FI", "fr_FR", "hr_HR", "it_IT", "nl_NL", "pl_PL"]
Named = list[tuple[str, int]]  # names and the places of their locales in LOCALES
DRAWS = 3000  # of first names and of surnames in each locale; enough to meet nearly all


@cache  # one backend after the other asks for the same names
def parts_of_names(locale: str, seed: int) -> tuple[list[str], list[str]]:
    """First names and surnames of one word in small letters, in a fixed order."""
    from faker import Faker

    fake = Faker(locale)
    fake.seed_instance(seed)
    firsts, lasts = ({draw().lower() for _ in range(DRAWS)} for draw in (fake.first_name, fake.last_name))
    return tuple(sorted(name for name in drawn if " " not in name) for drawn in (firsts, lasts))


def people(count: int, seed: int) -> tuple[Named, Named]:
    """Full names to learn from and a quarter as many to test on, `count` in all, equally many of each locale.

    No first name or surname of a test name occurs in training, under whatever locale.
    """
    rng = np.random.default_rng(seed)
    parts = [parts_of_names(locale, seed) for locale in LOCALES]
    words = sorted({word for lists in parts for words in lists for word in words})
    unseen = set(rng.permutation(words)[: len(words) // 5].tolist())

    def draw(each: int, held_out: bool) -> Named:
        drawn = []
        for language, lists in enumerate(parts):
            firsts, lasts = (
                np.array([word for word in words if (word in unseen) == held_out]) for words in lists
            )
            if len(firsts) * len(lasts) < 2 * each:
                raise ValueError(f"{LOCALES[language]} has too few names for {each} pairs of them")
            names: dict[str, None] = {}
            while len(names) < each:
                names[f"{rng.choice(firsts)} {rng.choice(lasts)}"] = None
            drawn += [(name, language) for name in names]
        return drawn

    test = count // len(LOCALES) // 5
    return draw(count // len(LOCALES) - test, False), draw(test, True)


def collate(names: Named, letters: dict[str, int]) -> Batch:
    """Names padded at the end: x [T, B], y [B]."""
    x, lengths = pad([[letters[letter] for letter in name] for name, _ in names])
    return Batch(x, np.array([language for _, language in names]), lengths)


def build(o: Options) -> Problem:
    seen, unseen = people(o.sequences, o.seed)
    alphabet = sorted({letter for name, _ in seen + unseen for letter in name})
    letters = {letter: i for i, letter in enumerate(alphabet)}
    test = collate(unseen, letters)

    def batches(epoch):
        parts = shuffled(len(seen), o.batch, o.seed, epoch)
        return [collate([seen[i] for i in part], letters) for part in parts]

    return Problem(
        Model(
            32,
            o.hidden,
            len(LOCALES),
            cell=o.cell,
            num_layers=o.layers,
            bidirectional=True,
            readout="last",
            tokens=len(letters),
        ),
        Training("cross_entropy", "Adam", o.lr, o.epochs, clip=1, seconds=o.seconds),
        batches,
        score=lambda learner: {"test accuracy": accuracy(learner.predict(test.x, test.lengths)[0], test.y)},
        reached=lambda losses, scores: scores["test accuracy"] >= o.goal,
        score_from=1,
    )


TASKS = [
    Task(
        name="names",
        id="C3",
        title=f"which of {len(LOCALES)} languages a person's name is",
        reached_when="accuracy >= 0.7 on names of which no part was seen in training (by chance 0.11)",
        options=dict(
            cell="LSTM",
            hidden=64,
            layers=1,
            lr=0.003,
            epochs=6,
            batch=32,
            sequences=9000,
            seconds=40,
            goal=0.7,
        ),
        build=build,
        quick=dict(epochs=3),
        backends=("torch", "rnn_ext"),
    )
]
