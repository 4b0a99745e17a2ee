//! The lying proxy before a server that is no fake.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::listen;
use super::proxy::{Line, Proxy, Reply, accept};
use crate::world::request::Seen;

/// The proxy; it stops when dropped.
#[derive(Debug)]
pub(crate) struct Front {
    /// Where the daemon reaches it.
    pub(crate) url: String,
    proxy: Arc<Proxy>,
    _server: JoinSet<()>,
}

impl Front {
    /// Opens the proxy on a port of its own.
    pub(crate) async fn before(upstream: &str) -> Self {
        let (listener, url) = listen().await;
        let proxy = Arc::new(Proxy::to(upstream).without_journal());
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&proxy)));
        Self {
            url,
            proxy,
            _server: server,
        }
    }

    /// Answers every request for which the condition holds with a reply; of several scripts the
    /// first that fits.
    pub(crate) fn answer(&self, when: impl Fn(&Seen) -> bool + Send + 'static, reply: Reply) {
        let line = Line {
            when: Box::new(when),
            reply,
            times: usize::MAX,
        };
        self.proxy.script.lock().unwrap().push(line);
    }

    /// Ends all scripts.
    pub(crate) fn clear(&self) {
        self.proxy.script.lock().unwrap().clear();
    }
}
