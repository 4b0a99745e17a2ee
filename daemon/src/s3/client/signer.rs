//! Keeps an account's credentials, for our requests and the SDK's, and signs with AWS Signature
//! Version 4, by the clock of the service that is to accept it. Paths and queries come encoded as
//! the signature requires:
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>. The SDK's
//! signer takes any request apart first: docs/performance.md says what that cost.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, USER_AGENT};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use replicator_core::object::Timestamp;
use sha2::{Digest, Sha256};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::clock;
use crate::s3::accounts::error::ErrorBody;
use crate::s3::checksum::hex;
use crate::s3::client::Endpoint;
use crate::s3::client::body::BodyChunks;
use crate::s3::client::request::S3Request;

/// One account's signer.
#[derive(Debug)]
pub(crate) struct Signer {
    keeper: Option<Arc<Keeper>>,
    /// How many seconds the service's clock is ahead of ours.
    ahead: AtomicI64,
    /// The key that signed last.
    signing_key: Mutex<Option<SigningKey>>,
}

/// The key of a scope, which four digests derive, and which is good for the scope's day:
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>
struct SigningKey {
    scope: String,
    derived_from: Credentials,
    key: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SigningKey").field(&self.scope).finish()
    }
}

const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const PAYLOAD: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// The digest of no body.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

impl Signer {
    pub(crate) fn new(keeper: Option<Arc<Keeper>>) -> Self {
        Self {
            keeper,
            ahead: AtomicI64::new(0),
            signing_key: Mutex::default(),
        }
    }

    /// Returns the credentials that sign.
    pub(super) async fn credentials(&self) -> Result<Credentials, BoxError> {
        let keeper = self.keeper.as_ref();
        let keeper = keeper.ok_or("no credentials are configured")?;
        Ok(keeper.credentials(self.now()).await?)
    }

    /// Signs what a call wrote.
    pub(super) fn sign(
        &self,
        mut request: Request<SdkBody>,
        call: &S3Request<'_>,
        endpoint: &Endpoint,
        credentials: &Credentials,
    ) -> Result<HttpRequest, BoxError> {
        let payload = match &call.body {
            None => EMPTY_SHA256.into(),
            Some(_) if endpoint.is_private => "UNSIGNED-PAYLOAD".into(),
            Some(body) => Cow::from(sha256(body)),
        };
        let scope = (endpoint.region.as_str(), "s3");
        self.add_signature(&mut request, (credentials, scope), self.now(), &payload)?;
        // Some stores answer 411 without it. It is not signed, because a proxy may drop it.
        if call.body.is_none() && !request.method().is_safe() {
            request.headers_mut().insert(CONTENT_LENGTH, 0.into());
        }
        Ok(request.try_into()?)
    }

    /// Signs a text that is sent to another service.
    pub(super) fn sign_text(
        &self,
        request: Request<&str>,
        scope: (&str, &str),
        credentials: &Credentials,
    ) -> Result<HttpRequest, BoxError> {
        let mut request = request.map(|text| (SdkBody::from(text), hex(&Sha256::digest(text))));
        let payload = request.body().1.clone();
        self.add_signature(&mut request, (credentials, scope), self.now(), &payload)?;
        Ok(request.map(|(body, _)| body).try_into()?)
    }

    /// Takes from a refusal the service's time, and that credentials ended before their expiry.
    pub(super) fn learn(&self, body: &ErrorBody, date: Option<Timestamp>, signed_by: &Credentials) {
        match body.code.as_str() {
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

    /// Signs a request for a Region's service; `payload` is the body's digest, or the statement that it
    /// is not signed.
    fn add_signature<B>(
        &self,
        request: &mut Request<B>,
        (credentials, (region, service)): (&Credentials, (&str, &str)),
        now: Timestamp,
        payload: &str,
    ) -> Result<(), BoxError> {
        let moment = now.format(MOMENT)?;
        let (day, _) = moment.split_once('T').unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(DATE, HeaderValue::try_from(&moment)?);
        headers.insert(PAYLOAD, HeaderValue::try_from(payload)?);
        if let Some(token) = credentials.session_token() {
            let mut token = HeaderValue::try_from(token)?;
            token.set_sensitive(true);
            headers.insert(TOKEN, token);
        }
        let (names, digest) = canonical(request, payload)?;
        let scope = format!("{day}/{region}/{service}/aws4_request");
        let text = format!("AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}");
        let signature = self.signature_of(&text, credentials, &scope, || {
            let secret = credentials.secret_access_key();
            generate_signing_key(secret, now.into(), region, service)
        });
        let key_id = credentials.access_key_id();
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
        );
        let mut authorization = HeaderValue::try_from(authorization)?;
        authorization.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, authorization);
        Ok(())
    }

