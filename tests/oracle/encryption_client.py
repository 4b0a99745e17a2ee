"""Writes and opens objects as users of the Amazon S3 Encryption Client do, and prints what it did as JSON.

It runs in an environment of its own, which has that client. `--format` is the envelope that is written:
`v2`, `v3`, or `instruction`, where the wrapped key is in an instruction file beside the object.
"""

import argparse
import json

import boto3
from botocore.config import Config
from s3_encryption import S3EncryptionClient, S3EncryptionClientConfig
from s3_encryption.materials.kms_keyring import KmsKeyring
from s3_encryption.materials.materials import AlgorithmSuite, CommitmentPolicy

CONTEXT = {"team": "gold"}
# What version 3 keeps in an instruction file.
IN_FILE = ("x-amz-3", "x-amz-w", "x-amz-t")


def main():
    """Does one action on one object."""
    options = parse()
    if options.action == "put":
        put(options)
    body = encryption_client(options).get_object(Bucket=options.bucket, Key=options.key, EncryptionContext=CONTEXT)
    print(json.dumps({"plaintext": body["Body"].read().decode()}))


def put(options):
    """Encrypts and writes the object."""
    client = encryption_client(options)
    client.put_object(
        Bucket=options.bucket, Key=options.key, Body=options.plaintext.encode(), EncryptionContext=CONTEXT
    )
    if options.format == "instruction":
        move_key(options)


def move_key(options):
    """Writes the object once more, its wrapped key in an instruction file, as that is written first."""
    s3 = plain_client("s3", options)
    written = s3.get_object(Bucket=options.bucket, Key=options.key)
    body, metadata = written["Body"].read(), written["Metadata"]
    moved = {name: metadata.pop(name) for name in IN_FILE}
    s3.put_object(
        Bucket=options.bucket,
        Key=options.key + ".instruction",
        Body=json.dumps(moved).encode(),
        Metadata={"x-amz-crypto-instr-file": ""},
    )
    s3.put_object(Bucket=options.bucket, Key=options.key, Body=body, Metadata=metadata)


def encryption_client(options):
    """The client under a KMS key; it reads what commits to no key as well."""
    keyring = KmsKeyring(plain_client("kms", options), options.kms_key_arn)
    settings = {"commitment_policy": CommitmentPolicy.REQUIRE_ENCRYPT_ALLOW_DECRYPT}
    if options.format == "v2":
        settings = {
            "commitment_policy": CommitmentPolicy.FORBID_ENCRYPT_ALLOW_DECRYPT,
            "encryption_algorithm": AlgorithmSuite.ALG_AES_256_GCM_IV12_TAG16_NO_KDF,
        }
    return S3EncryptionClient(plain_client("s3", options), S3EncryptionClientConfig(keyring=keyring, **settings))


def plain_client(service, options):
    """A client of the bucket's account and Region, or of the key's."""
    region, account = options.region, options.account
    if service == "kms":
        region, account = options.kms_key_arn.split(":")[3:5]
    return boto3.client(
        service,
        endpoint_url=options.endpoint,
        region_name=region,
        aws_access_key_id=account,
        aws_secret_access_key="any",
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )


def parse():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--action", choices=["put", "open"], required=True)
    parser.add_argument("--format", choices=["v2", "v3", "instruction"], required=True)
    for name in ("endpoint", "account", "region", "bucket", "key", "kms-key-arn"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--plaintext", default="")
    return parser.parse_args()


if __name__ == "__main__":
    main()
