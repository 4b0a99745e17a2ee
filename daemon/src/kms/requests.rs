//! The requests to KMS. What it says of one key: its description, and dry runs of what S3 will ask
//! of it; a dry run is refused where a key policy lets the key be used through S3 alone, so a denial
//! decides nothing. And data keys that KMS wrapped for clients of the source, wrapped anew under the
//! destination's key: inside KMS by ReEncrypt, between Regions by Decrypt and Encrypt; under a key
//! that is not the one it was wrapped with, KMS refuses.

use std::collections::HashMap;
use std::error::Error;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::{Builder, Region};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, DryRunModifierType, KeyMetadata};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::rule::Rule;
use zeroize::Zeroizing;

use super::{KeySide, KeyState, Keys};
use crate::s3::accounts::error::{
    KeyAnswer, error_words, from_kms_error, is_other_key, key_answer,
};

/// What KMS answers about a key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyReport {
    /// What is certain.
    pub(crate) state: Option<KeyState>,
    pub(crate) arn: Option<String>,
    /// What it says, in words.
    pub(crate) detail: String,
}

/// Asks about a key by its ARN or alias, as the account that will use it.
pub(super) async fn ask(client: &Client, side: KeySide, name: &str) -> KeyReport {
    let described = describe(client, name).await;
    if described.state.is_some_and(KeyState::is_bad) {
        return described;
    }
    let key = described.arn.as_deref().unwrap_or(name);
    let mut uses = vec![("kms:Decrypt", try_decrypt(client, key).await)];
    if side == KeySide::Destination {
        uses.push(("kms:GenerateDataKey", try_generate(client, key).await));
    }
    described.with_uses(&uses)
}

/// <https://docs.aws.amazon.com/kms/latest/APIReference/API_DescribeKey.html>
async fn describe(client: &Client, name: &str) -> KeyReport {
    let described = match client.describe_key().key_id(name).send().await {
        Ok(described) => described.key_metadata,
        Err(error) => {
            let detail = format!("DescribeKey {}", error_words(&error));
            let state = key_answer(&error).and_then(state_of);
            return KeyReport {
                state,
                detail,
                arn: None,
            };
        }
    };
    described.map(KeyReport::from).unwrap_or_default()
}

/// <https://docs.aws.amazon.com/kms/latest/developerguide/testing-permissions.html>
async fn try_decrypt(client: &Client, key: &str) -> Option<KeyAnswer> {
    let tried = client
        .decrypt()
        .key_id(key)
        .dry_run(true)
        .dry_run_modifiers(DryRunModifierType::IgnoreCiphertext);
    read_dry_run(tried.send().await)
}

async fn try_generate(client: &Client, key: &str) -> Option<KeyAnswer> {
    let tried = client
        .generate_data_key()
        .key_id(key)
        .key_spec(DataKeySpec::Aes256)
        .dry_run(true);
    read_dry_run(tried.send().await)
}

/// Reads what a dry run says; an emulator that does not know dry runs carries it out.
fn read_dry_run<T, E>(tried: Result<T, SdkError<E, HttpResponse>>) -> Option<KeyAnswer>
where
    E: ProvideErrorMetadata,
{
    match tried {
        Ok(_) => Some(KeyAnswer::Usable),
        Err(error) => key_answer(&error),
    }
}

