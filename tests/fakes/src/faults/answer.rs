//! Answers that a script gives in a service's stead, and those that it spoils.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use super::{Header, Spoil};
use crate::journal::{Call, Service};
use crate::net::Delivery;

/// Returns an error in the way the service writes it; without a code it is what something in
/// between says, to people.
pub(crate) fn refusal(call: &Call, status: u16, code: &str) -> Response<Bytes> {
    let response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    let (response, body) = match call.service {
        Service::S3 if code.is_empty() => {
            let body = if call.operation.starts_with("Head") {
                String::new()
            } else {
                page(status)
            };
            (response.header(header::CONTENT_TYPE, "text/html"), body)
        }
        Service::S3 => {
            // A HEAD is answered without a body, so its error has no code.
            let body = if call.operation.starts_with("Head") {
                String::new()
            } else {
                document(code)
            };
            (
                response.header(header::CONTENT_TYPE, "application/xml"),
                body,
            )
        }
        Service::Sqs | Service::Kms => {
            let sender = if status < 500 { "Sender" } else { "Receiver" };
            let body = serde_json::json!({ "__type": format!("sim#{code}"), "message": MESSAGE });
            let response = response.header(header::CONTENT_TYPE, "application/x-amz-json-1.0");
            (
                response.header("x-amzn-query-error", format!("{code};{sender}")),
                body.to_string(),
            )
        }
    };
    response.body(Bytes::from(body)).unwrap()
}

fn page(status: u16) -> String {
    format!("<html><head><title>{status}</title></head><body><hr>{MESSAGE}</body></html>")
}

const MESSAGE: &str = "by script";

fn document(code: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Error><Code>{code}</Code><Message>{MESSAGE}</Message><RequestId>SCRIPT</RequestId></Error>"
    )
}

/// Spoils an answer.
pub(crate) fn alter(response: Response<Bytes>, spoils: &[Spoil]) -> Response<Delivery> {
    let (mut parts, mut body) = response.into_parts();
    // A HEAD announces a length and has no body.
    let announced =
        parts.headers.get(header::CONTENT_LENGTH) == Some(&HeaderValue::from(body.len()));
    let mut end = None;
    for spoil in spoils {
        match spoil {
            Spoil::Corrupt(byte) => body = flip(&body, *byte),
            Spoil::Shorten(bytes) => body.truncate(*bytes),
            Spoil::WrongETag => match parts.headers.get_mut(header::ETAG) {
                Some(etag) => *etag = HeaderValue::from_static(WRONG_ETAG),
                None => body = mistag(&body, WRONG_ETAG),
            },
            Spoil::LateLatest => body = misnamed(&body),
            Spoil::NoETag => match parts.headers.remove(header::ETAG) {
                Some(_) => {}
                None => body = mistag(&body, ""),
            },
            Spoil::Without(name) => body = without(&body, name),
            Spoil::Header(header) => replace_header(&mut parts.headers, header),
            Spoil::Break(at) => end = Some(*at),
        }
    }
    if announced {
        parts
            .headers
            .insert(header::CONTENT_LENGTH, body.len().into());
    }
    Response::from_parts(parts, Delivery::of(body, end))
}

const WRONG_ETAG: &str = "\"00000000000000000000000000000bad\"";

/// Returns the bytes with one bit changed.
pub(crate) fn flip(body: &Bytes, byte: usize) -> Bytes {
    let mut bytes = body.to_vec();
    let at = byte % bytes.len().max(1);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1;
    }
    Bytes::from(bytes)
}

/// Gives a header another value, or takes it away.
pub(crate) fn replace_header(headers: &mut HeaderMap, (name, value): &Header) {
    match value {
        Some(value) => drop(headers.insert(*name, HeaderValue::from_static(value))),
        None => drop(headers.remove(*name)),
    }
}

/// Replaces the first `ETag` of an XML document: of a copy or a completed upload it is the
/// object's.
fn mistag(body: &Bytes, etag: &str) -> Bytes {
    let Ok(text) = std::str::from_utf8(body) else {
        return body.clone();
    };
    let (open, close) = ("<ETag>", "</ETag>");
    let Some((before, rest)) = text.split_once(open) else {
        return body.clone();
    };
    let Some((_, after)) = rest.split_once(close) else {
        return body.clone();
    };
    Bytes::from(format!(
        "{before}{open}{}{close}{after}",
        etag.replace('"', "&quot;")
    ))
}

