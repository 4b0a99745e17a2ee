"""Lets contenders do the same work in turn, and looks at what they wrote."""

import json
import sys
import tempfile
from dataclasses import dataclass, field

from botocore.exceptions import BotoCoreError, ClientError

import contenders
import measure
import servers

# How much is compared at both ends of an object.
SAMPLE_BYTES = 64 << 10


@dataclass
class Work:
    """So many objects of a size, so often by each contender."""

    objects: int
    bytes: int
    runs: int = 1
    contenders: tuple = ("daemon",)
    memory: str = "64MiB"
    # After which it is stopped, where it would take too long.
    seconds: int = 0


@dataclass
class Run:
    """What one contender needed."""

    used: measure.Used
    cpu_of_servers: float
    requests: int | None
    latency: dict


@dataclass
class Outcome:
    """The runs of one contender: those that count, and why the others do not."""

    runs: list = field(default_factory=list)
    failures: list = field(default_factory=list)

    def attempt(self, what, act):
        try:
            self.runs.append(act())
            print(json.dumps({"run": what} | vars(self.runs[-1]), default=vars), file=sys.stderr, flush=True)
        except (measure.Failed, BotoCoreError, ClientError) as failed:
            self.failures.append(str(failed))
            print(f"{what}: {failed}", file=sys.stderr, flush=True)


def in_turn(options, world_name, work):
    """Returns the outcome of each contender, A B A B."""
    outcomes = {name: Outcome() for name in work.contenders}
    with servers.WORLDS[world_name](options) as world:
        for _ in range(work.runs):
            for name, outcome in outcomes.items():
                outcome.attempt(f"{world_name}: {name}", lambda: once(options, world, work, name))
    return outcomes


def once(options, world, work, name):
    with world.stage(work.objects, work.bytes) as stage, tempfile.TemporaryDirectory() as folder:
        contender = build(options, work, name, stage.servers, folder)
        if contender.metrics:
            stage.post(work.objects)
        return measured(stage, contender, work, lambda _: stage.waiting() == 0)


def at_pace(options, world_name, work, per_second):
    """Lets the daemon keep up with events as they come."""
    outcome = Outcome()
    with servers.WORLDS[world_name](options) as world:
        for _ in range(work.runs):
            outcome.attempt(f"{world_name}: at {per_second:.0f}/s", lambda: once_at_pace(options, world, work, per_second))
    return outcome


def once_at_pace(options, world, work, per_second):
    with world.stage(work.objects, work.bytes) as stage, tempfile.TemporaryDirectory() as folder:
        contender = build(options, work, "daemon", stage.servers, folder)
        return measured(stage, contender, work, keeping_up(stage, work, per_second))


def keeping_up(stage, work, per_second):
    """Begins once the first object shows that the daemon is there, and ends with the last message."""
    stage.post(1)
    begun = False

    def is_done(_):
        nonlocal begun
        waiting = stage.waiting()
        if not begun and waiting == work.objects - 1:
            stage.pace(per_second)
            begun = True
        return waiting == 0

    return is_done


def measured(stage, contender, work, is_done):
    before = sum(map(measure.cpu_of, stage.pids()))
    used = measure.run([contender], is_done)
    cpu_of_servers = sum(map(measure.cpu_of, stage.pids())) - before
    latency = stage.latency() if contender.metrics else {}
    run = Run(used, cpu_of_servers, stage.requests(used), latency)
    verify(stage.destination(), stage.servers.bucket, work)
    return run


def build(options, work, name, where, folder):
    binary = str(options.bin / "s3-replicator")
    match name:
        case "daemon":
            return contenders.daemon(binary, where, folder, servers.free_port(), work.memory)
        case "bare":
            return contenders.bare(str(options.bin / "bare"), where, work.objects)
        case "bare-if":
            return contenders.bare(str(options.bin / "bare"), where, work.objects, "--if-none-match")
        case "curl":
            return contenders.curl(where, work.objects, work.bytes)
        case "rclone" if options.rclone:
            return contenders.rclone(options.rclone, where)
        case "s3sync" if options.s3sync:
            return contenders.s3sync(options.s3sync, where)
    raise measure.Failed(f"where is {name}?")


def verify(client, bucket, work):
    """An empty queue and a status of 0 only say that someone thinks that all is done."""
    sizes = {}
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        for version in page.get("Versions", []):
            sizes.setdefault(version["Key"], []).append(version["Size"])
    wrong = [key for key in map(servers.key, range(work.objects)) if sizes.pop(key, []) != [work.bytes]]
    if wrong or sizes:
        raise measure.Failed(f"{len(wrong)} of {work.objects} objects are not there as they should, like {wrong[:1]}; others: {len(sizes)}")
    for number in {0, work.objects // 3, work.objects // 2, work.objects - 1}:
        for start, end in ((0, SAMPLE_BYTES), (work.bytes - SAMPLE_BYTES, work.bytes)):
            start, end = max(start, 0), min(end, work.bytes)
            found = client.get_object(Bucket=bucket, Key=servers.key(number), Range=f"bytes={start}-{end - 1}")
            if found["Body"].read() != servers.body(number, work.bytes, start, end):
                raise measure.Failed(f"{servers.key(number)} has other bytes than its source")
