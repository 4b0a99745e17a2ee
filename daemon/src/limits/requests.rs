//! A limit of requests per second.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use replicator_core::rule::Rule;
use tokio::sync::watch;

use super::Counter;

/// Requests are counted twice: one that is not let in yet holds no memory; and those that were let
/// in, and waited together for a source or for memory, are not sent all at once.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) per_second: NonZeroU32,
    pub(super) let_in: Counter,
    pub(super) sent: Counter,
    /// How many of each rule have all they need and wait to be sent.
    waiting: Mutex<HashMap<String, Count>>,
}

type Count = Arc<watch::Sender<u32>>;

/// A request that waits to be sent, until it is dropped.
#[derive(Debug)]
pub(super) struct Waiting(Count);

pub(super) const ONE: NonZeroU32 = NonZeroU32::MIN;

impl Requests {
    pub(super) fn new(per_second: NonZeroU32) -> Self {
        let [let_in, sent] = [(); 2].map(|()| Counter::new(per_second, per_second));
        Self {
            per_second,
            let_in,
            sent,
            waiting: Mutex::default(),
        }
    }

    /// Begins to wait to be sent.
    pub(super) fn wait(&self, rule: &Rule) -> Waiting {
        let waiting = self.waiting_count(rule);
        waiting.send_modify(|waiting| *waiting += 1);
        Waiting(waiting)
    }

    /// Waits until less than a second's worth of a rule waits to be sent. More is let in at the
    /// very rate at which it is sent: what once came together would wait, and hold memory, for as
    /// long as there is more.
    pub(super) async fn caught_up(&self, rule: &Rule) {
        let mut waiting = self.waiting_count(rule).subscribe();
        let _sender_is_here = waiting
            .wait_for(|waiting| *waiting < self.per_second.get())
            .await;
    }

    fn waiting_count(&self, rule: &Rule) -> Count {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(
            waiting
                .entry(rule.id.clone())
                .or_insert_with(|| Arc::new(watch::Sender::new(0))),
        )
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.send_modify(|waiting| *waiting -= 1);
    }
}
