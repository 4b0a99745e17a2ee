"""The world of the demo: two accounts in two Regions, as they would be on AWS.

    source  111111111111 eu-west-1   bucket orders ──events──▶ queue orders-events ──▶ a work queue for each destination,
                                     and orders-parked for what cannot be done
    archive 222222222222 us-east-1   buckets orders-replica and orders-gold, role replicator (external id orders-archive)

Both have a KMS key. LocalStack takes the account from the access key id, or from the assumed role.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

SOURCE, ARCHIVE = "111111111111", "222222222222"
REGIONS = {SOURCE: "eu-west-1", ARCHIVE: "us-east-1"}
ORDERS, REPLICA, GOLD = "orders", "orders-replica", "orders-gold"
EXTERNAL_ID = "orders-archive"
EVENTS = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*", "s3:ObjectTagging:*", "s3:ObjectAcl:Put"]


@dataclass(frozen=True)
class World:
    """Where things are, once they are made."""

    url: str
    queue_url: str
    dead_letter_url: str
    work_queues: dict[str, str]
    role_arn: str
    source_key: str
    archive_key: str

    def source(self, service: str) -> Any:
        """A client of the source account."""
        return client(self.url, service, SOURCE)

    def archive(self, service: str) -> Any:
        """A client of the archive account."""
        return client(self.url, service, ARCHIVE)


@functools.cache
def client(url: str, service: str, account: str) -> Any:
    """A boto3 client that acts in an account, in its Region."""
    return boto3.client(
        service,
        endpoint_url=url,
        region_name=REGIONS[account],
        aws_access_key_id=account,
        aws_secret_access_key="local",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3}),
    )


def build(url: str) -> World:
    """Makes both accounts' resources in an empty LocalStack."""
    for account, bucket in ((SOURCE, ORDERS), (ARCHIVE, REPLICA), (ARCHIVE, GOLD)):
        make_bucket(client(url, "s3", account), bucket, REGIONS[account])
    dead_letter_url, dead_letter_arn = make_queue(url, "orders-parked", {})
    redrive = json.dumps({"deadLetterTargetArn": dead_letter_arn, "maxReceiveCount": "1000"})
    queue_url, queue_arn = make_queue(url, "orders-events", {"RedrivePolicy": redrive} | queue_policy())
    client(url, "s3", SOURCE).put_bucket_notification_configuration(
        Bucket=ORDERS,
        NotificationConfiguration={"QueueConfigurations": [{"QueueArn": queue_arn, "Events": EVENTS}]},
    )
    # Work waits for as long as its destination is down.
    fifo = {"FifoQueue": "true", "MessageRetentionPeriod": str(14 * 24 * 3600)}
    work_queues = {bucket: make_queue(url, f"{bucket}-work.fifo", fifo)[0] for bucket in (REPLICA, GOLD)}
    return World(
        url=url,
        queue_url=queue_url,
        dead_letter_url=dead_letter_url,
        work_queues=work_queues,
        role_arn=make_role(url),
        source_key=make_key(url, SOURCE),
        archive_key=make_key(url, ARCHIVE),
    )


def make_bucket(s3: Any, bucket: str, region: str) -> None:
    """A versioned bucket."""
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=bucket, **place)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


def make_queue(url: str, name: str, attributes: dict[str, str]) -> tuple[str, str]:
    """A queue of the source account: its URL and its ARN."""
    sqs = client(url, "sqs", SOURCE)
    queue_url = sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    answer = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
    return queue_url, answer["Attributes"]["QueueArn"]


def queue_policy() -> dict[str, str]:
    """Lets S3 send the bucket's events."""
    return policy(
        "Policy",
        Principal={"Service": "s3.amazonaws.com"},
        Action="sqs:SendMessage",
        Resource=f"arn:aws:sqs:{REGIONS[SOURCE]}:{SOURCE}:orders-events",
        Condition={"ArnEquals": {"aws:SourceArn": f"arn:aws:s3:::{ORDERS}"}},
    )


def make_role(url: str) -> str:
    """The archive account's role, which the source account may take with the external id."""
    trust = policy(
        "AssumeRolePolicyDocument",
        Principal={"AWS": f"arn:aws:iam::{SOURCE}:root"},
        Action="sts:AssumeRole",
        Condition={"StringEquals": {"sts:ExternalId": EXTERNAL_ID}},
    )
    return client(url, "iam", ARCHIVE).create_role(RoleName="replicator", **trust)["Role"]["Arn"]


def make_key(url: str, account: str) -> str:
    """A KMS key of the account."""
    return client(url, "kms", account).create_key(Description="orders")["KeyMetadata"]["Arn"]


def policy(name: str, **statement: Any) -> dict[str, str]:
    """A policy document of one statement, under the name by which an API takes it."""
    return {name: json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow"} | statement]})}


def write_config(world: World, file: Path, listen: str, state_dir: Path) -> None:
    """Writes the daemon's configuration for this world."""
    file.write_text(f"""\
# Written by the demo; the reference of every key is config/example.toml.
state_dir = "{state_dir}"
listen = "{listen}"

[accounts.source]                      # {SOURCE}: its credentials come from the environment
region = "{REGIONS[SOURCE]}"
endpoint = "{world.url}"
path_style = true

[accounts.archive]                     # {ARCHIVE}: reached by a role
region = "{REGIONS[ARCHIVE]}"
role_arn = "{world.role_arn}"
external_id = "{EXTERNAL_ID}"
endpoint = "{world.url}"
path_style = true

[[queues]]
url = "{world.queue_url}"
account = "source"
dead_letter_url = "{world.dead_letter_url}"

[[rules]]
id = "orders"                          # everything below orders/, under the archive's own key
source = {{ account = "source", bucket = "{ORDERS}" }}
destination = {{ account = "archive", bucket = "{REPLICA}" }}
work_queue = "{world.work_queues[REPLICA]}"
filter = {{ prefix = "orders/" }}
delete_markers = true
sse_kms_objects = true
encryption = {{ mode = "kms", key = "{world.archive_key}" }}

[[rules]]
id = "gold"                            # whatever is tagged tier=gold; KMS-encrypted objects need an opt-in, not given here
source = {{ account = "source", bucket = "{ORDERS}" }}
destination = {{ account = "archive", bucket = "{GOLD}" }}
work_queue = "{world.work_queues[GOLD]}"
filter = {{ tags = {{ tier = "gold" }} }}
""")
