"""Measures the daemon beside its peers on the same servers, in turn, and prints a table for each kind of work on each kind
of server. Without options it does all of PLAN."""

import argparse
import dataclasses
import pathlib
import re
import sys

import contest
import measure
import scale
import servers
import table

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PLAN = ["small", "large", "pace", "fanout", "versions", "backlog", "memory"]

WORKS = {
    "fakes": {
        "small": contest.Work(5_000, 16 * KIB, 3, ("daemon", "bare", "bare-if", "rclone", "s3sync")),
        # The bare loop holds whole objects in memory.
        "large": contest.Work(4, 512 * MIB, 2, ("daemon", "curl", "rclone", "s3sync")),
        "pace": contest.Work(5_000, 16 * KIB),
        "fanout": contest.Work(2_000, 16 * KIB),
        "versions": contest.Work(10_000, KIB),
        "backlog": contest.Work(1_000_000, KIB),
        "memory": contest.Work(200, GIB, memory="16MiB", seconds=150),
    },
    "seaweedfs": {
        "small": contest.Work(3_000, 16 * KIB, 2, ("daemon", "bare", "bare-if", "rclone", "s3sync")),
        "large": contest.Work(4, 512 * MIB, 2, ("daemon", "curl", "rclone", "s3sync")),
        "pace": contest.Work(3_000, 16 * KIB),
    },
}


def main():
    options = arguments()
    print(table.machine(), flush=True)
    failed = False
    for world in options.worlds:
        bench = Bench(options, world)
        for name in options.works:
            if name in WORKS[world]:
                bench.do(name)
            elif options.worlds == [world]:
                print(f"{world}: {name} is done on the fakes alone", flush=True)
        failed |= bench.failed
    sys.exit(int(failed))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", required=True, type=pathlib.Path, help="the folder of the built programs")
    parser.add_argument("--weed", help="the program of SeaweedFS")
    parser.add_argument("--rclone", help="the program of rclone")
    parser.add_argument("--s3sync", help="the program of s3sync")
    parser.add_argument("--worlds", nargs="+", choices=servers.WORLDS, default=list(servers.WORLDS))
    parser.add_argument("--works", nargs="+", choices=WORKS["fakes"], help=f"what to do instead of {' '.join(PLAN)}")
    parser.add_argument("--contenders", nargs="+", help="daemon, bare, bare-if, curl, rclone or s3sync")
    parser.add_argument("--objects", type=int, help="for each work; without --works it is the small one")
    parser.add_argument("--bytes", type=count, help="of each object, as in 64MiB")
    parser.add_argument("--memory", help="the daemon's")
    parser.add_argument("--runs", type=int, help="of each contender")
    parser.add_argument("--seconds", type=int, help="how long the work `memory` goes on")
    parser.add_argument("--pace", type=float, help="events a second, instead of half of what saturates the daemon")
    parser.add_argument("--quick", action="store_true", help="about a tenth of all, to see whether it works")
    options = parser.parse_args()
    chosen = options.objects or options.bytes or options.contenders
    options.works = options.works or (["pace"] if options.pace else ["small"] if chosen else PLAN)
    return options


def count(text):
    """Reads a size."""
    number, unit = re.fullmatch(r"(\d+)(|KiB|MiB|GiB)", text).groups()
    return int(number) * {"": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}[unit]


class Bench:
    """One kind of servers, and what was found out on it."""

    def __init__(self, options, world):
        self.options, self.world, self.failed = options, world, False
        # Objects a second of the daemon, if they were measured.
        self.saturating = None

    def do(self, name):
        work = self._sized(WORKS[self.world][name])
        match name:
            case "small" | "large":
                outcomes = contest.in_turn(self.options, self.world, work)
                print(table.contest(self.world, work, outcomes), flush=True)
                self._note(outcomes.values())
                if name == "small" and "daemon" in outcomes and outcomes["daemon"].runs:
                    self.saturating = table.Figures(work, outcomes["daemon"].runs).rate
            case "pace":
                self._pace(work)
            case _:
                self._scale(name, work)

    def _pace(self, work):
        rate = self.options.pace or (self.saturating or self._saturating(work)) / 2
        outcome = contest.at_pace(self.options, self.world, work, rate)
        print(table.pace(self.world, work, rate, outcome), flush=True)
        self._note([outcome])

    def _saturating(self, work):
        outcome = contest.in_turn(self.options, self.world, work)["daemon"]
        if not outcome.runs:
            raise SystemExit(f"{self.world}: nothing to take half of: {outcome.failures}")
        return table.Figures(work, outcome.runs).rate

    def _scale(self, name, work):
        try:
            for line in scale.RUNS[name](self.options, work):
                print(line, flush=True)
        except measure.Failed as failed:
            print(f"{name:>20}  FAILED: {table.line(str(failed))}", flush=True)
            self.failed = True

    def _note(self, outcomes):
        self.failed |= any(outcome.failures for outcome in outcomes)

    def _sized(self, work):
        if self.options.quick:
            few, large = work.objects < 1000, work.bytes > MIB
            work = dataclasses.replace(
                work, objects=work.objects if few else work.objects // 10, bytes=work.bytes // 8 if large else work.bytes,
                runs=1, seconds=work.seconds // 5,
            )
        asked = {name: getattr(self.options, name) for name in ("objects", "bytes", "memory", "runs", "contenders", "seconds")}
        return dataclasses.replace(work, **{name: value for name, value in asked.items() if value})


if __name__ == "__main__":
    main()
