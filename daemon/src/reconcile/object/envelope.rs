//! The envelope of an object that the Amazon S3 Encryption Client encrypted before it wrote it: the
//! data key, wrapped by KMS, and what it was wrapped with; in the object's metadata, or in those of
//! an instruction file, which is JSON. Wrapped anew it opens under the destination's key, and the
//! body stays as it is. What another means wrapped is not touched.
//! <https://docs.aws.amazon.com/amazon-s3-encryption-client/latest/developerguide/concepts.html>

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use replicator_core::failure::{Failure, FailureKind, Operation, Reason};

use crate::kms::requests::WrappedKey;
use crate::reconcile::execute::copy::CopyJob;
use crate::reconcile::object::attributes::Attributes;
use crate::s3::client::{BodyChunks, Filled, ResponseHead, USER};

/// The fields that an envelope has in one of its formats.
struct Format {
    key: &'static str,
    algorithm: &'static str,
    /// What it is where the envelope does not say.
    implied: &'static str,
    /// The algorithms by which KMS wraps.
    of_kms: &'static [&'static str],
    context: &'static str,
}

// Of versions 1 to 3 of the client; what is wrapped without KMS names other algorithms, or none.
const FORMATS: [Format; 3] = [
    Format {
        key: "x-amz-key",
        algorithm: "x-amz-wrap-alg",
        implied: "",
        of_kms: &["kms"],
        context: "x-amz-matdesc",
    },
    Format {
        key: "x-amz-key-v2",
        algorithm: "x-amz-wrap-alg",
        implied: "",
        of_kms: &["kms", "kms+context"],
        context: "x-amz-matdesc",
    },
    Format {
        key: "x-amz-3",
        algorithm: "x-amz-w",
        implied: "12",
        of_kms: &["12"],
        context: "x-amz-t",
    },
];

/// Marks an instruction file.
const INSTRUCTION_FILE: &str = "x-amz-crypto-instr-file";

// It has a dozen short fields.
const INSTRUCTION_BYTES_MAX: u64 = 64 << 10;

/// What a header of a replica has instead of the source's value.
#[derive(Debug)]
pub(in crate::reconcile) struct RewrappedHeader {
    pub(in crate::reconcile) name: HeaderName,
    /// What decides its value, which is another each time.
    pub(in crate::reconcile) origin: String,
}

/// Wraps the data key in the metadata of an object anew, if the rule has keys for that and there
/// is one.
pub(in crate::reconcile) async fn rewrap_metadata(
    copy: &CopyJob<'_>,
    attributes: &mut Attributes,
) -> Result<Option<RewrappedHeader>, Failure> {
    if copy.rule.client_side_keys.is_empty() {
        return Ok(None);
    }
    let headers = &attributes.reader_headers;
    let field = |name: &str| headers.get(format!("{USER}{name}"))?.to_str().ok();
    let Some((format, key)) = find_key(field)? else {
        return Ok(None);
    };
    let before = field(format.key).unwrap_or_default().to_owned();
    let rewrapped = copy.cx.engine.keys.rewrap(copy.rule, &key).await?;
    let text = STANDARD.encode(&rewrapped.ciphertext);
    let (name, value) = (format!("{USER}{}", format.key), HeaderValue::try_from(text));
    let (Ok(name), Ok(value)) = (HeaderName::try_from(name), value) else {
        return Ok(None);
    };
    attributes.reader_headers.insert(name.clone(), value);
    let origin = format!("{before} {}", rewrapped.under);
    Ok(Some(RewrappedHeader { name, origin }))
}

/// Says whether a header may hold a data key that a rule has wrapped anew, so that it differs at a
/// replica.
pub(crate) fn may_hold_key(name: &HeaderName) -> bool {
    let name = name.as_str().strip_prefix(USER);
    name.is_some_and(|name| FORMATS.iter().any(|format| format.key == name))
}

/// Says whether an object is an instruction file by the names of its metadata.
fn is_instruction_file(has_metadata: impl Fn(&str) -> bool) -> bool {
    has_metadata(INSTRUCTION_FILE)
}

/// Says whether an object may be the replica of an instruction file that was wrapped anew.
pub(crate) fn may_be_rewrapped(head: &ResponseHead) -> bool {
    is_instruction_file(|name| head.user(name).is_some()) && { head.content_length() }
        .is_some_and(|bytes| bytes <= INSTRUCTION_BYTES_MAX)
}

