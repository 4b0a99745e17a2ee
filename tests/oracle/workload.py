"""Performs a seeded series of mixed operations on the source bucket and prints what it did as JSON.

The series is the same for the same seed; `--seconds` spreads it over time, so that it overlaps with
a daemon that runs, or is killed, meanwhile.
"""

import argparse
import collections
import datetime
import json
import random
import sys
import time
import urllib.parse

import boto3
from botocore.config import Config

MIB = 1 << 20

# What S3 allows and programs get wrong: form and percent encoding, path cleaning, XML, prefixes.
ODD_NAMES = [
    "a b", " a", "a ", "a  b", "a+b", "+", "a%b", "%", "a%20b", "a%2Bb", "%zz",
    "ünï/日本語", "e\u0301", "\u00e9", "😀.txt",
    "x//y", "/lead", "//lead", "trail/", "trail//", "back\\slash", 'q"u"o', "it's", "a&b=c", "a?b", "a#b", "<xml>&amp;",
    "semi;colon,comma", "tilde~!*()", "a:b@c$d^{}|[]`", "pre", "pre/", "pre/fix", "pre/fix.txt", "pre/fix.txt/more",
    "dot/./segment", "dot/../segment", "..", "long/" + "n" * 900,
]  # fmt: skip

# How often each operation is drawn.
WEIGHTS = {
    "put": 270, "put_again": 60, "put_empty": 40, "put_medium": 40, "put_kms": 60, "multipart": 12,
    "full": 25, "full_multipart": 2,
    "marker": 130, "marker_again": 40, "marker_on_absent": 20,
    "copy": 70, "copy_back": 15, "copy_in_place": 15, "tag": 80, "tag_older": 60, "untag": 30, "untag_older": 20,
}  # fmt: skip

# Operations that happen at a fixed share of the series, whatever the dice say.
LANDMARKS = {0.2: "multipart_40mib", 0.5: "put_24mib", 0.6: "multipart_kms", 0.8: "full"}

