"""Shows that the rules of docs/protocol.md are clean on a small bound, and that each is needed: without it the model finds
a shortest failure. `python tests/protocol/test_model.py`, under half a minute."""

import unittest

import promises
from model import Model, explore
from rules import Faults, Rules
from sweep import FAULTS, families

STATES_MAX = 200_000

BARE = {"conditions": False}
PURGING = {"version_deletes": True}
ALONE = {"exclusion": "alone"}

# Name, exclusion, daemons, the longest histories.
SWEPT = [("groups", 2, 2), ("groups", 3, 2), ("alone", 1, 2)]

# Name, history, what is left of the rules, faults, daemons: those that need more than two happenings.
CLEAN = [
    ("content that recurs", "Pa Pb Pa", {}, Faults(crash=1, lost_ledger=1, late=1), 2),
    ("the same content three times", "Pa Pa Pa", {}, Faults(expired=1), 3),
    ("an object between markers", "M Pa M", {}, Faults(crash=1, late=1), 2),
    ("an object between markers, tried again", "M Pa M", BARE, Faults(parked=1, late=1), 2),
    ("parts that recur, by initiation", "UA UB UA", {"order": "initiation"}, Faults(crash=1, lost_ledger=1), 2),
    ("an upload that lands below a marker", "Pa M LA", {}, Faults(parked=1), 2),
    ("an upload that lands below a marker over nothing", "M LA Pa", {}, Faults(crash=1), 2),
    ("latest", "Pa M Pb", {"history": "latest"}, Faults(crash=1, lost_ledger=1, late=1), 2),
    ("absent by condition, under a marker", "Pa M | X1 M", {"absent": "condition"}, Faults(), 2),
    ("a purge of what recurs", "Pa X0 Pa", PURGING, Faults(crash=1, lost_ledger=1), 2),
    ("an undelete", "Pa M X1", PURGING, Faults(expired=1), 2),
    ("a purge of one marker of a run", "Pa M M X1", PURGING, Faults(), 2),
    ("a purge that bares a marker, and no ledger", "Pa M | Pb X1 X2", PURGING, Faults(), 2),
    ("two markers taken back, and no ledger", "Pa M M | X1 X2", PURGING, Faults(crash=1), 2),
    ("a marker that was taken for another", "Pa M Pb M | X3 X1", PURGING, Faults(crash=1), 1),
    ("a hint beside events", "Pa H M", {}, Faults(crash=1, lost_ledger=1, late=1), 2),
    ("a hint that comes last, for three", "Pa M H", {}, Faults(expired=1, duplicate=1), 3),
    ("a hint that is parked", "Pa M H", BARE, Faults(parked=1, late=1), 2),
    ("hints of two runs", "H Pa H M", {"absent": "condition"}, Faults(crash=1), 2),
    ("a hint and a purge", "Pa Pb H X0", PURGING, Faults(crash=1), 2),
    ("a hint in latest mode", "Pa H M", {"history": "latest"}, Faults(crash=1, late=1), 2),
    ("a rewritten history", "Pa LA R", {}, Faults(crash=1, lost_ledger=1, late=1), 2),
    ("two late versions, rewritten", "Pa LA LB R", {}, Faults(crash=1, lost_ledger=1), 2),
    ("a marker in a rewritten history", "Pa LA M R", {}, Faults(crash=1, late=1), 2),
    ("a rewritten history beside an event", "Pa LA R Pb", BARE, Faults(crash=1, lost_ledger=1), 2),
    ("a rewritten history, by initiation", "Pa LA R Pa", {"order": "initiation"}, Faults(parked=1), 2),
    ("a rewritten history for one daemon", "Pa LA R", ALONE, Faults(crash=1, lost_ledger=1, late=1), 1),
    ("a hint for one daemon", "Pa H M", ALONE, Faults(crash=1, lost_ledger=1, late=1), 1),
    ("one daemon", "Pa M Pa", ALONE | BARE, Faults(crash=1, lost_ledger=1, late=1), 1),
]

