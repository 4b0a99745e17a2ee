"""Sweeps whole families of histories.

    python tests/protocol/sweep.py                     every sweep behind docs/protocol.md: hours
    python tests/protocol/sweep.py parts crash         those whose name has both words
    python tests/protocol/sweep.py --seconds 60        at most so long per history

One line per sweep: its name, histories, states, and what broke with the shortest trace. A history that is cut off by the
limit of states or time counts as `cut`, not as clean."""

import argparse
import sys
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


def sweep(name, texts, rules=Rules(), daemons=2, faults=Faults(), states_max=3_000_000, seconds_max=300, wanted=None, stop=False):
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
            if stop:
                break
    result = ", ".join(f"{promise} in {len(where)}: {where[:4]}" for promise, where in broken.items()) or "clean"
    took = time.monotonic() - began
    print(f"{name}: {len(texts)} histories, {states:,} states, {cut} cut, {took:.0f} s: {result}", flush=True)
    if first:
        print("\n".join([f"    {first[0]} breaks {'/'.join(first[1])}"] + ["      " + line for line in first[2]]), flush=True)
    return broken, states, cut