    /// Signs a text with the key of a scope, which is derived where another one signed last.
    fn signature_of<K: AsRef<[u8]>>(
        &self,
        text: &str,
        credentials: &Credentials,
        scope: &str,
        derive: impl FnOnce() -> K,
    ) -> String {
        let mut last = self
            .signing_key
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let secret = credentials.secret_access_key();
        let signing = match last.take() {
            Some(known)
                if known.scope == scope && known.derived_from.secret_access_key() == secret =>
            {
                known
            }
            Some(_) | None => SigningKey {
                scope: scope.to_owned(),
                derived_from: credentials.clone(),
                key: Zeroizing::new(derive().as_ref().to_vec()),
            },
        };
        calculate_signature(&*last.insert(signing).key, text.as_bytes())
    }

    fn now(&self) -> Timestamp {
        clock::now().saturating_add(time::Duration::seconds(self.ahead.load(Ordering::Relaxed)))
    }
}

// The moment of a signature, which begins with its day.
const MOMENT: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");

/// Returns the names of the headers that are signed, and the digest of the canonical request.
fn canonical<B>(request: &Request<B>, payload: &str) -> Result<(String, String), BoxError> {
    let uri = request.uri();
    let host = host(uri)?;
    let headers = signed(request.headers(), host.as_bytes());
    let mut names = String::with_capacity(256);
    let mut digest = Sha256::new();
    for line in [request.method().as_str(), uri.path(), &query(uri)] {
        digest.update(line);
        digest.update("\n");
    }
    for (name, value) in headers {
        digest.update(name);
        digest.update(":");
        trimmed(value, |piece| digest.update(piece));
        digest.update("\n");
        if !names.is_empty() {
            names.push(';');
        }
        names.push_str(name);
    }
    for piece in ["\n", &names, "\n", payload] {
        digest.update(piece);
    }
    Ok((names, hex(&digest.finalize())))
}

/// Returns the host as the connection says it.
fn host(uri: &Uri) -> Result<&str, BoxError> {
    let authority = uri.authority().ok_or("a URL without a host")?;
    let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
    let default_port = if is_tls { 443 } else { 80 };
    Ok(match authority.port_u16() == Some(default_port) {
        true => authority.host(),
        false => Authority::as_str(authority),
    })
}

/// Lists the headers in the order of their names, except the one that a proxy may change.
fn signed<'a>(headers: &'a HeaderMap, host: &'a [u8]) -> Vec<(&'a str, &'a [u8])> {
    let mut signed: Vec<(&str, &[u8])> = headers
        .iter()
        .filter(|(name, _)| **name != USER_AGENT)
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    signed.push(("host", host));
    signed.sort_unstable();
    signed
}

/// Passes on a value without blanks around it, and with one blank for several in a row.
fn trimmed(value: &[u8], mut pass: impl FnMut(&[u8])) {
    let mut words = value
        .split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty());
    if let Some(first) = words.next() {
        pass(first);
    }
    for word in words {
        pass(b" ");
        pass(word);
    }
}

/// Returns the query in the order of its names, each with a value.
fn query(uri: &Uri) -> String {
    let mut pairs: Vec<(&str, &str)> = uri
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'))
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .collect();
    pairs.sort_unstable();
    let pairs = pairs.iter().map(|(name, value)| format!("{name}={value}"));
    pairs.collect::<Vec<_>>().join("&")
}

fn sha256(body: &BodyChunks) -> String {
    let mut digest = Sha256::new();
    body.pieces().for_each(|piece| digest.update(piece));
    hex(&digest.finalize())
}

/// One account's credentials: fetched once, and kept until shortly before they end.
#[derive(Debug)]
pub(crate) struct Keeper {
    provider: SharedCredentialsProvider,
    kept: Mutex<Option<Kept>>,
    /// Held while new credentials are fetched; the other tasks wait, and share a refusal.
    last: tokio::sync::Mutex<Option<Fetch>>,
}

#[derive(Debug, Clone)]
struct Kept {
    credentials: Credentials,
    /// From when on new ones are fetched; these are valid for a while longer.
    renewed_from: Option<SystemTime>,
}

/// How the last fetch went.
#[derive(Debug)]
struct Fetch {
    at: Instant,
    refusal: Option<Arc<CredentialsError>>,
}

// New credentials take a moment to come, and a request signed with the old ones a moment to arrive.
const RENEWED_BEFORE_END: Duration = Duration::from_secs(60);

// Credentials that are valid for a few minutes or less are renewed in the last quarter of that
// time.
const RENEWED_IN_LAST: u32 = 4;

// The provider gets no more requests than this, whatever the credentials' expiry.
const FETCHED_EVERY: Duration = Duration::from_secs(1);