/// Wraps the data key in an instruction file anew, if the rule has keys for that and it is one.
pub(in crate::reconcile) async fn rewrap_instructions(
    copy: &CopyJob<'_>,
    attributes: &Attributes,
    body: &Filled,
) -> Result<Option<Filled>, Failure> {
    let has_metadata = |name: &str| {
        attributes
            .reader_headers
            .contains_key(format!("{USER}{name}"))
    };
    if copy.rule.client_side_keys.is_empty()
        || !is_instruction_file(has_metadata)
        || body.chunks.len() > INSTRUCTION_BYTES_MAX
    {
        return Ok(None);
    }
    let text: Vec<u8> = body.chunks.pieces().flatten().copied().collect();
    let mut fields: BTreeMap<String, String> =
        serde_json::from_slice(&text).map_err(|error| refused(error.to_string()))?;
    let Some((format, key)) = find_key(|name| fields.get(name).map(String::as_str))? else {
        return Ok(None);
    };
    let rewrapped = copy.cx.engine.keys.rewrap(copy.rule, &key).await?;
    fields.insert(
        format.key.to_owned(),
        STANDARD.encode(&rewrapped.ciphertext),
    );
    let text = serde_json::to_vec(&fields).map_err(|error| refused(error.to_string()))?;
    Ok(Some(Filled::from(BodyChunks::from(Bytes::from(text)))))
}

/// Finds a data key that KMS wrapped among the fields of an envelope.
fn find_key<'a>(
    field: impl Fn(&str) -> Option<&'a str>,
) -> Result<Option<(&'static Format, WrappedKey)>, Failure> {
    let is_of_kms = |format: &&Format| {
        let algorithm = field(format.algorithm).unwrap_or(format.implied);
        field(format.key).is_some() && format.of_kms.contains(&algorithm)
    };
    let Some(format) = FORMATS.iter().find(is_of_kms) else {
        return Ok(None);
    };
    let unreadable = |name: &str| refused(format!("the metadata {name} cannot be read"));
    let key = field(format.key).unwrap_or_default();
    let ciphertext = STANDARD.decode(key).map_err(|_| unreadable(format.key))?;
    let context: HashMap<String, String> = match field(format.context) {
        None | Some("") => HashMap::new(),
        Some(text) => serde_json::from_str(text).map_err(|_| unreadable(format.context))?,
    };
    let key = WrappedKey {
        ciphertext,
        context,
    };
    Ok(Some((format, key)))
}

fn refused(cause: String) -> Failure {
    let kind = FailureKind::NeedsOperator(Reason::ClientSideKeyRefused);
    Failure::with_source(kind, Operation::ReEncrypt, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(fields: &[(&str, &str)]) -> Result<Option<WrappedKey>, Failure> {
        let fields: BTreeMap<&str, &str> = fields.iter().copied().collect();
        let found = find_key(|name| fields.get(name).copied());
        found.map(|found| found.map(|(_, key)| key))
    }

    #[test]
    fn a_data_key_is_found_in_each_format_with_its_context_as_it_was_wrapped() {
        let second = [
            ("x-amz-key-v2", "a2V5"),
            ("x-amz-wrap-alg", "kms+context"),
            (
                "x-amz-matdesc",
                r#"{"aws:x-amz-cek-alg":"AES/GCM/NoPadding","team":"gold"}"#,
            ),
        ];
        let key = found(&second).unwrap().unwrap();
        assert_eq!(key.ciphertext, b"key");
        assert_eq!(
            (key.context.len(), key.context["team"].as_str()),
            (2, "gold")
        );
        let third = [
            ("x-amz-3", "a2V5"),
            ("x-amz-w", "12"),
            ("x-amz-t", r#"{"aws:x-amz-cek-alg":"115"}"#),
        ];
        assert_eq!(
            found(&third).unwrap().unwrap().context["aws:x-amz-cek-alg"],
            "115"
        );
        let first = [
            ("x-amz-key-v2", "a2V5"),
            ("x-amz-wrap-alg", "kms"),
            ("x-amz-matdesc", r#"{"kms_cmk_id":"arn"}"#),
        ];
        assert_eq!(found(&first).unwrap().unwrap().context["kms_cmk_id"], "arn");
    }

    #[test]
    fn what_kms_did_not_wrap_is_left_alone_and_what_cannot_be_read_is_refused() {
        let others: [&[(&str, &str)]; 5] = [
            &[],
            &[
                ("x-amz-key", "a2V5"),
                ("x-amz-iv", "aXY="),
                ("x-amz-matdesc", "{}"),
            ],
            &[
                ("x-amz-key-v2", "a2V5"),
                ("x-amz-wrap-alg", "RSA-OAEP-SHA1"),
            ],
            &[("x-amz-3", "a2V5"), ("x-amz-w", "02"), ("x-amz-m", "{}")],
            &[("x-amz-c", "115"), ("x-amz-d", "ZA=="), ("x-amz-i", "aQ==")],
        ];
        for fields in others {
            assert_eq!(found(fields).unwrap(), None, "{fields:?}");
        }
        for (key, context) in [("a2V5", "no JSON"), ("no base64!", "{}"), ("a2V5", "[1]")] {
            let fields = [("x-amz-3", key), ("x-amz-w", "12"), ("x-amz-t", context)];
            let failure = found(&fields).unwrap_err();
            let refused = FailureKind::NeedsOperator(Reason::ClientSideKeyRefused);
            assert_eq!(failure.kind, refused, "{fields:?}");
        }
    }
}
