"""Sweeps whole families of histories.

    python tests/protocol/sweep.py                     every sweep behind docs/protocol.md: hours
    python tests/protocol/sweep.py "parts" "crash"     those whose name has both words
    python tests/protocol/sweep.py --seconds 60        at most so long per history

One line per sweep: its name, histories, states, and what broke with the shortest trace. A history that is cut off by the
limit of states or time counts as `cut`, not as clean."""

import argparse
import time

import promises
from history import up_to
from model import Model, explore
from rules import Faults, Rules

FAULTS = {
    "no faults": Faults(),
    "crash": Faults(crash=1, lost_ledger=1),
    "expired": Faults(expired=1),
    "duplicate": Faults(duplicate=1),
    "late": Faults(late=1),
    "crash and late": Faults(crash=1, lost_ledger=1, late=1),
}


def sweep(name, texts, rules=Rules(), daemons=2, faults=Faults(), states_max=3_000_000, seconds_max=3600, wanted=None):
    """Explores each history; returns what broke where, the states seen, and how many were cut off."""
    began, broken, states, cut, first = time.monotonic(), {}, 0, 0, None
    for text in texts:
        model = Model(text, rules, daemons, faults)
        judged = promises.all_for(model)
        verdict, seen, rest = explore(model, judged & wanted if wanted else judged, states_max, seconds_max)
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


BY_START = Rules(order="initiation")
PURGING = Rules(version_deletes=True, fence_age="seen", second_look="T")
GUESSING = Rules(not_found="one")
# A lost ledger, and a marker that was taken back since.
TAKEN_BACK = ["Pa M | X1", "Pa M | X1 M", "Pa M | X1 Pa", "Pa M | X1 Pb", "Pa M | X1 X0", "Pa M M | X1"]
TAKEN_BACK += ["Pa Pa M | X2", "Pa Pb M | X2", "Pa Pb M | X2 X0", "Pa M Pb M | X3"]
TAKEN_BACK_TWICE = ["Pa M M | X1 X2", "Pa M M | X2 X1", "Pa M M M | X1 X2 X3", "Pa M M | X1 X2 Pa"]
TAKEN_BACK_TWICE += ["Pa M Pb M | X3 X1", "Pa M Pb M | X1 X3", "Pa M | Pb X1 X2"]
# Who hears that the marker was taken back does not know it, and who removes what hides it heard nothing of that.
BARED = ["Pa M Pb X1 X2", "Pa M Pb X2 X1"]
KEPT = {"C", "H-missing", "H-order", "STUCK", "GROWS"}  # what holds without the fence, too


def families():
    """Name, histories, rules, kinds of faults, and which promises are judged if not all."""
    every, most = list(FAULTS), ["no faults", "late", "expired", "crash"]
    objects, parts = up_to(3), up_to(3, "PUM", "U")
    purges = up_to(3, "PMX", "X")
    yield "objects and markers", objects, Rules(), every, None
    yield "parts by completion", parts, Rules(), most, None
    yield "parts by initiation", parts, BY_START, most, None
    yield "below the newest by completion", up_to(3, "PUML", "L"), Rules(), most, None
    yield "below the newest by initiation", up_to(3, "PUML", "L"), BY_START, most, None
    yield "purges", purges, PURGING, most, None
    yield "purges left out", purges, Rules(), most, None
    yield "purges of parts by initiation", up_to(3, "UMX", "X"), PURGING._replace(order="initiation"), most, None
    yield "purges left out, three daemons", ["Pa Pb X0 Pa"], Rules(), ["no faults"], None
    yield "a purge that bares a marker", BARED, PURGING, ["no faults"], None
    yield "forged purges", up_to(3, "PMF", "F"), PURGING, most, None
    yield "believed 404", objects, GUESSING, most, None
    yield "believed 404, purges left out", up_to(4, "PMX", "X"), GUESSING, ["no faults"], None
    yield "markers taken back, ledger lost", TAKEN_BACK, PURGING, most, None
    yield "two taken back, ledger lost", TAKEN_BACK_TWICE, PURGING, most, None
    yield "latest", objects, Rules(history="latest"), every, None
    yield "without fence", objects, Rules(fence=""), most, KEPT


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only sweeps whose name has all of these")
    parser.add_argument("--states", type=int, default=3_000_000, help="at most so many per history")
    parser.add_argument("--seconds", type=int, default=3600, help="at most so long per history")
    parser.add_argument("--length", type=int, default=9, help="only histories of at most so many words")
    given, failed = parser.parse_args(), False
    for family, texts, rules, kinds, wanted in families():
        for kind in kinds:
            name = f"{family}, {kind}"
            if all(word in name for word in given.words):
                daemons = 3 if "three daemons" in family else 2
                texts = [text for text in texts if len(text.split()) <= given.length]
                bounds = {"states_max": given.states, "seconds_max": given.seconds}
                broken, _, cut = sweep(name, texts, rules, daemons, FAULTS[kind], wanted=wanted, **bounds)
                failed = failed or bool(broken) or bool(cut)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
