"""Measures the daemon beside its peers on the same servers, in turn, and prints a table for each kind of work on each kind
of server. Without options it does all of PLAN."""

import argparse
import dataclasses
import pathlib
import re
import sys

import contenders
import contest
import measure
import scale
import servers
import table

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PLAN = ["small", "large", "pace", "fanout", "versions", "backlog", "memory", "backfill", "verify"]

# Each of these is done with neighbouring keys, then with random ones.
SMALL = ["small", "pace", "fanout", "versions", "backlog"]
# What lies between random keys. SeaweedFS takes a minute for so many on each side.
OTHERS = {"fakes": 200_000, "seaweedfs": 60_000}
ONE_DAEMON_OR_MORE = ("daemon", "daemon-queue")

WORKS = {
    "fakes": {
        "small": contest.Work(5_000, 16 * KIB, 3, (*contenders.DAEMONS, "bare", "bare-if", "rclone", "s3sync")),
        # The bare loop holds whole objects in memory.
        "large": contest.Work(4, 512 * MIB, 2, ("daemon", "curl", "rclone", "s3sync")),
        "pace": contest.Work(5_000, 16 * KIB, contenders=contenders.DAEMONS),
        "fanout": contest.Work(2_000, 16 * KIB, contenders=ONE_DAEMON_OR_MORE),
        "versions": contest.Work(5_000, KIB, contenders=ONE_DAEMON_OR_MORE),
        "backlog": contest.Work(500_000, KIB, contenders=ONE_DAEMON_OR_MORE),
        "memory": contest.Work(200, GIB, memory="16MiB", seconds=100),
        "backfill": contest.Work(1_000_000, KIB),
        "verify": contest.Work(1_000_000, 1),
    },
    "seaweedfs": {
        "small": contest.Work(3_000, 16 * KIB, 2, ("daemon", "daemon-latest", "daemon-queue", "bare", "bare-if", "rclone", "s3sync")),
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
                for kind in options.keys if name in SMALL else ["neighbours"]:
                    bench.do(name, kind)
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
    contenders_help = f"{', '.join(contenders.DAEMONS)}, bare, bare-if, curl, rclone or s3sync"
    parser.add_argument("--contenders", nargs="+", help=contenders_help)
    parser.add_argument("--keys", nargs="+", choices=["neighbours", "random"], default=["neighbours", "random"], help="of small objects")
    parser.add_argument("--others", type=int, help="how many other keys lie between random ones at both sides")
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
        # Objects a second of each daemon by the kind of keys, if they were measured.
        self.saturating = {}

    def do(self, name, kind):
        work = self._sized(WORKS[self.world][name], kind)
        match name:
            case "small" | "large":
                outcomes = contest.in_turn(self.options, self.world, work)
                print(table.contest(self.world, work, outcomes), flush=True)
                self._note(outcomes.values())
                if name == "small":
                    self.saturating[kind] = rates(work, outcomes)
            case "pace":
                self._pace(work, kind)
            case _:
                self._scale(name, work)

    def _pace(self, work, kind):
        if self.options.pace:
            known = dict.fromkeys(work.contenders, 2 * self.options.pace)
        else:
            known = self.saturating.get(kind, {})
            lacking = tuple(name for name in work.contenders if name not in known)
            if lacking:
                asked = dataclasses.replace(work, contenders=lacking)
                known = known | rates(asked, contest.in_turn(self.options, self.world, asked))
        per_second = {name: known[name] / 2 for name in work.contenders if name in known}
        self.failed |= len(per_second) < len(work.contenders)
        work = dataclasses.replace(work, contenders=tuple(per_second))
        outcomes = contest.at_pace(self.options, self.world, work, per_second)
        print(table.pace(self.world, work, per_second, outcomes), flush=True)
        self._note(outcomes.values())

    def _scale(self, name, work):
        try:
            for line in scale.RUNS[name](self.options, work):
                print(line, flush=True)
        except measure.Failed as failed:
            print(f"{name:>20}  FAILED: {table.line(str(failed))}", flush=True)
            self.failed = True

    def _note(self, outcomes):
        self.failed |= any(outcome.failures for outcome in outcomes)

    def _sized(self, work, kind):
        others = (self.options.others or OTHERS[self.world]) if kind == "random" else 0
        if self.options.quick:
            few, large = work.objects < 1000, work.bytes > MIB
            work = dataclasses.replace(
                work, objects=work.objects if few else work.objects // 10, bytes=work.bytes // 8 if large else work.bytes,
                runs=1, seconds=work.seconds // 5,
            )
            others //= 10
        names = ("objects", "bytes", "memory", "runs", "contenders", "seconds")
        asked = {name: value for name in names if (value := getattr(self.options, name))}
        return dataclasses.replace(work, others=others, **asked)


def rates(work, outcomes):
    """Returns how many objects a second each did."""
    return {name: table.Figures(work, outcome.runs).rate for name, outcome in outcomes.items() if outcome.runs}


if __name__ == "__main__":
    main()
