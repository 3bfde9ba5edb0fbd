"""What a check on a GPU has found so far: one JSON line for each point, so that a run which is cut off can go on."""

from __future__ import annotations

import json
from pathlib import Path


class Journal:
    """Lines {"point": name, "state": "begins"}, and later another with the point's results and how it ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def write(self, point: str, state: str, **facts) -> None:
        with open(self.path, "a") as file:
            print(json.dumps({"point": point, "state": state, **facts}), file=file, flush=True)

    def states(self) -> dict[str, str]:
        """The last state of every point that has begun."""
        with open(self.path) as file:
            return {line["point"]: line["state"] for line in map(json.loads, file)}

    def known(self) -> set[str]:
        """The points that need not be tried again."""
        return {point for point, state in self.states().items() if state != "cut off"}

    def end_unfinished(self, state: str) -> bool:
        """Writes how the point ended in the middle of which its process did; whether there was one."""
        unfinished = [point for point, last in self.states().items() if last == "begins"]
        for point in unfinished:
            self.write(point, state)
        return bool(unfinished)
