"""Watch it work: two accounts on this machine, two daemons between them, and a table of what arrived.

    demo.py [--keep]    --keep leaves everything running until Ctrl-C, to play with

The story is the usual walk-through of cross-account replication: objects, overwrites, deletes, KMS keys, rules.
Exits 0 only if every replica equals its original and nothing else arrived.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import compare
import stack
import world as worlds
from compare import Act
from world import GOLD, ORDERS, REPLICA, World

BINARY = Path(os.environ.get("S3_REPLICATOR_BIN") or stack.BUILD_DIR / "target" / "release" / "s3-replicator")
LOGS = stack.BUILD_DIR / "demo-logs"
READY_SECONDS_MAX, ARRIVAL_SECONDS_MAX, DRAIN_SECONDS_MAX, STOP_SECONDS_MAX = 30, 60, 30, 40
MIB = 1 << 20
ODD_KEYS = (
    "orders/a space + a plus.txt",
    "orders//double//slash.txt",
    "orders/ünï 日本語 😀.txt",
    "orders/100%25 & %2F.txt",
    "orders/quote\"'\\back.txt",
    "orders/trailing/",
)
HEADING = ["what", "source key", "version", "replica in", "version", "bytes", "metadata", "tags", "encrypted with", "after"]


class Failed(Exception):
    """Something that should have happened did not."""


class Story:
    """Does things to the source bucket, and remembers them."""

    def __init__(self, world: World) -> None:
        self.world, self.s3, self.acts = world, world.source("s3"), []

    def put(self, what: str, key: str, body: bytes, *destinations: str, **more: object) -> Act:
        """Uploads an object."""
        answer = self.s3.put_object(Bucket=ORDERS, Key=key, Body=body, **more)
        return self.note(Act(what, key, answer["VersionId"], destinations))

    def delete(self, what: str, key: str, *destinations: str) -> Act:
        """Deletes as users do: a delete marker hides the object."""
        answer = self.s3.delete_object(Bucket=ORDERS, Key=key)
        return self.note(Act(what, key, answer["VersionId"], destinations, marker=True))

    def upload(self, what: str, key: str, parts: list[bytes], *destinations: str, **more: object) -> Act:
        """Uploads an object in parts."""
        upload = {"Bucket": ORDERS, "Key": key}
        upload["UploadId"] = self.s3.create_multipart_upload(**upload, **more)["UploadId"]
        done = []
        for number, body in enumerate(parts, 1):
            etag = self.s3.upload_part(**upload, PartNumber=number, Body=body)["ETag"]
            done.append({"PartNumber": number, "ETag": etag})
        answer = self.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})
        return self.note(Act(what, key, answer["VersionId"], destinations))

    def note(self, act: Act) -> Act:
        """Remembers, and tells."""
        self.acts.append(act)
        where = ", ".join(act.destinations) or "nowhere"
        print(f"  {act.what:<24} {act.key}  → {where}")
        return act

    def tell(self) -> Act:
        """The whole story; the object that will be deleted for good."""
        kms = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.world.source_key}
        headers = {"ContentType": "application/json", "CacheControl": "max-age=60", "Metadata": {"customer": "17"}}
        self.put("plain object", "orders/invoice.json", b'{"total": 10}', REPLICA, **headers, Tagging="team=web")
        self.put("overwritten", "orders/invoice.json", b'{"total": 12}', REPLICA, **headers)
        self.put("to be deleted", "orders/cancelled.json", b"{}", REPLICA)
        self.delete("deleted (a marker)", "orders/cancelled.json", REPLICA)
        doomed = self.put("to be purged later", "orders/keep-me.json", b"precious", REPLICA)
        self.put("KMS-encrypted", "orders/secret.json", b"a secret", REPLICA, **kms, BucketKeyEnabled=True)
        self.put("in both rules", "orders/gold.json", b"gold" * 999, REPLICA, GOLD, Tagging="tier=gold&team=web")
        self.put("in the tag rule only", "reports/gold.csv", b"1;2", GOLD, Tagging="tier=gold", ContentType="text/csv")
        parts = [bytes([number]) * (8 * MIB) for number in range(5)]
        tags = "team=data&retention=7%20years"
        metadata = {"ContentType": "application/parquet", "Metadata": {"rows": "1000000", "made-by": "demo"}}
        self.upload("multipart, 40 MiB", "orders/export.parquet", parts, REPLICA, **metadata, Tagging=tags)
        for key in ODD_KEYS:
            self.put("odd key", key, key.encode(), REPLICA)
        self.put("not below orders/", "drafts/idea.txt", b"no rule for it")
        self.put("another tag", "reports/silver.csv", b"3;4", Tagging="tier=silver")
        self.put("KMS without opt-in", "reports/gold-secret.csv", b"5;6", **kms, Tagging="tier=gold")
        return doomed


class Daemon:
    """The program under show, one of those that share the work."""

    def __init__(self, local: stack.Stack, world: World, number: int) -> None:
        own = local.folder / f"daemon-{number}"
        own.mkdir()
        self.listen, self.log, self.config = free_address(), own / "daemon.log", own / "config.toml"
        worlds.write_config(world, self.config, self.listen, own / "state")
        account = {"AWS_ACCESS_KEY_ID": worlds.SOURCE, "AWS_SECRET_ACCESS_KEY": "local"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [BINARY, "run", "--config", self.config],
                env=stack.clean_environment() | account,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    def check_alive(self) -> None:
        """Fails if it ended."""
        if not self.alive():
            raise Failed(f"the daemon ended by itself, with exit code {self.process.returncode}")

    def wait_until_ready(self) -> None:
        """Returns when /readyz says 200."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while self.alive() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://{self.listen}/readyz", timeout=2).status == 200:
                    return
            time.sleep(0.1)
        self.check_alive()
        raise Failed(f"the daemon was not ready after {READY_SECONDS_MAX} s")

    def finish(self) -> None:
        """Asks it to stop; it has to drain and exit 0."""
        self.process.terminate()
        try:
            code = self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Failed(f"the daemon did not stop within {STOP_SECONDS_MAX} s of SIGTERM") from None
        if code != 0:
            raise Failed(f"the daemon exited {code} after SIGTERM, not 0")


