"""Shows that the rules of docs/protocol.md are clean on a small bound, and that each is needed: without it the model finds
the very shortest failure that the document names. `python tests/protocol/test_model.py`, under half a minute."""

import unittest

import promises
from model import Model, explore
from rules import Faults, Rules

STATES_MAX = 200_000

PURGING = {"version_deletes": True, "fence_age": "seen", "second_look": "T"}
BY_START = {"order": "initiation"}
GUESSING = {"not_found": "one"}

# Name, history, what is left of the rules, faults, daemons.
CLEAN = [
    ("a marker over an object", "Pa M", {}, Faults(crash=1, lost_ledger=1), 2),
    ("content that recurs", "Pa Pb Pa", {}, Faults(), 2),
    ("the same content three times", "Pa Pa Pa", {}, Faults(), 2),
    ("an object between markers", "M Pa M", {}, Faults(), 2),
    ("a request that lands late", "Pa M", {}, Faults(late=1), 2),
    ("a message that shows too early", "Pa M", {}, Faults(expired=1), 2),
    ("parts, by completion", "UA M", {}, Faults(late=1), 2),
    ("parts, by initiation", "UA M", BY_START, Faults(late=1), 2),
    ("parts that recur, by initiation", "UA UB UA", BY_START, Faults(), 2),
    ("an upload that lands below a marker", "Pa M LA", {}, Faults(), 2),
    ("an upload that lands below a marker over nothing", "M LA Pa", {}, Faults(), 1),
    ("latest", "Pa M", {"history": "latest"}, Faults(late=1), 2),
    ("latest, and a crash", "Pa M", {"history": "latest"}, Faults(crash=1), 2),
    ("a purge", "Pa X0", PURGING, Faults(crash=1, lost_ledger=1, late=1), 2),
    ("a purge of what is below", "Pa Pb X0", PURGING, Faults(), 2),
    ("a purge of what recurs", "Pa X0 Pa", PURGING, Faults(), 2),
    ("an undelete", "Pa M X1", PURGING, Faults(), 2),
    ("a purge of one marker of a run", "Pa M M X1", PURGING, Faults(), 1),
    ("a purge that bares a marker, and no ledger", "Pa M | Pb X1 X2", PURGING, Faults(), 2),
    ("a forged purge", "Pa F0", PURGING, Faults(crash=1), 2),
    ("a purge that the rule leaves out", "Pa Pb X1", {}, Faults(), 2),
    ("a version that is gone before it is hidden", "Pa X0 M", {}, Faults(crash=1), 2),
    ("a believed 404", "Pa M", GUESSING, Faults(crash=1, lost_ledger=1, late=1), 2),
    ("a believed 404 over a marker that is taken back", "Pa M | X1 M", GUESSING, Faults(), 2),
    ("a marker taken back, and no ledger", "Pa M | X1", PURGING, Faults(crash=1, lost_ledger=1), 2),
    ("two markers taken back, and no ledger", "Pa M M | X1 X2", PURGING, Faults(crash=1), 2),
    ("a marker that was taken for another", "Pa M Pb M | X3 X1", PURGING, Faults(crash=1), 1),
    ("a marker taken back, and another", "Pa M | X1 M", PURGING, Faults(), 2),
    ("one daemon without conditions", "Pa M Pa", {"conditional_put": False, "conditional_delete": False, "fence": ""}, Faults(), 1),
]

