"""Ways to break a set-up: `check` finds each, and what it prints, applied as it stands, puts it right.

    broken.py --iam FOLDER --binary FILE

Breaks one thing after the other in a set-up that is right, on a MiniStack that enforces permissions, and has the statements,
commands and lines of the file that `check --json` prints carried out: then `check` has to find nothing more. Prints JSON: a
row for each break, and the rows as a table for docs/check-table.md.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import botocore
from enforced import ARCHIVE, ORDERS, OWN, REGIONS, REPLICA, ROLE, SOURCE, World, ministack

EVENTS = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*", "s3:ObjectTagging:*", "s3:LifecycleExpiration:*"]
KEPT = "1209600"
HIGH_THROUGHPUT = {"DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
EVENTS_ARN = f"arn:aws:sqs:{REGIONS[SOURCE]}:{SOURCE}:orders-events"
OTHER_ARN = f"arn:aws:sqs:{REGIONS[SOURCE]}:{SOURCE}:orders-other"


@dataclass(frozen=True)
class Break:
    """One thing that goes wrong, and the name of the check that finds it."""

    what: str
    check: str
    act: Callable[["SetUp"], None]
    probing: bool = False
    # What is written anew before the next one: a fix adds a statement, and leaves the others.
    after: Callable[["SetUp"], None] | None = None
    # The action and the document that the finding has to name, and no other.
    named: tuple[str, str, str] | None = None
    # A warning that stays, because it is true.
    leaves: str = ""


class SetUp(World):
    """The world of the enforcing emulator, as `check` wants it."""

    def __init__(self, url: str, binary: str, folder: Path) -> None:
        self.key = ""
        super().__init__(url, binary, folder)
        self.good = self.config.read_text()
        for name in ("other", "other.fifo"):
            self.create_queue(name)
        statement = {"Effect": "Allow", "Principal": "*", "Action": "sqs:SendMessage", "Resource": OTHER_ARN}
        url = self.queues["events"].replace("events", "other")
        self.sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": extended(None, statement)})
        for name in self.queues:
            self.set_queue(name, MessageRetentionPeriod=KEPT)
        self.set_queue("work.fifo", **HIGH_THROUGHPUT)
        self.send_events()
        # What is there to be read, at both ends.
        for key in ("in/one", "second/one"):
            self.s3[SOURCE].put_object(Bucket=ORDERS, Key=key, Body="one", Tagging="tier=gold")
        self.fill()

    def text(self) -> str:
        self.key = self.client("kms", ARCHIVE).create_key()["KeyMetadata"]["Arn"]
        encryption = f'encryption = {{ mode = "kms", key = "{self.key}" }}\n'
        text = f"{super().text()}version_deletes = true\n{encryption}"
        second = text.split("[[rules]]")[1].replace('id = "orders"', 'id = "second"')
        second += 'priority = 1\nfilter = { prefix = "second/" }\n'
        return f"{text}[[rules]]{second}"

    # What breaks and restores.

    def fill(self) -> None:
        for key in ("in/one", "second/one"):
            self.s3[ARCHIVE].put_object(Bucket=REPLICA, Key=key, Body="one")

    def lose_bucket(self) -> None:
        s3 = self.s3[ARCHIVE]
        for each in s3.list_object_versions(Bucket=REPLICA)["Versions"]:
            s3.delete_object(Bucket=REPLICA, Key=each["Key"], VersionId=each["VersionId"])
        s3.delete_bucket(Bucket=REPLICA)

    def set_queue(self, name: str, **attributes: str) -> None:
        self.sqs.set_queue_attributes(QueueUrl=self.queues[name], Attributes=attributes)

    def send_events(self, arn: str = EVENTS_ARN, events: list[str] = EVENTS, **filters: str) -> None:
        """Sends the bucket's events to a queue, and nowhere else."""
        target = {"QueueArn": arn, "Events": events}
        if filters:
            rules = [{"Name": name, "Value": value} for name, value in filters.items()]
            target["Filter"] = {"Key": {"FilterRules": rules}}
        self.configure_events({"QueueConfigurations": [target]})

    def configure_events(self, whole: dict) -> None:
        s3 = self.s3[SOURCE]
        s3.put_bucket_notification_configuration(Bucket=ORDERS, NotificationConfiguration=whole)

    def version(self, account: str, bucket: str, status: str) -> None:
        s3 = self.s3[account]
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})

    def trust(self, changed: dict | None = None) -> None:
        policy = changed or self.documents["trust", ROLE]
        iam = self.iam[ARCHIVE]
        iam.update_assume_role_policy(RoleName="replicator", PolicyDocument=json.dumps(policy))

    def queue_policy(self, changed: dict | None = None) -> None:
        policy = json.dumps(changed) if changed else ""
        self.set_queue("events", Policy=policy)

    def edit(self, old: str, new: str, count: int) -> None:
        assert old in self.good, old
        self.config.write_text(self.good.replace(old, new, count))

    def pass_to_topic(self, name: str, *, is_subscribed: bool) -> None:
        """Sends the events to a topic that passes them on, and may not be asked, or the other way round."""
        sns = self.client("sns", SOURCE)
        topic = sns.create_topic(Name=name)["TopicArn"]
        statement = {"Effect": "Allow", "Principal": "*", "Action": "sns:Publish", "Resource": topic}
        policy = extended(None, statement)
        sns.set_topic_attributes(TopicArn=topic, AttributeName="Policy", AttributeValue=policy)
        self.configure_events({"TopicConfigurations": [{"TopicArn": topic, "Events": EVENTS}]})
        if is_subscribed:
            sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=EVENTS_ARN)
            send = {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage"}
            self.add_statement({"kind": "queue-policy", "attached_to": EVENTS_ARN}, send | {"Resource": EVENTS_ARN})
        else:
            ask = {"Effect": "Allow", "Action": "sns:ListSubscriptionsByTopic", "Resource": topic}
            self.add_statement({"kind": "permissions", "attached_to": OWN}, ask)

    def restore_delivery(self) -> None:
        self.queue_policy(self.documents["queue-policy", EVENTS_ARN])
        self.send_events()
        self.allow(OWN)

    def bridge(self, rule: dict | None, *, is_on: bool = True, denied: str = "", target: dict | None = None) -> None:
        """Sends the events to EventBridge alone, with a rule that passes them on."""
        send = {"Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage"}
        rules = {"ArnLike": {"aws:SourceArn": f"arn:aws:events:{REGIONS[SOURCE]}:{SOURCE}:rule/*"}}
        send |= {"Resource": EVENTS_ARN, "Condition": rules}
        self.queue_policy({"Version": "2012-10-17", "Statement": [send]})
        self.configure_events({"EventBridgeConfiguration": {}} if is_on else {})
        # The documents for a configuration do not say whether its events come so.
        asked = [each for each in BUS_ACTIONS if each != denied]
        statement = {"Effect": "Allow", "Action": asked, "Resource": "*"}
        self.add_statement({"kind": "permissions", "attached_to": OWN}, statement)
        if rule is not None:
            events = self.client("events", SOURCE)
            events.put_rule(Name="orders", **({"EventPattern": json.dumps(BUS_PATTERN)} | rule))
            events.put_targets(Rule="orders", Targets=[{"Id": "queue", "Arn": EVENTS_ARN} | (target or {})])

    def unbridge(self) -> None:
        events = self.client("events", SOURCE)
        for rule in events.list_rules()["Rules"]:
            events.remove_targets(Rule=rule["Name"], Ids=["queue", "s3-replicator"])
            events.delete_rule(Name=rule["Name"])
        self.restore_delivery()

    # What check says, and what becomes of it.

    def check(self, probing: bool) -> tuple[int, list[dict]]:
        """The exit code, and the findings."""
        environment = self.assume_own_role("check")
        command = [self.binary, "check", "--json", *(["--probe"] if probing else []), "--config", self.config]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        self.refuse_secrets(ended.stdout + ended.stderr)
        if not ended.stdout:
            raise SystemExit(ended.stderr)
        sections = json.loads(ended.stdout)["sections"]
        return ended.returncode, [finding for section in sections for finding in section["findings"]]

    def apply(self, fix: dict) -> None:
        """Carries a printed fix out, as it stands."""
        match fix["kind"]:
            case "statement":
                self.add_statement(fix["document"], fix["statement"])
            case "command":
                self.run_command(shlex.split(fix["command"]))
            case "config":
                self.set_line(fix["line"], fix["key"].rsplit(".", 1)[-1], fix["value"])

    def add_statement(self, document: dict, statement: dict) -> None:
        kind, attached_to = document["kind"], document["attached_to"]
        if kind == "queue-policy":
            url = self.sqs.get_queue_url(QueueName=attached_to.split(":")[-1])["QueueUrl"]
            got = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])
            policy = extended(got.get("Attributes", {}).get("Policy"), statement)
            self.sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
            return
        iam, role = self.iam[attached_to.split(":")[4]], attached_to.split("/")[-1]
        if kind == "trust":
            policy = iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]
            iam.update_assume_role_policy(RoleName=role, PolicyDocument=extended(policy, statement))
            return
        assert kind == "permissions", document
        # MiniStack asks for a permission of the batch's name, which AWS does not have.
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        batches = [f"{action}Batch" for action in actions if action.startswith("sqs:")]
        # It does not see which rule is meant here.
        if "events:ListTargetsByRule" in actions:
            statement = statement | {"Resource": "*"}
        policy = iam.get_role_policy(RoleName=role, PolicyName="s3-replicator")["PolicyDocument"]
        policy = extended(policy, statement | {"Action": actions + batches})
        iam.put_role_policy(RoleName=role, PolicyName="s3-replicator", PolicyDocument=policy)

    def run_command(self, words: list[str]) -> None:
        """Sends the request that a command of the AWS CLI stands for, by the service's own model."""
        assert words[0] == "aws", words
        service = {"s3api": "s3"}.get(words[1], words[1])
        options = {name.removeprefix("--"): value for name, value in zip(words[3::2], words[4::2], strict=True)}
        region = options.pop("region")
        assert options.pop("endpoint-url", self.url) == self.url
        client = self.client(service, next(account for account, home in REGIONS.items() if home == region))
        model = client.meta.service_model
        operation = next(each for each in model.operation_names if cli_name(each) == words[2])
        members = model.operation_model(operation).input_shape.members
        known = {cli_name(member): (member, shape) for member, shape in members.items()}
        # So the CLI calls it, which has a general option of that name.
        known |= {"notification-endpoint": known[name] for name in ["endpoint"] if name in known}
        request = {known[name][0]: parsed(value, known[name][1]) for name, value in options.items()}
        client._make_api_call(operation, request)

    def set_line(self, number: int, key: str, value: str) -> None:
        lines = self.config.read_text().splitlines()
        line = lines[number - 1]
        changed, count = re.subn(rf'\b{key} = ("[^"]*"|[^,\s}}]+)', f"{key} = {value}", line)
        assert count == 1, (line, key)
        lines[number - 1] = changed
        self.config.write_text("\n".join(lines) + "\n")