@contextlib.contextmanager
def running(local: stack.Stack, world: World) -> Iterator[list[Daemon]]:
    """Yields the daemons; when something fails, keeps the logs and says where."""
    daemons = [Daemon(local, world, number) for number in (1, 2)]
    try:
        yield daemons
    except Exception as error:
        shutil.rmtree(LOGS, ignore_errors=True)
        LOGS.mkdir(parents=True)
        shutil.copy(local.log, LOGS)
        for daemon in daemons:
            for file in (daemon.log, daemon.config):
                shutil.copy(file, LOGS / f"{file.parent.name}-{file.name}")
            print(f"\nThe last lines of {daemon.log.parent.name}:\n{stack.tail(daemon.log)}")
        print(f"\nAll logs and configs: {LOGS}")
        raise Failed(str(error)) from error
    finally:
        for daemon in daemons:
            stack.stop(daemon.process)


def free_address() -> str:
    """An address that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def check_arrival(world: World, acts: list[Act], watch: compare.Watch) -> None:
    """Prints the table; fails when anything is unequal."""
    pairs, problems = compare.pair(acts, watch.replicas())
    rows = [HEADING]
    for act, replica in pairs:
        cells, wrong = compare.row(world, act, replica)
        rows.append(cells)
        problems += wrong
    print(f"\n{compare.table(rows)}\n")
    if problems:
        raise Failed("not equal:\n  " + "\n  ".join(problems))
    print(f"{len(pairs)} replicas, all equal, each key's in the source's order; the destinations hold nothing else.")


def purge(world: World, doomed: Act, acts: list[Act], watch: compare.Watch, daemons: list[Daemon]) -> None:
    """Deletes a version for good at the source: its replica has to stay, as with native replication."""
    world.source("s3").delete_object(Bucket=ORDERS, Key=doomed.key, VersionId=doomed.version)
    wait_until_drained(world, daemons)
    if problems := compare.pair(acts, watch.replicas())[1]:
        raise Failed("after the permanent delete:\n  " + "\n  ".join(problems))
    print(f"{doomed.key} was permanently deleted at the source: its replica stays, safe from malicious deletes.")
    for act in acts:
        if not act.destinations:
            print(f"{act.key} was not replicated: {act.what}.")


def wait_until_drained(world: World, daemons: list[Daemon]) -> None:
    """Returns when no queue of events or work has waiting or hidden messages."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    deadline = time.monotonic() + DRAIN_SECONDS_MAX
    while time.monotonic() < deadline:
        for daemon in daemons:
            daemon.check_alive()
        time.sleep(0.5)  # an event needs a moment to get from S3 to the queue
        queues = [world.queue_url, *world.work_queues.values()]
        sqs = world.source("sqs")
        depths = {
            url: sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
            for url in queues
        }
        if all(depth[name] == "0" for depth in depths.values() for name in names):
            return
    raise Failed(f"queues still had messages after {DRAIN_SECONDS_MAX} s: {depths}")


