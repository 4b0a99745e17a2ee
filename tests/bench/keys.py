"""What the objects of a work are called: keys that follow one another, or random ones among many that are there already."""

import functools
import hashlib
import pathlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Keys:
    count: int
    # So many other keys lie between them at both sides. Without any they are neighbours.
    others: int = 0

    @property
    def scattered(self):
        return self.others > 0

    def name(self, number):
        return f"bench/{digest('key', number)}" if self.scattered else f"bench/{number:08}"

    @functools.cached_property
    def all(self):
        return [self.name(number) for number in range(self.count)]

    def write(self, folder):
        """Writes them to a file, one a line."""
        return lines(pathlib.Path(folder) / "keys", self.all)

    def write_others(self, folder):
        return lines(pathlib.Path(folder) / "others", (f"bench/{digest('other', number)}" for number in range(self.others)))

    def __str__(self):
        return f"random keys among {self.others} others" if self.scattered else "neighbouring keys"


def digest(kind, number):
    return hashlib.sha256(f"{kind} {number}".encode()).hexdigest()[:16]


def lines(path, names):
    path.write_text("".join(f"{name}\n" for name in names))
    return path
