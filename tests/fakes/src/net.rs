//! The network between the clients and the services: it writes down, delays, spoils and loses.
//!
//! Each request goes its way in a task of its own. A client that gives up, or dies, does not stop
//! what it has sent: a write lands whether or not the client waits for its answer.

use std::any::Any;
use std::ops::RangeInclusive;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{SharedHttpClient, SharedHttpConnector};
use bytes::Bytes;
use fastrand::Rng;
use http::{Request, Response};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinSet};

use crate::faults::Faults;
use crate::journal::{Journal, Service};

mod connector;
mod delivery;
#[cfg(test)]
pub(crate) mod tests;
mod travel;

pub use delivery::Delivery;
use travel::Travel;

/// A service that answers requests.
pub trait Serve: Send + Sync {
    /// Answers a request of a client.
    fn serve(&self, request: Request<Bytes>, client: &str) -> Answering;
}

/// A service's answer, once it has it.
pub type Answering = Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>;

/// The network; a handle, cheap to clone.
#[derive(Clone)]
pub struct Net {
    shared: Arc<Shared>,
}

/// How long requests and answers are on their way; each draws its own time, so they overtake each
/// other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latency {
    /// From the client to the service.
    pub there: RangeInclusive<Duration>,
    /// And back.
    pub back: RangeInclusive<Duration>,
}

/// Why a client gets no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// No connection can be made.
    Unreachable,
    /// The connection ends before the answer.
    Closed,
}

type Answer = Result<Response<Delivery>, Broken>;

struct Shared {
    journal: Journal,
    faults: Faults,
    routes: Mutex<Vec<Route>>,
    weather: Mutex<(Rng, Latency)>,
    travels: Mutex<JoinSet<()>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    on_way: watch::Sender<usize>,
    connections: AtomicUsize,
}

#[derive(Clone)]
struct Route {
    host: String,
    service: Service,
    server: Arc<dyn Serve>,
}

impl Net {
    /// Makes a network without routes, faults or latency; the seed decides on chances.
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let shared = Shared {
            journal: Journal::new(),
            faults: Faults::new(rng.u64(..)),
            routes: Mutex::default(),
            weather: Mutex::new((rng, Latency::none())),
            travels: Mutex::default(),
            panic: Mutex::default(),
            on_way: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Sends a host's requests to a service. A host that no route has is answered by the first
    /// route to the service that the request is for.
    pub fn route(&self, host: &str, service: Service, server: impl Serve + 'static) {
        let route = Route {
            host: host.to_owned(),
            service,
            server: Arc::new(server),
        };
        self.shared.routes.lock().unwrap().push(route);
    }

    /// Returns the HTTP client of a daemon or of any other participant.
    pub fn client(&self, name: &str) -> SharedHttpClient {
        SharedHttpClient::new(connector::Client {
            net: self.clone(),
            name: name.to_owned(),
        })
    }

    /// Returns the same for requests that do not go through the SDK.
    pub fn connector(&self, name: &str) -> SharedHttpConnector {
        connector::Client {
            net: self.clone(),
            name: name.to_owned(),
        }
        .untimed()
    }

    /// Returns the record of all requests.
    pub fn journal(&self) -> &Journal {
        &self.shared.journal
    }

    /// Returns the script.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Sets how long requests and answers take from now on.
    pub fn latency(&self, latency: Latency) {
        self.shared.weather.lock().unwrap().1 = latency;
    }

    /// Returns how many requests are on their way, executed late ones included.
    pub fn on_way(&self) -> usize {
        *self.shared.on_way.borrow()
    }

    /// Returns how many connections clients have opened, where they come over TCP.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection.
    pub(crate) fn connected(&self) {
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until nothing is on its way.
    ///
    /// # Panics
    /// Where a service did.
    pub async fn quiet(&self) {
        let mut on_way = self.shared.on_way.subscribe();
        // The sender lives in what `self` holds.
        drop(on_way.wait_for(|count| *count == 0).await);
        self.reap();
        let panic = self.shared.panic.lock().unwrap().take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Sends a request on its way and waits for its answer, for ever if none comes.
    pub(crate) async fn exchange(&self, client: &str, mut request: Request<Bytes>) -> Answer {
        connector::complete(&mut request);
        let (answer, answered) = oneshot::channel();
        let (there, back) = self.shared.draw();
        let travel = Travel {
            shared: Arc::clone(&self.shared),
            client: client.to_owned(),
            host: host(&request),
            there,
            back,
            listener: Some(answer),
        };
        self.spawn(travel.go(request));
        match answered.await {
            Ok(answer) => answer,
            // Without a word: the connection stays open.
            Err(_silence) => std::future::pending().await,
        }
    }

    fn spawn(&self, travel: impl Future<Output = ()> + Send + 'static) {
        self.reap();
        let under_way = UnderWay::begin(&self.shared);
        self.shared.travels.lock().unwrap().spawn(async move {
            let _under_way = under_way;
            travel.await;
        });
    }

    /// Forgets what has arrived, but not that a service panicked: its client only sees silence.
    fn reap(&self) {
        let mut travels = self.shared.travels.lock().unwrap();
        while let Some(ended) = travels.try_join_next() {
            if let Err(Ok(panic)) = ended.map_err(JoinError::try_into_panic) {
                self.shared.panic.lock().unwrap().get_or_insert(panic);
            }
        }
    }
}

impl Latency {
    /// No time at all.
    pub fn none() -> Self {
        Self::up_to(Duration::ZERO)
    }

    /// Anything between nothing and so much, both ways.
    pub fn up_to(most: Duration) -> Self {
        Self {
            there: Duration::ZERO..=most,
            back: Duration::ZERO..=most,
        }
    }
}

impl Shared {
    /// Draws a request's time there and back.
    fn draw(&self) -> (Duration, Duration) {
        let (rng, latency) = &mut *self.weather.lock().unwrap();
        (between(rng, &latency.there), between(rng, &latency.back))
    }

    fn server(&self, host: &str, service: Service) -> Arc<dyn Serve> {
        let routes = self.routes.lock().unwrap();
        let exact = routes
            .iter()
            .find(|route| route.host == host && route.service == service);
        let found = exact.or_else(|| routes.iter().find(|route| route.service == service));
        found.map_or_else(
            || panic!("no route to {service:?} at {host}"),
            |route| Arc::clone(&route.server),
        )
    }
}

fn between(rng: &mut Rng, range: &RangeInclusive<Duration>) -> Duration {
    let span = range.end().saturating_sub(*range.start());
    *range.start() + span.mul_f64(rng.f64())
}

/// The host with its port, as the URL or the `Host` header has it.
fn host(request: &Request<Bytes>) -> String {
    let header = || request.headers().get(http::header::HOST)?.to_str().ok();
    let host = request
        .uri()
        .authority()
        .map(http::uri::Authority::as_str)
        .or_else(header);
    host.unwrap_or_default().to_owned()
}

/// Counts a request while it is on its way.
struct UnderWay(Arc<Shared>);

impl UnderWay {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.on_way.send_modify(|count| *count += 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.on_way.send_modify(|count| *count -= 1);
    }
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net")
            .field("on_way", &self.on_way())
            .finish_non_exhaustive()
    }
}