impl KeyReport {
    /// Adds what the dry runs of its uses say.
    fn with_uses(self, uses: &[(&str, Option<KeyAnswer>)]) -> Self {
        let of = |answer| {
            let uses = uses.iter().filter(move |(_, said)| *said == Some(answer));
            uses.map(|(action, _)| *action)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (invalid, missing) = (of(KeyAnswer::InvalidState), of(KeyAnswer::NotFound));
        let are_usable = uses
            .iter()
            .all(|(_, said)| *said == Some(KeyAnswer::Usable));
        let (state, words) = match (invalid.as_str(), missing.as_str()) {
            ("", "") if are_usable => (Some(KeyState::Usable), String::new()),
            ("", "") => (self.state, String::new()),
            ("", missing) => (Some(KeyState::Missing), format!("not found by {missing}")),
            (invalid, _) => (
                Some(KeyState::Invalid),
                format!("refused to {invalid} for its state"),
            ),
        };
        let denied = match of(KeyAnswer::Denied) {
            denied if denied.is_empty() => denied,
            denied => format!(
                "{denied} denied to a direct request, the key policy may allow it through S3"
            ),
        };
        let said = [self.detail, words, denied]
            .into_iter()
            .filter(|words| !words.is_empty());
        Self {
            state,
            detail: said.collect::<Vec<_>>().join("; "),
            arn: self.arn,
        }
    }
}

/// Returns what an answer makes certain of a key.
fn state_of(answer: KeyAnswer) -> Option<KeyState> {
    match answer {
        KeyAnswer::Usable => Some(KeyState::Usable),
        KeyAnswer::Denied => None,
        KeyAnswer::InvalidState => Some(KeyState::Invalid),
        KeyAnswer::NotFound => Some(KeyState::Missing),
    }
}

/// <https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html>
impl From<KeyMetadata> for KeyReport {
    fn from(key: KeyMetadata) -> Self {
        let other_use = key
            .key_usage
            .filter(|usage| usage.as_str() != "ENCRYPT_DECRYPT");
        let other_kind = key
            .key_spec
            .filter(|spec| spec.as_str() != "SYMMETRIC_DEFAULT");
        let kind = other_use.as_ref().map(|usage| usage.as_str());
        let kind = kind.or(other_kind.as_ref().map(|spec| spec.as_str()));
        let (state, detail) = match (kind, key.key_state.as_ref().map(|state| state.as_str())) {
            (Some(kind), _) => (
                Some(KeyState::Invalid),
                format!("is of the kind {kind}, S3 needs a symmetric key that encrypts"),
            ),
            (None, Some(state @ ("Enabled" | "Updating"))) => {
                (Some(KeyState::Usable), state.to_owned())
            }
            (
                None,
                Some(
                    state @ ("Creating"
                    | "Disabled"
                    | "PendingDeletion"
                    | "PendingImport"
                    | "PendingReplicaDeletion"
                    | "Unavailable"),
                ),
            ) => (Some(KeyState::Invalid), state.to_owned()),
            // One that this version does not know says nothing.
            (None, state) => (None, state.unwrap_or("without a state").to_owned()),
        };
        Self {
            state,
            detail,
            arn: key.arn,
        }
    }
}

/// A data key as KMS wrapped it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WrappedKey {
    pub(crate) ciphertext: Vec<u8>,
    /// What it was wrapped with, and has to be named to unwrap it.
    pub(crate) context: HashMap<String, String>,
}

/// A data key that was wrapped anew.
#[derive(Debug)]
pub(crate) struct Rewrapped {
    pub(crate) ciphertext: Vec<u8>,
    /// The key of KMS that it is wrapped with now, by its ARN.
    pub(crate) under: String,
}

fn is_refusal(failure: &Failure) -> bool {
    failure.kind == FailureKind::NeedsOperator(Reason::ClientSideKeyRefused)
}

impl Keys {
    /// Wraps a data key anew by the first pair of the rule whose source key it is wrapped with. A
    /// pair whose keys cannot be used may be another object's, so the others are tried too.
    pub(crate) async fn rewrap(&self, rule: &Rule, key: &WrappedKey) -> Result<Rewrapped, Failure> {
        let mut refused = None;
        for (from, to) in &rule.client_side_keys {
            let tried = match region(from) == region(to) {
                true => self.re_encrypt(rule, key, (from, to)).await,
                false => self.carry_over(rule, key, (from, to)).await,
            };
            match tried {
                Ok(Some(ciphertext)) => {
                    let under = to.clone();
                    return Ok(Rewrapped { ciphertext, under });
                }
                Ok(None) => {}
                Err(failure) if is_refusal(&failure) => refused = refused.or(Some(failure)),
                Err(failure) => return Err(failure),
            }
        }
        if let Some(refused) = refused {
            return Err(refused);
        }
        let cause = "the data key is wrapped with none of the keys in client_side_keys";
        let kind = FailureKind::NeedsOperator(Reason::ClientSideKeyRefused);
        Err(Failure::with_source(kind, Operation::ReEncrypt, cause))
    }

    /// Wraps a data key anew inside KMS; none where it is wrapped with another key.
    /// <https://docs.aws.amazon.com/kms/latest/APIReference/API_ReEncrypt.html>
    async fn re_encrypt(
        &self,
        rule: &Rule,
        key: &WrappedKey,
        (from, to): (&str, &str),
    ) -> Result<Option<Vec<u8>>, Failure> {
        let during = Operation::ReEncrypt;
        let request = self.client(&rule.source.account, during)?.re_encrypt();
        let request = request
            .ciphertext_blob(Blob::new(key.ciphertext.as_slice()))
            .source_key_id(from)
            .destination_key_id(to)
            .set_source_encryption_context(Some(key.context.clone()))
            .set_destination_encryption_context(Some(key.context.clone()));
        let request = request.customize().config_override(of_region(from));
        let answer = unless_other_key(request.send().await, during)?;
        let ciphertext = answer.map(|answer| stated(answer.ciphertext_blob, during));
        ciphertext.transpose()
    }

