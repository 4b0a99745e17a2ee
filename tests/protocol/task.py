"""What one daemon knows and what it has in hand."""

from typing import NamedTuple

from planner import View
from world import Write


class Ledger(NamedTuple):
    """What a daemon remembers: its replicas by source version, an upload in progress, what it wrote last."""

    replicas: tuple = ()
    upload: tuple | None = None  # (version, id, entry begun over, etag)
    last: View | None = None  # only kept where rules 2 or 3 are dropped


class Task(NamedTuple):
    """One message in work. `at` names the next request."""

    event: int
    at: str
    listed: tuple | None = None
    view: View | None = None
    based: int = 0
    write: Write | None = None
    acted: bool = False  # in this pass
    again: bool = False  # this is not the first pass
    wrote: tuple = ()  # versions, kept only where version deletes are replicated
    seen: tuple | None = None  # (entry, when first seen), kept only where a fence counts from there
    target: tuple | None = None  # (version, replica's id) to be removed
    waited: bool = False  # the deletion is old enough
    foreseen: bool = True  # everything written was new, under the ETag that was reckoned with
    uncovered: bool = False  # something was written over nothing or a marker, or a marker was, in this pass
    belief: str = ""  # in a 404 that tells nothing: see belief.py


def begin(model, ledger, event, redelivered):
    """Takes a message: perhaps the ledger knows the answer."""
    version, word = model.history.about[event], model.history.words[event]
    known = version in dict(ledger.replicas) and word[0] not in "XF"
    if known and model.rules.ledger_answers and not (redelivered and model.rules.redelivery_reads):
        return Task(event, "ack")
    return Task(event, first_request(model, ledger), belief=belief_at_first(model, again=redelivered))


def belief_at_first(model, again):
    """A first attempt may believe a 404. Who follows version deletes, or may have written there before, has to know."""
    rules = model.rules
    may = rules.not_found == "one" and rules.history == "exact" and not rules.version_deletes and not again
    return "may" if may else ""


def first_request(model, ledger):
    """Where everything is read afresh, which is always, the destination comes first."""
    trusting = {"fresh": False, "absent": ledger.last is None, "ledger": ledger.last is not None}
    return "list" if trusting[model.rules.reads] else "read"


def after(world, number, ledger, task):
    """The world with one daemon changed."""
    daemons = world.daemons
    return world._replace(daemons=daemons[:number] + ((ledger, task),) + daemons[number + 1 :])


def restart(task, again=False, foreseen=True):
    """A new attempt, or another pass of the same: what was read is forgotten, what was done is not."""
    kept = {"wrote": task.wrote, "seen": task.seen, "waited": task.waited}
    return Task(task.event, "read", again=again, foreseen=foreseen, **kept)


def settled(task):
    """Nothing is left but to delete the message."""
    return Task(task.event, "ack")


def record(ledger, version, replica):
    """Notes a replica by its id, or what became of the version instead."""
    replicas = dict(ledger.replicas)
    replicas[version] = replica
    return ledger._replace(replicas=tuple(sorted(replicas.items())))
