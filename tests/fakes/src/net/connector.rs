//! The HTTP client that the AWS SDK is given: it hands requests to the world by a call.

use std::io;
use std::time::{Duration, SystemTime};

use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::retry::ErrorKind;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;

use super::{Broken, Net};
use crate::clock::Clock;

/// One client's way into the world.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) net: Net,
    pub(super) name: String,
}

/// The same with the time-out of one configuration. To connect takes no time.
#[derive(Debug)]
struct Connector {
    client: Client,
    read_timeout: Option<Duration>,
}

impl HttpClient for Client {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connector {
            client: self.clone(),
            read_timeout: settings.read_timeout(),
        })
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.client.clone();
        let read_timeout = self.read_timeout;
        HttpConnectorFuture::new(async move { within(read_timeout, client.call(request)).await? })
    }
}

impl Client {
    /// Returns a connector that waits for as long as its caller.
    pub(super) fn untimed(self) -> SharedHttpConnector {
        SharedHttpConnector::new(Connector {
            client: self,
            read_timeout: None,
        })
    }

    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let request = request
            .try_into_http1x()
            .map_err(|error| ConnectorError::user(error.into()))?;
        let (parts, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map_err(ConnectorError::user)?
            .to_bytes();
        let answer = self
            .net
            .exchange(&self.name, Request::from_parts(parts, body))
            .await
            .map_err(broken)?;
        answer
            .map(SdkBody::from_body_1_x)
            .try_into()
            .map_err(|error| ConnectorError::other(Box::new(error), None))
    }
}

async fn within<T>(
    limit: Option<Duration>,
    work: impl Future<Output = T>,
) -> Result<T, ConnectorError> {
    match limit {
        None => Ok(work.await),
        Some(limit) => {
            let timed = tokio::time::timeout(limit, work).await;
            timed.map_err(|_elapsed| {
                ConnectorError::timeout(io::Error::from(io::ErrorKind::TimedOut).into())
            })
        }
    }
}

/// Returns what the SDK's own client makes of a broken connection: one that ends before its answer
/// is an incomplete message, which the SDK takes for transient.
fn broken(broken: Broken) -> ConnectorError {
    match broken {
        Broken::Unreachable => {
            ConnectorError::io(io::Error::from(io::ErrorKind::ConnectionRefused).into())
        }
        Broken::Closed => ConnectorError::other(
            "connection closed before message completed".into(),
            Some(ErrorKind::TransientError),
        ),
    }
}

/// The SDK's own clock would go on while tokio's stands still: it signs, and finds out that a body
/// stalls, by this one.
impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        Self::now(self)
    }
}

/// Fills in what an HTTP client adds to a request that is put on a wire.
pub(super) fn complete(request: &mut Request<Bytes>) {
    let length = request.body().len();
    if let Some(authority) = request.uri().authority().cloned()
        && let Ok(host) = authority.as_str().parse()
    {
        request
            .headers_mut()
            .entry(http::header::HOST)
            .or_insert(host);
    }
    if length > 0 {
        request
            .headers_mut()
            .entry(http::header::CONTENT_LENGTH)
            .or_insert(length.into());
    }
}