def show(local: stack.Stack, keep: bool) -> None:
    """The demo in a running LocalStack."""
    world = worlds.build(local.url)
    print(f"LocalStack is up at {local.url}: accounts {worlds.SOURCE} (source) and {worlds.ARCHIVE} (archive)")
    with running(local, world) as daemons:
        for daemon in daemons:
            daemon.wait_until_ready()
        addresses = " and ".join(f"http://{daemon.listen}" for daemon in daemons)
        print(f"Two s3-replicators share the work, at {addresses}\n\nAt the source we put, overwrite and delete:")
        story = Story(world)
        with compare.Watch(world) as watch:
            doomed = story.tell()
            if problems := compare.wait_for(
                story.acts, watch, ARRIVAL_SECONDS_MAX, lambda: all(daemon.alive() for daemon in daemons)
            ):
                for daemon in daemons:
                    daemon.check_alive()
                raise Failed(f"not all arrived within {ARRIVAL_SECONDS_MAX} s:\n  " + "\n  ".join(problems))
        wait_until_drained(world, daemons)
        check_arrival(world, story.acts, watch)
        purge(world, doomed, story.acts, watch, daemons)
        if keep:
            hold(local, daemons[0])
        for daemon in daemons:
            daemon.finish()
        print("Asked to stop, both daemons drained and exited 0.")


def hold(local: stack.Stack, daemon: Daemon) -> None:
    """Leaves everything running until Ctrl-C."""
    aws = f"AWS_ACCESS_KEY_ID={worlds.SOURCE} AWS_SECRET_ACCESS_KEY=local {stack.PYTHON.parent / 'aws'}"
    print(f"""
Still running, until Ctrl-C. In another terminal:
  curl http://{daemon.listen}/metrics
  less {daemon.config}
  tail -f {daemon.log}
  {aws} --endpoint-url {local.url} s3 cp README.md s3://{ORDERS}/orders/README.md
  {aws} --endpoint-url {local.url} s3 ls --recursive s3://{REPLICA}""", flush=True)
    with contextlib.suppress(SystemExit):
        signal.pause()


def main() -> int:
    """Runs the demo; its exit code."""
    stack.end_on_signals()
    clean = stack.clean_environment()
    os.environ.clear()
    os.environ.update(clean)
    began = time.monotonic()
    print("Starting LocalStack (about 10 s) …", flush=True)
    try:
        with stack.running() as local:
            show(local, keep="--keep" in sys.argv[1:])
    except Failed as error:
        print(f"\nThe demo FAILED: {error}")
        return 1
    print(f"""
The demo took {time.monotonic() - began:.0f} s and left nothing behind. What to try next:
  make demo ARGS=--keep      the same, left running: curl its /metrics, put objects of your own
  make test                  all tests
  {BINARY} check --offline --config config/example.toml
  {BINARY} run --help""")
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
