"""Compares the histories of two buckets, version by version, and prints every difference.

It knows the promises of the replicator and S3, nothing of the replicator's own code: per key the
same versions and delete markers in the same order, a run of markers counting as one and markers
over nothing as none; the same bytes, headers, metadata, tags and storage class; on every replica
the wanted KMS key; one replica a version; nothing else at the destination.

One difference a line, then a summary as JSON. Exit 2 on any difference.
"""

import argparse
import concurrent.futures
import dataclasses
import difflib
import hashlib
import itertools
import json
import sys

import boto3
from botocore.config import Config
from botocore.handlers import set_list_objects_encoding_type_url

# What a replica carries and its source does not: the replicator's own header.
STAMP = "s3-replicator"

# What S3 keeps with an object because its writer said so, by response header.
KEPT_HEADERS = [
    "cache-control", "content-disposition", "content-encoding", "content-language", "content-length", "content-type",
    "expires", "x-amz-storage-class", "x-amz-website-redirect-location",
]  # fmt: skip

# S3 leaves it out when it says STANDARD.
CLASS_HEADER = "x-amz-storage-class"

CHUNK_BYTES = 1 << 20
READERS = 4


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a key's history: a version, or a delete marker."""

    version_id: str
    marker: bool
    latest: bool
    modified: object


@dataclasses.dataclass(frozen=True)
class Content:
    """Everything there is to know about one version; what is not compared has a default."""

    sha256: str
    headers: dict
    metadata: dict
    tags: dict
    kms_key: str | None = None
    stamped: bool = False


MARKER = "delete marker"


@dataclasses.dataclass(frozen=True)
class Side:
    """A bucket, the client that reads it, and the prefix that its keys carry on this side."""

    s3: object
    bucket: str
    prefix: str = ""

    def histories(self):
        """Every key below the prefix, without it, with its entries oldest first."""
        found = {}
        for page in self._pages(Prefix=self.prefix):
            for entry in entries_of(page):
                found.setdefault(entry[0], []).append(entry[1])
        return {key.removeprefix(self.prefix): self._in_order(key, entries) for key, entries in found.items()}

    def content(self, key, entry):
        """Reads one version: its body as a digest, and all that goes with it."""
        if entry.marker:
            return MARKER
        where = {"Bucket": self.bucket, "Key": self.prefix + key, "VersionId": entry.version_id}
        answer = self.s3.get_object(**where)
        digest = hashlib.sha256()
        for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
            digest.update(chunk)
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        metadata = dict(answer["Metadata"])
        return Content(
            stamped=metadata.pop(STAMP, None) is not None,
            sha256=digest.hexdigest(),
            headers={CLASS_HEADER: "STANDARD"} | {name: headers[name] for name in KEPT_HEADERS if name in headers},
            metadata=metadata,
            tags=self._tags(where) if answer.get("TagCount") else {},
            kms_key=answer.get("SSEKMSKeyId"),
        )

    def open_uploads(self):
        """Counts the multipart uploads that nobody completed or aborted."""
        return len(self.s3.list_multipart_uploads(Bucket=self.bucket).get("Uploads", []))

    def _tags(self, where):
        return {tag["Key"]: tag["Value"] for tag in self.s3.get_object_tagging(**where)["TagSet"]}

    def _in_order(self, key, entries):
        """Puts a key's entries in the order S3 lists them, reversed.

        A page names versions and markers in two lists, each in order. Their times tell how the lists
        interleave, except within one second: then the entries are asked for one by one.
        """
        times = {marker: {entry.modified for entry in entries if entry.marker is marker} for marker in (True, False)}
        if times[True] & times[False]:
            return list(reversed([entry for page in self._one_by_one(key) for _, entry in entries_of(page)]))
        # Newest first within each list; sorting is stable, so entries of one time keep that order.
        return list(reversed(sorted(entries, key=lambda entry: entry.modified, reverse=True)))

    def _one_by_one(self, key):
        for page in self._pages(Prefix=key, MaxKeys=1):
            if any(found != key for found, _ in entries_of(page)):
                return
            yield page

    def _pages(self, **request):
        while True:
            page = self.s3.list_object_versions(Bucket=self.bucket, **request)
            yield page
            if not page.get("IsTruncated"):
                return
            request["KeyMarker"] = page["NextKeyMarker"]
            request["VersionIdMarker"] = page["NextVersionIdMarker"]


def entries_of(page):
    """The keys and entries of one page: each of its two lists in its own order."""
    for kind, marker in (("Versions", False), ("DeleteMarkers", True)):
        for item in page.get(kind, []):
            yield item["Key"], Entry(item["VersionId"], marker, item["IsLatest"], item["LastModified"])


def collapsed(entries):
    """A history as replication promises it: no markers over nothing, runs of markers as one."""
    started = itertools.dropwhile(lambda entry: entry.marker, entries)
    return [
        entry for before, entry in itertools.pairwise(itertools.chain([None], started))
        if before is None or not (before.marker and entry.marker)
    ]  # fmt: skip


