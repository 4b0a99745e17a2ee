"""Every interleaving of one key at one destination: what the source does, events late, twice and in any order, daemons whose
every step is one request, crashes with and without the ledger, messages that show again too early, requests that land late,
tasks that are parked and tried again.

    python tests/protocol/model.py "Pa M" --daemons 2 --crash 1 --late 1 --set waits=no

explores one history and prints the shortest violation. `sweep.py` has the sweeps behind docs/protocol.md, `test_model.py`
the quick check that belongs to the tests."""

import argparse
import time
from array import array

import copying
import promises
import removal
from history import History
from render import render
from rules import Faults, Rules
from task import Ledger, after, begin
from world import UNCONDITIONAL, World, Write, holds, land

STEPS = {
    "read": copying.read,
    "history": copying.history,
    "list": copying.list_source,
    "rebuild": copying.rebuild,
    "explain": copying.explain,
    "get": copying.get,
    "begin": copying.begin,
    "write": copying.write,
    "hold": copying.hold,
    "ack": copying.ack,
    "find": removal.find,
    "ask": removal.ask,
    "remove": removal.remove,
}
# What becomes of a message: World.events.
UNSENT, WAITING, SETTLED, PARKED, HINTED = range(5)
# In the place of how often it was received: it was sent in the place of another.
HINT = -1


