"""How the daemon's cost goes with what there is to do: more messages, more destinations, more versions,
larger objects than memory. All on the fakes."""

import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
import time

import contenders
import measure
import servers
import table
from keys import Keys

MIB = 1 << 20

# Of the work `backfill`: a kill for each tenth of its hints, and more daemons than cores.
DAEMONS, KILLS, EVENTS_PER_SECOND = 3, 10, 50

# Keys in a page of a list, at the most.
LISTED_MAX = 1_000


def fanout(options, work):
    """Every object goes to eight buckets, by one rule for each or by eight that share the objects."""
    yield f"\nfakes: {work.objects} objects of {table.size(work.bytes)}, {work.keys}"
    yield heading("rules x destinations", "replica")
    for way in work.contenders:
        for rules, destinations in ((1, 1), (8, 8), (64, 8)):
            with Stage(options, work, destinations=destinations) as stage:
                work_queues = stage.stage.servers.work_queues
                used = stage.run(way, "".join(rules_for(way, work_queues, rules // destinations, destinations)))
                yield stage.row(f"{way} {rules} x {destinations}", used, work.objects * destinations)


def rules_for(way, work_queues, each, destinations):
    for destination in range(1, destinations + 1):
        bucket = "orders-replica" if destination == 1 else f"orders-replica-{destination}"
        for number in range(each):
            # The last one's filter overlaps with the others' as far as anyone can tell without trying.
            rest = f"priority = {number + 1}\n{part(number, each)}"
            yield contenders.rule(f"{destination}-{number}", bucket, way, work_queues[destination - 1], rest)


def part(number, of):
    """Filters by the last digit of a key; the last rule takes what is left."""
    if of == 1:
        return ""
    if number < of - 1:
        return f'filter = {{ suffix = "{number}" }}'
    others = ", ".join(f'"*{digit}"' for digit in range(of - 1))
    return f"filter = {{ exclude = [{others}] }}"


def versions(options, work):
    """As many versions as objects were asked for, of fewer and fewer keys."""
    yield f"\nfakes: {work.objects} versions of {table.size(work.bytes)}, {work.keys}"
    yield heading("keys")
    for way in work.contenders:
        # Few keys are neither near each other nor far.
        for keys in (work.objects, 100) + (() if work.others else (10, 1)):
            with Stage(options, work, keys) as stage:
                yield stage.row(f"{way} {keys}", stage.run(way), work.objects)


def backlog(options, work):
    """What each tenth of a backlog costs. With random keys it is a smaller one: it takes long."""
    work = dataclasses.replace(work, objects=work.objects // 5) if work.others else work
    for way in work.contenders:
        yield f"\nfakes, {way}: a backlog of {work.objects} messages, objects of {table.size(work.bytes)}, {work.keys}"
        yield f"{'messages':>12}{'objects/s':>11}{'CPU ms/object':>15}{'RSS MiB':>9}{'ledger bytes/key':>18}"
        with Stage(options, work, is_one=True) as stage:
            tenths = Tenths(work.objects, stage)
            used = stage.run(way, is_done=tenths.look)
            yield from tenths.lines
            yield heading("")
            yield stage.row("all", used, work.objects)


def memory(options, work):
    """Many objects, each larger than the memory by far, for a while: memory must do, and the work go on."""
    limit = work.seconds
    yield f"\nfakes: {work.objects} objects of {table.size(work.bytes)} at once with memory = {work.memory}, stopped after {limit} s"
    yield f"{'MiB/s':>8}{'slowest 10 s':>14}{'CPU s/GiB':>11}{'RSS MiB':>9}{'replicas':>10}"
    with Stage(options, work, is_one=True) as stage:
        spans = Spans(limit, stage)
        used = stage.run("daemon", is_done=spans.look)
        written, replicas = spans.written, stage.stage.progress()["replicas"]
        yield (
            f"{written / used.wall_seconds / MIB:>8.0f}{min(spans.rates) / MIB:>14.0f}"
            f"{used.cpu_seconds / written * (1 << 30):>11.2f}{used.peak_rss_mib:>9.0f}{replicas:>10}"
        )


def backfill(options, work):
    """What was there before, by a backfill that is killed ten times, beside events of new objects: three daemons share both."""
    keys = Keys(work.objects // 50, others=work.objects)
    yield (
        f"\nfakes: a backfill of {keys.others} objects of 1 byte, killed {KILLS} times, beside {keys.count} events of objects of "
        f"{table.size(work.bytes)}, {EVENTS_PER_SECOND} a second; {DAEMONS} daemons"
    )
    yield (
        f"{'replicas/s':>12}{'CPU ms/replica':>16}{'daemon RSS MiB':>16}{'backfill RSS MiB':>18}{'kills':>7}"
        f"{'events p50 s':>14}{'p99':>8}{'slowest':>9}{'replicas written twice':>24}"
    )
    world = servers.FakeWorld(options)
    with tempfile.TemporaryDirectory() as folder, world.stage(keys, work.bytes, destinations=0) as stage:
        work_queue, backfill_queue, *_ = stage.servers.work_queues
        rule = contenders.rule("bench", stage.servers.bucket, "daemon-queue", work_queue, f'backfill_queue = "{backfill_queue}"')
        binary = str(options.bin / "s3-replicator")
        daemons = [
            contenders.daemon(binary, stage.servers, folder, servers.free_port(), memory=work.memory, rules=rule) for _ in range(DAEMONS)
        ]
        run = KilledBackfill(binary, daemons[0], stage, keys)
        try:
            used = measure.run(daemons, run.look)
        finally:
            run.end()
        replicas, took = keys.others + keys.count, stage.latency()
        found = stage.progress()["replicas"]
        if found < replicas:
            raise measure.Failed(f"{found} replicas of {replicas}")
        yield (
            f"{replicas / used.wall_seconds:>12.0f}{used.cpu_seconds / replicas * 1000:>16.3f}{used.peak_rss_mib:>16.0f}{run.peak:>18.0f}"
            f"{run.kills:>7}{took['p50']:>14.3f}{took['p99']:>8.3f}{took['max']:>9.3f}{found - replicas:>24}"
        )


def verify(options, work):
    """Two equal buckets compared by their lists: a tenth of the keys, then all, so that it shows whether memory grows with them."""
    yield f"\nfakes: verify of {work.objects // 10} keys, then of {work.objects}, equal at both sides"
    yield f"{'keys':>12}{'keys/s':>11}{'CPU s/million keys':>20}{'seconds':>9}{'RSS MiB':>9}{'lists':>8}"
    world, binary = servers.FakeWorld(options), str(options.bin / "s3-replicator")
    for count in (work.objects // 10, work.objects):
        with tempfile.TemporaryDirectory() as folder, world.stage(Keys(0, others=count), work.bytes) as stage:
            config = contenders.daemon(binary, stage.servers, folder, servers.free_port()).command[-1]
            # It ends with 0 only if something was compared and all of it is equal.
            command = [binary, "verify", "--rule", "bench", "--config", config, "--as-of", "2999-01-01T00:00:00Z"]
            used = measure.run([contenders.Contender("verify", command, contenders.KEYS)], None)
            lists = stage.stats()["requests"]["S3"]["ListObjectVersions"]
        if lists < 2 * count / LISTED_MAX:
            raise measure.Failed(f"{lists} lists of two buckets of {count} keys")
        yield (
            f"{count:>12}{count / used.wall_seconds:>11.0f}{used.cpu_seconds / count * 1e6:>20.1f}{used.wall_seconds:>9.1f}"
            f"{used.peak_rss_mib:>9.1f}{lists:>8}"
        )


class KilledBackfill:
    """A backfill beside daemons. It is killed whenever another share of its hints is in the queue, and started again."""

    def __init__(self, binary, daemon, stage, keys):
        config = daemon.command[-1]
        self.command = [binary, "backfill", "--rule", "bench", "--config", config, "--json"]
        self.stage, self.keys = stage, keys
        self.process, self.kills, self.peak, self.looked, self.is_through = None, 0, 0, 0.0, False
        self.said = tempfile.TemporaryFile()

    def look(self, _):
        """Tells whether the backfill has ended and nothing is left to do."""
        if self.process:
            self.peak = max(self.peak, measure.peak_rss_mib(self.process.pid))
        now = time.monotonic()
        # The fakes count all their messages to answer.
        if now - self.looked < 0.5:
            return False
        self.looked = now
        progress = self.stage.progress()
        if not self.process:
            self.stage.pace(EVENTS_PER_SECOND)
            self._start()
        elif not self.is_through and self.process.poll() is not None:
            self._check()
        elif not self.is_through and self._sent(progress) > (self.kills + 1) * self.keys.others / (KILLS + 1) and self.kills < KILLS:
            self.end()
            self.kills += 1
            self._start()
        return self.is_through and progress["waiting"] == 0

    def end(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def _sent(self, progress):
        """Counts hints that are in a queue or done, and a few events."""
        return progress["waiting"] - progress["held"] + progress["replicas"]

    def _start(self):
        environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | contenders.KEYS
        self.process = subprocess.Popen(
            self.command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.said, text=True
        )

    def _check(self):
        if self.process.returncode != 0:
            self.said.seek(0)
            raise measure.Failed(f"backfill ended with {self.process.returncode}: {self.said.read().decode()[-2000:]}")
        print(json.dumps({"backfill": json.loads(self.process.stdout.read())}), flush=True)
        self.is_through = True


class Stage:
    """New fakes with work on them, and what a daemon needs beside them."""

    def __init__(self, options, work, keys=None, destinations=1, is_one=False):
        self.options, self.work, self.is_one, self.destinations = options, work, is_one, destinations
        self.keys = dataclasses.replace(work.keys, count=keys or work.objects)

    def __enter__(self):
        world, work = servers.FakeWorld(self.options), self.work
        if self.is_one:
            self.stage = world.stage_of_one(self.keys, work.bytes)
        else:
            self.stage = world.stage(self.keys, work.bytes, work.objects, self.destinations)
        self.folder = tempfile.TemporaryDirectory()
        self.stage.post(work.objects)
        return self

    def __exit__(self, *_):
        self.stage.__exit__()
        self.folder.cleanup()

    def run(self, way, rules=None, is_done=None):
        binary = str(self.options.bin / "s3-replicator")
        place, memory = self.stage.servers, self.work.memory
        one = contenders.daemon(binary, place, self.folder.name, servers.free_port(), way, memory, rules)
        return measure.run([one], is_done or (lambda _: self.stage.waiting() == 0))

    def row(self, name, used, replicas):
        stats, found = self.stage.stats(), self.stage.progress()["replicas"]
        if found != replicas:
            raise measure.Failed(f"{found} replicas of {replicas}")
        asked = stats["requests"]
        s3, sqs = (sum(asked.get(service, {}).values()) / replicas for service in ("S3", "SQS"))
        return (
            f"{name:>26}{replicas / used.wall_seconds:>12.0f}{used.cpu_seconds / replicas * 1000:>15.3f}"
            f"{used.peak_rss_mib:>9.0f}{s3:>12.2f}{sqs:>13.2f}"
            f"{asked['S3']['GetObject'] / self.work.objects:>14.2f}{asked['S3'].get('ListObjectVersions', 0) / replicas:>8.2f}"
        )


def heading(first, what="object"):
    return f"{first:>26}{what + 's/s':>12}{'CPU ms/' + what:>15}{'RSS MiB':>9}{'S3/' + what:>12}{'SQS/' + what:>13}{'reads/object':>14}{'lists':>8}"


class Tenths:
    """Looks at the only daemon whenever another tenth is done."""

    def __init__(self, objects, stage):
        self.objects, self.stage = objects, stage
        self.lines, self.last = [], (0, 0.0, time.monotonic())

    def look(self, pids):
        waiting = self.stage.stage.waiting()
        done = self.objects - waiting
        if done - self.last[0] >= self.objects // 10:
            self.lines.append(self._line(done, *pids))
        return waiting == 0

    def _line(self, done, pid):
        now, cpu = time.monotonic(), measure.cpu_of(pid)
        before, cpu_before, then = self.last
        self.last = (done, cpu, now)
        ledger = sum(file.stat().st_size for file in pathlib.Path(self.stage.folder.name).glob("state-*/**/*") if file.is_file())
        return (
            f"{done:>12}{(done - before) / (now - then):>11.0f}{(cpu - cpu_before) / (done - before) * 1000:>15.3f}"
            f"{measure.rss_mib(pid):>9.0f}{ledger / done:>18.0f}"
        )


class Spans:
    """Looks every ten seconds at how much was written, for so many seconds."""

    def __init__(self, seconds, stage):
        self.begun, self.seconds, self.stage = time.monotonic(), seconds, stage
        self.written, self.looked, self.rates = 0, self.begun, []

    def look(self, _):
        now = time.monotonic()
        if now - self.looked < 10:
            return False
        written = self.stage.stage.stats()["bytes"]
        self.rates.append((written - self.written) / (now - self.looked))
        self.written, self.looked = written, now
        return now - self.begun >= self.seconds


RUNS = {"fanout": fanout, "versions": versions, "backlog": backlog, "memory": memory, "backfill": backfill, "verify": verify}
