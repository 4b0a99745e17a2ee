"""Sweeps whole families of histories.

    python tests/protocol/sweep.py                     every sweep behind docs/protocol.md, with two daemons: an hour
    python tests/protocol/sweep.py "parts" "crash"     those whose name has both words
    python tests/protocol/sweep.py --three             with three daemons
    python tests/protocol/sweep.py --alone             one daemon, without a work queue
    python tests/protocol/sweep.py --four              histories of four happenings: hours
    python tests/protocol/sweep.py --seconds 60        at most so long per history

One line per sweep: its name, histories, states, and what broke with the shortest trace. A history that is cut off by the
limit of states or time counts as `cut`, not as clean."""

import argparse
import time

import promises
from history import histories, up_to
from model import Model, explore
from rules import Faults, Rules

FAULTS = {
    "no faults": Faults(),
    "crash": Faults(crash=1, lost_ledger=1),
    "expired": Faults(expired=1),
    "duplicate": Faults(duplicate=1),
    "late": Faults(late=1),
    "parked": Faults(parked=1),
    "crash and late": Faults(crash=1, lost_ledger=1, late=1),
    "parked and late": Faults(parked=1, late=1),
}
# Version deletes after a lost ledger, and a marker that was taken back since.
TAKEN_BACK = ["Pa M | X1", "Pa M | X1 M", "Pa M | X1 Pa", "Pa M | X1 Pb", "Pa M | X1 X0", "Pa M M | X1"]
TAKEN_BACK += ["Pa Pa M | X2", "Pa Pb M | X2", "Pa Pb M | X2 X0", "Pa M Pb M | X3"]
TAKEN_BACK += ["Pa M M | X1 X2", "Pa M M | X2 X1", "Pa M M M | X1 X2 X3", "Pa M M | X1 X2 Pa"]
TAKEN_BACK += ["Pa M Pb M | X3 X1", "Pa M Pb M | X1 X3", "Pa M | Pb X1 X2"]
# Who hears that the marker was taken back does not know it, and who removes what hides it heard nothing of that.
BARED = ["Pa M Pb X1 X2", "Pa M Pb X2 X1"]


def families(rules, length=3):
    """Name, histories, rules."""
    objects = up_to(length)
    by_start, purging = rules._replace(order="initiation"), rules._replace(version_deletes=True)
    yield "objects and markers", objects, rules
    yield "without conditions", objects, rules._replace(conditions=False)
    yield "absent by condition", objects, rules._replace(absent="condition")
    yield "absent by condition, purges left out", up_to(length, "PMX", "X"), rules._replace(absent="condition")
    yield "parts by completion", up_to(length, "PUM", "U"), rules
    yield "parts by initiation", up_to(length, "PUM", "U"), by_start
    yield "parts without conditions", up_to(length, "PUM", "U"), by_start._replace(conditions=False)
    yield "below the newest by completion", up_to(length, "PUML", "L"), rules
    yield "below the newest by initiation", up_to(length, "PUML", "L"), by_start
    yield "latest", objects, rules._replace(history="latest")
    yield "latest, absent by condition", objects, rules._replace(history="latest", absent="condition")
    yield "hints beside events", up_to(length, "PMH", "H"), rules
    yield "rewritten by completion", up_to(length, "PLMR", "LR"), rules
    yield "rewritten by initiation", up_to(length, "PLMR", "LR"), by_start
    yield "hints and purges", up_to(length, "PHX", "H"), purging
    yield "purges", up_to(length, "PMX", "X"), purging
    yield "purges of parts", up_to(length, "UMX", "X"), purging._replace(order="initiation")
    yield "purges left out", up_to(length, "PMX", "X"), rules
    yield "forged purges", up_to(length, "PMF", "F"), purging
    if length >= 3:
        yield "purges that bare a marker", BARED, purging
        yield "markers taken back, ledger lost", TAKEN_BACK, purging


def longer(rules):
    """The same for the histories of four happenings."""
    yield "four objects and markers", histories(4), rules
    yield "four, latest", histories(4), rules._replace(history="latest")


def sweep(name, texts, rules=Rules(), daemons=2, faults=Faults(), states_max=3_000_000, seconds_max=3600):
    """Explores each history; returns what broke where, the states seen, and how many were cut off."""
    began, broken, states, cut, first = time.monotonic(), {}, 0, 0, None
    for text in texts:
        model = Model(text, rules, daemons, faults)
        verdict, seen, rest = explore(model, promises.all_for(model), states_max, seconds_max)
        states += seen
        cut += verdict == "limit"
        if isinstance(verdict, list):
            broken.setdefault("/".join(verdict), []).append(text)
            first = first or (text, verdict, rest)
    result = ", ".join(f"{promise} in {len(where)}: {where[:4]}" for promise, where in broken.items()) or "clean"
    took = time.monotonic() - began
    print(f"{name}: {len(texts)} histories, {states:,} states, {cut} cut, {took:.0f} s: {result}", flush=True)
    if first:
        print("\n".join([f"    {first[0]} breaks {'/'.join(first[1])}"] + ["      " + line for line in first[2]]), flush=True)
    return broken, states, cut


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only sweeps whose name has all of these")
    parser.add_argument("--three", action="store_true", help="three daemons")
    parser.add_argument("--alone", action="store_true", help="one daemon without a work queue")
    parser.add_argument("--four", action="store_true", help="histories of four happenings")
    parser.add_argument("--states", type=int, default=6_000_000, help="at most so many per history")
    parser.add_argument("--seconds", type=int, default=3600, help="at most so long per history")
    given, failed = parser.parse_args(), False
    rules, daemons = Rules(), 3 if given.three else 2
    if given.alone:
        rules, daemons = Rules(exclusion="alone"), 1
    for family, texts, changed in longer(rules) if given.four else families(rules):
        for kind, faults in FAULTS.items():
            name = f"{family}, {kind}"
            if all(word in name for word in given.words):
                broken, _, cut = sweep(name, texts, changed, daemons, faults, given.states, given.seconds)
                failed = failed or bool(broken) or bool(cut)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
