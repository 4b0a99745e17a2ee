"""The servers of the benchmark: the fakes over TCP, and two SeaweedFS. Each run of a contender has a stage on them: a
queue, and a destination that is empty."""

import functools
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


class FakeWorld:
    """Costs little to prepare, so that each stage has its own."""

    def __init__(self, options):
        self.serve = str(options.bin / "serve")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def stage(self, objects, size, keys=None):
        stage = Fakes(self.serve)
        stage.tell(f"seed {objects} {size} {keys or objects}")
        return stage

    def stage_of_one(self, objects, size):
        """All keys show the same object, because memory for so many would be lacking."""
        stage = Fakes(self.serve)
        stage.tell(f"repeat {objects} {size}")
        return stage


class Fakes:
    """One process that is source, destination and queue."""

    def __init__(self, serve):
        self.process = subprocess.Popen([serve], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        hello = json.loads(self.process.stdout.readline())
        self.servers = Servers(hello["endpoint"], hello["endpoint"], "orders-replica", hello["queue"], hello["endpoint"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def tell(self, line):
        """Has something done and returns how far all is."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def post(self, count):
        self.tell(f"post {count}")

    def pace(self, per_second):
        self.tell(f"pace {per_second}")

    def waiting(self):
        return self.tell("waiting")["waiting"]

    def stats(self):
        return self.tell("stats")

    def pids(self):
        return [self.process.pid]

    def destination(self):
        return client(self.servers.destination)

    def requests(self, _used):
        """Returns how many requests a contender sent; the journal sees all."""
        return sum(self.stats()["requests"].values())

    def latency(self):
        """Returns how long events took to be replicas."""
        return self.stats()["replicated_seconds"]


class WeedWorld:
    """Two SeaweedFS, which all stages share because it takes long to fill them."""

    def __init__(self, options):
        self.serve = str(options.bin / "serve")
        self.folder = tempfile.TemporaryDirectory()
        self.weeds = [start_weed(options.weed, pathlib.Path(self.folder.name) / name) for name in ("source", "destination")]
        self.urls = [f"http://127.0.0.1:{port}" for _, port in self.weeds]
        self.events, self.stages = [], 0

    def __enter__(self):
        try:
            for url in self.urls:
                come_up(url)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process, _ in self.weeds:
            process.kill()
            process.wait()
        self.folder.cleanup()

    def stage(self, objects, size):
        if not self.events:
            self._seed(objects, size)
        self.stages += 1
        return Weeds(self, f"orders-replica-{self.stages}")

    def _seed(self, objects, size):
        source = client(self.urls[0])
        make_bucket(source, "orders")
        for number in range(objects):
            # One of them has a tag, as some have everywhere: then it is known that the endpoint counts tags.
            tags = {"Tagging": "tier=gold"} if number == 0 else {}
            answer = source.put_object(Bucket="orders", Key=key(number), Body=body(number, size), **tags)
            self.events.append((key(number), size, answer["VersionId"]))


class Weeds(Fakes):
    """A bucket at the destination, and the fakes for the events, which SeaweedFS cannot send itself."""

    def __init__(self, world, bucket):
        super().__init__(world.serve)
        self.world, self.bucket = world, bucket
        queue = self.servers.queue, self.servers.queue_endpoint
        self.servers = Servers(*world.urls, bucket, *queue)
        make_bucket(self.destination(), bucket)
        for one in world.events:
            self.tell("hold " + event(*one))

    def __exit__(self, *_):
        super().__exit__()
        # Each bucket has volumes of its own, and there are not many.
        self.destination().delete_bucket(Bucket=self.bucket)

    def pids(self):
        return [process.pid for process, _ in self.world.weeds]

    def requests(self, used):
        """SeaweedFS counts nothing: a daemon says it itself, and of the peers it is not known."""
        return sum(used.requests.values()) or None

    def latency(self):
        """Nobody sees when a replica lands here; the message is deleted a little later."""
        return self.stats()["acknowledged_seconds"]


WORLDS = {"fakes": FakeWorld, "seaweedfs": WeedWorld}


def key(number):
    return f"bench/{number:08}"


def body(number, size, start=0, end=None):
    """What is seeded: no two are the same. Returns all of it or what lies between two places."""
    end = size if end is None else end
    name = number.to_bytes(8, "little")
    return (name[start:end] + b"x" * (end - max(start, len(name))))[: end - start]


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


@functools.cache
def client(url):
    """Who prepares and checks; the fakes do not count what it asks."""
    config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1})
    keys = {"aws_access_key_id": "AKIDUSER", "aws_secret_access_key": "secret", "region_name": "eu-west-1"}
    return boto3.client("s3", endpoint_url=url, config=config, **keys)


def come_up(url):
    """Waits until a server takes objects."""
    for _ in range(300):
        try:
            make_bucket(client(url), "ready")
            client(url).put_object(Bucket="ready", Key="ready", Body=b"")
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
    raise SystemExit(f"SeaweedFS at {url} does not come up")


def make_bucket(client, bucket):
    client.create_bucket(Bucket=bucket)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def free_port():
    # SeaweedFS adds 10,000 to some of its ports.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return port if port < 50_000 else free_port()
