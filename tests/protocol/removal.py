"""Version deletes, rule 10: a replica goes by its exact id, after the source has said that its version is gone."""

from planner import COLLAPSED, REMOVED
from task import after, record, restart, settled
from world import outdate, outdate_version



def may_explain(model, ledger, task):
    """Whether the message is about a version nobody knows, and a marker nobody knows hides what the source shows."""
    rules, history, view = model.rules, model.history, task.view
    if not (rules.version_deletes and rules.explain_marker and history.words[task.event][0] in "XF"):
        return False
    known = dict(ledger.replicas)
    is_stranger = view.entry and view.etag is None and view.entry not in known.values()
    shown = task.listed[-1] if task.listed else None
    return is_stranger and shown is not None and view.reached == shown and history.about[task.event] not in known


def over_what_is_spare(model, ledger, view):
    """A marker that was taken for a gone object: it stands above what was newest then."""
    history = model.history
    if history.kind[view.reached] == "M":
        return view
    below = [v for v, replica in ledger.replicas if history.kind[v] == "P" and COLLAPSED < replica < view.entry]
    return view._replace(reached=max(below, key=lambda v: history.rank[v], default=None), is_spare=True)


def next_target(model, ledger, task):
    """Once the key is up to date: what else the message, or the second look after a write, asks for."""
    rules, history = model.rules, model.history
    if not rules.version_deletes:
        return settled(task)
    wanted = [version for version in task.wrote if version not in task.listed]
    if not wanted and history.words[task.event][0] in "XF":
        wanted = _bared(model, ledger, task) + [history.about[task.event]]
    if not wanted:
        return settled(task)
    return task._replace(at="find", target=(wanted[0], None))


def _bared(model, ledger, task):
    """A marker on record that hides what the source shows: who heard that its version is gone did not know it."""
    history, view = model.history, task.view
    if not (model.rules.bared_marker and task.listed and history.kind[task.listed[-1]] == "P"):
        return []
    hides = view.etag is None and view.entry
    return [v for v, replica in ledger.replicas if hides and replica == view.entry and v not in task.listed]


def find(model, world, number, ledger, task):
    """Finds the replica, in the ledger or by the stamps; markers have none."""
    version, rules = task.target[0], model.rules
    known = dict(ledger.replicas).get(version, COLLAPSED)
    recorded = next((entry for entry in world.destination if known > COLLAPSED and entry.landed == known), None)
    is_marker = model.history.kind[version] == "M" or (recorded is not None and recorded.etag is None)
    stamped = [entry.landed for entry in world.destination if entry.version == version and entry.etag is not None]
    if is_marker or (known > COLLAPSED and not rules.remove_all):
        found = known if recorded else None
    else:
        found = stamped[-1] if stamped else None
    if found is None:
        return [(("finds no replica", number, version), _nothing_left(model, world, number, ledger, task), None)]
    task = task._replace(at="ask", target=(version, found))
    return [(("finds replica", number, version), after(world, number, ledger, task), None)]


def _nothing_left(model, world, number, ledger, task):
    version = task.target[0]
    own = model.history.words[task.event][0] in "XF" and model.history.about[task.event] == version
    if own and "T" in model.rules.second_look and not task.waited:
        return after(world, number, ledger, task._replace(at="wait"))
    wrote = tuple(other for other in task.wrote if other != version)
    task = task._replace(wrote=wrote, target=None)
    if own and not wrote:
        return after(world, number, ledger, settled(task))
    return after(world, number, ledger, next_target(model, ledger, task))


def wait(model, world, number, ledger, task):
    """The deletion is now older than the longest life of a write; then everything is looked at once more."""
    version = task.target[0]
    if version not in model.history.listed[world.happened]:
        world = outdate_version(world, number, version)
    task = restart(task)._replace(waited=True)
    return [(("waits out writes of", number, version), after(world, number, ledger, task), None)]


def ask(model, world, number, ledger, task):
    """Only a definite answer that the version is gone lets its replica go."""
    version = task.target[0]
    there = version in model.history.listed[world.happened]
    if there and model.rules.source_check:
        done = settled(task)
        return [(("finds at the source", number, version), after(world, number, ledger, done), None)]
    if model.history.kind[version] == "M" and model.rules.keep_run:
        heir = _heir(model, ledger, task)
        if heir is not None:
            ledger = record(record(ledger, heir, task.target[1]), version, REMOVED)
            kept = after(world, number, ledger, restart(task))
            return [(("leaves the marker to", number, heir), kept, None)]
    return [(("finds gone", number, version), after(world, number, ledger, task._replace(at="remove")), None)]


def _heir(model, ledger, task):
    """A listed marker of the same run that has no replica of its own."""
    history, known = model.history, dict(ledger.replicas)
    rank = history.rank
    version = task.target[0]
    for other in task.listed:
        if history.kind[other] != "M" or known.get(other, COLLAPSED) > COLLAPSED:
            continue
        low, high = sorted((rank[version], rank[other]))
        between = [v for v in task.listed if history.kind[v] == "P" and low < rank[v] < high]
        if not between:
            return other
    return None


def remove(model, world, number, ledger, task):
    """DELETE with the replica's version id; where it is current, plans that are older than it have to be dead."""
    version, replica = task.target
    current = world.destination and world.destination[-1].landed == replica
    if "R" in model.rules.fence and current:
        world = outdate(world, number, replica)
    left = tuple(entry for entry in world.destination if entry.landed != replica)
    removed = {entry.version for entry in world.destination} - {entry.version for entry in left}
    gone = [entry for entry in world.destination if entry.landed == replica]
    is_object = any(entry.etag is not None for entry in gone)
    broken = None
    if removed & set(model.history.listed[world.happened]):
        broken = "S"
    if not model.rules.version_deletes:
        broken = "S"
    if gone and not is_object and current and _shows_deleted(model, world, gone[0], left):
        broken = "M"
    changed = world._replace(destination=left, clock=world.clock + 1)
    ledger = record(ledger, version, REMOVED)
    return [(("removes", number, version), after(changed, number, ledger, restart(task)), broken)]


def _shows_deleted(model, world, marker, left):
    """Whether an object shows again that the source never did since that marker, and has a marker right above now."""
    if not left or left[-1].etag is None:
        return False
    history, shown = model.history, left[-1].version
    since = history.listed[history.born[marker.version] + 1 : world.happened + 1]
    if any(listed and listed[-1] == shown for listed in since):
        return False  # the source took the marker back, and so does the destination
    above = [v for v in since[-1] if history.rank[v] > history.rank[shown]]
    return bool(above) and history.kind[above[0]] == "M"
