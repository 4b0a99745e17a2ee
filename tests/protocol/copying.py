"""Copying, a request at a time, as daemon/src/transfer does it: read the destination, list the source, plan, write, and
once more until a pass changes nothing."""

from belief import believes, markers_matter
import removal
from planner import COLLAPSED, NOTHING, SKIPPED, View, next_step, write_for
from task import Ledger, after, record, restart, settled
from world import ABSENT, STALE, UNCONDITIONAL, end_upload, holds, land, outdate


def _adopt(ledger, entry):
    known = entry.landed in (replica for _, replica in ledger.replicas)
    return ledger if known or entry.etag is None else record(ledger, entry.version, entry.landed)


def read(model, world, number, ledger, task):
    """HEAD of the destination. A marker bears no stamp, so the ledger knows it by its id or nobody does."""
    top = world.destination[-1] if world.destination else None
    is_believed = (top is None or top.etag is None) and believes(model, ledger, task)
    task = task._replace(based=world.clock, belief="yes" if is_believed else "")
    if top is None or is_believed:
        view = NOTHING
    else:
        ledger = _adopt(ledger, top)
        owner = next((version for version, replica in ledger.replicas if replica == top.landed), None)
        view = View(top.landed, top.etag, top.order, None if top.etag is None else top.version, owner)
        if owner is None:
            view = view._replace(when=top.when)
        elif top.etag is None:
            view = removal.over_what_is_spare(model, ledger, view)
    at = "history" if view.entry and view.reached is None else "list"
    return [(("reads", number, view), after(world, number, ledger, task._replace(at=at, view=view)), None)]


def history(model, world, number, ledger, task):
    """Lists the destination under a marker that nobody knows, for the newest entry that somebody does."""
    reached = None
    for entry in reversed(world.destination):
        ledger = _adopt(ledger, entry)
        reached = next((version for version, replica in ledger.replicas if replica == entry.landed), None)
        if reached is not None:
            break
    task = task._replace(at="list", view=task.view._replace(reached=reached))
    return [(("reads history", number, reached), after(world, number, ledger, task), None)]


def list_source(model, world, number, ledger, task):
    listed = model.history.listed[world.happened]
    if model.rules.history == "latest":
        listed = listed[-1:]
    label = ("lists", number, listed)
    task = task._replace(listed=listed)
    if markers_matter(model, task):
        return [(label, after(world, number, ledger, restart(task)), None)]
    if task.view is None:  # nothing was read: the ledger stands for the destination
        task = task._replace(view=ledger.last or NOTHING, based=STALE + 1)
    rank, known, reached = model.history.rank, dict(ledger.replicas), task.view.reached
    unknown_past = reached is not None and any(
        model.history.kind[version] == "P" and rank[version] < rank[reached] and version not in known
        for version in listed
    )
    if unknown_past or _is_hidden_by_stranger(ledger, task.view):
        return [(label, after(world, number, ledger, task._replace(at="rebuild")), None)]
    return [(label, decide(model, world, number, ledger, task), None)]


def _is_hidden_by_stranger(ledger, view):
    return view.entry != 0 and view.etag is None and view.entry not in (replica for _, replica in ledger.replicas)


def _identify(model, ledger, task):
    """Takes a marker that nobody knows for the first listed one that it can be."""
    view, history = task.view, model.history
    infers = model.rules.infer_marker and model.rules.history == "exact"
    if not infers or not _is_hidden_by_stranger(ledger, view):
        return ledger, task
    lowest = -1 if view.reached is None else history.rank[view.reached]
    for version in task.listed:
        if history.kind[version] == "M" and history.rank[version] > lowest and history.born[version] < view.when:
            ledger = record(ledger, version, view.entry)
            return ledger, task._replace(view=view._replace(reached=version))
    return ledger, task


def rebuild(model, world, number, ledger, task):
    """Reads back every replica that the ledger lacks, if what is current still is what was read."""
    if task.view.entry != (world.destination[-1].landed if world.destination else 0):
        return [(("finds it changed", number), after(world, number, ledger, restart(task)), None)]
    for entry in world.destination:
        ledger = _adopt(ledger, entry)
    ledger, task = _identify(model, ledger, task)
    if removal.may_explain(model, ledger, task):
        return [(("rebuilds", number), after(world, number, ledger, task._replace(at="explain")), None)]
    return [(("rebuilds", number), decide(model, world, number, ledger, task), None)]


