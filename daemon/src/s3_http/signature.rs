//! AWS Signature Version 4 of a request that `call` wrote, whose path and query are encoded as the
//! signature requires:
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>. The SDK's
//! signer takes any request apart and derives its key anew for each: docs/performance.md says what
//! that cost.

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

/// The signing key of the day, as long as credentials and Region stay the same.
#[derive(Default)]
pub(super) struct DayKey(Mutex<Option<(Scope, [u8; 32])>>);

/// What a key is good for.
struct Scope {
    credentials: Credentials,
    day: String,
    region: String,
}

/// The credentials, the Region and the moment of a signature.
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
    pub(super) fn sign<B>(
        &self,
        request: &mut Request<B>,
        signing: &Signing<'_>,
    ) -> Result<(), Error> {
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
        let signature = calculate_signature(self.of(day, signing)?, text.as_bytes());
        let who = signing.credentials.access_key_id();
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={who}/{scope}, SignedHeaders={names}, Signature={signature}"
        );
        let mut authorization = HeaderValue::try_from(authorization)?;
        authorization.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, authorization);
        Ok(())
    }

    fn of(&self, day: String, signing: &Signing<'_>) -> Result<[u8; 32], Error> {
        let Signing {
            credentials,
            region,
            now,
            ..
        } = signing;
        let secret = credentials.secret_access_key();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = |scope: &Scope| {
            scope.day == day
                && scope.region == *region
                && scope.credentials.secret_access_key() == secret
        };
        if let Some((_, key)) = kept.as_ref().filter(|(scope, _)| is_good(scope)) {
            return Ok(*key);
        }
        let key = generate_signing_key(secret, (*now).into(), region, "s3")
            .as_ref()
            .try_into()?;
        let scope = Scope {
            credentials: Credentials::clone(credentials),
            day,
            region: (*region).to_owned(),
        };
        *kept = Some((scope, key));
        Ok(key)
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
    let usual = if uri.scheme() == Some(&Scheme::HTTPS) {
        443
    } else {
        80
    };
    let is_usual = authority.port_u16() == Some(usual);
    Ok(if is_usual {
        authority.host()
    } else {
        Authority::as_str(authority)
    })
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
    digits
        .filter_map(|digit| DIGITS.get(usize::from(digit)))
        .map(|digit| char::from(*digit))
        .collect()
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
        let who = |secret: &str, token: Option<&str>| {
            Credentials::new(
                "AKIDEXAMPLE",
                secret,
                token.map(str::to_owned),
                None,
                "test",
            )
        };
        let (one, other) = (who("secret", None), who("other", Some("token")));
        let (day, next) = (
            datetime!(2026-11-28 23:59:59 UTC),
            datetime!(2026-11-29 00:00 UTC),
        );
        let key = DayKey::default();
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
                key.sign(&mut request, &signing).unwrap();
                assert_eq!(
                    request.headers()[AUTHORIZATION],
                    wanted,
                    "{uri} {now} {region}"
                );
            }
        }
    }
}