# What is dropped, how, history, faults, daemons, the promise that breaks, how it ends.
NEEDED = [
    ("one worker a key", {"exclusion": "nothing"}, "Pa M", Faults(), 2, "M", "[v1(a), m2, v1(a)]"),
    ("one worker a key", {"exclusion": "nothing"}, "Pa Pa", Faults(), 2, "H-twice", "[v1(a), v2(a), v2(a)]"),
    ("the wait at a redelivery", {"waits": False}, "Pa M", Faults(crash=1, late=1), 2, "M", "[v1(a), m2, v1(a)]"),
    ("the wait at a redelivery", {"waits": False}, "Pa Pa", Faults(expired=1), 2, "H-twice", "[v1(a), v2(a), v2(a)]"),
    ("the same, no conditions", BARE | {"waits": False}, "Pa", Faults(expired=1), 2, "H-twice", "[v1(a), v1(a)]"),
    ("the wait at a start", ALONE | {"waits": False}, "Pa M", Faults(crash=1, late=1), 1, "M", "[v1(a), m2, v1(a)]"),
    ("the same, no conditions", ALONE | BARE | {"waits": False}, "Pa", Faults(crash=1, late=1), 1, "H-twice", "[v1(a), v1(a)]"),
    ("the wait for a lost answer", {"hold": False}, "Pa M", Faults(late=1), 1, "M", "[v1(a), m2, v1(a)]"),
    ("a message for a retry", {"retries_queue": False}, "Pa M", Faults(parked=1), 2, "M", "[v1(a), m2, v1(a)]"),
    ("hints go the way of events", {"backfill": "worked on"}, "Pa M H", Faults(), 2, "M", "[v1(a), m2, v1(a)]"),
    ("the same, no conditions", BARE | {"backfill": "worked on"}, "Pa H", Faults(), 2, "H-twice", "[v1(a), v1(a)]"),
    ("a hint is no first delivery", {"hints_read": False}, "M LA", Faults(parked=1), 1, "H-missing", "[v2(A)]"),
    ("a redelivery reads", {"redelivery_reads": False}, "M LA", Faults(crash=1), 2, "H-missing", "[v2(A)]"),
    ("the worker parks, not the queue", {"worker_parks": False}, "Pa M", Faults(crash=1, late=1, parked=1), 2, "M", "[v1(a), m2, v1(a)]"),
    ("absent is known", {"absent": "assumed"}, "Pa M", Faults(), 2, "M", "[v1(a), m2, v1(a)]"),
    ("a collapsed marker lapses", {"collapse_lapses": False}, "M LA Pa", Faults(), 1, "H-missing", "[v2(A), v3(a)]"),
    ("an unknown marker is inferred", {"infer_marker": False}, "Pa M LA", Faults(), 2, "M", "[v1(a), m2, v3(A)]"),
    ("no history is rewritten beside purges", PURGING, "Pa LA R X0", Faults(), 1, "C", "[]"),
    ("late versions are recorded", {"late": "appended"}, "Pa LA", Faults(), 1, "M", "[v1(a), v2(A)]"),
    ("a purge asks the source", PURGING | {"source_check": False}, "Pa F0", Faults(), 1, "S", "[]"),
    ("a run keeps its marker", PURGING | {"keep_run": False}, "Pa M M X1", Faults(), 1, "M", "[v1(a)]"),
    ("a taken-back marker goes", PURGING | {"explain_marker": "never"}, "Pa M | X1", Faults(), 1, "H-twice", "[v1(a), m2, v1(a)]"),
    ("so does one of a run", PURGING | {"explain_marker": "no record"}, "Pa M M | X1 X2", Faults(), 1, "H-twice", "[v1(a), m2, v1(a)]"),
    ("a marker that a purge bares goes", PURGING | {"bared_marker": False}, "Pa M | Pb X1 X2", Faults(), 2, "C", "[v1(a), m2]"),
]


def explored(history, dropped, faults, daemons):
    return verdict_of(Model(history, Rules()._replace(**dropped), daemons, faults))


def verdict_of(model):
    return explore(model, promises.all_for(model), STATES_MAX)


class TheRules(unittest.TestCase):
    def test_are_clean_in_every_short_history(self):
        for exclusion, daemons, length in SWEPT:
            for family, texts, rules in families(Rules(exclusion=exclusion), length):
                for kind, faults in FAULTS.items():
                    for text in texts:
                        with self.subTest(family, exclusion=exclusion, daemons=daemons, faults=kind, history=text):
                            verdict, _, trace = verdict_of(Model(text, rules, daemons, faults))
                            self.assertEqual(verdict, "clean", trace)

    def test_are_clean_in_longer_ones(self):
        for name, history, dropped, faults, daemons in CLEAN:
            with self.subTest(name, history=history):
                verdict, _, trace = explored(history, dropped, faults, daemons)
                self.assertEqual(verdict, "clean", trace)

    def test_are_needed_each(self):
        for name, dropped, history, faults, daemons, promise, end in NEEDED:
            with self.subTest(name, history=history):
                verdict, states, trace = explored(history, dropped, faults, daemons)
                self.assertIsInstance(verdict, list, f"{verdict} after {states} states")
                self.assertIn(promise, verdict)
                self.assertEqual(trace[-1].split("  ")[0], "destination: " + end, "\n".join(trace))


if __name__ == "__main__":
    unittest.main()
