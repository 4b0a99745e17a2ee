//! The little HTTP that tests speak themselves: whole requests, whole answers.

use bytes::Bytes;
pub(crate) use http::{Request, StatusCode, request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::secrets;

/// Gets a page of the daemon; `None` when there is no answer.
pub(crate) async fn get(url: &str) -> Option<(StatusCode, String)> {
    let (status, body) = answer(Request::get(url).body(Full::default()).unwrap()).await?;
    secrets::assert_none_in(url, &body);
    Some((status, body))
}

/// Sends a request that must succeed, and returns the answer's body.
pub(crate) async fn send(request: Request<Full<Bytes>>) -> String {
    let (status, body) = answer(request).await.expect("LocalStack answers");
    assert!(status.is_success(), "{status}: {body}");
    body
}

/// Sends a request, and returns the status of the answer.
pub(crate) async fn status(request: Request<Full<Bytes>>) -> StatusCode {
    answer(request).await.expect("there is an answer").0
}

/// Sends a request, and returns the answer; `None` when there is none.
pub(crate) async fn answer(request: Request<Full<Bytes>>) -> Option<(StatusCode, String)> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.ok()?;
    let status = response.status();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, String::from_utf8_lossy(&body).into_owned()))
}
