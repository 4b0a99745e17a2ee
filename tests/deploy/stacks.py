"""Deploys both CloudFormation templates without the ECS service, each in its account; prints the outputs of the first, and
the policies of what both made.

A source bucket that is not created gets its notification as the output NotificationCommand says.
"""

import argparse
import json
import shlex
import time
from pathlib import Path
from typing import Any

import boto3

TEMPLATES = Path(__file__).resolve().parents[2] / "deploy" / "cloudformation"


def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("endpoint", "name", "source", "source-key", "destination", "destination-key", "create"):
        parser.add_argument(f"--{option}", required=True)
    options = parser.parse_args()

    def client(service: str, account: str, region: str) -> Any:
        keys = {"aws_access_key_id": account, "aws_secret_access_key": "local"}
        return boto3.client(service, endpoint_url=options.endpoint, region_name=region, **keys)

    role = f"{options.name}-destination"
    outputs = deploy(
        client("cloudformation", "111111111111", "eu-west-1"),
        options.name,
        "s3-replicator.yaml",
        SourceBucket=options.source,
        CreateSourceBucket=options.create,
        SourceKeyArn=options.source_key,
        Since="2020-01-01T00:00:00Z",
        DestinationBucket=options.destination,
        DestinationRegion="us-east-1",
        DestinationAccount="222222222222",
        DestinationRole=role,
        DeployService="false",
    )
    deploy(
        client("cloudformation", "222222222222", "us-east-1"),
        options.name,
        "destination.yaml",
        DestinationBucket=options.destination,
        CreateDestinationBucket=options.create,
        KeyArn=options.destination_key if options.create == "false" else "",
        SourceRoleArn=outputs["RoleArn"],
        RoleName=role,
    )
    if options.create == "false":
        words = shlex.split(outputs["NotificationCommand"])
        assert words[:3] == ["aws", "s3api", "put-bucket-notification-configuration"], words
        said = dict(zip(words[3::2], words[4::2], strict=True))
        client("s3", "111111111111", "eu-west-1").put_bucket_notification_configuration(
            Bucket=said["--bucket"], NotificationConfiguration=json.loads(said["--notification-configuration"])
        )
    queues = client("sqs", "111111111111", "eu-west-1")
    url = queues.get_queue_url(QueueName=f"{options.name}-events")["QueueUrl"]
    queue = queues.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"])["Attributes"]["Policy"]
    ours, theirs = client("iam", "111111111111", "eu-west-1"), client("iam", "222222222222", "us-east-1")
    outputs["Policies"] = {
        "source": permissions(ours, outputs["RoleArn"].rsplit("/", 1)[1]),
        "destination": permissions(theirs, role),
        "trust": theirs.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"],
        "queue": json.loads(queue),
    }
    print(json.dumps(outputs))


def permissions(iam: Any, role: str) -> dict[str, Any]:
    """The policy of a role."""
    return iam.get_role_policy(RoleName=role, PolicyName="s3-replicator")["PolicyDocument"]


def deploy(cloudformation: Any, name: str, template: str, **parameters: str) -> dict[str, str]:
    """Creates a stack; its outputs."""
    cloudformation.create_stack(
        StackName=name,
        TemplateBody=(TEMPLATES / template).read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
    )
    while True:
        stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        if not stack["StackStatus"].endswith("IN_PROGRESS"):
            break
        time.sleep(0.2)
    if stack["StackStatus"] != "CREATE_COMPLETE":
        events = cloudformation.describe_stack_events(StackName=name)["StackEvents"]
        raise SystemExit(f"{template}: {stack['StackStatus']}: {json.dumps(events, default=str)}")
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


if __name__ == "__main__":
    main()
