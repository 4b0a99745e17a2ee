//! Who signs: credentials that are kept until they end.

use std::borrow::Cow;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use http::Request;
use replicator_core::object::Timestamp;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::body::Chunks;
use super::endpoint::Endpoint;
use super::signature::{DayKey, Signing, hex};
use crate::accounts::refusal::Said;
use crate::clock;

/// Why a request could not be sent.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// One account's signer.
#[derive(Debug)]
pub(crate) struct Signer {
    provider: Option<SharedCredentialsProvider>,
    kept: Mutex<Option<Credentials>>,
    /// Whoever finds the credentials at their end asks for new ones; the others wait, and share a refusal.
    refresh: tokio::sync::Mutex<Option<Refused>>,
    /// How many seconds the service's clock is ahead of ours.
    ahead: AtomicI64,
    day_key: DayKey,
}

#[derive(Debug)]
struct Refused {
    at: Instant,
    error: Arc<CredentialsError>,
}

// New credentials take a moment to come, and a request signed with the old ones a moment to arrive.
const REFRESHED_BEFORE_END: Duration = Duration::from_secs(60);

impl Signer {
    pub(crate) fn new(provider: Option<SharedCredentialsProvider>) -> Self {
        let (kept, refresh) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { provider, kept, refresh, ahead: AtomicI64::new(0), day_key: DayKey::default() }
    }

    /// Returns who signs.
    pub(super) async fn credentials(&self) -> Result<Credentials, Error> {
        if let Some(kept) = self.kept(REFRESHED_BEFORE_END) {
            return Ok(kept);
        }
        let asked = Instant::now();
        let mut refused = self.refresh.lock().await;
        if let Some(kept) = self.kept(REFRESHED_BEFORE_END) {
            return Ok(kept);
        }
        // The old ones may be good for another moment.
        let refusal = |error| self.kept(Duration::ZERO).ok_or(error);
        if let Some(Refused { error, .. }) = refused.as_ref().filter(|refused| refused.at > asked) {
            return refusal(Arc::clone(error).into());
        }
        let provider = self.provider.as_ref().ok_or("no credentials are configured")?;
        match provider.provide_credentials().await {
            Ok(credentials) => {
                self.keep(Some(credentials.clone()));
                Ok(credentials)
            }
            Err(error) => {
                let error = Arc::new(error);
                *refused = Some(Refused { at: Instant::now(), error: Arc::clone(&error) });
                refusal(error.into())
            }
        }
    }

    /// Signs a request.
    pub(super) fn sign(
        &self,
        mut request: Request<SdkBody>,
        body: Option<&Chunks>,
        endpoint: &Endpoint,
        credentials: &Credentials,
    ) -> Result<HttpRequest, Error> {
        let payload = match body {
            None => NOTHING.into(),
            Some(_) if endpoint.is_private() => "UNSIGNED-PAYLOAD".into(),
            Some(body) => Cow::from(sha256(body)),
        };
        let signing = Signing { credentials, region: endpoint.region(), now: self.now(), payload: &payload };
        self.day_key.sign(&mut request, &signing)?;
        Ok(request.try_into()?)
    }

    /// Learns from a refusal what time it is, and that credentials ended before their time.
    pub(super) fn learn(&self, said: &Said, date: Option<Timestamp>) {
        match said.code.as_str() {
            "RequestTimeTooSkewed" => {
                if let Some(date) = date {
                    self.ahead.store((date - clock::now()).whole_seconds(), Ordering::Relaxed);
                }
            }
            // A key that is not known may have been replaced where it comes from.
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "InvalidAccessKeyId" => self.keep(None),
            _ => {}
        }
    }

    fn now(&self) -> Timestamp {
        clock::now() + time::Duration::seconds(self.ahead.load(Ordering::Relaxed))
    }

    fn kept(&self, rest: Duration) -> Option<Credentials> {
        let kept = self.kept.lock().ok()?.clone()?;
        let is_good = kept.expiry().is_none_or(|expires| expires > SystemTime::from(self.now()) + rest);
        is_good.then_some(kept)
    }

    fn keep(&self, kept: Option<Credentials>) {
        if let Ok(mut known) = self.kept.lock() {
            *known = kept;
        }
    }
}

/// The digest of no body.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn sha256(body: &Chunks) -> String {
    let mut digest = Sha256::new();
    body.pieces().for_each(|piece| digest.update(piece));
    hex(&digest.finalize())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use aws_credential_types::provider::future::ProvideCredentials as Provided;

    use super::*;

    /// Refuses after a second, and counts how often it was asked.
    #[derive(Debug, Default)]
    struct Refusing(Arc<AtomicU32>);

    impl ProvideCredentials for Refusing {
        fn provide_credentials<'a>(&'a self) -> Provided<'a>
        where
            Self: 'a,
        {
            self.0.fetch_add(1, Ordering::Relaxed);
            Provided::new(async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Err(CredentialsError::provider_error("refused"))
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_credentials_shares_the_refusal() {
        let asked = Arc::<AtomicU32>::default();
        let signer = Signer::new(Some(SharedCredentialsProvider::new(Refusing(Arc::clone(&asked)))));
        let all = futures::future::join_all((0..100).map(|_| signer.credentials())).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(signer.credentials().await.is_err());
        assert_eq!(asked.load(Ordering::Relaxed), 2, "who comes later asks anew");
    }
}
