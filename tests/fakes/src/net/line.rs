//! Each client's line to the world, which can be cut.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::sync::watch;

/// The lines by their clients; whole until they are cut.
#[derive(Debug, Default)]
pub(super) struct Lines {
    cut: Mutex<BTreeMap<String, watch::Sender<bool>>>,
}

impl Lines {
    pub(super) fn set(&self, client: &str, cut: bool) {
        self.cut
            .lock()
            .unwrap()
            .entry(client.to_owned())
            .or_default()
            .send_replace(cut);
    }

    /// Waits until the client's line is whole.
    pub(super) async fn whole(&self, client: &str) {
        let line = self
            .cut
            .lock()
            .unwrap()
            .get(client)
            .map(watch::Sender::subscribe);
        if let Some(mut line) = line {
            // The sender lives as long as the world.
            let _whole = line.wait_for(|cut| !cut).await;
        }
    }
}
