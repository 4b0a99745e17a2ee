//! AWS Signature Version 4 of a request that `call` wrote, whose path and query are encoded as the signature wants them:
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>. The SDK's signer takes any request apart
//! and derives its key anew for each, which cost a tenth of all CPU (docs/performance.md).

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use aws_credential_types::Credentials;
use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use http::header::{AUTHORIZATION, USER_AGENT};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use replicator_core::object::Timestamp;
use sha2::{Digest, Sha256};

use super::signer::Error;

/// The key of the day, as long as it is that of who signs.
#[derive(Default)]
pub(super) struct DayKey(Mutex<Option<(Scope, Vec<u8>)>>);

/// What a key is good for.
#[derive(PartialEq, Eq)]
struct Scope {
    secret: String,
    day: String,
    region: String,
}

/// Who signs, for where, and when.
pub(super) struct Signing<'a> {
    pub(super) credentials: &'a Credentials,
    pub(super) region: &'a str,
    pub(super) now: Timestamp,
    /// The body's digest, or that it has none.
    pub(super) payload: &'a str,
}

const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const PAYLOAD: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

impl std::fmt::Debug for DayKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DayKey")
    }
}

impl DayKey {
    /// Signs a request.
    pub(super) fn sign<B>(&self, request: &mut Request<B>, signing: &Signing<'_>) -> Result<(), Error> {
        let now = signing.now;
        let day = format!("{:04}{:02}{:02}", now.year(), u8::from(now.month()), now.day());
        let moment = format!("{day}T{:02}{:02}{:02}Z", now.hour(), now.minute(), now.second());
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
        let signature = calculate_signature(self.of(day, signing), text.as_bytes());
        let who = signing.credentials.access_key_id();
        let authorization =
            format!("AWS4-HMAC-SHA256 Credential={who}/{scope}, SignedHeaders={names}, Signature={signature}");
        let mut authorization = HeaderValue::try_from(authorization)?;
        authorization.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, authorization);
        Ok(())
    }

    fn of(&self, day: String, signing: &Signing<'_>) -> Vec<u8> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let secret = signing.credentials.secret_access_key();
        let is_good = |scope: &Scope| scope.day == day && scope.region == signing.region && scope.secret == secret;
        if let Some((_, key)) = kept.as_ref().filter(|(scope, _)| is_good(scope)) {
            return key.clone();
        }
        let key = generate_signing_key(secret, signing.now.into(), signing.region, "s3").as_ref().to_vec();
        *kept = Some((Scope { secret: secret.to_owned(), day, region: signing.region.to_owned() }, key.clone()));
        key
    }
}

/// Returns the names of the headers that are signed, and the digest of the canonical request.
fn canonical<B>(request: &Request<B>, payload: &str) -> Result<(String, String), Error> {
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
fn host(uri: &Uri) -> Result<&str, Error> {
    let authority = uri.authority().ok_or("a URL without a host")?;
    let usual = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let is_usual = authority.port_u16() == Some(usual);
    Ok(if is_usual { authority.host() } else { Authority::as_str(authority) })
}

/// Lists the headers in the order of their names; all but one that a proxy may change.
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

/// Passes on a value without blanks around it, and with one for several in a row.
fn trimmed(value: &[u8], mut pass: impl FnMut(&[u8])) {
    let mut words = value.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
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
    let mut query = String::with_capacity(uri.query().map_or(0, str::len) + 1);
    for (name, value) in pairs {
        let and = if query.is_empty() { "" } else { "&" };
        let _never_fails = write!(query, "{and}{name}={value}");
    }
    query
}

/// Writes a digest as AWS reads it.
pub(super) fn hex(digest: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| DIGITS.get(usize::from(digit))).map(|digit| char::from(*digit)).collect()
}
