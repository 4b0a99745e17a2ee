"""Shows what was measured, and how the daemon compares."""

import os
import platform
import statistics

from contenders import DAEMONS

MIB, GIB = 1 << 20, 1 << 30
PEERS = ("rclone", "s3sync")


def machine():
    """Says on what all this was measured."""
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    kernel = ".".join(platform.release().split(".")[:2])
    return (f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB of memory, Linux {kernel}; servers and clients share the CPUs, "
            f"load before: {os.getloadavg()[0]:.1f}")


def contest(world, work, outcomes):
    """Returns the table of one kind of work in one world."""
    to = "replica" if world == "fakes" else "ack"
    lines = [
        f"\n{world}: {work.objects} objects of {size(work.bytes)}, {work.keys}, medians of the runs that count",
        f"{'':<20}{'runs':>5}{'objects/s':>10}{'MiB/s':>7}{'CPU ms/object':>14}{'CPU s/GiB':>10}{'RSS MiB':>8}"
        f"{'requests/object':>16}{'servers CPU ms/object':>22}{'event to ' + to + ' ms: p50':>25}{'p99':>7}{'max':>7}",
    ]
    for name, outcome in outcomes.items():
        counted = f"{len(outcome.runs)}/{work.runs}"
        if outcome.runs:
            lines.append(f"{name:<20}{counted:>5}{row(name, work, outcome.runs)}")
        lines += [f"{name:<20}{counted:>5}  FAILED: {line(failure)}" for failure in outcome.failures]
    return "\n".join(lines + requests(work, outcomes) + ratios(work, outcomes))


def requests(work, outcomes):
    """Says what each asked for an object, by service and operation, where somebody counted it."""
    lines = []
    for name, outcome in outcomes.items():
        counted = [run.requests for run in outcome.runs if run.requests is not None]
        operations = sorted({operation for run in counted for operation in run})
        median = {each: statistics.median(run.get(each, 0) for run in counted) / work.objects for each in operations}
        if median:
            lines.append(f"{name:<20}asked an object: " + ", ".join(f"{each} {share:.3f}" for each, share in median.items()))
    return lines


def row(name, work, runs):
    figures = Figures(work, runs)
    # Of curl only the shell is seen, which does nothing.
    rss = "-" if name == "curl" else f"{figures.rss:.0f}"
    requests = "-" if figures.requests is None else f"{figures.requests:.2f}"
    return (
        f"{figures.rate:>10.{0 if figures.rate >= 100 else 3}f}{figures.rate * work.bytes / MIB:>7.1f}{figures.cpu * 1000:>14.3f}"
        f"{figures.cpu / work.bytes * GIB:>10.2f}{rss:>8}{requests:>16}{figures.servers * 1000:>22.3f}"
        + latency(runs, 25)
    )


def latency(runs, width):
    def median(share):
        found = [run.latency.get(share) for run in runs]
        return "-" if None in found else f"{statistics.median(found) * 1000:.0f}"

    return f"{median('p50'):>{width}}{median('p99'):>7}{median('max'):>7}"


class Figures:
    """The medians of some runs, for each object."""

    def __init__(self, work, runs):
        def median(of):
            return statistics.median(map(of, runs))

        self.rate = work.objects / median(lambda run: run.used.wall_seconds)
        self.cpu = median(lambda run: run.used.cpu_seconds) / work.objects
        self.rss = median(lambda run: run.used.peak_rss_mib)
        self.servers = median(lambda run: run.cpu_of_servers) / work.objects
        known = all(run.requests is not None for run in runs)
        self.requests = median(lambda run: sum(run.requests.values())) / work.objects if known else None


def ratios(work, outcomes):
    """Says what the daemon is beside the best peer in each respect, beside the bare loop and beside the curl pipe."""
    figures = {name: Figures(work, outcome.runs) for name, outcome in outcomes.items() if outcome.runs}
    peers = {name: found for name, found in figures.items() if name in PEERS}
    ways = {name: figures[name] for name in DAEMONS if name in figures}
    return [line for way, own in ways.items() for line in ratios_of(way, own, peers, figures)]


def ratios_of(way, own, peers, figures):
    lines = []
    if peers:
        rate = max(peers, key=lambda name: peers[name].rate)
        cpu, rss = (min(peers, key=lambda name: getattr(peers[name], what)) for what in ("cpu", "rss"))
        lines.append(
            f"{way} / best peer: {own.rate / peers[rate].rate:.2f} x the rate ({rate}), "
            f"{own.cpu / peers[cpu].cpu:.2f} x the CPU ({cpu}), {own.rss / peers[rss].rss:.2f} x the memory ({rss})"
        )
    for name, called in (("bare", "bare loop"), ("bare-if", "bare loop with If-None-Match"), ("curl", "curl pipe")):
        if other := figures.get(name):
            lines.append(f"{way} / {called}: {own.rate / other.rate:.2f} x the rate, {own.cpu / other.cpu:.2f} x the CPU")
    return lines


def pace(world, work, per_second, outcomes):
    """Returns the table of events that come as time goes."""
    to = "replica" if world == "fakes" else "ack"
    lines = [
        f"\n{world}: {work.objects} objects of {size(work.bytes)}, {work.keys}, events as time goes",
        f"{'':<20}{'runs':>5}{'events/s':>10}{'event to ' + to + ' ms: p50':>25}{'p99':>7}{'max':>7}{'CPU ms/object':>15}{'RSS MiB':>9}",
    ]
    for name, outcome in outcomes.items():
        counted = f"{name:<20}{f'{len(outcome.runs)}/{work.runs}':>5}{per_second[name]:>10.0f}"
        if outcome.runs:
            figures = Figures(work, outcome.runs)
            lines.append(f"{counted}{latency(outcome.runs, 25)}{figures.cpu * 1000:>15.3f}{figures.rss:>9.0f}")
        lines += [f"{counted}  FAILED: {line(failure)}" for failure in outcome.failures]
    return "\n".join(lines)


def size(count):
    """Returns a size as people write it."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (1 << 10, "KiB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"


def line(text):
    """Returns the beginning of what may be long, in one line."""
    return " ".join(text.split())[:200]