impl Keeper {
    pub(crate) fn new(provider: SharedCredentialsProvider) -> Self {
        Self {
            provider,
            kept: Mutex::default(),
            last: tokio::sync::Mutex::default(),
        }
    }

    /// Returns credentials that are good at this time, by the clock of the service that is to
    /// accept them.
    pub(super) async fn credentials(
        &self,
        now: Timestamp,
    ) -> Result<Credentials, Arc<CredentialsError>> {
        let (now, begun) = (SystemTime::from(now), Instant::now());
        if let Some(fresh) = self.fresh(now) {
            return Ok(fresh);
        }
        let mut last = self.last.lock().await;
        if let Some(fresh) = self.fresh(now) {
            return Ok(fresh);
        }
        if let Some(last) = last
            .as_ref()
            .filter(|last| last.at > begun || last.at.elapsed() < FETCHED_EVERY)
        {
            match (&last.refusal, self.newest()) {
                (Some(refusal), newest) => {
                    return unless_over(newest, now).ok_or_else(|| Arc::clone(refusal));
                }
                // They ended before they came, by our clock; the service's may be another.
                (None, Some(newest)) => return Ok(newest),
                (None, None) => tokio::time::sleep_until(last.at + FETCHED_EVERY).await,
            }
        }
        let fetched = self.provider.provide_credentials().await.map_err(Arc::new);
        *last = Some(Fetch {
            at: Instant::now(),
            refusal: fetched.as_ref().err().cloned(),
        });
        match fetched {
            Ok(credentials) => {
                let renewed_from = credentials.expiry().map(|end| renewed_from(end, now));
                *self.kept() = Some(Kept {
                    credentials: credentials.clone(),
                    renewed_from,
                });
                Ok(credentials)
            }
            Err(refusal) => unless_over(self.newest(), now).ok_or(refusal),
        }
    }

    /// Forgets credentials that a service refused; meanwhile there may be newer ones.
    pub(super) fn forget(&self, refused: &Credentials) {
        let id = |credentials: &Credentials| {
            (
                credentials.access_key_id().to_owned(),
                credentials.session_token().map(str::to_owned),
            )
        };
        self.kept()
            .take_if(|kept| id(&kept.credentials) == id(refused));
    }

    fn fresh(&self, now: SystemTime) -> Option<Credentials> {
        let kept = self.kept();
        let kept = kept
            .as_ref()
            .filter(|kept| kept.renewed_from.is_none_or(|from| now < from))?;
        Some(kept.credentials.clone())
    }

