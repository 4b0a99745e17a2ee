"""The servers of the benchmark: the fakes over TCP, and two SeaweedFS. Each run of a contender has a stage on them: a
queue, and a destination that is empty."""

import dataclasses
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

from contenders import Servers, bare


class FakeWorld:
    """Costs little to prepare, so that each stage has its own."""

    def __init__(self, options):
        self.serve = str(options.bin / "serve")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def stage(self, keys, size, objects=None, destinations=1, is_crowded=True):
        """Puts so many objects under the keys in turn, or one under each of them; with the others around them if there are any."""
        stage = Fakes(self.serve, keys)
        if keys.others and is_crowded:
            stage.tell(f"others {keys.write_others(stage.folder.name)} {destinations}")
        stage.tell(f"seed {stage.keys_file} {size} {objects or keys.count}")
        return stage

    def stage_of_one(self, keys, size):
        """All keys show the same object, because seeding takes long and memory for so many may be lacking."""
        stage = Fakes(self.serve, keys)
        if keys.others:
            stage.tell(f"others {keys.write_others(stage.folder.name)} 1")
        stage.tell(f"repeat {stage.keys_file} {size}")
        return stage


class Fakes:
    """One process that is source, destination and queue."""

    def __init__(self, serve, keys):
        self.process = subprocess.Popen([serve], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        hello = json.loads(self.process.stdout.readline())
        endpoint, queues = hello["endpoint"], (hello["dead_letter_queue"], hello["work_queues"])
        self.servers = Servers(endpoint, endpoint, "orders-replica", hello["queue"], endpoint, *queues)
        self.folder = tempfile.TemporaryDirectory()
        self.keys_file = keys.write(self.folder.name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def tell(self, line):
        """Has something done and returns how far all is."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def post(self, count):
        self.tell(f"post {count}")

    def pace(self, per_second):
        self.tell(f"pace {per_second}")

    def progress(self):
        return self.tell("waiting")

    def waiting(self):
        return self.progress()["waiting"]

    def stats(self):
        return self.tell(f"stats {self.servers.bucket}")

    def replicas(self):
        """Returns the sizes of all versions at the destination by key, but for the others there."""
        return self.tell("replicas")

    def pids(self):
        return [self.process.pid]

    def destination(self):
        return client(self.servers.destination)

    def requests(self, _used):
        """Returns what requests a contender sent; the journal sees all."""
        asked = self.stats()["requests"].items()
        return {f"{service} {operation}": count for service, of_service in asked for operation, count in of_service.items()}

    def latency(self):
        """Returns how long events took to be replicas."""
        return self.stats()["replicated_seconds"]


class WeedWorld:
    """Two SeaweedFS, which all stages share because it takes long to fill them."""

    def __init__(self, options):
        self.programs = options.bin
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

    def stage(self, keys, size, is_crowded=True):
        if not self.events:
            self._seed(keys, size)
        self.stages += 1
        return Weeds(self, keys, is_crowded, f"orders-replica-{self.stages}")

    def _seed(self, keys, size):
        source = client(self.urls[0])
        # In the second there are no others.
        for bucket in ("orders", PLAIN)[: 1 + keys.scattered]:
            make_bucket(source, bucket)
            for number, key in enumerate(keys.all):
                # One of them has a tag, as some have everywhere: then it is known that the endpoint counts tags.
                tags = {"Tagging": "tier=gold"} if number == 0 else {}
                answer = source.put_object(Bucket=bucket, Key=key, Body=body(number, size), **tags)
                self.events += [(key, size, answer["VersionId"])] if bucket == "orders" else []
        if keys.scattered:
            make_bucket(client(self.urls[1]), CROWDED)
            self._copy_others(keys)

    def _copy_others(self, keys):
        """Copies the other keys from fakes, the fastest way that there is."""
        with Fakes(str(self.programs / "serve"), keys) as stage:
            others = keys.write_others(stage.folder.name)
            stage.tell(f"others {others} 1")
            for url, bucket in zip(self.urls, ("orders", CROWDED)):
                where = dataclasses.replace(stage.servers, destination=url, bucket=bucket)
                copy = bare(str(self.programs / "bare"), where, others)
                subprocess.run(copy.command, check=True)


# A bucket that has the objects without the others around them, and one that has the others alone.
PLAIN, CROWDED = "orders-plain", "orders-replica"


class Weeds(Fakes):
    """A bucket at the destination, and the fakes for the events, which SeaweedFS cannot send itself."""

    def __init__(self, world, keys, is_crowded, bucket):
        super().__init__(str(world.programs / "serve"), keys)
        self.world, self.keys = world, keys
        self.is_shared = keys.scattered and is_crowded
        bucket = CROWDED if self.is_shared else bucket
        source_bucket = PLAIN if keys.scattered and not is_crowded else "orders"
        conditions = "conditional_writes = false"
        self.servers = dataclasses.replace(
            self.servers, source=world.urls[0], destination=world.urls[1], bucket=bucket, source_bucket=source_bucket,
            conditions=conditions,
        )
        if not self.is_shared:
            make_bucket(self.destination(), bucket)
        for one in world.events:
            self.tell("hold " + event(*one))

    def __exit__(self, *_):
        super().__exit__()
        if self.is_shared:
            for key in self.keys.all:
                for version, _ in self._versions(key):
                    self.destination().delete_object(Bucket=self.servers.bucket, Key=key, VersionId=version)
        else:
            # Each bucket has volumes of its own, and there are not many.
            self.destination().delete_bucket(Bucket=self.servers.bucket)

    def replicas(self):
        """Lists the bucket, or where it has others each key."""
        if self.is_shared:
            return {key: [size for _, size in self._versions(key)] for key in self.keys.all}
        sizes = {}
        for page in self.destination().get_paginator("list_object_versions").paginate(Bucket=self.servers.bucket):
            for version in page.get("Versions", []):
                sizes.setdefault(version["Key"], []).append(version["Size"])
        return sizes

    def _versions(self, key):
        page = self.destination().list_object_versions(Bucket=self.servers.bucket, Prefix=key)
        return [(version["VersionId"], version["Size"]) for version in page.get("Versions", [])]

    def pids(self):
        return [process.pid for process, _ in self.world.weeds]

    def requests(self, used):
        """SeaweedFS counts nothing: a daemon says it itself, and of the peers it is not known."""
        return dict(used.requests) or None

    def latency(self):
        """Nobody sees when a replica lands here; the message is deleted a little later."""
        return self.stats()["acknowledged_seconds"]


WORLDS = {"fakes": FakeWorld, "seaweedfs": WeedWorld}


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
