"""How the daemon's cost goes with what there is to do: more daemons, more messages, more destinations, more versions."""

import pathlib
import tempfile
import time

import contenders
import measure
import servers

MIB = 1 << 20


def daemons(options):
    """One, two and four daemons on one queue do the same work."""
    yield f"\nfakes: {options.objects} objects of {options.bytes} bytes by several daemons on one queue"
    yield heading("daemons")
    for count in (1, 2, 4):
        with World(options) as world:
            used = world.run(count)
            yield world.row(count, used, options.objects)


def fanout(options):
    """Every object goes to eight buckets, by one rule for each or by eight, of which one is for the object."""
    yield f"\nfakes: {options.objects} objects of {options.bytes} bytes"
    yield heading("rules x destinations", "replica")
    for rules, destinations in ((1, 1), (8, 8), (64, 8)):
        with World(options) as world:
            used = world.run(1, "".join(rules_for(rules // destinations, destinations)))
            yield world.row(f"{rules} x {destinations}", used, options.objects * destinations)


def rules_for(each, destinations):
    for destination in range(1, destinations + 1):
        bucket = "orders-replica" if destination == 1 else f"orders-replica-{destination}"
        for number in range(each):
            prefix = "bench/" if number == 0 else f"other-{number}/"
            rest = f'filter = {{ prefix = "{prefix}" }}'
            yield contenders.rule(f"{destination}-{number}", bucket, rest)


def versions(options):
    """As many versions as objects were asked for, of fewer and fewer keys."""
    yield f"\nfakes: {options.objects} versions of {options.bytes} bytes"
    yield heading("keys")
    for keys in (options.objects, 100, 10, 1):
        with World(options, keys) as world:
            used = world.run(1)
            yield world.row(keys, used, options.objects)


def backlog(options):
    """What each tenth of a backlog costs."""
    yield f"\nfakes: a backlog of {options.objects} messages, objects of {options.bytes} bytes"
    yield f"{'messages':>12}{'objects/s':>11}{'CPU ms/object':>15}{'RSS MiB':>9}{'ledger bytes/key':>18}"
    with World(options) as world:
        tenths = Tenths(options.objects, world)
        used = world.run(1, is_done=tenths.look)
        yield from tenths.lines
        yield world.row("all", used, options.objects)


class World:
    """New fakes with work in them, and what a daemon needs beside them."""

    def __init__(self, options, keys=None):
        self.options, self.keys = options, keys

    def __enter__(self):
        self.place = servers.Fakes(str(self.options.bin / "serve"))
        self.folder = tempfile.TemporaryDirectory()
        self.place.seed(self.options.objects, self.options.bytes, self.keys)
        self.place.post()
        return self

    def __exit__(self, *_):
        self.place.close()
        self.folder.cleanup()

    def run(self, count, rules=None, is_done=None):
        binary = str(self.options.bin / "s3-replicator")
        fleet = [
            contenders.daemon(binary, self.place.servers, self.folder.name, servers.free_port(), self.options.memory, rules)
            for _ in range(count)
        ]
        return measure.run(fleet, is_done or (lambda _: self.place.waiting() == 0))

    def row(self, name, used, replicas):
        stats = self.place.stats()
        if stats["replicas"] != replicas:
            raise SystemExit(f"{stats['replicas']} replicas of {replicas}: {stats}")
        asked = stats["requests"]
        return (
            f"{name:>20}{replicas / used.wall_seconds:>12.0f}{used.cpu_seconds / replicas * 1000:>15.3f}"
            f"{used.peak_rss_mib:>9.0f}{sum(asked.values()) / replicas:>10.2f}"
            f"{asked['GetObject'] / self.options.objects:>14.2f}{asked.get('ListObjectVersions', 0) / replicas:>8.2f}"
        )


def heading(first, what="object"):
    return f"{first:>20}{what + 's/s':>12}{'CPU ms/' + what:>15}{'RSS MiB':>9}{'requests':>10}{'reads/object':>14}{'lists':>8}"


class Tenths:
    """Looks at the only daemon whenever another tenth is done."""

    def __init__(self, objects, world):
        self.objects, self.world = objects, world
        self.lines, self.last = [], (0, 0.0, time.monotonic())

    def look(self, pids):
        waiting = self.world.place.waiting()
        done = self.objects - waiting
        if done - self.last[0] >= self.objects // 10:
            self.lines.append(self._line(done, *pids))
        return waiting == 0

    def _line(self, done, pid):
        now, cpu = time.monotonic(), measure.cpu_of(pid)
        before, cpu_before, then = self.last
        self.last = (done, cpu, now)
        ledger = sum(file.stat().st_size for file in pathlib.Path(self.world.folder.name).glob("state-*/**/*") if file.is_file())
        return (
            f"{done:>12}{(done - before) / (now - then):>11.0f}{(cpu - cpu_before) / (done - before) * 1000:>15.3f}"
            f"{measure.rss_mib(pid):>9.0f}{ledger / done:>18.0f}"
        )


RUNS = {"daemons": daemons, "fanout": fanout, "versions": versions, "backlog": backlog}