def misplaced_current(entries):
    """Says what is wrong when the newest entry of a history is not the current one."""
    current = [entry for entry in entries if entry.latest]
    if current != entries[-1:]:
        yield f"the current entry is {[entry.version_id for entry in current]}, the newest {entries[-1].version_id}"


def identity(content):
    """What tells versions of a key apart when histories are laid side by side."""
    return content if content is MARKER else content.sha256


def compare_histories(source, destination, wanted_class=None, kms_key=None):
    """Names every difference between two collapsed histories of contents, oldest first."""
    before, after = [identity(content) for content in source], [identity(content) for content in destination]
    missing, extra = [], []
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            for number, pair in enumerate(zip(source[i1:i2], destination[j1:j2], strict=True), i1 + 1):
                yield from (f"version {number}: {text}" for text in compare_contents(*pair, wanted_class, kms_key))
        else:
            missing += range(i1, i2)
            extra += range(j1, j2)
    if missing and sorted(before) == sorted(after):
        yield f"order differs: {[name[:13] for name in before]} became {[name[:13] for name in after]}"
        return
    yield from (f"entry {at + 1} of {len(before)} is missing: {before[at]}" for at in missing)
    yield from (f"entry {at + 1} of {len(after)} at the destination is extra: {after[at]}" for at in extra)


def compare_contents(source, destination, wanted_class, kms_key):
    """Names every difference between a version and its replica, whose bytes are equal."""
    if source is MARKER:
        return
    wanted = dict(source.headers)
    if wanted_class:
        wanted[CLASS_HEADER] = wanted_class
    for what, ours, theirs in (
        ("headers", wanted, destination.headers),
        ("metadata", source.metadata, destination.metadata),
        ("tags", source.tags, destination.tags),
    ):
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                yield f"{what}: {name} is {theirs.get(name)!r} instead of {ours.get(name)!r}"
    if kms_key and destination.kms_key != kms_key:
        yield f"KMS key is {destination.kms_key} instead of {kms_key}"


def read(side, histories, readers):
    """Reads all contents of all histories."""
    wanted = [(key, entry) for key, entries in histories.items() for entry in entries]
    contents = readers.map(lambda one: side.content(*one), wanted)
    found = {key: [] for key in histories}
    for (key, _), content in zip(wanted, contents, strict=True):
        found[key].append(content)
    return found


def compare(source, destination, wanted_class=None, kms_key=None):
    """Compares two sides; returns the differences, and counts of what was compared."""
    differences = []
    contents = []
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        for name, side in (("source", source), ("destination", destination)):
            histories = side.histories()
            for key, entries in histories.items():
                differences += [f"{key}: {name}: {text}" for text in misplaced_current(entries)]
            contents.append(read(side, {key: collapsed(entries) for key, entries in histories.items()}, readers))
    ours, theirs = contents
    for key in sorted(ours.keys() | theirs.keys()):
        found = compare_histories(ours.get(key, []), theirs.get(key, []), wanted_class, kms_key)
        differences += [f"{key}: {text}" for text in found]
    totals = {"open_uploads": destination.open_uploads(), "differences": len(differences)}
    return differences, counts(ours, theirs) | totals


def counts(ours, theirs):
    """How much was compared, so that a comparison of nothing is seen."""
    source = [content for history in ours.values() for content in history]
    destination = [content for history in theirs.values() for content in history]
    return {
        "keys": len(ours),
        "versions": sum(1 for content in source if content is not MARKER),
        "markers": sum(1 for content in source if content is MARKER),
        "replicas": sum(1 for content in destination if content is not MARKER),
        "stamped": sum(1 for content in destination if content is not MARKER and content.stamped),
    }


def client(endpoint, account, region):
    """An S3 client; it lists keys as they are, for a marker made of an encoded key is not one everywhere."""
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=account,
        aws_secret_access_key="any",
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=READERS),
    )
    s3.meta.events.unregister("before-parameter-build.s3.ListObjectVersions", set_list_objects_encoding_type_url)
    return s3


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for side in ("source", "destination"):
        parser.add_argument(f"--{side}-endpoint", required=True)
        parser.add_argument(f"--{side}-account", required=True, help="access key id; LocalStack's account")
        parser.add_argument(f"--{side}-region", default="us-east-1")
        parser.add_argument(f"--{side}-bucket", required=True)
        parser.add_argument(f"--{side}-prefix", default="", help="the part of the keys that replication rewrites")
    parser.add_argument("--storage-class", help="what every replica must have; default: its source's")
    parser.add_argument("--kms-key-arn", help="what every replica must be encrypted with")
    return parser.parse_args()


def main():
    """Compares and prints; exit 2 on any difference."""
    options = vars(arguments())
    sides = [
        Side(
            client(options[f"{side}_endpoint"], options[f"{side}_account"], options[f"{side}_region"]),
            options[f"{side}_bucket"],
            options[f"{side}_prefix"],
        )
        for side in ("source", "destination")
    ]
    differences, summary = compare(*sides, options["storage_class"], options["kms_key_arn"])
    for difference in differences:
        print(difference)
    print(json.dumps(summary))
    sys.exit(2 if differences else 0)


if __name__ == "__main__":
    main()