# Rule, what is dropped, history, faults, daemons, the promise that breaks, how it ends.
NEEDED = [
    ("1: condition on a put", {"conditional_put": False}, "Pa Pa", Faults(), 2, "H-twice", "[v1(a), v1(a), v2(a)']"),
    ("1: condition on a marker", {"conditional_delete": False}, "Pa M", Faults(), 2, "H-marker-twice", "[v1(a), m2, m2]"),
    ("2: absent is read", {"reads": "absent"}, "Pa M", Faults(), 2, "M", "[v1(a), m2, v1(a)]"),
    ("2: a 404 is believed for one write", {"not_found": "any"}, "Pa M", Faults(), 2, "M", "[v1(a), m2, v1(a)]"),
    ("3: conditions are read", {"reads": "ledger"}, "Pa Pb Pa", Faults(), 2, "M", "[v1(a), v2(b), v3(a), v2(b)]"),
    ("4: another ETag", {"distinct": False}, "Pa Pa", Faults(), 2, "H-twice", "[v1(a), v2(a), v2(a)]"),
    ("5: fence before a marker", {"fence": "ER"}, "Pa M", Faults(), 2, "M", "[v1(a), m2, v1(a)]"),
    ("5: fence before a recurring ETag", {"fence": "MR"}, "Pa Pb Pa", Faults(), 2, "M", "[v1(a), v2(b), v3(a), v2(b)]"),
    ("5: what was purged may stand there", {"fence_looks": "list"}, "Pa Pb X0 Pa", Faults(), 3, "M", "[v1(a), v2(b), v3(a), v2(b)]"),
    ("5: age is not Last-Modified", BY_START | {"fence_age": "modified"}, "UA M", Faults(), 2, "H-twice", "[v1(A), v1(A), m2]"),
    ("6: runs are one", {"collapse": False}, "M Pa", Faults(), 2, "M", "[m1, v2(a), m1]"),
    ("6: a collapsed marker lapses", {"collapse_lapses": False}, "M LA Pa", Faults(), 1, "H-missing", "[v2(A), v3(a)]"),
    ("6: an unknown marker is inferred", {"infer_marker": False}, "Pa M LA", Faults(), 2, "M", "[v1(a), m2, v3(A)]"),
    ("7: a lost answer is waited for", {"hold": False, "conditional_delete": False}, "Pa M", Faults(late=1), 1, "H-marker-twice", "[v1(a), m2, m2]"),
    ("7: a redelivery reads", {"redelivery_reads": False}, "Pa X0 M", Faults(crash=1), 2, "C", "[v1(a)]"),
    ("7: a redelivery reads, latest", {"redelivery_reads": False, "history": "latest"}, "Pa M", Faults(crash=1), 2, "C", "[v1(a)]"),
    ("8: read again", {"history": "latest", "reread": False}, "Pa M", Faults(), 2, "C", "[v1(a)]"),
    ("8: a collapsed marker is read again", {"collapse_rereads": False}, "Pa X0 M", Faults(), 2, "C", "[v1(a)]"),
    ("8: a writer over nothing looks again", {"writer_looks": False}, "Pa X0 M", Faults(), 2, "C", "[v1(a)]"),
    ("8: a believed 404 is checked", GUESSING | {"writer_looks": False}, "Pa M | X1 M", Faults(), 2, "C", "[v1(a), m2, v1(a)]"),
    ("9: look before Complete", {"complete_check": "no"}, "UA M", Faults(), 2, "M", "[v1(A), m2, v1(A)]"),
    ("9: the entry, not its ETag", BY_START | {"complete_check": "etag"}, "UA M", Faults(), 2, "M", "[v1(A), m2, v1(A)]"),
    ("10: ask the source", PURGING | {"source_check": False}, "Pa F0", Faults(), 1, "S", "[]"),
    ("10: a second look", PURGING | {"second_look": ""}, "Pa X0", Faults(), 2, "H-purged", "[v1(a)]"),
    ("10: the writer's look is too little", PURGING | {"second_look": "W"}, "Pa X0", Faults(crash=1), 2, "H-purged", "[v1(a)]"),
    ("10: renewed plans ask the source", PURGING | {"write_source_check": False}, "Pa M X1", Faults(), 2, "C", "[v1(a), m2]"),
    ("10: age is one's own sight", PURGING | {"fence_age": "landed"}, "Pa X0 Pa", Faults(), 2, "H-twice", "[v2(a), v2(a)']"),
    ("10: a taken-back marker goes", PURGING | {"explain_marker": "never"}, "Pa M | X1", Faults(), 1, "H-twice", "[v1(a), m2, v1(a)]"),
    ("10: so does one that stood for another", PURGING | {"explain_marker": "no record"}, "Pa M M | X1 X2", Faults(), 1, "H-twice", "[v1(a), m2, v1(a)]"),
    ("10: a marker that a purge bares goes", PURGING | {"bared_marker": False}, "Pa M | Pb X1 X2", Faults(), 2, "C", "[v1(a), m2]"),
    ("10: a run keeps its marker", PURGING | {"keep_run": False}, "Pa M M X1", Faults(), 1, "M", "[v1(a)]"),
]


def explored(history, dropped, faults, daemons):
    model = Model(history, Rules()._replace(**dropped), daemons, faults)
    return explore(model, promises.all_for(model), STATES_MAX)


class TheRules(unittest.TestCase):
    def test_are_clean(self):
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
