//! A request freed from what only its way to us needed: signature, chunks, trailers. What is read
//! from the headers as they were sent goes beside the request, and is kept from the service, which
//! would refuse some of what S3 takes.

use bytes::{Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, IF_MATCH, IF_NONE_MATCH, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use s3s::{Body, S3Error, S3Result};

use super::Call;
use super::checksums::sha256_hex;
use super::conditions::text;
use super::dress::is_metadata;
use super::refusal::{bad_request, refuse};
use super::traits::Traits;

/// Returns the request as the service is to see it.
pub(super) fn unwrapped(
    request: Request<Bytes>,
    caller: &str,
    traits: &Traits,
) -> S3Result<Request<Body>> {
    let (mut parts, mut body) = request.into_parts();
    acceptable(&parts, traits)?;
    let hash = text(&parts.headers, "x-amz-content-sha256").map(str::to_owned);
    match hash.as_deref() {
        Some(hash) if hash.starts_with("STREAMING-") => {
            let (content, trailers) = unchunked(&body).ok_or_else(malformed)?;
            parts.headers.extend(trailers);
            body = content;
            strip_chunked(&mut parts.headers);
        }
        Some(hash) if hash.len() == SHA256_DIGITS && hash != sha256_hex(&body) => {
            return Err(bad_request(
                "XAmzContentSHA256Mismatch",
                "the body is not the one that was signed",
            ));
        }
        _ => {}
    }
    parts
        .headers
        .insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    for name in [
        AUTHORIZATION,
        HeaderName::from_static("x-amz-content-sha256"),
    ] {
        parts.headers.remove(name);
    }
    let call = Call {
        caller: caller.to_owned(),
        headers: parts.headers.clone(),
        body: body.clone(),
    };
    parts.extensions.insert(call);
    for name in read_by_us(&parts.headers) {
        parts.headers.remove(name);
    }
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// Refuses what S3 does not even begin to look at.
fn acceptable(parts: &Parts, traits: &Traits) -> S3Result<()> {
    let headers = || {
        parts
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
    };
    if headers()
        .map(|(name, value)| name.len() + value.len())
        .sum::<usize>()
        > HEADER_BYTES_MAX
    {
        let message = "Your request header section exceeds the maximum allowed size";
        return Err(bad_request("RequestHeaderSectionTooLarge", message));
    }
    // AWS reads them as Latin-1 and signs them as UTF-8:
    // https://github.com/Automattic/knox/issues/223
    if !traits.takes_raw_values && headers().any(|(_, value)| !value.is_ascii()) {
        let message =
            "The request signature we calculated does not match the signature you provided.";
        return Err(refuse(
            StatusCode::FORBIDDEN,
            "SignatureDoesNotMatch",
            message,
        ));
    }
    let is_long = [CONTENT_LENGTH, TRANSFER_ENCODING]
        .iter()
        .any(|name| parts.headers.contains_key(name));
    if traits.wants_lengths && !is_long && !parts.method.is_safe() {
        let message = "You must provide the Content-Length HTTP header.";
        return Err(refuse(
            StatusCode::LENGTH_REQUIRED,
            "MissingContentLength",
            message,
        ));
    }
    Ok(())
}

// https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html
const HEADER_BYTES_MAX: usize = 8 << 10;

const SHA256_DIGITS: usize = 64;

fn malformed() -> S3Error {
    bad_request("IncompleteBody", "the chunks of the body end early")
}

fn read_by_us(headers: &HeaderMap) -> Vec<HeaderName> {
    let ours = |name: &&HeaderName| {
        let name = name.as_str();
        let condition = matches!(
            name,
            "x-amz-copy-source-if-match" | "x-amz-copy-source-if-none-match"
        );
        condition || is_metadata(name) || name.starts_with("x-amz-decoded")
    };
    let mut found: Vec<HeaderName> = headers.keys().filter(ours).cloned().collect();
    found.extend([IF_MATCH, IF_NONE_MATCH]);
    found
}

/// Reads a body in chunks:
/// <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html>.
fn unchunked(body: &[u8]) -> Option<(Bytes, HeaderMap)> {
    let mut content = BytesMut::new();
    let mut rest = body;
    loop {
        let (line, after) = line(rest)?;
        let size = line.split(';').next()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some((content.freeze(), trailers(after)));
        }
        content.extend_from_slice(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

fn trailers(mut rest: &[u8]) -> HeaderMap {
    let mut found = HeaderMap::new();
    while let Some((text, after)) = line(rest) {
        if let Some((name, value)) = text.split_once(':')
            && let (Ok(name), Ok(value)) = (
                HeaderName::try_from(name.trim()),
                HeaderValue::try_from(value.trim()),
            )
        {
            found.insert(name, value);
        }
        rest = after;
    }
    found
}

fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((
        std::str::from_utf8(bytes.get(..end)?).ok()?,
        bytes.get(end + 2..)?,
    ))
}

/// `aws-chunked` is about the way and not about the object.
fn strip_chunked(headers: &mut HeaderMap) {
    let Some(sent) = text(headers, "content-encoding") else {
        return;
    };
    let kept: Vec<&str> = sent
        .split(',')
        .map(str::trim)
        .filter(|coding| *coding != "aws-chunked")
        .collect();
    match HeaderValue::from_str(&kept.join(", ")) {
        Ok(value) if !kept.is_empty() => headers.insert(CONTENT_ENCODING, value),
        _ => headers.remove(CONTENT_ENCODING),
    };
}