def cli_name(name: str) -> str:
    return botocore.xform_name(name, "-")


def parsed(text: str, shape: object) -> object:
    """Reads a value as the AWS CLI does: JSON, or NAME=VALUE."""
    if shape.type_name == "integer":
        return int(text)
    if shape.type_name not in ("structure", "map", "list"):
        return text
    return json.loads(text) if text[0] in "{[" else dict(pair.split("=", 1) for pair in text.split(","))


def extended(policy: str | dict | None, statement: dict) -> str:
    """A policy with a statement more."""
    policy = json.loads(policy) if isinstance(policy, str) and policy else policy
    policy = policy or {"Version": "2012-10-17", "Statement": []}
    return json.dumps(policy | {"Statement": [*policy["Statement"], statement]})


def without(role: str, action: str, check: str, probing: bool = False) -> Break:
    """An action that a role's permissions lack."""
    of = "the daemon's role" if role == OWN else "the destination's role"
    return Break(
        f"{of} lacks `{action}`",
        check,
        lambda world: world.allow(role, without=action),
        probing,
        lambda world: world.allow(role),
        # Whether a key is absent also depends on s3:ListBucket.
        None if action == "s3:GetObject" else (action, "permissions", role),
    )


def trusting(what: str, change: Callable[[dict], None]) -> Break:
    """A trust policy that is another."""

    def act(world: SetUp) -> None:
        policy = json.loads(json.dumps(world.documents["trust", ROLE]))
        change(policy["Statement"][0])
        world.trust(policy)

    return Break(what, "assume-role", act, after=lambda world: world.trust())