STORAGE_CLASSES = ["STANDARD"] * 6 + ["STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "REDUCED_REDUNDANCY"]
TAG_WORDS = ["gold", "a b", "a+b", "x=y", "u@v:w", "ünï", "", "dash-dot._/"]
META_WORDS = ["plain", "two words", 'q"uote', "a=b&c", "100%", "comma, semi;", "tab-less"]


class Workload:
    """The series of operations, and what they left behind: for each key its entries, newest last."""

    def __init__(self, s3, options):
        self.s3 = s3
        self.bucket = options.bucket
        self.kms_key_arn = options.kms_key_arn
        self.full = {"Metadata": {"full": "m" * options.full_bytes}}
        self.random = random.Random(options.seed)
        self.keys = [options.prefix + name for name in key_names(options.keys, self.random)]
        self.entries = collections.defaultdict(list)
        self.last_put = {}
        self.bytes = 0

    def perform(self, operation):
        """Performs one operation; one that has nothing to work on becomes a plain put."""
        if not getattr(self, "op_" + operation)():
            self.op_put()

    # Writes.

    def op_put(self):
        size = self.random.choice([1, 10, 100, 1_000, 8_192, 65_536])
        return self._put(self._key(), self._body(size), self._attributes())

    def op_put_empty(self):
        return self._put(self._key(), b"", self._attributes())

    def op_put_medium(self):
        return self._put(self._key(), self._body(self.random.randrange(100_000, MIB)), self._attributes())

    def op_put_24mib(self):
        return self._put(self._key(), self._body(24 * MIB), self._attributes())

    def op_put_again(self):
        """Writes exactly what the last put to a key wrote, so that contents and ETags recur."""
        key = self._any(self.last_put)
        return key is not None and self._put(key, *self.last_put[key])

    def op_put_kms(self):
        return self._put(self._key(), self._body(2_000), {**self._attributes(), **self._kms()})

    def op_full(self):
        """Fills the 2 KB of metadata that S3 allows, so that nothing of the replicator's own fits beside it."""
        return self._put(self._key(), self.random.choice([b"one", b"two"]), self.full)

    def op_full_multipart(self):
        return self._multipart([5 * MIB, 1_000], self.full)

    def op_multipart(self):
        sizes = [5 * MIB] * self.random.choice([1, 2]) + [self.random.randrange(1, MIB)]
        return self._multipart(sizes, self._attributes())

    def op_multipart_kms(self):
        return self._multipart([5 * MIB, 123_456], {**self._attributes(), **self._kms()})

    def op_multipart_40mib(self):
        return self._multipart([8 * MIB] * 5, self._attributes())

    def op_copy(self):
        return self._copy(self._any_version(), self._key(), {})

    def op_copy_back(self):
        """Restores an older version of a key; naming the storage class is what makes it legal everywhere."""
        source = self._any_version()
        return source and self._copy(source, source[0], {"StorageClass": "STANDARD"})

    def op_copy_in_place(self):
        source = self._any_version(only_current=True)
        attributes = {key: value for key, value in self._attributes().items() if key != "Tagging"}
        return source and self._copy(source, source[0], {"MetadataDirective": "REPLACE", **attributes})

    # Delete markers.

    def op_marker(self):
        return self._delete(self._any(self._with_versions()))

    def op_marker_again(self):
        return self._delete(self._any([key for key, entries in self.entries.items() if entries[-1] is None]))

    def op_marker_on_absent(self):
        return self._delete(self._any([key for key in self.keys if key not in self.entries]))

    # Tags.

    def op_tag(self):
        return self._tag(self._any_version(only_current=True), tags(self.random))

    def op_tag_older(self):
        return self._tag(self._any_version(), tags(self.random))

    def op_untag(self):
        return self._tag(self._any_version(only_current=True), None)

    def op_untag_older(self):
        return self._tag(self._any_version(), None)

    # The requests.

    def _put(self, key, body, attributes):
        answer = self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, **attributes)
        self.last_put[key] = (body, attributes)
        return self._wrote(key, answer, len(body))

    def _multipart(self, sizes, attributes):
        where = {"Bucket": self.bucket, "Key": self._key()}
        where["UploadId"] = self.s3.create_multipart_upload(**where, **attributes)["UploadId"]
        parts = []
        for number, size in enumerate(sizes, 1):
            answer = self.s3.upload_part(**where, PartNumber=number, Body=self._body(size))
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        answer = self.s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
        return self._wrote(where["Key"], answer, sum(sizes))

    def _copy(self, source, key, attributes):
        if source is None or (source[0] == key and not attributes):
            return False
        source = {"Bucket": self.bucket, "Key": source[0], "VersionId": source[1]}
        return self._wrote(key, self.s3.copy_object(Bucket=self.bucket, Key=key, CopySource=source, **attributes), 0)

    def _delete(self, key):
        if key is None:
            return False
        self.s3.delete_object(Bucket=self.bucket, Key=key)
        self.entries[key].append(None)
        return True

    def _tag(self, version, tag_set):
        if version is None:
            return False
        where = {"Bucket": self.bucket, "Key": version[0], "VersionId": version[1]}
        if tag_set is None:
            self.s3.delete_object_tagging(**where)
        else:
            pairs = [{"Key": name, "Value": value} for name, value in tag_set.items()]
            self.s3.put_object_tagging(**where, Tagging={"TagSet": pairs})
        return True

    def _wrote(self, key, answer, size):
        self.entries[key].append(answer["VersionId"])
        self.bytes += size
        return True

    # The dice.

    def _key(self):
        # A few keys get most of the writes, so that histories grow long.
        return self.keys[int(len(self.keys) * self.random.random() ** 1.7)]

    def _any(self, keys):
        keys = sorted(keys)
        return self.random.choice(keys) if keys else None

    def _with_versions(self):
        return [key for key, entries in self.entries.items() if any(entries)]

    def _any_version(self, only_current=False):
        key = self._any(key for key, entries in self.entries.items() if any(entries[-1:] if only_current else entries))
        if key is None:
            return None
        versions = [version for version in self.entries[key] if version]
        return key, versions[-1] if only_current else self.random.choice(versions)

    def _body(self, size):
        return self.random.randbytes(size)

    def _kms(self):
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": self.kms_key_arn} if self.kms_key_arn else {}

    def _attributes(self):
        found = {name: choose(self.random) for name, choose in ATTRIBUTES.items() if self.random.random() < 0.3}
        if "Tagging" in found:
            found["Tagging"] = encoded(found["Tagging"])
        return found