    fn newest(&self) -> Option<Credentials> {
        self.kept().as_ref().map(|kept| kept.credentials.clone())
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unless_over(credentials: Option<Credentials>, now: SystemTime) -> Option<Credentials> {
    credentials.filter(|credentials| credentials.expiry().is_none_or(|end| now < end))
}

fn renewed_from(end: SystemTime, now: SystemTime) -> SystemTime {
    let life = end.duration_since(now).unwrap_or_default();
    end - RENEWED_BEFORE_END.min(life / RENEWED_IN_LAST)
}

impl ProvideCredentials for Keeper {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.credentials(clock::now())
                .await
                .map_err(|refusal| CredentialsError::provider_error(BoxError::from(refusal)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use aws_sigv4::http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
        UriPathNormalizationMode, sign,
    };
    use aws_sigv4::sign::v4::SigningParams;
    use time::macros::datetime;

    use super::*;

    /// Has AWS's own signer sign a request, and returns what it says.
    fn by_aws(
        request: &Request<()>,
        credentials: &Credentials,
        region: &str,
        now: Timestamp,
        payload: &str,
    ) -> String {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let identity = credentials.clone().into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(region)
            .name("s3");
        let params = params
            .time(now.into())
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let body = SignableBody::Precomputed(payload.to_owned());
        let headers = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let uri = request.uri().to_string();
        let signable = SignableRequest::new(request.method().as_str(), uri, headers, body).unwrap();
        let (instructions, _) = sign(signable, &params).unwrap().into_parts();
        let mut signed = request.clone();
        instructions.apply_to_request_http1x(&mut signed);
        signed.headers()[AUTHORIZATION].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_value_is_signed_without_blanks_around_it_and_with_one_for_several() {
        let mut all: Vec<u8> = (0x80..=0xff).chain([b'\t']).collect();
        all.push(b'e');
        for (value, signed) in [
            (&b"  a   b \t  c "[..], &b"a b \t c"[..]),
            (b"\t a", b"\t a"),
            (b"a,  \"b  c\" ", b"a, \"b c\""),
            (b"   ", b""),
            (&all, &all),
        ] {
            let mut written = Vec::new();
            trimmed(value, |piece| written.extend_from_slice(piece));
            assert_eq!(written, signed);
        }
    }

    #[test]
    fn a_request_is_signed_as_by_awss_own_signer() {
        let (signer, token) = (Signer::new(None), Some("token".to_owned()));
        let (day, next) = (
            datetime!(2026-11-28 23:59:59 UTC),
            datetime!(2026-11-29 00:00 UTC),
        );
        let (one, other) = ("secret", "other secret");
        let cases = [
            (None, one, "eu-west-1", day),
            (None, one, "eu-west-1", next),
            (token, one, "us-east-1", next),
            (None, other, "us-east-1", next),
        ];
        for (token, secret, region, now) in cases {
            let credentials = Credentials::new("AKIDEXAMPLE", secret, token, None, "test");
            for uri in [
                "https://b.s3.eu-west-1.amazonaws.com:443/a%20b/?versions&prefix=a%2F&max-keys=7",
                "http://store.example:80/b/a",
                "http://[::1]:9000/b/a?x-id=PutObject&versionId=v%3D",
            ] {
                let mut request = Request::put(uri)
                    .header("user-agent", "us")
                    .header("x-amz-meta-a", " b   c ")
                    .header("content-length", "7")
                    .header("x-amz-meta-empty", "")
                    .body(())
                    .unwrap();
                let payload = "UNSIGNED-PAYLOAD";
                let wanted = by_aws(&request, &credentials, region, now, payload);
                let signed_by = (&credentials, (region, "s3"));
                signer
                    .add_signature(&mut request, signed_by, now, payload)
                    .unwrap();
                let signed = &request.headers()[AUTHORIZATION];
                assert_eq!(signed, wanted.as_str(), "{uri} {now} {region}");
            }
        }
    }

    /// Gives after a second what lives so long, or refuses, and counts how often it was asked.
    #[derive(Debug, Clone, Default)]
    struct Giver {
        life: Option<Duration>,
        asked: Arc<AtomicU32>,
    }

    impl ProvideCredentials for Giver {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            future::ProvideCredentials::new(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let life = self
                    .life
                    .ok_or_else(|| CredentialsError::provider_error("refused"))?;
                let end = Some(SystemTime::from(clock::now()) + life);
                Ok(Credentials::new(
                    format!("AKID{number}"),
                    "secret",
                    None,
                    end,
                    "test",
                ))
            })
        }
    }

    impl Giver {
        fn new(life: Option<Duration>) -> (Self, Keeper) {
            clock::simulate(Timestamp::UNIX_EPOCH);
            let giver = Self {
                life,
                ..Self::default()
            };
            (
                giver.clone(),
                Keeper::new(SharedCredentialsProvider::new(giver)),
            )
        }

        fn asked(&self) -> u32 {
            self.asked.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_wait_for_credentials_share_the_refusal() {
        let (giver, keeper) = Giver::new(None);
        let all =
            futures::future::join_all((0..100).map(|_| keeper.credentials(clock::now()))).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(giver.asked(), 1);
        tokio::time::advance(FETCHED_EVERY).await;
        assert!(keeper.credentials(clock::now()).await.is_err());
        assert_eq!(giver.asked(), 2, "a later request fetches anew");
    }

    /// Sends ten requests a second with credentials that live so long, and returns how often those
    /// were fetched.
    async fn fetches(life: u64, seconds: u64) -> u32 {
        let (giver, keeper) = Giver::new(Some(Duration::from_secs(life)));
        for _request in 0..seconds * 10 {
            let credentials = keeper.credentials(clock::now()).await.unwrap();
            let is_good = credentials.expiry().unwrap() > SystemTime::from(clock::now());
            assert!(is_good || life < 3, "{life}");
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        giver.asked()
    }

    #[tokio::test(start_paused = true)]
    async fn short_lives_are_used_and_not_fetched_for_each_request() {
        for (life, seconds, most) in [
            (3600, 3500, 1),
            (60, 600, 14),
            (30, 300, 14),
            (4, 40, 16),
            (1, 60, 62),
            (0, 60, 62),
        ] {
            let fetches = fetches(life, seconds).await;
            assert!(fetches <= most, "{life}: {fetches}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_service_refused_is_fetched_anew_once_for_all() {
        let (giver, keeper) = Giver::new(Some(Duration::from_secs(3600)));
        let old = keeper.credentials(clock::now()).await.unwrap();
        for _refused in 0..100 {
            keeper.forget(&old);
            assert_eq!(
                keeper
                    .credentials(clock::now())
                    .await
                    .unwrap()
                    .access_key_id(),
                "AKID1"
            );
        }
        assert_eq!(giver.asked(), 2);
    }
}
