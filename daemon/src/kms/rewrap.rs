//! Data keys that KMS wrapped for clients of the source, wrapped anew under the destination's key:
//! inside KMS by ReEncrypt, between Regions by Decrypt and Encrypt. Under a key that is not the one
//! it was wrapped with, KMS refuses.

use std::collections::HashMap;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::{Builder, Region};
use aws_sdk_kms::primitives::Blob;
use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::rule::Rule;
use zeroize::Zeroizing;

use super::Keys;
use crate::s3::accounts::error::{from_kms_error, is_other_key};

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

/// What came of the keys of one pair.
enum Tried {
    Rewrapped(Vec<u8>),
    /// It was wrapped with another key.
    OtherKey,
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
                Ok(Tried::Rewrapped(ciphertext)) => {
                    let under = to.clone();
                    return Ok(Rewrapped { ciphertext, under });
                }
                Ok(Tried::OtherKey) => {}
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

    /// <https://docs.aws.amazon.com/kms/latest/APIReference/API_ReEncrypt.html>
    async fn re_encrypt(
        &self,
        rule: &Rule,
        key: &WrappedKey,
        (from, to): (&str, &str),
    ) -> Result<Tried, Failure> {
        let request = self
            .client(&rule.source.account, Operation::ReEncrypt)?
            .re_encrypt();
        let request = request
            .ciphertext_blob(Blob::new(key.ciphertext.as_slice()))
            .source_key_id(from)
            .destination_key_id(to)
            .set_source_encryption_context(Some(key.context.clone()))
            .set_destination_encryption_context(Some(key.context.clone()));
        match request
            .customize()
            .config_override(of_region(from))
            .send()
            .await
        {
            Ok(answer) => wrapped(answer.ciphertext_blob, Operation::ReEncrypt),
            Err(error) if is_other_key(&error) => Ok(Tried::OtherKey),
            Err(error) => Err(from_kms_error(Operation::ReEncrypt, error)),
        }
    }

    /// Takes a data key out of one Region and into another. What is ours of its plaintext is
    /// overwritten at once.
    async fn carry_over(
        &self,
        rule: &Rule,
        key: &WrappedKey,
        (from, to): (&str, &str),
    ) -> Result<Tried, Failure> {
        let request = self
            .client(&rule.source.account, Operation::Decrypt)?
            .decrypt();
        let request = request
            .ciphertext_blob(Blob::new(key.ciphertext.as_slice()))
            .key_id(from)
            .set_encryption_context(Some(key.context.clone()));
        let plaintext = match request
            .customize()
            .config_override(of_region(from))
            .send()
            .await
        {
            Ok(answer) => answer
                .plaintext
                .ok_or_else(|| unreadable(Operation::Decrypt))?,
            Err(error) if is_other_key(&error) => return Ok(Tried::OtherKey),
            Err(error) => return Err(from_kms_error(Operation::Decrypt, error)),
        };
        let plaintext = Zeroizing::new(plaintext.into_inner());
        let request = self
            .client(&rule.destination.account, Operation::Encrypt)?
            .encrypt();
        let request = request
            .plaintext(Blob::new(plaintext.as_slice()))
            .key_id(to)
            .set_encryption_context(Some(key.context.clone()));
        let answer = request
            .customize()
            .config_override(of_region(to))
            .send()
            .await;
        let answer = answer.map_err(|error| from_kms_error(Operation::Encrypt, error))?;
        wrapped(answer.ciphertext_blob, Operation::Encrypt)
    }

    fn client(&self, account: &str, during: Operation) -> Result<&Client, Failure> {
        let access = self.accounts.get(account);
        let access = access.ok_or_else(|| unreadable(during))?;
        Ok(&access.kms)
    }
}

fn wrapped(ciphertext: Option<Blob>, during: Operation) -> Result<Tried, Failure> {
    let ciphertext = ciphertext.ok_or_else(|| unreadable(during))?;
    Ok(Tried::Rewrapped(ciphertext.into_inner()))
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