def tags(dice):
    """Up to ten tags; names do not repeat, values may be empty."""
    return {f"{dice.choice(TAG_WORDS)}{number}": dice.choice(TAG_WORDS) for number in range(dice.choice([1, 1, 2, 10]))}


def encoded(tag_set):
    """The form of the `x-amz-tagging` header."""
    return urllib.parse.urlencode(tag_set)


def metadata(dice):
    """User metadata, in the mixed case that S3 folds to lower case."""
    names = [f"{dice.choice(['Owner', 'etl-run', 'x'])}-{number}" for number in range(dice.randrange(1, 4))]
    return {name: dice.choice(META_WORDS) for name in names}


# Everything a writer can say about an object that S3 keeps with it.
ATTRIBUTES = {
    "CacheControl": lambda dice: dice.choice(["no-cache", "max-age=3600, public"]),
    "ContentDisposition": lambda dice: dice.choice(['attachment; filename="a b.txt"', "inline"]),
    "ContentEncoding": lambda dice: dice.choice(["gzip", "br", "gzip, br"]),
    "ContentLanguage": lambda dice: dice.choice(["de", "en-GB, fr"]),
    "ContentType": lambda dice: dice.choice(["text/plain; charset=utf-8", "application/json", "image/png"]),
    "Expires": lambda dice: datetime.datetime(2030, 1, dice.randrange(1, 29), tzinfo=datetime.UTC),
    "WebsiteRedirectLocation": lambda dice: dice.choice(["/other page", "https://example.org/a?b=c"]),
    "StorageClass": lambda dice: dice.choice(STORAGE_CLASSES),
    "Metadata": metadata,
    "Tagging": tags,
}


def key_names(count, dice):
    """The odd names first, then plain ones, shuffled so that any of them can be a busy key."""
    names = ODD_NAMES[:count] + [f"plain/{number:03}" for number in range(count - len(ODD_NAMES))]
    dice.shuffle(names)
    return names


def series(count, dice):
    """The names of the operations, in order."""
    drawn = dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=count)
    for share, operation in LANDMARKS.items():
        drawn[int(count * share)] = operation
    return drawn


def run(workload, operations, seconds):
    """Performs the operations, not faster than the pace."""
    began = time.monotonic()
    for number, operation in enumerate(operations):
        workload.perform(operation)
        ahead = began + seconds * (number + 1) / len(operations) - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
    return time.monotonic() - began


def summary(workload, operations, elapsed):
    """What was done, for the test's log."""
    entries = [entry for entries in workload.entries.values() for entry in entries]
    return {
        "operations": len(operations),
        "by_kind": dict(sorted(collections.Counter(operations).items())),
        "keys": len(workload.entries),
        "versions": sum(1 for entry in entries if entry),
        "markers": sum(1 for entry in entries if entry is None),
        "bytes": workload.bytes,
        "seconds": round(elapsed, 1),
    }


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--account", required=True, help="access key id; on LocalStack it chooses the account")
    parser.add_argument("--region", default="eu-west-1")
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--prefix", default="", help="put before every key")
    parser.add_argument("--kms-key-arn", help="encrypts some of the objects")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=1_000)
    parser.add_argument("--keys", type=int, default=150)
    parser.add_argument("--full-bytes", type=int, default=1_980, help="metadata of objects that have much of it")
    parser.add_argument("--seconds", type=float, default=0, help="spread the operations over this time")
    return parser.parse_args()


def main():
    """Runs the series and prints the summary."""
    options = arguments()
    s3 = boto3.client(
        "s3",
        endpoint_url=options.endpoint,
        region_name=options.region,
        aws_access_key_id=options.account,
        aws_secret_access_key="any",
        config=Config(s3={"addressing_style": "path"}),
    )
    workload = Workload(s3, options)
    operations = series(options.operations, workload.random)
    elapsed = run(workload, operations, options.seconds)
    json.dump(summary(workload, operations, elapsed), sys.stdout)
    print()


if __name__ == "__main__":
    main()