def letting(what: str, change: Callable[[dict], None]) -> Break:
    """A queue policy that lets other things send."""

    def act(world: SetUp) -> None:
        policy = json.loads(json.dumps(world.documents["queue-policy", EVENTS_ARN]))
        change(policy["Statement"][0])
        world.queue_policy(policy)

    return Break(what, "queue-policy", act, after=lambda world: world.queue_policy(world.documents["queue-policy", EVENTS_ARN]))


def in_file(what: str, check: str, old: str, new: str, count: int = 1, leaves: str = "") -> Break:
    """A slip in the configuration file, in the first of its rules or in both."""
    after = lambda world: world.config.write_text(world.good)  # noqa: E731
    return Break(what, check, lambda world: world.edit(old, new, count), after=after, leaves=leaves)


def set_key(world: SetUp, operation: str, **more: int) -> None:
    getattr(world.client("kms", ARCHIVE), operation)(KeyId=world.key, **more)


def delete_queue(name: str) -> Callable[[SetUp], None]:
    return lambda world: world.sqs.delete_queue(QueueUrl=world.queues[name])


def lock_source(world: SetUp) -> None:
    lock = {"ObjectLockEnabled": "Enabled"}
    world.s3[SOURCE].put_object_lock_configuration(Bucket=ORDERS, ObjectLockConfiguration=lock)


