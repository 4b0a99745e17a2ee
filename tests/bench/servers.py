"""The servers of the benchmark: the fakes over TCP, and two SeaweedFS."""

import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from contenders import Servers


class Fakes:
    """One process that is source, destination and queue."""

    def __init__(self, binary):
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        hello = json.loads(self.process.stdout.readline())
        self.servers = Servers(hello["endpoint"], hello["endpoint"], hello["queue"], hello["endpoint"])
        self.pid = self.process.pid

    def tell(self, line):
        """Has something done and returns how far all is."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def seed(self, objects, size, keys=None):
        self.tell(f"seed {objects} {size} {keys or objects}")

    def post(self):
        self.tell("post")

    def waiting(self):
        return self.tell("waiting")["waiting"]

    def replicas(self):
        return self.tell("waiting")["replicas"]

    def pace(self, objects, per_second, size):
        self.tell(f"pace {objects} {per_second} {size}")

    def stats(self):
        return self.tell("stats")

    def pids(self):
        return [self.pid]

    def close(self):
        self.process.kill()
        self.process.wait()


class Weeds:
    """Two SeaweedFS, and the fakes for their events, which they cannot send themselves."""

    def __init__(self, weed, binary):
        self.fakes = Fakes(binary)
        self.folder = tempfile.TemporaryDirectory()
        self.weeds = [start_weed(weed, pathlib.Path(self.folder.name) / name) for name in ("source", "destination")]
        source, destination = (f"http://127.0.0.1:{port}" for _, port in self.weeds)
        self.servers = Servers(source, destination, self.fakes.servers.queue, self.fakes.servers.queue_endpoint)
        self.events = []
        try:
            self.clients = [ready(url, bucket) for url, bucket in ((source, "orders"), (destination, "orders-replica"))]
        except SystemExit:
            self.close()
            raise

    def seed(self, objects, size):
        body = b"x" * size
        for number in range(objects):
            key = f"bench/{number:08}"
            # One of them has a tag, as some have everywhere: then it is known that the endpoint counts tags.
            tags = {"Tagging": "tier=gold"} if number == 0 else {}
            answer = self.clients[0].put_object(Bucket="orders", Key=key, Body=body, **tags)
            self.events.append(event(key, size, answer["VersionId"]))

    def post(self):
        for one in self.events:
            self.fakes.tell("send " + one)

    def waiting(self):
        return self.fakes.waiting()

    def stats(self):
        return self.fakes.stats() | {"replicas": None}

    def pids(self):
        return [process.pid for process, _ in self.weeds]

    def close(self):
        for process, _ in self.weeds:
            process.kill()
            process.wait()
        self.fakes.close()
        self.folder.cleanup()


def event(key, size, version):
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    thing = {"key": key, "size": size, "versionId": version, "sequencer": "00"}
    record = {
        "eventVersion": "2.1", "eventSource": "aws:s3", "eventTime": now, "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": "orders"}, "object": thing},
    }
    return json.dumps({"Records": [record]})


def start_weed(weed, folder):
    folder.mkdir()
    names = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    ports = {name: free_port() for name in names + ["s3.port", "s3.port.grpc"]}
    options = [f"-{name}={port}" for name, port in ports.items()]
    command = [
        weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.iam=false", "-volume.max=50",
        "-master.volumeSizeLimitMB=1024", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-dir={folder}", *options,
    ]
    environment = os.environ | {"HOME": str(folder)}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=quiet, stdout=quiet, stderr=quiet)
    return process, ports["s3.port"]


def ready(url, bucket):
    """Waits until a server answers and has a bucket that keeps versions."""
    config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1})
    keys = {"aws_access_key_id": "AKIDUSER", "aws_secret_access_key": "secret", "region_name": "eu-west-1"}
    client = boto3.client("s3", endpoint_url=url, config=config, **keys)
    for _ in range(300):
        try:
            client.create_bucket(Bucket=bucket)
            client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
            client.put_object(Bucket=bucket, Key="ready", Body=b"")
            client.delete_object(Bucket=bucket, Key="ready")
            return client
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
    raise SystemExit(f"SeaweedFS at {url} does not come up")


def free_port():
    # SeaweedFS adds 10,000 to some of its ports.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return port if port < 50_000 else free_port()
