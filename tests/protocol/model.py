"""Every interleaving of one key at one destination: what the source does, events late, twice and in any order, daemons whose
every step is one request, crashes with and without the ledger, messages that show again too early, requests that land late.

    python tests/protocol/model.py "Pa M" --daemons 2 --crash 1 --set fence=E

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
from world import UNCONDITIONAL, World, Write, holds, land, outdate

STEPS = {
    "read": copying.read,
    "history": copying.history,
    "list": copying.list_source,
    "rebuild": copying.rebuild,
    "explain": copying.explain,
    "get": copying.get,
    "begin": copying.begin,
    "check": copying.check,
    "write": copying.write,
    "hold": copying.hold,
    "look": copying.look,
    "ack": copying.ack,
    "find": removal.find,
    "ask": removal.ask,
    "remove": removal.remove,
    "wait": removal.wait,
}


class Model:
    """A history under rules, with faults, in a number of daemons."""

    def __init__(self, words, rules=Rules(), daemons=2, faults=Faults()):
        self.history, self.rules, self.daemons, self.faults = History(words), rules, daemons, faults

    def start(self):
        past, words = self.history.past, len(self.history.words)
        events = ((2, 1),) * past + ((0, 0),) * (words - past)
        world = World(0, events, (), 0, ((Ledger(), None),) * self.daemons, (), tuple(self.faults), -1)
        for at in range(past):
            world = self._replicated(world._replace(happened=at + 1), self.history.about[at])
        return world

    def _replicated(self, world, version):
        """Appends a version of the past as the rules have it."""
        top = world.destination[-1].etag if world.destination else None
        if self.history.kind[version] == "P":
            plain = (self.history.content[version], 0)
            etag = (plain[0], 1) if top == plain else plain
        elif top is None:
            return world
        else:
            etag = None
        return land(self, world, Write(version, UNCONDITIONAL, etag, None, 0, 0))[0]

    def successors(self, world):
        """All that can happen next: (label, world, broken promise)."""
        found = self._source(world) + self._late(world)
        for number, (ledger, task) in enumerate(world.daemons):
            if task is None:
                found += self._receive(world, number, ledger)
            else:
                found += self._crash(world, number, ledger, task)
                found += STEPS[task.at](self, world, number, ledger, task)
        crash, _, expired, _, _ = world.faults
        return found if crash or expired else [self._settled(step) for step in found]

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
        done = all(state == 2 for state, _ in world.events)
        return done and not world.late and all(task is None for _, task in world.daemons)

    def _source(self, world):
        at = world.happened
        if at == len(self.history.words):
            return []
        events = world.events[:at] + ((1, 0),) + world.events[at + 1 :]
        return [(("source", at), world._replace(happened=at + 1, events=events), None)]

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
        held = [task.event for _, task in world.daemons if task is not None]
        crash, lost_ledger, expired, duplicate, late = world.faults
        found = []
        for event, (state, times) in enumerate(world.events):
            left = world.faults
            if state == 0:
                continue
            if state == 2:
                if not duplicate:
                    continue
                left = (crash, lost_ledger, expired, duplicate - 1, late)
            elif event in held:
                if not expired:
                    continue
                left = (crash, lost_ledger, expired - 1, duplicate, late)
            events = world.events[:event] + ((state, 1),) + world.events[event + 1 :]
            again = state == 1 and times > 0
            task = begin(self, ledger, event, again)
            changed = after(world._replace(events=events, faults=left), number, ledger, task)
            found.append((("receives", number, event, again), changed, None))
        return found

    def _crash(self, world, number, ledger, task):
        crash, lost_ledger, expired, duplicate, late = world.faults
        if not crash:
            return []
        kept = world._replace(faults=(crash - 1, lost_ledger, expired, duplicate, late))
        found = [(("crashes", number), after(kept, number, ledger, None), None)]
        if lost_ledger:
            lost = world._replace(faults=(crash - 1, lost_ledger - 1, expired, duplicate, late))
            found.append((("crashes and loses its ledger", number), after(lost, number, Ledger(), None), None))
        if late and task.at == "write" and task.based >= 0:
            fenced = task.write.fenced
            sent = world if fenced is None else outdate(world, number, fenced)  # it was waited for before this was sent
            fewer = sent._replace(
                faults=(crash - 1, lost_ledger, expired, duplicate, late - 1),
                late=sent.late + ((task.event, task.write),),
            )
            found.append((("crashes with a request in flight", number), after(fewer, number, ledger, None), None))
        return found


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
