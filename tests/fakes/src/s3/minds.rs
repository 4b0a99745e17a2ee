//! Request headers that an endpoint refuses, as stores do that lack what these ask for.

use http::{HeaderMap, Method, StatusCode};
use s3s::S3Error;

use super::refusal::refuse;

/// A header that an endpoint refuses on what writes, and on what reads if it is that very header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Minded {
    /// The header, or what several begin with, in lower case.
    pub header: &'static str,
    /// The refusal's status.
    pub status: u16,
    /// Its code.
    pub code: &'static str,
    /// Whether its message names the header.
    pub is_named: bool,
}

/// Refuses a request that has a header which the endpoint minds.
pub(super) fn check(minds: &[Minded], method: &Method, headers: &HeaderMap) -> Option<S3Error> {
    let writes = matches!(*method, Method::PUT | Method::POST | Method::DELETE);
    let is_minded = |name: &str, minded: &Minded| {
        if writes {
            name.starts_with(minded.header)
        } else {
            name == minded.header
        }
    };
    let found = |minded: &Minded| {
        headers
            .keys()
            .find(|name| is_minded(name.as_str(), minded))
            .cloned()
    };
    let (minded, name) = minds
        .iter()
        .find_map(|minded| Some((minded, found(minded)?)))?;
    let message = match minded.is_named {
        true => format!("Unsupported header '{name}' received for this API call."),
        false => "We can't do that.".to_owned(),
    };
    Some(refuse(
        StatusCode::from_u16(minded.status).ok()?,
        minded.code,
        message,
    ))
}
