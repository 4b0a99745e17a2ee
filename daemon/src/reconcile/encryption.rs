//! Which encryption a replica gets: the rule's, or the source's own kind under a key of the
//! destination.

use std::collections::BTreeMap;

use replicator_core::rule::Encryption;

use super::attributes::{Attributes, KMS};

/// The encryption headers of a write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers {
    pub(crate) mode: Option<String>,
    pub(crate) kms_key: Option<String>,
    pub(crate) bucket_key: Option<bool>,
}

impl Headers {
    /// Returns them as they are sent.
    pub(crate) fn named(&self) -> [(&'static str, Option<String>); 3] {
        [
            ("x-amz-server-side-encryption", self.mode.clone()),
            (
                "x-amz-server-side-encryption-aws-kms-key-id",
                self.kms_key.clone(),
            ),
            (
                "x-amz-server-side-encryption-bucket-key-enabled",
                self.bucket_key.map(|enabled| enabled.to_string()),
            ),
        ]
    }
}

/// Chooses the headers for a replica of this version.
pub(crate) fn choose_headers(rule: &Encryption, source: &Attributes) -> Headers {
    match rule {
        Encryption::BucketDefault => Headers::default(),
        Encryption::S3 => Headers {
            mode: Some("AES256".to_owned()),
            ..Headers::default()
        },
        Encryption::Kms {
            key,
            key_map,
            bucket_key,
        } => Headers {
            mode: Some(KMS.to_owned()),
            kms_key: Some(translated(source, key_map).unwrap_or_else(|| key.clone())),
            bucket_key: Some(*bucket_key),
        },
        Encryption::Dsse { key } => Headers {
            mode: Some(format!("{KMS}:dsse")),
            kms_key: Some(key.clone()),
            bucket_key: None,
        },
        // A source key means nothing in another account or Region: without a translation the
        // destination account's own default key for S3 is used, by naming none.
        Encryption::Same { key_map } if source.is_kms() => Headers {
            mode: source.encryption.clone(),
            kms_key: translated(source, key_map),
            bucket_key: None,
        },
        // SSE-S3 is what every bucket encrypts with that has no other default, so no header is
        // sent: AWS has encrypted every object since 2023, and stores without keys answer 500 or
        // 501 to the header.
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/default-encryption-faq.html
        Encryption::Same { .. } => Headers::default(),
    }
}

fn translated(source: &Attributes, key_map: &BTreeMap<String, String>) -> Option<String> {
    key_map.get(source.kms_key.as_ref()?).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_bucket_encrypts_with_by_itself_is_not_asked_for() {
        let source = Attributes {
            encryption: Some("AES256".to_owned()),
            ..Attributes::default()
        };
        assert_eq!(
            choose_headers(
                &Encryption::Same {
                    key_map: BTreeMap::new()
                },
                &source
            ),
            Headers::default()
        );
        assert_eq!(
            choose_headers(&Encryption::S3, &source).mode.as_deref(),
            Some("AES256")
        );
    }

    #[test]
    fn a_source_key_is_translated_and_never_sent_to_the_destination() {
        let source = Attributes {
            encryption: Some(KMS.to_owned()),
            kms_key: Some("arn:source".to_owned()),
            ..Attributes::default()
        };
        let map = BTreeMap::from([("arn:source".to_owned(), "arn:destination".to_owned())]);
        let same = choose_headers(&Encryption::Same { key_map: map }, &source);
        assert_eq!(same.kms_key.as_deref(), Some("arn:destination"));
        let unmapped = choose_headers(
            &Encryption::Same {
                key_map: BTreeMap::new(),
            },
            &source,
        );
        assert_eq!(
            (unmapped.mode, unmapped.kms_key),
            (Some(KMS.to_owned()), None)
        );
    }
}
