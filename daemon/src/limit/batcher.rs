//! Requests that one answer can serve: a request that comes while others are being answered goes
//! into the next batch with all that have come by then, and a first one waits a moment for company.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use replicator_core::object::Key;
use replicator_core::rule::BucketRef;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// For each bucket the tasks that wait for a list, which has an answer for each key.
#[derive(Debug)]
pub(crate) struct Batchers<A>(Mutex<HashMap<BucketRef, Arc<Batcher<Key, A>>>>);

/// The requests to one dependency.
#[derive(Debug)]
pub(crate) struct Batcher<Q, A>(Mutex<BatchState<Q, A>>);

#[derive(Debug)]
struct BatchState<Q, A> {
    waiting: Vec<(Q, oneshot::Sender<A>)>,
    under_way: usize,
    /// Answers on their way, which outlive the task that began them.
    running: JoinSet<()>,
}

// Tasks of one message, or of one batch of them, come within this.
const LINGER: Duration = Duration::from_millis(2);

// Far more than a daemon has at work in one bucket.
const BATCH_MAX: usize = 256;

// A slow one holds up few requests for long; with more, each would serve fewer.
const UNDER_WAY_MAX: usize = 2;

impl<A> Default for Batchers<A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<A: Send + 'static> Batchers<A> {
    /// Returns the requests to a bucket.
    pub(crate) fn at(&self, place: &BucketRef) -> Arc<Batcher<Key, A>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(place.clone()).or_default())
    }
}

impl<Q, A> Default for Batcher<Q, A> {
    fn default() -> Self {
        Self(Mutex::new(BatchState {
            waiting: Vec::new(),
            under_way: 0,
            running: JoinSet::new(),
        }))
    }
}

impl<Q, A> BatchState<Q, A> {
    /// Adds a request; says whether one more batch is to begin.
    fn add(&mut self, request: Q, sender: oneshot::Sender<A>) -> bool {
        self.waiting.push((request, sender));
        while self.running.try_join_next().is_some() {}
        let begins = self.under_way < UNDER_WAY_MAX;
        self.under_way += usize::from(begins);
        begins
    }

    fn next(&mut self) -> Option<(Vec<Q>, Vec<oneshot::Sender<A>>)> {
        if self.waiting.is_empty() {
            self.under_way -= 1;
            return None;
        }
        let together = self.waiting.len().min(BATCH_MAX);
        Some(self.waiting.drain(..together).unzip())
    }
}

impl<Q: Send + 'static, A: Send + 'static> Batcher<Q, A> {
    /// Makes a request, to be answered alone or together with others; `answer` gives one answer
    /// for each request, in their order. Returns none when it did not.
    pub(crate) async fn ask_together<F>(self: &Arc<Self>, request: Q, answer: F) -> Option<A>
    where
        F: Fn(Vec<Q>) -> BoxFuture<'static, Vec<A>> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        if self.lock_state().add(request, sender) {
            let batcher = Arc::clone(self);
            let answers = async move { batcher.answer_all(answer).await };
            self.lock_state().running.spawn(answers);
        }
        receiver.await.ok()
    }

    /// Answers until no request waits.
    async fn answer_all<F>(&self, answer: F)
    where
        F: Fn(Vec<Q>) -> BoxFuture<'static, Vec<A>> + Send,
    {
        tokio::time::sleep(LINGER).await;
        while let Some((requests, senders)) = { self.lock_state().next() } {
            let answers = senders.into_iter().zip(answer(requests).await);
            // A cancelled task needs no answer.
            answers.for_each(|(sender, answer)| drop(sender.send(answer)));
            tokio::time::sleep(LINGER).await;
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, BatchState<Q, A>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each request with itself and the company it was in, after a while.
    fn slowly(requests: Vec<u32>) -> BoxFuture<'static, Vec<(u32, usize)>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            requests
                .iter()
                .map(|request| (*request, requests.len()))
                .collect()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_come_meanwhile_share_the_next_answer() {
        let batcher = Arc::new(Batcher::default());
        let answers =
            futures::future::join_all((0..10).map(|request| batcher.ask_together(request, slowly)))
                .await;
        let company: Vec<_> = answers.into_iter().map(Option::unwrap).collect();
        assert_eq!(
            company[..3],
            [(0, 10), (1, 10), (2, 10)],
            "all had come before the first answer began"
        );
        let first = batcher.ask_together(0, slowly);
        let later = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            futures::future::join_all((1..4).map(|request| batcher.ask_together(request, slowly)))
                .await
        };
        let (first, later) = futures::join!(first, later);
        assert_eq!(first, Some((0, 1)));
        assert_eq!(later, [Some((1, 3)), Some((2, 3)), Some((3, 3))]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_gives_up_strands_no_other() {
        let batcher = Arc::new(Batcher::default());
        let first =
            tokio::time::timeout(Duration::from_millis(10), batcher.ask_together(0, slowly));
        let (first, second) = futures::join!(first, batcher.ask_together(1, slowly));
        assert!(first.is_err());
        assert_eq!(second, Some((1, 2)));
        assert_eq!(
            batcher.ask_together(2, slowly).await,
            Some((2, 1)),
            "nothing is held"
        );
    }
}
