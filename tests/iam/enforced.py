"""The daemon where permissions are enforced: with the printed documents, and with actions removed.

    enforced.py --iam FOLDER --binary FILE

Starts MiniStack, which refuses what no policy allows, attaches what `s3-replicator policies` prints, and lets the daemon do
its main job. Then it removes one action after the other: the daemon has to say so, and to do what was left once the action
is back. What MiniStack does not enforce (KMS, s3:PutObjectTagging) or does not do (uploads with a full-object checksum) is
left to the evaluator. Prints a JSON summary.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
from botocore.config import Config

SOURCE, ARCHIVE = "111111111111", "222222222222"
REGIONS = {SOURCE: "eu-west-1", ARCHIVE: "us-east-1"}
OWN = f"arn:aws:iam::{SOURCE}:role/s3-replicator"
ROLE = f"arn:aws:iam::{ARCHIVE}:role/replicator"
ORDERS, REPLICA = "orders", "orders-replica"
SECONDS_MAX = 120

# The role, the action, and what of the daemon's world is touched so that it is needed.
REMOVED = [
    (OWN, "sts:AssumeRole"),
    (OWN, "sqs:ReceiveMessage"),
    (OWN, "sqs:SendMessage"),
    (OWN, "sqs:DeleteMessage"),
    (OWN, "s3:ListBucketVersions"),
    (OWN, "s3:GetObjectVersion"),
    (OWN, "s3:GetObjectVersionTagging"),
    (ROLE, "s3:PutObject"),
    (ROLE, "s3:GetObject"),
    (ROLE, "s3:DeleteObject"),
    (ROLE, "s3:GetBucketVersioning"),
]


class World:
    """Two accounts of MiniStack, and the daemon's configuration for them."""

    def __init__(self, url: str, binary: str, folder: Path) -> None:
        self.url, self.binary, self.folder = url, binary, folder
        self.s3 = {account: self.client("s3", account) for account in REGIONS}
        self.iam = {account: self.client("iam", account) for account in REGIONS}
        self.sqs = self.client("sqs", SOURCE)
        self.config = folder / "config.toml"
        self.log = folder / "daemon.log"
        self.keys = 0
        self.secrets: set[str] = set()
        for account, bucket in ((SOURCE, ORDERS), (ARCHIVE, REPLICA)):
            where = {} if REGIONS[account] == "us-east-1" else {"LocationConstraint": REGIONS[account]}
            self.s3[account].create_bucket(Bucket=bucket, **({"CreateBucketConfiguration": where} if where else {}))
            self.s3[account].put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        self.queues = {name: self.create_queue(name) for name in ("events", "parked", "work.fifo")}
        self.listen = f"127.0.0.1:{free_port()}"
        self.config.write_text(self.text())
        self.documents = {
            (each["kind"], each["attached_to"]): each["policy"] for each in json.loads(self.run("policies"))
        }
        self.attach()
        self.notify()

    def client(self, service: str, account: str):  # noqa: ANN201
        """A client of an account's root, whose secret is the same in all."""
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=REGIONS[account],
            aws_access_key_id=account,
            aws_secret_access_key="test",
            config=Config(s3={"addressing_style": "path"}),
        )

    def create_queue(self, name: str) -> str:
        attributes = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
        return self.sqs.create_queue(QueueName=f"orders-{name}", Attributes=attributes)["QueueUrl"]

    def text(self) -> str:
        return f"""
state_dir = "{self.folder}/state"
listen = "{self.listen}"
accounts.source = {{ region = "{REGIONS[SOURCE]}", endpoint = "{self.url}" }}
accounts.archive = {{ region = "{REGIONS[ARCHIVE]}", endpoint = "{self.url}", role_arn = "{ROLE}", external_id = "orders-archive" }}

[[queues]]
url = "{self.queues["events"]}"
account = "source"
visibility_timeout = "10s"
dead_letter_url = "{self.queues["parked"]}"
work_queue = "{self.queues["work.fifo"]}"

[[rules]]
id = "orders"
source = {{ account = "source", bucket = "{ORDERS}" }}
destination = {{ account = "archive", bucket = "{REPLICA}" }}
since = "2020-01-01T00:00:00Z"
delete_markers = true
"""

    def attach(self) -> None:
        """Makes the roles, with the documents as they are printed."""
        root = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{SOURCE}:root"}, "Action": "sts:AssumeRole"}
        trusts = {OWN: {"Version": "2012-10-17", "Statement": [root]}, ROLE: self.documents["trust", ROLE]}
        for role, trust in trusts.items():
            iam = self.iam[role.split(":")[4]]
            iam.create_role(RoleName=role.split("/")[1], AssumeRolePolicyDocument=json.dumps(trust))
            self.allow(role)

    def allow(self, role: str, without: str = "") -> None:
        """Gives a role its permissions, all or all but one."""
        policy = json.loads(json.dumps(self.documents["permissions", role]))
        for statement in policy["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            kept = [action for action in actions if action != without]
            # MiniStack asks for a permission of the batch's name, which AWS does not have.
            statement["Action"] = kept + [f"{action}Batch" for action in kept if action.startswith("sqs:")]
        policy["Statement"] = [statement for statement in policy["Statement"] if statement["Action"]]
        iam = self.iam[role.split(":")[4]]
        iam.put_role_policy(RoleName=role.split("/")[1], PolicyName="s3-replicator", PolicyDocument=json.dumps(policy))

    def notify(self) -> None:
        arn = f"arn:aws:sqs:{REGIONS[SOURCE]}:{SOURCE}:orders-events"
        policy = self.documents["queue-policy", arn]
        self.sqs.set_queue_attributes(QueueUrl=self.queues["events"], Attributes={"Policy": json.dumps(policy)})
        events = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*", "s3:ObjectTagging:*"]
        configuration = {"QueueConfigurations": [{"QueueArn": arn, "Events": events}]}
        self.s3[SOURCE].put_bucket_notification_configuration(
            Bucket=ORDERS, NotificationConfiguration=configuration
        )

    def run(self, *arguments: str) -> str:
        command = [self.binary, *arguments, "--config", self.config]
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode != 0:
            print(ended.stderr, file=sys.stderr)
        ended.check_returncode()
        return ended.stdout

    def assume_own_role(self, session_name: str) -> dict[str, str]:
        """The environment of a command that the role of its own signs for."""
        sts = self.client("sts", SOURCE)
        session = sts.assume_role(RoleArn=OWN, RoleSessionName=session_name)["Credentials"]
        self.secrets |= {session["SecretAccessKey"], session["SessionToken"]}
        return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
            "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
            "AWS_SESSION_TOKEN": session["SessionToken"],
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @contextlib.contextmanager
    def daemon(self) -> Iterator[None]:
        """Runs the daemon as the role of its own."""
        environment = self.assume_own_role("daemon")
        with open(self.log, "wb") as log:
            process = subprocess.Popen(
                [self.binary, "run", "--config", self.config], env=environment, stdout=log, stderr=log
            )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
            self.refuse_secrets(self.log.read_text(errors="replace"))

    def refuse_secrets(self, text: str) -> None:
        """Ends the run if an output holds a secret key or token that the daemon signs with."""
        if found := [secret[:4] for secret in self.secrets if secret in text]:
            sys.exit(f"secrets that begin with {found} are printed in:\n{text[-6000:]}")

    def do_job(self) -> None:
        """Writes, overwrites and deletes under a key of its own, and tags a neighbour that stays.

        MiniStack has no tags of a version that a delete marker hides.
        """
        self.keys += 1
        s3, key = self.s3[SOURCE], f"job-{self.keys}"
        for body in ("one", "two"):
            s3.put_object(Bucket=ORDERS, Key=key, Body=body)
        s3.put_object(Bucket=ORDERS, Key=f"{key}-kept", Body="kept", Tagging="tier=gold")
        s3.delete_object(Bucket=ORDERS, Key=key)

    def history(self, account: str, bucket: str) -> dict[str, list[str]]:
        """The versions of each key, newest first: ETag, or that it is a marker."""
        listed = self.s3[account].list_object_versions(Bucket=bucket)
        entries = [(each, each["ETag"]) for each in listed.get("Versions", [])]
        entries += [(each, "marker") for each in listed.get("DeleteMarkers", [])]
        keys = sorted({each["Key"] for each, _ in entries})
        # Of a key there are two versions at most, and a marker on top.
        return {key: [what for each, what in entries if each["Key"] == key] for key in keys}

    def is_equal(self) -> bool:
        return self.history(SOURCE, ORDERS) == self.history(ARCHIVE, REPLICA)

    def wrongs(self) -> list[str]:
        """What the daemon says that a missing permission looks like: on its page of metrics or in its log."""
        found = []
        with contextlib.suppress(OSError):
            page = urllib.request.urlopen(f"http://{self.listen}/metrics", timeout=5).read().decode()
            for line in page.splitlines():
                if line.startswith("s3_replicator_failures_total") and not line.endswith(" 0"):
                    found.append(line)
        words = ("AccessDenied", "NotPermitted", "not authorized")
        lines = self.log.read_text(errors="replace").splitlines()
        found += [line for line in lines if any(word in line for word in words)]
        return found


def remove_and_repair(world: World, role: str, action: str) -> str:
    """Takes an action away while there is work, waits for the daemon to say so, and gives it back."""
    world.allow(role, without=action)
    with world.daemon():
        world.do_job()
        eventually(f"the daemon says that {action} is missing", lambda: bool(world.wrongs()), world)
        told = world.wrongs()[-1]
        world.allow(role)
        began = time.monotonic()
        while not world.is_equal() and time.monotonic() - began < SECONDS_MAX:
            # A schedule retries by itself, too, within minutes.
            with contextlib.suppress(subprocess.CalledProcessError):
                world.run("failures", "retry", "--all")
            time.sleep(2)
        eventually(f"all is equal after {action} is back", world.is_equal, world)
    return told


def eventually(what: str, condition: Callable[[], bool], world: World) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"it never came true that {what}\n{world.log.read_text(errors='replace')[-6000:]}")
        time.sleep(0.5)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def ministack(iam: Path, folder: Path) -> Iterator[str]:
    """Yields the URL of a MiniStack that enforces permissions."""
    port = free_port()
    settings = {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "AUTH": "true",
        "SERVICES": "s3,sqs,sns,kms,sts,iam,events",
        "LOG_LEVEL": "WARNING",
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "TMPDIR": str(folder),
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with open(folder / "ministack.log", "wb") as log:
        process = subprocess.Popen(
            [iam / "bin" / "python", "-m", "ministack"], env=kept | settings, cwd=folder, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit((folder / "ministack.log").read_text()[-4000:])
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iam", type=Path, required=True)
    parser.add_argument("--binary", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ministack(arguments.iam, Path(name)) as url:
        world = World(url, arguments.binary, Path(name))
        with world.daemon():
            world.do_job()
            eventually("all is equal", world.is_equal, world)
            wrongs = world.wrongs()
        told = {action: remove_and_repair(world, role, action) for role, action in REMOVED}
        print(json.dumps({"refused": wrongs, "told": told, "keys": len(world.history(ARCHIVE, REPLICA))}))


if __name__ == "__main__":
    main()