/// Takes an element out of an XML document.
fn without(body: &Bytes, name: &str) -> Bytes {
    let Ok(text) = std::str::from_utf8(body) else {
        return body.clone();
    };
    let Some((before, rest)) = text.split_once(&format!("<{name}>")) else {
        return body.clone();
    };
    let Some((_, after)) = rest.split_once(&format!("</{name}>")) else {
        return body.clone();
    };
    Bytes::from(format!("{before}{after}"))
}

/// Names the second entry of each key of a list as the latest, in place of the first; none where
/// that is alone.
fn misnamed(body: &Bytes) -> Bytes {
    let Ok(text) = std::str::from_utf8(body) else {
        return body.clone();
    };
    let (latest, other) = ("<IsLatest>true", "<IsLatest>false");
    let mut parts = text.split(latest);
    let mut list = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(other) {
            Some((before, after)) => list.extend([other, before, latest, after]),
            None => list.extend([other, part]),
        }
    }
    Bytes::from(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_is_another_and_the_length_stays() {
        assert_eq!(flip(&Bytes::from("abc"), 4), "acc");
        assert!(flip(&Bytes::new(), 4).is_empty());
    }

    #[test]
    fn an_etag_is_wrong_in_the_header_or_else_in_the_document() {
        let response = Response::builder()
            .header("etag", "\"right\"")
            .body(Bytes::from("<ETag>mine</ETag>"))
            .unwrap();
        let spoilt = alter(response, &[Spoil::WrongETag]);
        assert_eq!(spoilt.headers()["etag"], WRONG_ETAG);
        assert_eq!(spoilt.body().bytes(), "<ETag>mine</ETag>");
        let body = "<CompleteMultipartUploadResult><ETag>&quot;right&quot;</ETag></CompleteMultipartUploadResult>";
        let response = Response::builder()
            .header("content-length", body.len())
            .body(Bytes::from(body))
            .unwrap();
        let spoilt = alter(response, &[Spoil::WrongETag]);
        let text = String::from_utf8(spoilt.body().bytes().to_vec()).unwrap();
        assert!(
            text.contains("0bad&quot;</ETag>") && !text.contains("right"),
            "{text}"
        );
        assert_eq!(spoilt.headers()["content-length"], text.len().to_string());
        let spoilt = alter(Response::new(Bytes::from(body)), &[Spoil::NoETag]);
        let text = String::from_utf8(spoilt.body().bytes().to_vec()).unwrap();
        assert!(text.contains("<ETag></ETag>"), "{text}");
        let spoilt = alter(Response::new(Bytes::from(body)), &[Spoil::Without("ETag")]);
        assert_eq!(
            spoilt.body().bytes(),
            "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>"
        );
    }

    #[test]
    fn a_header_is_another_one_or_none() {
        let response = Response::builder()
            .header("etag", "\"right\"")
            .header("x-amz-version-id", "v1");
        let spoils = [
            Spoil::NoETag,
            Spoil::Header(("x-amz-version-id", Some("v2"))),
            Spoil::Header(("date", None)),
        ];
        let spoilt = alter(response.body(Bytes::new()).unwrap(), &spoils);
        assert_eq!(spoilt.headers().get("etag"), None);
        assert_eq!(spoilt.headers()["x-amz-version-id"], "v2");
    }

    #[test]
    fn of_each_key_of_a_list_the_second_entry_is_named_the_latest() {
        let list = |flags: &[&str]| Bytes::from(flags.concat());
        let (latest, other) = ("<IsLatest>true</IsLatest>", "<IsLatest>false</IsLatest>");
        let said = list(&[latest, other, other, latest, latest, other]);
        assert_eq!(
            misnamed(&said),
            list(&[other, latest, other, other, other, latest])
        );
    }

    #[test]
    fn a_shortened_answer_announces_its_length_but_a_head_keeps_the_objects() {
        let response = |body: &'static str| {
            Response::builder()
                .header("content-length", 4)
                .body(Bytes::from(body))
                .unwrap()
        };
        let spoilt = alter(response("abcd"), &[Spoil::Shorten(2)]);
        assert_eq!(
            (
                &spoilt.headers()["content-length"],
                &spoilt.body().bytes()[..]
            ),
            (&HeaderValue::from(2), &b"ab"[..])
        );
        assert_eq!(
            alter(response(""), &[Spoil::Shorten(2)]).headers()["content-length"],
            "4"
        );
    }
}
