//! What two objects differ in: one comparison, for the judge of histories and for what `verify` has
//! to find. Over the wire `tests/oracle/compare.py` does the same, which shares no code with this.

use replicator_fakes::s3::entry::Object;

use super::STAMP;

/// Lists what a replica differs in from its original, by name and in the order of the alphabet; in
/// the bytes only where there are as many.
pub(crate) fn differences(original: &Object, replica: &Object) -> Vec<&'static str> {
    let is_same_size = original.bytes.len() == replica.bytes.len();
    let differences = [
        ("bytes", is_same_size && original.bytes != replica.bytes),
        ("lock", original.lock != replica.lock),
        ("metadata", headers(original) != headers(replica)),
        ("size", !is_same_size),
        ("tags", original.tags != replica.tags),
    ];
    let found = differences.into_iter().filter(|(_, differs)| *differs);
    found.map(|(name, _)| name).collect()
}

/// Lists what an object carries, but the stamp. `binary/octet-stream` is what S3 says of an object
/// whose writer said nothing.
pub(super) fn headers(object: &Object) -> Vec<(&String, &http::HeaderValue)> {
    let is_stamp = |name: &String| name.strip_prefix("x-amz-meta-") == Some(STAMP);
    let said = |(name, value): &(&String, &http::HeaderValue)| {
        !is_stamp(name) && *value != "binary/octet-stream"
    };
    object.headers.iter().filter(said).collect()
}
