//! Signs requests with AWS Signature Version 4, by the clock of the service that is to accept them.
//! Paths and queries come encoded as the signature requires:
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>. The SDK's
//! signer takes any request apart and derives its key anew for each: docs/performance.md says what
//! that cost.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aws_credential_types::Credentials;
use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, USER_AGENT};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use replicator_core::object::Timestamp;
use sha2::{Digest, Sha256};

use super::Endpoint;
use super::body::BodyChunks;
use super::credentials::Keeper;
use super::request::S3Request;
use crate::accounts::error::ErrorBody;
use crate::checksum::hex;
use crate::clock;

/// One account's signer.
#[derive(Debug)]
pub(crate) struct Signer {
    keeper: Option<Arc<Keeper>>,
    /// How many seconds the service's clock is ahead of ours.
    ahead: AtomicI64,
    key: Mutex<Option<DayKey>>,
}

/// The signing key of a day, good for one secret and Region.
struct DayKey {
    credentials: Credentials,
    day: String,
    region: String,
    key: [u8; 32],
}

/// The credentials, the Region and the moment of a signature.
struct Signing<'a> {
    credentials: &'a Credentials,
    region: &'a str,
    now: Timestamp,
    /// The body's digest, or the statement that it is not signed.
    payload: &'a str,
}

const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const PAYLOAD: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// The digest of no body.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

impl fmt::Debug for DayKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("DayKey")
    }
}

impl Signer {
    pub(crate) fn new(keeper: Option<Arc<Keeper>>) -> Self {
        Self {
            keeper,
            ahead: AtomicI64::new(0),
            key: Mutex::default(),
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
        let signing = Signing {
            credentials,
            region: &endpoint.region,
            now: self.now(),
            payload: &payload,
        };
        self.add_signature(&mut request, &signing)?;
        // Some stores answer 411 without it. It is not signed, because a proxy may drop it.
        if call.body.is_none() && !request.method().is_safe() {
            request.headers_mut().insert(CONTENT_LENGTH, 0.into());
        }
        Ok(request.try_into()?)
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

    fn now(&self) -> Timestamp {
        clock::now().saturating_add(time::Duration::seconds(self.ahead.load(Ordering::Relaxed)))
    }

    fn add_signature<B>(
        &self,
        request: &mut Request<B>,
        signing: &Signing<'_>,
    ) -> Result<(), BoxError> {
        let now = signing.now;
        let day = format!(
            "{:04}{:02}{:02}",
            now.year(),
            u8::from(now.month()),
            now.day()
        );
        let moment = format!(
            "{day}T{:02}{:02}{:02}Z",
            now.hour(),
            now.minute(),
            now.second()
        );
        let headers = request.headers_mut();
        headers.insert(DATE, HeaderValue::try_from(&moment)?);
        headers.insert(PAYLOAD, HeaderValue::try_from(signing.payload)?);
        if let Some(token) = signing.credentials.session_token() {
            let mut token = HeaderValue::try_from(token)?;
            token.set_sensitive(true);
            headers.insert(TOKEN, token);
        }
        let (names, digest) = canonical(request, signing.payload)?;
        let scope = format!("{day}/{}/s3/aws4_request", signing.region);
        let text = format!("AWS4-HMAC-SHA256\n{moment}\n{scope}\n{digest}");
        let signature = calculate_signature(self.day_key(day, signing)?, text.as_bytes());
        let key_id = signing.credentials.access_key_id();
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
        );
        let mut authorization = HeaderValue::try_from(authorization)?;
        authorization.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, authorization);
        Ok(())
    }

    fn day_key(&self, day: String, signing: &Signing<'_>) -> Result<[u8; 32], BoxError> {
        let (secret, region) = (signing.credentials.secret_access_key(), signing.region);
        let mut kept = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = |kept: &&DayKey| {
            kept.day == day
                && kept.region == region
                && kept.credentials.secret_access_key() == secret
        };
        if let Some(kept) = kept.as_ref().filter(is_good) {
            return Ok(kept.key);
        }
        let key = generate_signing_key(secret, signing.now.into(), region, "s3")
            .as_ref()
            .try_into()?;
        *kept = Some(DayKey {
            credentials: signing.credentials.clone(),
            day,
            region: region.to_owned(),
            key,
        });
        Ok(key)
    }
}

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

#[cfg(test)]
mod tests {
    use aws_sigv4::http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
        UriPathNormalizationMode, sign,
    };
    use aws_sigv4::sign::v4::SigningParams;
    use time::macros::datetime;

    use super::*;

    /// Has AWS's own signer sign a request, and returns what it says.
    fn by_aws(request: &Request<()>, signing: &Signing<'_>) -> String {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let identity = signing.credentials.clone().into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(signing.region)
            .name("s3");
        let params = params
            .time(signing.now.into())
            .settings(settings)
            .build()
            .unwrap()
            .into();
        let body = SignableBody::Precomputed(signing.payload.to_owned());
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
    fn the_key_follows_the_day_the_region_and_the_secret() {
        let identity = |secret: &str, token: Option<&str>| {
            Credentials::new(
                "AKIDEXAMPLE",
                secret,
                token.map(str::to_owned),
                None,
                "test",
            )
        };
        let (one, other) = (identity("secret", None), identity("other", Some("token")));
        let (day, next) = (
            datetime!(2026-11-28 23:59:59 UTC),
            datetime!(2026-11-29 00:00 UTC),
        );
        let signer = Signer::new(None);
        for (credentials, region, now) in [
            (&one, "eu-west-1", day),
            (&one, "eu-west-1", next),
            (&one, "us-east-1", next),
            (&other, "us-east-1", next),
            (&one, "us-east-1", next),
            (&one, "eu-west-1", day),
        ] {
            for uri in [
                "https://b.s3.eu-west-1.amazonaws.com:443/a%20b/?versions&prefix=a%2F&max-keys=7",
                "http://store.example:80/b/a",
                "http://[::1]:9000/b/a?x-id=PutObject&versionId=v%3D",
            ] {
                let payload = "UNSIGNED-PAYLOAD";
                let signing = Signing {
                    credentials,
                    region,
                    now,
                    payload,
                };
                let request = Request::put(uri)
                    .header("user-agent", "us")
                    .header("x-amz-meta-a", " b   c ");
                let mut request = request
                    .header("content-length", "7")
                    .header("x-amz-meta-empty", "")
                    .body(())
                    .unwrap();
                let wanted = by_aws(&request, &signing);
                signer.add_signature(&mut request, &signing).unwrap();
                assert_eq!(
                    request.headers()[AUTHORIZATION],
                    wanted,
                    "{uri} {now} {region}"
                );
            }
        }
    }
}