def decide(model, world, number, ledger, task):
    """Plans from what was read; what needs no request is done on the way."""
    while True:
        step = next_step(model, task.listed, task.view, ledger.replicas)
        if step is None:
            return _pass_is_over(model, world, number, ledger, task)
        verb, version = step
        if verb == "collapse":
            ledger = record(ledger, version, COLLAPSED)
            # No condition stands for what is only recorded.
            foreseen = task.foreseen and not model.rules.collapse_rereads
            task = task._replace(acted=True, foreseen=foreseen, view=task.view._replace(reached=version))
        elif verb == "late":
            ledger = record(ledger, version, SKIPPED)
            task = task._replace(acted=True)
        else:
            return after(world, number, ledger, _prepare(model, world, ledger, task, version))


def _prepare(model, world, ledger, task, version):
    write, in_parts = write_for(model, world, task.listed, task.view, version, ledger.replicas, task.based)
    if write.fenced is not None and model.rules.fence_age == "seen":
        if task.seen is None or task.seen[0] != task.view.entry:
            return restart(task._replace(seen=(task.view.entry, task.based)))
        write = write._replace(fenced=task.seen[1])
    if model.history.kind[version] == "M":
        at = "write"
    elif in_parts:
        at = "begin"
    else:
        at = "get" if model.history.has_deletes else "write"
    return task._replace(at=at, write=write)


def _pass_is_over(model, world, number, ledger, task):
    rules = model.rules
    believed = task.again or rules.history == "exact" or not rules.confirm
    has_to_reread = rules.reread and not _is_guarded(rules, task)
    if (task.acted and has_to_reread) or not (task.acted or believed):
        return after(world, number, ledger, restart(task, rules.history == "latest", task.foreseen))
    if task.uncovered:
        return after(world, number, ledger, task._replace(at="look"))
    return _pass_was_right(model, world, number, ledger, task)


def _is_guarded(rules, task):
    """Whether conditions and the fence kept everyone else's writes out of what was written."""
    conditional = rules.conditional_put and rules.conditional_delete
    return rules.guarded_rests and rules.history == "exact" and rules.fence and conditional and task.foreseen


def explain(model, world, number, ledger, task):
    """Asks the source whether the version that the message is about is gone: then it is the marker that nobody knows, and
    what that hides need not be written on top of it."""
    version = model.history.about[task.event]
    if version in model.history.listed[world.happened]:
        return [(("finds at the source", number, version), decide(model, world, number, ledger, task), None)]
    ledger = record(ledger, version, task.view.entry)
    ledger = ledger._replace(spare=tuple(sorted({*ledger.spare, version})))
    return [(("finds gone", number, version), _pass_is_over(model, world, number, ledger, task), None)]


def _pass_was_right(model, world, number, ledger, task):
    """The key is up to date: its upload, if it left one, is of no use, and what else there is to do can be done."""
    if ledger.upload:
        world, ledger = end_upload(model, world, ledger.upload[1]), ledger._replace(upload=None)
    return after(world, number, ledger, removal.next_target(model, ledger, task))


def look(model, world, number, ledger, task):
    """Lists the source again after a write whose condition holds over a marker as well as over nothing, or that made a marker:
    whoever read that before may have taken it for what the source did since, and rested without a write."""
    listed = model.history.listed[world.happened]
    if listed == task.listed:
        done = _pass_was_right(model, world, number, ledger, task)
    else:
        done = after(world, number, ledger, restart(task, foreseen=task.foreseen))
    return [(("looks at the source again", number, listed), done, None)]


def get(model, world, number, ledger, task):
    """Reads the version's content, which may be gone."""
    version = task.write.version
    if version not in model.history.listed[world.happened]:
        if ledger.upload:
            world, ledger = end_upload(model, world, ledger.upload[1]), ledger._replace(upload=None)
        ledger = record(ledger, version, SKIPPED)
        changed = decide(model, world, number, ledger, task._replace(write=None, acted=True))
        return [(("finds it gone", number, version), changed, None)]
    task = task._replace(at="check" if task.write.upload else "write")
    return [(("gets", number, version), after(world, number, ledger, task), None)]


def begin(model, world, number, ledger, task):
    """Goes on with an upload that was begun over the same entry, or begins one."""
    version, over = task.write.version, over_of(model, task.view)
    upload = ledger.upload
    verb = "resumes"
    if upload is None or upload[0] != version or upload[2:] != (over, task.write.etag):
        if upload:
            world = end_upload(model, world, upload[1])
        verb, upload = "begins upload of", (version, world.clock + 1, over, task.write.etag)
        world, ledger = world._replace(clock=world.clock + 1), ledger._replace(upload=upload)
    at = "get" if model.history.has_deletes else "check"
    task = task._replace(at=at, write=task.write._replace(upload=upload[1]))
    return [((verb, number, version), after(world, number, ledger, task), None)]


def over_of(model, view):
    """What an upload notes of the entry it is begun over."""
    return view.entry if model.rules.complete_check == "entry" else view.etag


