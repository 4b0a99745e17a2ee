"""What a daemon knows of a key and what it does next: the planner of the daemon, core/src/plan.rs, in small."""

from typing import NamedTuple

from world import ABSENT, UNCONDITIONAL, Write

# In the place of a replica's id. Python hashes -1 and -2 alike, so those two may not meet.
COLLAPSED, SKIPPED, REMOVED = 0, -1, -3


class View(NamedTuple):
    """What is current at the destination, and the newest version of the source that its history holds."""

    entry: int  # its id, 0 when there is none
    etag: tuple | None  # None: nothing or a marker
    order: int
    replica_of: int | None
    reached: int | None
    when: int = 0  # of a marker: when it landed
    is_spare: bool = False  # it is a marker that goes: what it hides needs no writing


NOTHING = View(0, None, 0, None, None)


def next_step(model, listed, view, records):
    """Returns ("put" | "mark" | "collapse" | "late", version), or None when nothing is left to do."""
    history, rules, known = model.history, model.rules, dict(records)
    rank = history.rank

    def live(version):
        return known.get(version) != SKIPPED

    def missing(version):
        lapsed = rules.collapse_lapses and known.get(version) == COLLAPSED and view.etag is not None
        return live(version) and (version not in known or lapsed)

    reached = view.reached
    split = 0 if reached is None else sum(1 for version in listed if rank[version] <= rank[reached])
    before, after = listed[:split], listed[split:]
    newest = next((version for version in reversed(after) if live(version)), None)
    wanted = None
    if rules.history == "exact":
        for version in before:
            if history.kind[version] == "P" and missing(version) and version != reached:
                return "late", version
        wanted = next((version for version in after if missing(version)), None)
    elif newest is not None and missing(newest):
        wanted = newest
    if wanted is None and newest is not None and not _shows(history, view, newest):
        wanted = newest
    if wanted is None and not after:
        last = next((version for version in reversed(before) if live(version)), None)
        if last is not None and last == reached and not view.is_spare and not _shows(history, view, last):
            wanted = last
    return None if wanted is None else (_verb(model, view, wanted), wanted)


def _shows(history, view, version):
    if view.etag is None:
        return history.kind[version] == "M"
    return view.replica_of == version


def _verb(model, view, version):
    if model.history.kind[version] == "P":
        return "put"
    return "collapse" if view.etag is None and model.rules.collapse else "mark"


def write_for(model, world, listed, view, version, records, based):
    """The request for a step, and whether it goes in parts."""
    rules, history = model.rules, model.history
    if history.kind[version] == "M":
        condition = view.etag if view.etag is not None and rules.conditional_delete else UNCONDITIONAL
        fenced = _fence(rules, view, based) if "M" in rules.fence and view.etag is not None else None
        return Write(version, condition, None, fenced, 0, based), False
    plain = (history.content[version], 0)
    again = rules.distinct and view.etag == plain
    etag = (plain[0], 1) if again else plain
    condition = (ABSENT if view.etag is None else view.etag) if rules.conditional_put else UNCONDITIONAL
    stood = _stands(model, world, listed, records, version, etag, view)
    fenced = _fence(rules, view, based) if "E" in rules.fence and stood else None
    return Write(version, condition, etag, fenced, 0, based), again or history.in_parts(version)


def _stands(model, world, listed, records, version, etag, view):
    """Whether this ETag, as far as the daemon can tell, is one that the key had before."""
    if model.rules.fence_looks == "destination":
        return any(entry.etag == etag for entry in world.destination)
    history = model.history
    known = [v for v, replica in records if (replica > COLLAPSED or replica == REMOVED) and history.kind[v] == "P"]
    known += [other for other in listed if history.rank[other] < history.rank[version]]
    known += [] if view.replica_of is None else [view.replica_of]
    return any(history.content[other] == history.content[version] for other in known)


def _fence(rules, view, based):
    """What has to be outdated before the write: everything that was read before the current entry was there."""
    return {"landed": view.entry, "seen": based, "modified": view.order}[rules.fence_age]