def redrive(name: str, count: int) -> Callable[[SetUp], None]:
    """Has SQS move messages away that were received so often."""
    target = "other.fifo" if name.endswith(".fifo") else "other"
    policy = {"deadLetterTargetArn": OTHER_ARN.replace("other", target), "maxReceiveCount": count}
    return lambda world: world.set_queue(name, RedrivePolicy=json.dumps(policy))


def bridged(what: str, check: str, rule: dict | None = None, named: str = "", **more: object) -> Break:
    """Something between the bucket and the queue where EventBridge is between them."""
    return Break(
        f"by EventBridge: {what}",
        check,
        lambda world: world.bridge(rule, denied=named, **more),
        after=lambda world: world.unbridge(),
        named=(named, "permissions", OWN) if named else None,
    )


def pattern_of(kinds: list[str], **detail: object) -> dict:
    """A rule with a pattern for some events of the bucket."""
    pattern = {"source": ["aws.s3"], "detail-type": kinds, "detail": {"bucket": {"name": [ORDERS]}} | detail}
    return {"EventPattern": json.dumps(pattern)}


BUS_KINDS = ["Object Created", "Object Tags Added", "Object Tags Deleted", "Object Deleted"]
BUS_PATTERN = {"source": ["aws.s3"], "detail-type": BUS_KINDS, "detail": {"bucket": {"name": [ORDERS]}}}
BUS_ACTIONS = [
    "events:ListRuleNamesByTarget",
    "events:DescribeRule",
    "events:ListTargetsByRule",
    "events:TestEventPattern",
]
TAGGED = ["s3:ObjectCreated:*", "s3:ObjectTagging:*"]
FOREIGN = {"AWS": "arn:aws:iam::333333333333:root"}