class Model:
    """A history under rules, with faults, in a number of daemons."""

    def __init__(self, words, rules=Rules(), daemons=2, faults=Faults()):
        self.history, self.rules, self.daemons, self.faults = History(words), rules, daemons, faults

    def start(self):
        past, words = self.history.past, len(self.history.words)
        events = ((SETTLED, 1),) * past + ((UNSENT, 0),) * (words - past)
        world = World(0, events, (), 0, ((Ledger(), None),) * self.daemons, (), self.faults, -1)
        for at in range(past):
            world = self._replicated(world._replace(happened=at + 1), self.history.about[at])
        return world

    def _replicated(self, world, version):
        """Appends a version of the past as the rules have it."""
        is_shown = bool(world.destination) and world.destination[-1].etag is not None
        if self.history.kind[version] == "M" and not is_shown:
            return world
        return land(self, world, Write(version, UNCONDITIONAL, self.history.content[version], 0))[0]

    def successors(self, world):
        """All that can happen next: (label, world, broken promise)."""
        found = self._source(world) + self._late(world) + self._redriven(world) + self._tried_again(world) + self._forwarded(world)
        for number, (ledger, task) in enumerate(world.daemons):
            if task is None:
                found += self._receive(world, number, ledger)
            else:
                found += self._crash(world, number, ledger, task) + self._park(world, number, ledger, task)
                found += STEPS[task.at](self, world, number, ledger, task)
        return found if world.faults.crash or world.faults.expired else [self._settled(step) for step in found]

    def _settled(self, step):
        """Where nothing can come between, a message is deleted in the same step that settles it."""
        label, world, broken = step
        for number, (ledger, task) in enumerate(world.daemons):
            if task is not None and task.at == "ack":
                _, world, _ = copying.ack(self, world, number, ledger, task)[0]
        return label, world, broken

    def mark(self, world):
        """What tells states apart; the daemons are alike, so their order doesn't."""
        return hash(world[:4] + world[5:] + tuple(sorted(hash(daemon) for daemon in world.daemons)))

    def is_quiet(self, world):
        """Everything has happened, every message is settled, nothing is on its way."""
        done = all(state == SETTLED for state, _ in world.events)
        return done and not world.late and all(task is None for _, task in world.daemons)

    def _source(self, world):
        at = world.happened
        if at == len(self.history.words):
            return []
        is_apart = self.history.words[at] in ("H", "R") and self.rules.exclusion == "groups"
        events = _with(world.events, at, (HINTED if is_apart else WAITING, 0))
        return [(("source", at), world._replace(happened=at + 1, events=events), None)]

    def _forwarded(self, world):
        """The router sends a hint of the backfill queue to the work queue, where its key's group is. That it waits until nothing
        else is there only paces it."""
        if self.rules.backfill != "forwarded":
            return []
        hinted = [event for event, (state, _) in enumerate(world.events) if state == HINTED]
        return [(("is sent on", event), world._replace(events=_with(world.events, event, (WAITING, 0))), None) for event in hinted]

    def _late(self, world):
        found = []
        for at, (event, write) in enumerate(world.late):
            left = world._replace(late=world.late[:at] + world.late[at + 1 :])
            completed = write.upload and any(entry.upload == write.upload for entry in world.destination)
            if completed or not holds(world.destination, write.condition):
                found.append((("late request fails", write), left, None))
            else:
                landed, _, broken = land(self, left, write)
                found.append((("late request lands", write), landed, broken))
        return found

    def _receive(self, world, number, ledger):
        if number and world.daemons[0] == (ledger, None):
            return []  # the daemons are alike
        found = []
        for event, again, left in self._deliverable(world):
            before = world._replace(faults=left)
            if self.rules.waits and (self.rules.exclusion == "alone" or (self.rules.exclusion == "groups" and again)):
                before = _taken_over(before)
            received = before._replace(events=_with(world.events, event, (world.events[event][0], 1)))
            is_hint = world.events[event][1] == HINT and self.rules.hints_read
            changed = after(received, number, ledger, begin(self, ledger, event, again or is_hint))
            found.append((("receives", number, event, again), changed, None))
        return found

    def _deliverable(self, world):
        """What the queue may hand out, whether that is a redelivery, and which faults are left then. In a FIFO queue with one
        group nothing comes beside a message in work but that message, and what shows again comes before what never came. A
        backfill queue that is worked on is another such queue, and knows nothing of the groups of the first."""
        queues = [WAITING] if self.rules.backfill == "forwarded" else [WAITING, HINTED]
        return [one for queue in queues for one in self._deliverable_from(world, queue)]

    def _deliverable_from(self, world, queue):
        other = WAITING if queue == HINTED else HINTED
        states = world.events
        held = [task.event for _, task in world.daemons if task is not None and not task.bypasses and states[task.event][0] != other]
        grouped, faults, found = self.rules.exclusion == "groups", world.faults, []
        shows_again = [at for at, (state, times) in enumerate(states) if state == queue and times > 0 and at not in held]
        for event, (state, times) in enumerate(states):
            first = held or shows_again[:1]
            if state in (UNSENT, PARKED, other) or (grouped and first and event not in first):
                continue
            if event in held and faults.expired:
                found.append((event, True, faults._replace(expired=faults.expired - 1)))
            elif event not in held and state == SETTLED and faults.duplicate:
                found.append((event, False, faults._replace(duplicate=faults.duplicate - 1)))
            elif event not in held and state == queue:
                found.append((event, times > 0, faults))
        return found

    def _crash(self, world, number, ledger, task):
        faults = world.faults
        if not faults.crash:
            return []
        kept = world._replace(faults=faults._replace(crash=faults.crash - 1))
        found = [(("crashes", number), after(kept, number, ledger, None), None)]
        if faults.lost_ledger:
            lost = world._replace(faults=faults._replace(crash=faults.crash - 1, lost_ledger=faults.lost_ledger - 1))
            found.append((("crashes and loses its ledger", number), after(lost, number, Ledger(), None), None))
        if faults.late and task.at == "write":
            fewer = faults._replace(crash=faults.crash - 1, late=faults.late - 1)
            sent = world._replace(faults=fewer, late=world.late + ((task.event, task.write),))
            found.append((("crashes with a request in flight", number), after(sent, number, ledger, None), None))
        return found

    def _park(self, world, number, ledger, task):
        """Deletes the message of a task that is to be tried again later. A task that waits for what it sent is not parked, nor is
        it handed back at a stop: whoever gets a message for the first time does not wait."""
        if not world.faults.parked or task.at in ("hold", "ack"):
            return []
        left = world.faults._replace(parked=world.faults.parked - 1)
        parked = world._replace(faults=left, events=_with(world.events, task.event, (PARKED, 1)))
        return [(("parks", number, task.event), after(parked, number, ledger, None), None)]

    def _redriven(self, world):
        """The queue moves a message away that was received too often, and says so to nobody."""
        held = [task.event for _, task in world.daemons if task is not None]
        if self.rules.worker_parks or not world.faults.parked or held:
            return []
        found, left = [], world.faults._replace(parked=world.faults.parked - 1)
        for event, (state, times) in enumerate(world.events):
            if state == WAITING and times > 0:
                moved = world._replace(faults=left, events=_with(world.events, event, (PARKED, 1)))
                found.append((("is moved away", event), moved, None))
        return found

    def _tried_again(self, world):
        """A parked task gets a message of its group, a hint; where retries bypass the queue, a daemon simply begins."""
        found = []
        for event, (state, _) in enumerate(world.events):
            if state != PARKED or any(task is not None and task.event == event for _, task in world.daemons):
                continue
            if self.rules.retries_queue:
                found.append((("queued again", event), world._replace(events=_with(world.events, event, (WAITING, HINT))), None))
                continue
            for number, (ledger, task) in enumerate(world.daemons):
                if task is None:
                    task = begin(self, ledger, event, True)._replace(bypasses=True)
                    found.append((("tries again", number, event), after(world, number, ledger, task), None))
        return found


