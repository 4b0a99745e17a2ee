"""Shows that the comparer sees each kind of damage; a comparer that cannot fail proves nothing."""

import copy
import hashlib
import io
import unittest

from botocore.response import StreamingBody

import compare

KEY_ARN = "arn:aws:kms:us-east-1:222222222222:key/destination"


class FakeS3:
    """A versioned bucket in memory: `history[key]` holds entries oldest first, `None` for a marker.

    All entries have the same time, as those of one second do on servers that state seconds, and pages
    name versions and markers in two lists, as S3 does.
    """

    def __init__(self, history, page_size=1_000):
        self.history = history
        self.page_size = page_size

    def list_object_versions(self, Bucket, Prefix, MaxKeys=None, KeyMarker=None, VersionIdMarker=None):
        lines = [line for key in sorted(self.history) if key.startswith(Prefix) for line in self._lines(key)]
        names = [(line["Key"], line["VersionId"]) for line in lines]
        start = names.index((KeyMarker, VersionIdMarker)) + 1 if KeyMarker else 0
        chosen = lines[start : start + (MaxKeys or self.page_size)]
        page = {
            "Versions": [line for line in chosen if not line["marker"]],
            "DeleteMarkers": [line for line in chosen if line["marker"]],
            "IsTruncated": start + len(chosen) < len(lines),
        }
        if chosen:
            page |= {"NextKeyMarker": chosen[-1]["Key"], "NextVersionIdMarker": chosen[-1]["VersionId"]}
        return page

    def _lines(self, key):
        entries = list(enumerate(self.history[key]))
        for number, entry in reversed(entries):
            latest = number == len(entries) - 1
            version_id = f"v{number}"
            yield {"Key": key, "VersionId": version_id, "marker": entry is None, "IsLatest": latest, "LastModified": 0}

    def list_multipart_uploads(self, Bucket):
        return {}

    def get_object(self, Bucket, Key, VersionId):
        version = self.history[Key][int(VersionId[1:])]
        body = version["body"]
        return {
            "Body": StreamingBody(io.BytesIO(body), len(body)),
            "Metadata": version["metadata"],
            "TagCount": len(version["tags"]),
            "SSEKMSKeyId": version["kms_key"],
            "ResponseMetadata": {"HTTPHeaders": version["headers"]},
        }

    def get_object_tagging(self, Bucket, Key, VersionId):
        tags = self.history[Key][int(VersionId[1:])]["tags"]
        return {"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]}


def version(body, **changes):
    """A version as a careful writer leaves it."""
    plain = {
        "body": body,
        "headers": {"content-type": "text/plain", "etag": hashlib.md5(body).hexdigest()},
        "metadata": {"owner": "etl"},
        "tags": {"tier": "gold"},
        "kms_key": None,
    }
    return plain | changes


def source_history():
    """Three keys: a long history with runs of markers, a single version, markers over nothing."""
    return {
        "a b": [None, version(b"1"), version(b"2"), None, None, version(b"1"), None],
        "pre/fix": [version(b"x")],
        "gone": [None, None],
    }


def replicated(history):
    """The destination that a correct replicator makes of it."""
    def replica(entry):
        stamped = {"kms_key": KEY_ARN, "metadata": {**entry["metadata"], compare.STAMP: "1"}} if entry else None
        return stamped and copy.deepcopy(entry) | stamped

    found = {}
    for key, entries in history.items():
        for entry in entries:
            kept = found.setdefault(key, [])
            if entry is not None or (kept and kept[-1] is not None):
                kept.append(replica(entry))
    return {key: entries for key, entries in found.items() if entries}


class ComparerTest(unittest.TestCase):
    """Each test damages a correct destination in one way."""

    def setUp(self):
        self.source = source_history()
        self.destination = replicated(self.source)

    def differences(self, **options):
        for page_size in (1_000, 2):
            source = compare.Side(FakeS3(self.source, page_size), "source")
            destination = compare.Side(FakeS3(self.destination, page_size), "destination")
            found, summary = compare.compare(source, destination, **{"kms_key": KEY_ARN, **options})
            self.assertEqual(summary["differences"], len(found))
        return found

    def assert_seen(self, text, **options):
        found = self.differences(**options)
        self.assertTrue(any(text in line for line in found), f"{text!r} is not in {found}")

    def test_a_correct_destination_has_no_difference(self):
        self.assertEqual(self.differences(), [])

    def test_the_summary_counts_what_was_compared(self):
        _, summary = compare.compare(
            compare.Side(FakeS3(self.source), "source"), compare.Side(FakeS3(self.destination), "destination")
        )
        self.assertEqual((summary["versions"], summary["markers"], summary["replicas"]), (4, 2, 4))
        self.assertEqual(summary["stamped"], 4)

    def test_a_missing_version_is_seen(self):
        del self.destination["a b"][1]
        self.assert_seen("a b: entry 2 of 5 is missing")

    def test_a_missing_marker_is_seen(self):
        del self.destination["a b"][-1]
        self.assert_seen("a b: entry 5 of 5 is missing: delete marker")

    def test_a_missing_key_is_seen(self):
        del self.destination["pre/fix"]
        self.assert_seen("pre/fix: entry 1 of 1 is missing")

    def test_a_swapped_order_is_seen(self):
        entries = self.destination["a b"]
        entries[0], entries[1] = entries[1], entries[0]
        self.assert_seen("a b: order differs")

    def test_a_marker_before_its_version_is_seen(self):
        entries = self.destination["a b"]
        entries[3], entries[4] = entries[4], entries[3]
        self.assert_seen("a b: ")

    def test_a_second_replica_of_a_version_is_seen(self):
        self.destination["pre/fix"] *= 2
        self.assert_seen("pre/fix: entry 2 of 2 at the destination is extra")

    def test_a_key_that_only_the_destination_has_is_seen(self):
        self.destination["stray"] = [version(b"?")]
        self.assert_seen("stray: entry 1 of 1 at the destination is extra")

    def test_other_bytes_are_seen(self):
        self.destination["pre/fix"][0]["body"] = b"y"
        self.assert_seen("pre/fix: entry 1 of 1 is missing")

    def test_a_wrong_tag_is_seen(self):
        self.destination["a b"][1]["tags"] = {"tier": "silver"}
        self.assert_seen("a b: version 2: tags: tier is 'silver' instead of 'gold'")

    def test_lost_tags_are_seen(self):
        self.destination["pre/fix"][0]["tags"] = {}
        self.assert_seen("pre/fix: version 1: tags: tier is None")

    def test_other_metadata_is_seen(self):
        self.destination["pre/fix"][0]["metadata"]["extra"] = "1"
        self.assert_seen("pre/fix: version 1: metadata: extra is '1' instead of None")

    def test_another_header_is_seen(self):
        self.destination["pre/fix"][0]["headers"] = {"content-type": "text/html"}
        self.assert_seen("headers: content-type is 'text/html' instead of 'text/plain'")

    def test_another_storage_class_is_seen(self):
        self.assert_seen("x-amz-storage-class is 'STANDARD' instead of 'STANDARD_IA'", wanted_class="STANDARD_IA")

    def test_another_kms_key_is_seen(self):
        self.destination["pre/fix"][0]["kms_key"] = "arn:aws:kms:eu-west-1:111111111111:key/source"
        self.assert_seen("pre/fix: version 1: KMS key is arn:aws:kms:eu-west-1")

    def test_no_encryption_is_seen(self):
        self.destination["pre/fix"][0]["kms_key"] = None
        self.assert_seen("pre/fix: version 1: KMS key is None")

    def test_a_current_version_that_is_not_the_newest_is_seen(self):
        older, newer = compare.Entry("v1", False, True, 1), compare.Entry("v2", False, False, 2)
        self.assertEqual(len(list(compare.misplaced_current([older, newer]))), 1)
        self.assertEqual(list(compare.misplaced_current([newer, older])), [])

    def test_a_rewritten_prefix_is_mapped(self):
        mapped = {f"copy/{key}": entries for key, entries in self.destination.items()}
        destination = compare.Side(FakeS3(mapped), "destination", "copy/")
        self.assertEqual(compare.compare(compare.Side(FakeS3(self.source), "source"), destination)[0], [])


if __name__ == "__main__":
    unittest.main()