    /// Takes a data key out of one Region and into another; none where it is wrapped with another
    /// key. What is ours of its plaintext is overwritten at once.
    async fn carry_over(
        &self,
        rule: &Rule,
        key: &WrappedKey,
        (from, to): (&str, &str),
    ) -> Result<Option<Vec<u8>>, Failure> {
        let during = Operation::Decrypt;
        let request = self.client(&rule.source.account, during)?.decrypt();
        let request = request
            .ciphertext_blob(Blob::new(key.ciphertext.as_slice()))
            .key_id(from)
            .set_encryption_context(Some(key.context.clone()));
        let request = request.customize().config_override(of_region(from));
        let Some(answer) = unless_other_key(request.send().await, during)? else {
            return Ok(None);
        };
        let plaintext = Zeroizing::new(stated(answer.plaintext, during)?);
        let during = Operation::Encrypt;
        let request = self.client(&rule.destination.account, during)?.encrypt();
        let request = request
            .plaintext(Blob::new(plaintext.as_slice()))
            .key_id(to)
            .set_encryption_context(Some(key.context.clone()));
        let request = request.customize().config_override(of_region(to));
        let answer = request.send().await;
        let answer = answer.map_err(|error| from_kms_error(during, error))?;
        stated(answer.ciphertext_blob, during).map(Some)
    }

    fn client(&self, account: &str, during: Operation) -> Result<&Client, Failure> {
        let access = self.accounts.get(account);
        let access = access.ok_or_else(|| unreadable(during))?;
        Ok(&access.kms)
    }
}

/// Takes an answer apart from the refusal of a data key that is wrapped with another key.
fn unless_other_key<T, E>(
    sent: Result<T, SdkError<E, HttpResponse>>,
    during: Operation,
) -> Result<Option<T>, Failure>
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match sent {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if is_other_key(&error) => Ok(None),
        Err(error) => Err(from_kms_error(during, error)),
    }
}

/// Returns the key that an answer states.
fn stated(key: Option<Blob>, during: Operation) -> Result<Vec<u8>, Failure> {
    key.map(Blob::into_inner).ok_or_else(|| unreadable(during))
}

fn unreadable(during: Operation) -> Failure {
    Failure::with_source(FailureKind::Transient, during, "the answer lacks the key")
}

/// A client-side key may be in any Region, which its ARN names.
fn of_region(arn: &str) -> Builder {
    Builder::new().region(Region::new(region(arn).to_owned()))
}

fn region(arn: &str) -> &str {
    arn.split(':').nth(3).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(state: &str, usage: &str, spec: &str) -> KeyReport {
        let key = KeyMetadata::builder()
            .key_id("1234")
            .arn("arn:1234")
            .key_state(state.into())
            .key_usage(usage.into())
            .key_spec(spec.into())
            .build();
        KeyReport::from(key.unwrap())
    }

    fn plain(state: &str) -> KeyReport {
        described(state, "ENCRYPT_DECRYPT", "SYMMETRIC_DEFAULT")
    }

    #[test]
    fn a_description_says_whether_s3_can_use_a_key() {
        let cases = [
            ("Enabled", Some(KeyState::Usable)),
            ("Updating", Some(KeyState::Usable)),
            ("Disabled", Some(KeyState::Invalid)),
            ("PendingDeletion", Some(KeyState::Invalid)),
            ("PendingImport", Some(KeyState::Invalid)),
            ("Unavailable", Some(KeyState::Invalid)),
            ("Hibernating", None),
        ];
        for (state, expected) in cases {
            assert_eq!(plain(state).state, expected, "{state}");
        }
        let signs = described("Enabled", "SIGN_VERIFY", "RSA_2048");
        assert_eq!(signs.state, Some(KeyState::Invalid));
        assert!(signs.detail.contains("SIGN_VERIFY"), "{}", signs.detail);
        let asymmetric = described("Enabled", "ENCRYPT_DECRYPT", "RSA_2048");
        assert_eq!(asymmetric.state, Some(KeyState::Invalid));
    }

    #[test]
    fn a_dry_run_decides_by_what_is_certain_and_a_denial_decides_nothing() {
        let (decrypt, generate) = ("kms:Decrypt", "kms:GenerateDataKey");
        let state = |before: KeyReport, first, second| {
            before.with_uses(&[(decrypt, first), (generate, second)])
        };
        let (allowed, denied) = (Some(KeyAnswer::Usable), Some(KeyAnswer::Denied));
        let through_s3 = state(plain("Enabled"), denied, allowed);
        assert_eq!(through_s3.state, Some(KeyState::Usable));
        assert!(through_s3.detail.contains(decrypt) && !through_s3.detail.contains(generate));
        let cases = [
            (allowed, allowed, Some(KeyState::Usable)),
            (allowed, None, None),
            (denied, denied, None),
            (
                allowed,
                Some(KeyAnswer::InvalidState),
                Some(KeyState::Invalid),
            ),
            (Some(KeyAnswer::NotFound), None, Some(KeyState::Missing)),
        ];
        for (first, second, expected) in cases {
            assert_eq!(state(KeyReport::default(), first, second).state, expected);
        }
    }
}
