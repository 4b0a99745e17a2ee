"""Source histories of one key: what happens to it, and what the source lists after each happening.

A history is written as words: `Pa` puts content a in one request, `UA` content A in parts, `LA` an upload in parts that was
begun before the newest version and so lands below it, `M` a delete marker, `X0` deletes the first created version for good,
`F0` is a forged event that says so of a version which is still there."""

CONTENTS = "abc"


class History:
    """A history with everything that the model looks up about it."""

    def __init__(self, words):
        self.words = words.split()
        self.kind = []  # of each version: "P" object or "M" marker
        self.content = []
        self.is_late = []  # landed below a newer one, so it may come too late for the destination
        self.born = []  # index of the word that made the version
        self.about = []  # of each word: the version it is about
        everything, alive = [], []
        self.listed = [()]
        for at, word in enumerate(self.words):
            if word[0] in "XF":
                self.about.append(int(word[1:]))
                if word[0] == "X":
                    alive.remove(self.about[-1])
            else:
                version = len(self.kind)
                self.about.append(version)
                self.kind.append("M" if word == "M" else "P")
                self.content.append(word[1:] or None)
                self.is_late.append(word[0] == "L")
                self.born.append(at)
                below = alive[-1] if word[0] == "L" and alive else None
                place = len(everything) if below is None else everything.index(below)
                everything.insert(place, version)
                alive = [other for other in everything if other in alive or other == version]
            self.listed.append(tuple(alive))
        self.rank = [everything.index(version) for version in range(len(self.kind))]
        self.has_deletes = any(word[0] in "XF" for word in self.words)
        self.loses_marker = any(word[0] == "X" and self.kind[int(word[1:])] == "M" for word in self.words)

    def in_parts(self, version):
        """Large contents are written in capitals and go in parts."""
        content = self.content[version]
        return content is not None and content.isupper()

    def name(self, version):
        letter = "m" if self.kind[version] == "M" else "v"
        return letter + str(version + 1) + (f"({self.content[version]})" if letter == "v" else "")


def histories(length, alphabet="PM"):
    """All histories of a length; contents are numbered as they first appear."""
    found = [((), ("", ""), 0, ())]
    for _ in range(length):
        found = [longer for one in found for letter in alphabet for longer in _grown(one, letter)]
    return [" ".join(words) for words, _, _, _ in found]


def up_to(length, alphabet="PM", having=""):
    """All histories up to a length that have one of the letters, or any if none is named."""
    every = [text for n in range(1, length + 1) for text in histories(n, alphabet)]
    return [text for text in every if not having or any(word[0] in having for word in text.split())]


def _grown(one, letter):
    words, used, versions, gone = one
    if letter == "M":
        return [(words + ("M",), used, versions + 1, gone)]
    if letter in "XF":
        left = [version for version in range(versions) if version not in gone]
        return [(words + (f"{letter}{v}",), used, versions, gone + ((v,) if letter == "X" else ())) for v in left]
    if letter == "L" and not versions:
        return []
    large = letter != "P"
    known = used[large]
    choices = CONTENTS[: len(known) + 1]
    grown = []
    for content in choices:
        now = list(used)
        now[large] = known if content in known else known + content
        shown = content.upper() if large else content
        grown.append((words + (letter + shown,), tuple(now), versions + 1, gone))
    return grown
