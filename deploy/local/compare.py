"""Finds the replicas of what was done at the source, by listing alone, and compares both sides with boto3.

It shares nothing with the daemon but the name of the stamp, the one header that a replica has and its original has not.
"""

import hashlib
import threading
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from world import GOLD, ORDERS, REPLICA, World

STAMP = "s3-replicator"
HEADERS = (
    "ContentType", "CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage",
    "Expires", "StorageClass", "WebsiteRedirectLocation",
)  # fmt: skip
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Act:
    """One thing done to the source bucket, and the buckets where it has to arrive."""

    what: str
    key: str
    version: str
    destinations: tuple[str, ...]
    marker: bool = False
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Replica:
    """A version or delete marker found at a destination."""

    bucket: str
    key: str
    version: str
    marker: bool
    current: bool
    seen: float


class Watch:
    """Lists the destinations all the time, to know when each replica appeared."""

    def __init__(self, world: World) -> None:
        self.s3 = world.archive("s3")
        self.seen: dict[tuple[str, str, str], float] = {}
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()

    def run(self) -> None:
        """Polls until stopped."""
        while not self.stopped.wait(POLL_SECONDS):
            self.replicas()

    def replicas(self) -> list[Replica]:
        """All replicas of now, the oldest of a key first."""
        found = []
        for bucket in (REPLICA, GOLD):
            answer = self.s3.list_object_versions(Bucket=bucket)
            for kind, marker in (("Versions", False), ("DeleteMarkers", True)):
                for entry in reversed(answer.get(kind, [])):
                    key, version = entry["Key"], entry["VersionId"]
                    seen = self.seen.setdefault((bucket, key, version), time.monotonic())
                    found.append(Replica(bucket, key, version, marker, entry["IsLatest"], seen))
        return found


def pair(acts: list[Act], replicas: list[Replica]) -> tuple[list[tuple[Act, Replica]], list[str]]:
    """Matches what was done with what arrived, each key in order; and says what is missing, too many or not current."""
    wanted, found = defaultdict(list), defaultdict(list)
    for act in acts:
        for bucket in act.destinations:
            wanted[bucket, act.key, act.marker].append(act)
    for replica in replicas:
        found[replica.bucket, replica.key, replica.marker].append(replica)
    last = {act.key: act.version for act in acts}
    pairs, problems = [], []
    for place in wanted.keys() | found.keys():
        bucket, key, _ = place
        for act in wanted[place][len(found[place]) :]:
            problems.append(f"missing in {bucket}: {act.what}, {key}")
        for _ in found[place][len(wanted[place]) :]:
            problems.append(f"too many in {bucket}: {key}")
        for act, replica in zip(wanted[place], found[place]):
            pairs.append((act, replica))
            if replica.current != (last[key] == act.version):
                problems.append(f"not the same current version in {bucket}: {key}")
    return sorted(pairs, key=lambda each: (each[0].at, each[0].destinations.index(each[1].bucket))), sorted(problems)


def wait_for(acts: list[Act], watch: Watch, seconds: float, alive: Callable[[], bool]) -> list[str]:
    """Waits until everything has arrived; what is still wrong at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        _, problems = pair(acts, watch.replicas())
        if not problems or not alive() or time.monotonic() > deadline:
            return problems
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class Side:
    """What a version is, read from one side."""

    size: int
    digest: str
    metadata: dict[str, Any]
    tags: dict[str, str]
    key: str

    @classmethod
    def read(cls, s3: Any, bucket: str, key: str, version: str) -> "Side":
        """Reads the whole version, streaming."""
        where = {"Bucket": bucket, "Key": key, "VersionId": version}
        answer = s3.get_object(**where)
        digest, size = hashlib.sha256(), 0
        for chunk in answer["Body"].iter_chunks(1 << 20):
            digest.update(chunk)
            size += len(chunk)
        user = {name: value for name, value in answer["Metadata"].items() if name != STAMP}
        metadata = {name: answer[name] for name in HEADERS if name in answer} | user
        tags = {tag["Key"]: tag["Value"] for tag in s3.get_object_tagging(**where)["TagSet"]}
        return cls(size, digest.hexdigest(), metadata, tags, answer.get("SSEKMSKeyId", ""))


def row(world: World, act: Act, replica: Replica) -> tuple[list[str], list[str]]:
    """One line of the table, and what is wrong with it."""
    start = [act.what, act.key, act.version[-6:], replica.bucket, replica.version[-6:]]
    after = f"{max(replica.seen - act.at, 0):.1f} s"
    if act.marker:
        return [*start, "marker", "-", "-", "-", after], []
    source = Side.read(world.source("s3"), ORDERS, act.key, act.version)
    target = Side.read(world.archive("s3"), replica.bucket, act.key, replica.version)
    problems = []

    def same(what: str, here: object, there: object) -> str:
        if here == there:
            return "equal"
        problems.append(f"{act.key} in {replica.bucket}: {what} {there!r}, at the source {here!r}")
        return "DIFFER"

    names = {world.source_key: "source key", world.archive_key: "archive key", "": "SSE-S3"}
    used = names.get(target.key, target.key)
    wanted = "archive key" if replica.bucket == REPLICA else names[source.key]
    if used != wanted:
        problems.append(f"{act.key} in {replica.bucket}: encrypted with {used}, not {wanted}")
    cells = [
        f"{same('bytes', source.digest, target.digest)} {human(source.size)}",
        same("metadata", source.metadata, target.metadata),
        same("tags", source.tags, target.tags),
        f"{names[source.key]} → {used}",
    ]
    return [*start, *cells, after], problems


def human(size: int) -> str:
    """A size for people."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB" if size >= 1 << 10 else f"{size} B"


def table(rows: list[list[str]]) -> str:
    """Rows under each other, aligned, the first one a heading."""
    rows = [[cut(cell) for cell in cells] for cells in rows]
    widths = [max(map(width, column)) for column in zip(*rows)]
    lines = ["  ".join(cell + " " * (w - width(cell)) for cell, w in zip(cells, widths)).rstrip() for cells in rows]
    return "\n".join([lines[0], "─" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])


def width(text: str) -> int:
    """How many columns a terminal needs."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text if not unicodedata.combining(c))


def cut(text: str, columns: int = 34) -> str:
    """The text, shortened in the middle where it is long."""
    return text if width(text) <= columns else f"{text[: columns - 12]}…{text[-10:]}"
