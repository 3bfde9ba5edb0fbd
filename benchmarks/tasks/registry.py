"""Every task by name. A new family of tasks is a module with a list TASKS, and a word here."""

from . import (
    char_lm,
    counting_ones,
    digits,
    hihello,
    melody,
    names,
    next_number,
    pos_toy,
    reverse,
    token_tags,
    toy_classes,
    up_down,
)
from .problem import Task

FAMILIES = [
    toy_classes,
    up_down,
    next_number,
    counting_ones,
    hihello,
    pos_toy,
    melody,
    reverse,
    digits,
    char_lm,
    names,
    token_tags,
]
TASKS: dict[str, Task] = {task.name: task for family in FAMILIES for task in family.TASKS}