def _with(events, at, event):
    return events[:at] + (event,) + events[at + 1 :]


def _taken_over(world):
    """The predecessor has stopped, and what was sent has landed or never will."""
    return world._replace(daemons=tuple((ledger, None) for ledger, _ in world.daemons), late=())


def explore(model, wanted, states_max=3_000_000, seconds_max=600):
    """Searches breadth first, so that a trace is a shortest one. Returns (verdict, states, trace or counts)."""
    began, start = time.monotonic(), model.start()
    seen, parents, labels = {model.mark(start)}, array("q", [-1]), [None]
    frontier, total, counts = [(0, start)], 1, {}
    while frontier:
        reached = []
        for at, world in frontier:
            found = model.successors(world)
            ends = promises.broken_at_rest(model, world) if model.is_quiet(world) else set()
            if not found and not model.is_quiet(world):
                ends = {"STUCK"}
            if len(world.destination) > len(model.history.kind) + 4:
                ends, found = {"GROWS"}, []
            for promise in ends:
                counts[promise] = counts.get(promise, 0) + 1
            if ends & wanted:
                return sorted(ends & wanted), total, _trace(model, parents, labels, at, None, world)
            for label, changed, broken in found:
                if broken:
                    counts[broken] = counts.get(broken, 0) + 1
                    if broken in wanted:
                        return [broken], total, _trace(model, parents, labels, at, label, changed)
                mark = model.mark(changed)
                if mark in seen:
                    continue
                seen.add(mark)
                parents.append(at)
                labels.append(label)
                reached.append((total, changed))
                total += 1
            if total >= states_max or time.monotonic() - began > seconds_max:
                return "limit", total, counts
        frontier = reached
    return "clean", total, counts


def _trace(model, parents, labels, at, label, world):
    lines = [label] if label else []
    while at > 0:
        lines.append(labels[at])
        at = parents[at]
    return [render(model, line) for line in reversed(lines)] + [render(model, ("ends", world))]


def rules_from(settings, rules=Rules()):
    """Applies `name=value` settings."""
    for setting in settings:
        name, text = setting.split("=", 1)
        kind = type(getattr(rules, name))
        rules = rules._replace(**{name: text.lower() in ("true", "yes", "1") if kind is bool else text})
    return rules


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("history", help='words such as "Pa M UA X0": see history.py')
    parser.add_argument("--daemons", type=int, default=2)
    for name in Faults._fields:
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="RULE=VALUE", help="see rules.py")
    parser.add_argument("--states", type=int, default=3_000_000)
    given = parser.parse_args()
    faults = Faults(*(getattr(given, name) for name in Faults._fields))
    model = Model(given.history, rules_from(given.set), given.daemons, faults)
    verdict, states, rest = explore(model, promises.all_for(model), given.states)
    print(verdict, states, "states", rest if isinstance(rest, dict) else "")
    if isinstance(rest, list):
        print("\n".join("  " + line for line in rest))
    raise SystemExit(0 if verdict == "clean" else 1)


if __name__ == "__main__":
    main()
