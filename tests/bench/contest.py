"""Lets contenders do the same work in turn, and looks at what they wrote."""

import json
import sys
import tempfile
from dataclasses import dataclass, field

from botocore.exceptions import BotoCoreError, ClientError

import contenders
import measure
import servers
from keys import Keys

# They list all that there is.
PEERS = ("rclone", "s3sync")

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
    # So many other keys lie between random ones; without any the keys are neighbours.
    others: int = 0

    @property
    def keys(self):
        return Keys(self.objects, self.others)


@dataclass
class Run:
    """What one contender needed."""

    used: measure.Used
    cpu_of_servers: float
    # By service and operation, where somebody counted them.
    requests: dict | None
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
    with staged(world, work, name) as stage, tempfile.TemporaryDirectory() as folder:
        contender = build(options, work, name, stage, folder)
        if contender.metrics:
            stage.post(work.objects)
        return measured(stage, contender, work, lambda _: stage.waiting() == 0)


def staged(world, work, name):
    """Peers get buckets without the others: they would list them all, and what is compared is the copying."""
    return world.stage(work.keys, work.bytes, is_crowded=name not in PEERS)


def at_pace(options, world_name, work, per_second):
    """Lets daemons keep up with events as they come; each of them by its rate."""
    outcomes = {name: Outcome() for name in work.contenders}
    with servers.WORLDS[world_name](options) as world:
        for _ in range(work.runs):
            for name, outcome in outcomes.items():
                rate = per_second[name]
                outcome.attempt(f"{world_name}: {name} at {rate:.0f}/s", lambda: once_at_pace(options, world, work, name, rate))
    return outcomes


def once_at_pace(options, world, work, name, per_second):
    with staged(world, work, name) as stage, tempfile.TemporaryDirectory() as folder:
        contender = build(options, work, name, stage, folder)
        return measured(stage, contender, work, keeping_up(stage, per_second))


def keeping_up(stage, per_second):
    """Begins once the first object shows that the daemon is there, and ends with the last message."""
    stage.post(1)
    begun = False

    def is_done(_):
        nonlocal begun
        progress = stage.progress()
        if not begun and progress["waiting"] == progress["held"]:
            stage.pace(per_second)
            begun = True
        return progress["waiting"] == 0

    return is_done


def measured(stage, contender, work, is_done):
    before = sum(map(measure.cpu_of, stage.pids()))
    used = measure.run([contender], is_done)
    cpu_of_servers = sum(map(measure.cpu_of, stage.pids())) - before
    latency = stage.latency() if contender.metrics else {}
    run = Run(used, cpu_of_servers, stage.requests(used), latency)
    verify(stage, work)
    return run


def build(options, work, name, stage, folder):
    where, binary = stage.servers, str(options.bin / "s3-replicator")
    match name:
        case "bare":
            return contenders.bare(str(options.bin / "bare"), where, stage.keys_file)
        case "bare-if":
            return contenders.bare(str(options.bin / "bare"), where, stage.keys_file, "--if-none-match")
        case "curl":
            return contenders.curl(where, stage.keys_file, work.bytes)
        case _ if name in contenders.DAEMONS:
            return contenders.daemon(binary, where, folder, servers.free_port(), name, work.memory)
        case "rclone" if options.rclone:
            return contenders.rclone(options.rclone, where)
        case "s3sync" if options.s3sync:
            return contenders.s3sync(options.s3sync, where)
    raise measure.Failed(f"where is {name}?")


def verify(stage, work):
    """An empty queue and a status of 0 only say that someone thinks that all is done."""
    sizes, client, bucket = stage.replicas(), stage.destination(), stage.servers.bucket
    wrong = [key for key in work.keys.all if sizes.pop(key, []) != [work.bytes]]
    if wrong or sizes:
        raise measure.Failed(f"{len(wrong)} of {work.objects} objects are not there as they should, like {wrong[:1]}; others: {len(sizes)}")
    for number in {0, work.objects // 3, work.objects // 2, work.objects - 1}:
        key = work.keys.name(number)
        for start, end in ((0, SAMPLE_BYTES), (work.bytes - SAMPLE_BYTES, work.bytes)):
            start, end = max(start, 0), min(end, work.bytes)
            found = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")
            if found["Body"].read() != servers.body(number, work.bytes, start, end):
                raise measure.Failed(f"{key} has other bytes than its source")
