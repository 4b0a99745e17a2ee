"""What has to hold once everything is quiet: C, H and S of design's promises. M is judged as it happens, in world.py."""


def all_for(model):
    """The promises that a history can be held to."""
    wanted = {"M", "C", "S", "STUCK", "GROWS"}
    if model.rules.history == "exact":
        wanted |= {"H-twice", "H-missing", "H-order", "H-marker-twice"}
    if model.rules.version_deletes:
        wanted |= {"H-purged"}
    # A marker that is taken back shows its object again. Who doesn't know which replica the marker is writes the object anew.
    return wanted - {"H-twice", "H-order"} if model.history.loses_marker else wanted


def broken_at_rest(model, world):
    """The promises that the final state breaks."""
    history, rules = model.history, model.rules
    listed, have = history.listed[world.happened], [entry.version for entry in world.destination]
    broken = set()
    if not _is_current(model, world, listed, have):
        broken.add("C")
    if rules.version_deletes and any(history.kind[v] == "P" and v not in listed for v in have):
        broken.add("H-purged")
    if rules.history == "exact":
        broken |= _history(history, listed, have)
    return broken


def _is_current(model, world, listed, have):
    history = model.history
    answers = [listed[-1] if listed else None]
    if not model.rules.version_deletes and history.has_deletes:
        # Deletes that the rule doesn't replicate leave what was newest.
        answers.append(max(set(listed) | set(have), key=lambda version: history.rank[version], default=None))
    top = world.destination[-1] if world.destination else None
    shown = None if top is None or top.etag is None else top.version
    return shown in [None if answer is None or history.kind[answer] == "M" else answer for answer in answers]


def _history(history, listed, have):
    broken, rank = set(), history.rank
    objects = [version for version in have if history.kind[version] == "P"]
    first = list(dict.fromkeys(objects))
    if first != sorted(first, key=lambda version: rank[version]):
        broken.add("H-order")
    if len(first) != len(objects):
        broken.add("H-twice")
    for version in listed:
        if history.kind[version] == "P" and version not in have and not history.is_late[version]:
            broken.add("H-missing")
    return broken | _markers(history, listed, have)


def _markers(history, listed, have):
    """A run of consecutive markers counts as one, and one at the start as none."""
    broken, run = set(), []
    below = False
    for version in sorted(set(listed) | set(have), key=lambda version: history.rank[version]) + [None]:
        if version is not None and history.kind[version] == "M":
            run.append(version)
            continue
        written = sum(have.count(marker) for marker in run)
        if written > max(len(run), 0):
            broken.add("H-marker-twice")
        if below and not written and any(marker in listed for marker in run):
            broken.add("H-missing")
        run = []
        below = below or (version is not None and version in have)
    return broken