def check(model, world, number, ledger, task):
    """Right before Complete, or when a plan has grown old: the destination must show what the plan was made over."""
    top = world.destination[-1] if world.destination else None
    entry, etag = (top.landed, top.etag) if top else (0, None)
    same = {"entry": entry == task.view.entry, "etag": etag == task.view.etag, "no": True}[model.rules.complete_check]
    rules, version = model.rules, task.write.version
    there = version in model.history.listed[world.happened] or not rules.write_source_check
    if same and (there or not rules.version_deletes):
        checked = task._replace(at="write", based=world.clock, write=task.write._replace(based=world.clock))
        return [(("checks", number, version), after(world, number, ledger, checked), None)]
    if task.write.upload:
        world, ledger = end_upload(model, world, task.write.upload), ledger._replace(upload=None)
    return [(("gives up", number, version), after(world, number, ledger, restart(task)), None)]


def write(model, world, number, ledger, task):
    """The request that appends: refused, answered, answered too late, or not yet landed when it is given up."""
    write = task.write
    if task.based == STALE:
        return check(model, world, number, ledger, task)
    spent = write.upload and any(entry.upload == write.upload for entry in world.destination)
    before = outdate(world, number, write.fenced) if write.fenced is not None else world
    results = []
    crash, lost_ledger, expired, duplicate, late = world.faults
    if spent or not holds(world.destination, write.condition):
        if write.upload:
            world, ledger = end_upload(model, world, write.upload), ledger._replace(upload=None)
        results.append((("is refused", number, write), after(world, number, ledger, restart(task)), None))
    else:
        landed, entry, broken = land(model, before, write)
        known, changed = _written(model, ledger, task, entry)
        if changed.at == "plan":
            done = decide(model, landed, number, known, changed)
        else:
            done = after(landed, number, known, changed)
        results.append((("writes", number, write), done, broken))
        if crash:
            fewer = landed._replace(faults=(crash - 1, lost_ledger, expired, duplicate, late))
            results.append((("writes and crashes", number, write), after(fewer, number, ledger, None), broken))
            if lost_ledger:
                fewer = landed._replace(faults=(crash - 1, lost_ledger - 1, expired, duplicate, late))
                label = ("writes, crashes and loses its ledger", number, write)
                results.append((label, after(fewer, number, Ledger(), None), broken))
        if late:
            fewer = landed._replace(faults=(crash, lost_ledger, expired, duplicate, late - 1))
            results.append((("writes unanswered", number, write), after(fewer, number, ledger, restart(task)), broken))
    if late and not spent:
        given_up = restart(task)._replace(at="hold" if model.rules.hold else "read")
        fewer = before._replace(
            faults=(crash, lost_ledger, expired, duplicate, late - 1), late=before.late + ((task.event, write),)
        )
        results.append((("gives up waiting for", number, write), after(fewer, number, ledger, given_up), None))
    return results


def _written(model, ledger, task, entry):
    """What the writer knows after an answer."""
    write, rules = task.write, model.rules
    is_new = dict(ledger.replicas).get(entry.version, COLLAPSED) in (COLLAPSED, SKIPPED)
    foreseen = task.foreseen and (entry.etag is None or (is_new and entry.etag[1] == 0))
    ledger = record(ledger, entry.version, entry.landed)
    if write.upload:
        ledger = ledger._replace(upload=None)
    view = View(entry.landed, entry.etag, entry.order, None if entry.etag is None else entry.version, entry.version)
    if rules.reads != "fresh":
        ledger = ledger._replace(last=view)
    wrote = task.wrote
    if rules.version_deletes and "W" in rules.second_look and entry.version not in wrote:
        wrote = tuple(sorted(wrote + (entry.version,)))
    looks = rules.writer_looks and rules.history == "exact"
    uncovered = task.uncovered or (looks and (write.condition == ABSENT or entry.etag is None))
    task = task._replace(acted=True, foreseen=foreseen, uncovered=uncovered, wrote=wrote, write=None, view=view, based=entry.landed)
    if write.condition == UNCONDITIONAL or (write.upload and rules.complete_reread):
        return ledger, restart(task, again=rules.history == "latest")
    return ledger, task._replace(at="plan")


def hold(model, world, number, ledger, task):
    """Lane and message wait until the write that got no answer has landed or can no longer land."""
    if any(event == task.event for event, _ in world.late):
        return []
    return [(("has waited", number), after(world, number, ledger, task._replace(at="read")), None)]


def ack(model, world, number, ledger, task):
    """Deletes the message."""
    settled = (2, 1)
    events = world.events[: task.event] + (settled,) + world.events[task.event + 1 :]
    return [(("acks", number, task.event), after(world._replace(events=events), number, ledger, None), None)]
