//! Signs requests, by the clock of the service that is to accept them.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use http::Request;
use http::header::CONTENT_LENGTH;
use replicator_core::object::Timestamp;
use sha2::{Digest, Sha256};

use super::body::BodyChunks;
use super::credentials::Keeper;
use super::endpoint::Endpoint;
use super::signature::{DayKey, Signing, hex};
use crate::accounts::error::ErrorBody;
use crate::clock;

/// Why a request could not be sent.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// One account's signer.
#[derive(Debug)]
pub(crate) struct Signer {
    keeper: Option<Arc<Keeper>>,
    /// How many seconds the service's clock is ahead of ours.
    ahead: AtomicI64,
    day_key: DayKey,
}

impl Signer {
    pub(crate) fn new(keeper: Option<Arc<Keeper>>) -> Self {
        Self {
            keeper,
            ahead: AtomicI64::new(0),
            day_key: DayKey::default(),
        }
    }

    /// Returns the credentials that sign.
    pub(super) async fn credentials(&self) -> Result<Credentials, Error> {
        let keeper = self
            .keeper
            .as_ref()
            .ok_or("no credentials are configured")?;
        Ok(keeper.credentials(self.now()).await?)
    }

    /// Signs a request.
    pub(super) fn sign(
        &self,
        mut request: Request<SdkBody>,
        body: Option<&BodyChunks>,
        endpoint: &Endpoint,
        credentials: &Credentials,
    ) -> Result<HttpRequest, Error> {
        let payload = match body {
            None => NOTHING.into(),
            Some(_) if endpoint.is_private() => "UNSIGNED-PAYLOAD".into(),
            Some(body) => Cow::from(sha256(body)),
        };
        let signing = Signing {
            credentials,
            region: endpoint.region(),
            now: self.now(),
            payload: &payload,
        };
        self.day_key.sign(&mut request, &signing)?;
        // Some stores answer 411 without it. It is not signed: something in between may drop what
        // says nothing.
        if body.is_none() && !request.method().is_safe() {
            request.headers_mut().insert(CONTENT_LENGTH, 0.into());
        }
        Ok(request.try_into()?)
    }

    /// Learns from a refusal what time it is, and that credentials ended before their time.
    pub(super) fn learn(&self, said: &ErrorBody, date: Option<Timestamp>, signed_by: &Credentials) {
        match said.code.as_str() {
            "RequestTimeTooSkewed" => {
                if let Some(date) = date {
                    self.ahead
                        .store((date - clock::now()).whole_seconds(), Ordering::Relaxed);
                }
            }
            // A key that is not known may have been replaced where it comes from.
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "InvalidAccessKeyId" => {
                self.keeper
                    .iter()
                    .for_each(|keeper| keeper.forget(signed_by));
            }
            _ => {}
        }
    }

    fn now(&self) -> Timestamp {
        clock::now().saturating_add(time::Duration::seconds(self.ahead.load(Ordering::Relaxed)))
    }
}

/// The digest of no body.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn sha256(body: &BodyChunks) -> String {
    let mut digest = Sha256::new();
    body.pieces().for_each(|piece| digest.update(piece));
    hex(&digest.finalize())
}