BREAKS = [
    # The file.
    in_file("`enabled = false`", "rule-enabled", "delete_markers = true", "delete_markers = true\nenabled = false"),
    in_file("a prefix with a slash in front", "prefix-slash", "delete_markers", 'filter = { prefix = "/in/" }\ndelete_markers'),
    in_file("a prefix with a wildcard", "prefix-wildcard", "delete_markers", 'filter = { prefix = "in/*" }\ndelete_markers'),
    in_file("a prefix with both", "prefix-slash", "delete_markers", 'filter = { prefix = "/in/*.gz" }\ndelete_markers'),
    in_file("a misspelt prefix", "source-objects", 'prefix = "second/"', 'prefix = "secnd/"'),
    in_file("`since` in the future", "since-future", "2020-01-01", "2099-01-01", count=2, leaves="source-objects"),
    # Roles.
    without(OWN, "sts:AssumeRole", "assume-role"),
    trusting("the role trusts another principal", lambda one: one.update(Principal=FOREIGN)),
    trusting(
        "the role demands another external id",
        lambda one: one["Condition"]["StringEquals"].update({"sts:ExternalId": "invoices"}),
    ),
    # Queues.
    without(OWN, "sqs:GetQueueAttributes", "queue-attributes"),
    without(OWN, "sqs:ReceiveMessage", "queue-receive"),
    without(OWN, "sqs:DeleteMessage", "queue-receive"),
    without(OWN, "sqs:ChangeMessageVisibility", "queue-receive"),
    without(OWN, "sqs:SendMessage", "queue-send"),
    Break("the events queue has no policy", "queue-policy", lambda world: world.queue_policy()),
    letting(
        "its policy is for another bucket",
        lambda one: one["Condition"]["ArnEquals"].update({"aws:SourceArn": "arn:aws:s3:::invoices"}),
    ),
    letting(
        "its policy is for a bucket of another account",
        lambda one: one["Condition"]["StringEquals"].update({"aws:SourceAccount": "333333333333"}),
    ),
    letting("its policy lets another service send", lambda one: one.update(Principal={"Service": "sns.amazonaws.com"})),
    Break(
        "the events queue is encrypted under `alias/aws/sqs`",
        "queue-key",
        lambda world: world.set_queue("events", KmsMasterKeyId="alias/aws/sqs"),
    ),
    Break(
        "the events queue keeps messages for 4 days",
        "queue-retention",
        lambda world: world.set_queue("events", MessageRetentionPeriod="345600"),
    ),
    Break(
        "the dead-letter queue keeps messages for a day",
        "queue-retention",
        lambda world: world.set_queue("parked", MessageRetentionPeriod="86400"),
    ),
    Break(
        "the work queue keeps messages for an hour",
        "queue-retention",
        lambda world: world.set_queue("work.fifo", MessageRetentionPeriod="3600"),
    ),
    Break("SQS moves events away after 5 receives", "queue-redrive", redrive("events", 5)),
    Break("the work queue has a redrive policy", "queue-redrive", redrive("work.fifo", 1000)),
    Break(
        "the work queue has no high throughput",
        "queue-throughput",
        lambda world: world.set_queue("work.fifo", DeduplicationScope="queue", FifoThroughputLimit="perQueue"),
    ),
    Break("the events queue is missing", "queue-exists", delete_queue("events")),
    Break("the dead-letter queue is missing", "queue-exists", delete_queue("parked")),
    Break("the work queue is missing", "queue-exists", delete_queue("work.fifo")),
    # Notifications.
    without(OWN, "s3:GetBucketNotification", "notification-attributes"),
    Break("the bucket sends no events", "notification-target", lambda world: world.configure_events({})),
    Break("it sends them to another queue", "notification-target", lambda world: world.send_events(OTHER_ARN)),
    Break(
        "it sends them to a topic whose subscriptions may not be read",
        "notification-topic",
        lambda world: world.pass_to_topic("silent", is_subscribed=True),
        after=lambda world: world.restore_delivery(),
    ),
    Break(
        "it sends them to a topic that passes nothing on",
        "notification-topic",
        lambda world: world.pass_to_topic("idle", is_subscribed=False),
        after=lambda world: world.restore_delivery(),
    ),
    Break(
        "it sends `s3:ObjectCreated:Put` alone",
        "notification-events",
        lambda world: world.send_events(events=["s3:ObjectCreated:Put"]),
    ),
    Break("it sends no deletes", "notification-events", lambda world: world.send_events(events=TAGGED)),
    Break(
        "it sends no tag changes",
        "notification-events",
        lambda world: world.send_events(events=[event for event in EVENTS if "Tagging" not in event]),
    ),
    Break("it sends no expirations", "notification-events", lambda world: world.send_events(events=EVENTS[:3])),
    Break(
        "it sends the events of another prefix",
        "notification-filter",
        lambda world: world.send_events(prefix="invoices/"),
    ),
    Break("it sends the events of a suffix", "notification-filter", lambda world: world.send_events(suffix=".json")),
    bridged("no rule has the queue as its target", "notification-event-bridge"),
    bridged("the rule is disabled", "notification-event-bridge", {"State": "DISABLED"}),
    bridged("the bucket does not send to it", "notification-event-bridge", {}, is_on=False),
    bridged(
        "the target gets a part of the event",
        "notification-event-bridge",
        {"Description": "orders"},
        target={"InputPath": "$.detail"},
    ),
    bridged("the pattern misses deletes", "notification-events", pattern_of(BUS_KINDS[:3])),
    bridged(
        "the pattern misses permanent deletes",
        "notification-events",
        pattern_of(BUS_KINDS, **{"deletion-type": [{"exists": False}, "Delete Marker Created"]}),
    ),
    bridged(
        "the pattern is for another prefix",
        "notification-events",
        pattern_of(BUS_KINDS, object={"key": [{"prefix": "invoices/"}]}),
    ),
    *[
        bridged(f"the daemon's role lacks `{action}`", "notification-event-bridge", {}, named=action)
        for action in BUS_ACTIONS
    ],
    # The source.
    Break(
        "the source bucket's versioning is suspended",
        "source-versioning",
        lambda world: world.version(SOURCE, ORDERS, "Suspended"),
    ),
    without(OWN, "s3:GetBucketVersioning", "source-versioning"),
    without(OWN, "s3:GetBucketObjectLockConfiguration", "object-lock"),
    without(OWN, "s3:ListBucketVersions", "source-list"),
    without(OWN, "s3:GetObjectVersion", "source-read"),
    without(OWN, "s3:GetObjectVersionTagging", "source-tags"),
    # The destination.
    Break(
        "the destination bucket's versioning is suspended",
        "destination-versioning",
        lambda world: world.version(ARCHIVE, REPLICA, "Suspended"),
    ),
    without(ROLE, "s3:GetBucketVersioning", "destination-versioning"),
    without(ROLE, "s3:ListBucketVersions", "destination-list"),
    without(ROLE, "s3:GetObject", "destination-list"),
    without(ROLE, "s3:GetObjectVersion", "destination-read"),
    without(ROLE, "s3:ListBucketMultipartUploads", "destination-uploads"),
    without(ROLE, "s3:PutObject", "destination-write", probing=True),
    without(ROLE, "s3:PutObjectVersionTagging", "destination-tags", probing=True),
    without(ROLE, "s3:DeleteObject", "destination-delete", probing=True),
    without(ROLE, "s3:DeleteObjectVersion", "destination-delete-version", probing=True),
    without(ROLE, "s3:AbortMultipartUpload", "destination-multipart", probing=True),
    Break(
        "the destination bucket is missing",
        "bucket-exists",
        lambda world: world.lose_bucket(),
        after=lambda world: world.fill(),
    ),
    without(ROLE, "kms:DescribeKey", "destination-key"),
    Break("the key of replicas is disabled", "destination-key", lambda world: set_key(world, "disable_key")),
    Break(
        "the key of replicas is to be deleted",
        "destination-key",
        lambda world: set_key(world, "schedule_key_deletion", PendingWindowInDays=7),
    ),
    Break("the source has Object Lock, and the destination has none", "object-lock", lock_source),
]


