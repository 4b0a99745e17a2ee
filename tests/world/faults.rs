//! A proxy between the daemon and LocalStack that writes down every request and, where a test's
//! script says so, answers in the server's stead: with a refusal, with silence, or not at all.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::localstack;
use super::request::Seen;
use super::secrets;

/// What happens to a request instead of its being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 403, as for a missing permission.
    AccessDenied,
    /// 503, as for too many requests.
    SlowDown,
    /// 412, as if another client had written in between.
    PreconditionFailed,
    /// 200 with an error in the body, as S3 may answer a copy or a completed upload.
    ErrorInside,
    /// The connection is closed and the request never happens.
    Drop,
    /// The request happens and its answer is lost.
    LoseAnswer,
    /// Nothing happens, and the connection stays open.
    Hang,
    /// The request happens after its sender has given up, and has no answer.
    LandLate,
}

/// The proxy; it stops when dropped.
#[derive(Debug)]
pub(crate) struct Faults {
    /// Where the daemon reaches it.
    pub(crate) url: String,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

struct Shared {
    upstream: String,
    client: Client<HttpConnector, Body>,
    script: Mutex<Vec<Line>>,
    journal: Mutex<Vec<Seen>>,
    /// What is forwarded late.
    late: Mutex<JoinSet<()>>,
}

struct Line {
    when: Box<dyn Fn(&Seen) -> bool + Send>,
    fault: Fault,
    times: usize,
}

type Body = BoxBody<Bytes, hyper::Error>;

// `check` waits 15 s for an answer, and 20 s more before it removes what got none.
const LATE: Duration = Duration::from_secs(18);

/// An error whose only meaning is that the connection ends here.
#[derive(Debug)]
struct Dropped;

impl Faults {
    /// Opens the proxy on a port of its own.
    pub(crate) async fn open() -> Self {
        Self::open_at("127.0.0.1:0").await
    }

    /// Opens the proxy at an address.
    pub(crate) async fn open_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            upstream: localstack::endpoint(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            script: Mutex::default(),
            journal: Mutex::default(),
            late: Mutex::default(),
        });
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&shared)));
        Self {
            url,
            shared,
            _server: server,
        }
    }

    /// Makes a fault happen to the next so many requests for which the condition holds.
    pub(crate) fn script(
        &self,
        fault: Fault,
        times: usize,
        when: impl Fn(&Seen) -> bool + Send + 'static,
    ) {
        self.shared.script.lock().unwrap().push(Line {
            when: Box::new(when),
            fault,
            times,
        });
    }

    /// Ends all faults.
    pub(crate) fn clear(&self) {
        self.shared.script.lock().unwrap().clear();
    }

    /// Returns every request so far, in the order they came.
    pub(crate) fn journal(&self) -> Vec<Seen> {
        self.shared.journal.lock().unwrap().clone()
    }

    /// Counts the requests that met a fault.
    pub(crate) fn hits(&self, fault: Fault) -> usize {
        self.shared
            .journal
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| seen.fault == Some(fault))
            .count()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Dropped {}

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("dropped by the script")
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(converse(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: TcpStream, shared: Arc<Shared>) {
    let answer = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { shared.answer(request).await }
    });
    // A client that goes away, or a scripted drop, ends the conversation with an error: as meant.
    drop(
        hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), answer)
            .await,
    );
}

impl Shared {
    async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Dropped> {
        let mut seen = Seen::of(&request);
        seen.fault = self.fault_for(&seen);
        let head = request.method() == http::Method::HEAD;
        let mut request = request.map(BodyExt::boxed);
        if matches!(seen.service.as_str(), "kms" | "sqs" | "sts") {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map_err(|_| Dropped)?.to_bytes();
            seen.body = String::from_utf8_lossy(&body).into_owned();
            request = Request::from_parts(parts, whole(body));
        }
        secrets::add_secret(seen.header("x-amz-security-token"));
        let service = seen.service.clone();
        if service == "kms" {
            secrets::add_data_key(&seen.body);
        }
        let fault = seen.fault;
        let number = {
            let mut journal = self.journal.lock().unwrap();
            journal.push(seen);
            journal.len() - 1
        };
        let answer = match fault {
            None => keep_secrets(&service, self.forward(request).await?).await?,
            Some(Fault::Drop) => return Err(Dropped),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::LandLate) => self.land_late(request, number).await?,
            Some(Fault::LoseAnswer) => {
                drop(self.forward(request).await?.into_body().collect().await);
                return Err(Dropped);
            }
            Some(refusal) => {
                // A server reads what it refuses; a client that is cut off while it writes sees no
                // answer.
                drop(request.into_body().collect().await);
                refuse(refusal, head)
            }
        };
        self.journal.lock().unwrap()[number].status = Some(answer.status());
        Ok(answer)
    }

    /// Forwards a request a while after its sender stopped waiting.
    async fn land_late(
        self: &Arc<Self>,
        request: Request<Body>,
        number: usize,
    ) -> Result<Response<Body>, Dropped> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Dropped)?.to_bytes();
        let shared = Arc::clone(self);
        // The connection ends before, and what it waits for with it.
        self.late.lock().unwrap().spawn(async move {
            tokio::time::sleep(LATE).await;
            let answer = shared.forward(Request::from_parts(parts, whole(body)));
            let status = answer.await.map(|answer| answer.status());
            shared.journal.lock().unwrap()[number].status = status.ok();
        });
        std::future::pending().await
    }

    fn fault_for(&self, seen: &Seen) -> Option<Fault> {
        let mut script = self.script.lock().unwrap();
        let line = script
            .iter_mut()
            .find(|line| line.times > 0 && (line.when)(seen))?;
        line.times -= 1;
        Some(line.fault)
    }

    async fn forward(&self, mut request: Request<Body>) -> Result<Response<Body>, Dropped> {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let upstream = format!("{}{path}", self.upstream.trim_end_matches('/'));
        *request.uri_mut() = upstream.parse().map_err(|_| Dropped)?;
        request.headers_mut().remove(header::EXPECT);
        let answer = self.client.request(request).await.map_err(|_| Dropped)?;
        Ok(answer.map(BodyExt::boxed))
    }
}

/// Remembers the credentials and data keys that an answer holds.
async fn keep_secrets(service: &str, answer: Response<Body>) -> Result<Response<Body>, Dropped> {
    if !matches!(service, "kms" | "sts") {
        return Ok(answer);
    }
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.map_err(|_| Dropped)?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    secrets::add_credentials(&text);
    secrets::add_data_key(&text);
    Ok(Response::from_parts(parts, whole(body)))
}

fn refuse(fault: Fault, head: bool) -> Response<Body> {
    let (status, code) = match fault {
        Fault::AccessDenied => (StatusCode::FORBIDDEN, "AccessDenied"),
        Fault::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
        Fault::ErrorInside => (StatusCode::OK, "InternalError"),
        Fault::SlowDown | Fault::Drop | Fault::LoseAnswer | Fault::Hang | Fault::LandLate => {
            (StatusCode::SERVICE_UNAVAILABLE, "SlowDown")
        }
    };
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>scripted</Message>\
         <RequestId>SCRIPTED</RequestId></Error>"
    );
    let body = if head {
        Bytes::new()
    } else {
        Bytes::from(text)
    };
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/xml");
    response.body(whole(body)).unwrap()
}

fn whole(body: Bytes) -> Body {
    Full::new(body)
        .map_err(|never: Infallible| match never {})
        .boxed()
}
