"""Who is measured: the daemon, its peers, and the least that a client can do. Each is a command and its surroundings."""

import os
import pathlib
from dataclasses import dataclass, field

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDBENCH", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}

CONFIG = """
state_dir = "{state}"
listen = "127.0.0.1:{port}"
memory = "{memory}"
drain_timeout = "5s"
[accounts.source]
region = "eu-west-1"
endpoints = {{ s3 = "{source}", sqs = "{queue_endpoint}" }}
path_style = true
[accounts.archive]
region = "eu-west-1"
endpoint = "{destination}"
path_style = true
{conditions}
[[queues]]
url = "{queue}"
account = "source"
dead_letter_url = "{dead_letter_queue}"
{rules}
"""

RULE = """
[[rules]]
id = "{id}"
source = {{ account = "source", bucket = "orders" }}
destination = {{ account = "archive", bucket = "{bucket}" }}
since = "2020-01-01T00:00:00Z"
{rest}
"""


@dataclass
class Servers:
    """Where objects are read and written, and where events come from."""

    source: str
    destination: str
    bucket: str
    queue: str
    queue_endpoint: str
    dead_letter_queue: str
    work_queues: list
    source_bucket: str = "orders"
    # What the configuration says of conditions at the destination, which it would have to find out otherwise.
    conditions: str = "conditional_writes = true"


@dataclass
class Contender:
    name: str
    command: list
    environment: dict = field(default_factory=dict)
    # Where a service tells how many requests it sent. What has none ends by itself when its work is done; a service is
    # told to stop when the queue is empty.
    metrics: str = None


# Ways in which the daemon is measured: whole histories or the newest state, from the events' queue or by a work queue.
DAEMONS = ("daemon", "daemon-latest", "daemon-queue", "daemon-latest-queue")


def rule(name, bucket, way, work_queue, rest=""):
    """Writes a rule for a daemon that works in this way."""
    keys = [rest]
    if "latest" in way:
        keys.append('history = "latest"')
    if "queue" in way:
        keys.append(f'work_queue = "{work_queue}"')
    return RULE.format(id=name, bucket=bucket, rest="\n".join(keys))


def daemon(binary, servers, folder, port, way="daemon", memory="64MiB", rules=None):
    config = pathlib.Path(folder) / f"{port}.toml"
    state = f"{folder}/state-{port}"
    values = vars(servers) | {"state": state, "port": port, "memory": memory, "rules": rules or rule("bench", servers.bucket, way, servers.work_queues[0])}
    config.write_text(CONFIG.format(**values))
    # As a clean stop leaves it: what comes after a kill is not what is measured.
    pathlib.Path(state).mkdir()
    (pathlib.Path(state) / "stopped").touch()
    log = {"S3_REPLICATOR_LOG": "warn"}
    command = [binary, "run", "--config", str(config)]
    return Contender("s3-replicator", command, KEYS | log, f"http://127.0.0.1:{port}/metrics")


def bare(binary, servers, keys, *more):
    places = ["--source", servers.source, "--destination", servers.destination, "--bucket", servers.bucket]
    return Contender("bare GET and PUT", [binary, *places, "--keys", str(keys), *more])


CURL = """
while read -r key; do
    curl -sSf "$SOURCE/orders/$key" |
        curl -sSf -o /dev/null -T - -H "Content-Length: $BYTES" -H "Transfer-Encoding:" "$DESTINATION/$BUCKET/$key"
done <"$KEYS"
"""


def curl(servers, keys, size):
    """One stream, unsigned: the least that copying through a client can cost."""
    places = {"SOURCE": servers.source, "DESTINATION": servers.destination, "BUCKET": servers.bucket}
    work = {"KEYS": str(keys), "BYTES": str(size)}
    return Contender("curl | curl", ["bash", "-euo", "pipefail", "-c", CURL], places | work)


def rclone(binary, servers):
    def remote(name, endpoint):
        options = {
            "TYPE": "s3", "PROVIDER": "Other", "ACCESS_KEY_ID": "AKIDBENCH", "SECRET_ACCESS_KEY": "secret",
            "REGION": "eu-west-1", "ENDPOINT": endpoint, "FORCE_PATH_STYLE": "true", "NO_CHECK_BUCKET": "true", "LIST_VERSION": "2",
        }
        return {f"RCLONE_CONFIG_{name}_{option}": value for option, value in options.items()}

    environment = remote("SRC", servers.source) | remote("DST", servers.destination)
    command = [binary, "copy", f"src:{servers.source_bucket}", f"dst:{servers.bucket}", "--transfers", "32", "--checkers", "32", "--fast-list", "-q"]
    return Contender("rclone", command + ["--config", os.devnull], environment)


def s3sync(binary, servers):
    # Listings in parallel want a delimiter, which the fakes do not know. A source put in one piece has another ETag than
    # what goes in parts, which s3sync would warn of, and end with 3.
    command = [
        binary, f"s3://{servers.source_bucket}/", f"s3://{servers.bucket}/", "--worker-size", "32",
        "--max-parallel-listings", "1", "--disable-multipart-verify",
        "--source-endpoint-url", servers.source, "--target-endpoint-url", servers.destination,
        "--source-force-path-style", "--target-force-path-style",
        "--source-access-key", "AKIDBENCH", "--source-secret-access-key", "secret", "--source-region", "eu-west-1",
        "--target-access-key", "AKIDBENCH", "--target-secret-access-key", "secret", "--target-region", "eu-west-1",
    ]
    return Contender("s3sync", command)