def play(world: SetUp, each: Break) -> dict:
    """Breaks something, finds it, applies what is printed, and finds nothing more."""
    print(each.what, file=sys.stderr)
    each.act(world)
    code, findings = world.check(each.probing)
    named = [finding for finding in findings if finding["check"] == each.check]
    if not named:
        raise SystemExit(f"{each.what}: no {each.check} in {json.dumps(findings, indent=1)}")
    fixes = [fix for finding in findings for fix in finding["fix"] if fix["kind"] != "advice"]
    if not [fix for finding in named for fix in finding["fix"] if fix in fixes]:
        raise SystemExit(f"{each.what}: nothing can be pasted of {named}")
    told = {(fix["statement"]["Action"], *fix["document"].values()) for fix in fixes if "statement" in fix}
    if each.named and told != {each.named}:
        raise SystemExit(f"{each.what}: {told} is told")
    for fix in fixes:
        world.apply(fix)
    code_left, left = world.check(each.probing)
    if code_left != 0 or {finding["check"] for finding in left} - {each.leaves}:
        raise SystemExit(f"{each.what}: after {json.dumps(findings, indent=1)}\nthere is {json.dumps(left, indent=1)}")
    if each.after:
        each.after(world)
    return {"what": each.what, "code": code, "finding": named[0]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--iam", type=Path, required=True)
    parser.add_argument("--binary", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ministack(arguments.iam, Path(name)) as url:
        world = SetUp(url, arguments.binary, Path(name))
        for probing in (False, True):
            if (found := world.check(probing)) != (0, []):
                raise SystemExit(f"before anything is broken there is {json.dumps(found, indent=1)}")
        rows = [play(world, each) for each in BREAKS]
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
