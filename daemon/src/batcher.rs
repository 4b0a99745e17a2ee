//! Batches of questions that one answer can serve: a question that comes while others are being
//! answered goes into the next batch with all that have come by then, and a first one waits a
//! moment for company.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// The questions to one dependency.
#[derive(Debug)]
pub(crate) struct Batcher<Q, A> {
    state: Mutex<BatchState<Q, A>>,
    /// Answers on their way, which outlive the task that began them.
    work: Mutex<JoinSet<()>>,
    under_way_max: usize,
}

#[derive(Debug)]
struct BatchState<Q, A> {
    under_way: usize,
    waiting: Vec<(Q, oneshot::Sender<A>)>,
}

// Tasks of one message, or of one batch of them, come within this.
const LINGER: Duration = Duration::from_millis(2);

// Far more than a daemon has at work in one bucket.
const TOGETHER_MAX: usize = 256;

impl<Q: Send + 'static, A: Send + 'static> Batcher<Q, A> {
    /// With two answers under way at a time a slow one holds up few questions for long; with one,
    /// answers are fewer and each serves more.
    pub(crate) fn new(under_way_max: usize) -> Self {
        let state = BatchState {
            under_way: 0,
            waiting: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            work: Mutex::default(),
            under_way_max,
        }
    }

    /// Submits a question, to be answered alone or together with others; `answer` gives one answer
    /// for each question, in their order. Returns none when it did not.
    pub(crate) async fn ask_together<F>(self: &Arc<Self>, question: Q, answer: F) -> Option<A>
    where
        F: Fn(Vec<Q>) -> BoxFuture<'static, Vec<A>> + Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        let begins = {
            let mut state = self.lock_state();
            state.waiting.push((question, tell));
            let begins = state.under_way < self.under_way_max;
            state.under_way += usize::from(begins);
            begins
        };
        if begins {
            let batcher = Arc::clone(self);
            let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
            while work.try_join_next().is_some() {}
            work.spawn(async move { batcher.answer_all(answer).await });
        }
        told.await.ok()
    }

    /// Answers until no question waits.
    async fn answer_all<F>(&self, answer: F)
    where
        F: Fn(Vec<Q>) -> BoxFuture<'static, Vec<A>> + Send,
    {
        loop {
            tokio::time::sleep(LINGER).await;
            let Some((questions, tell)) = self.next() else {
                return;
            };
            for (tell, answer) in tell.into_iter().zip(answer(questions).await) {
                // A cancelled task needs no answer.
                let _gone = tell.send(answer);
            }
        }
    }

    fn next(&self) -> Option<(Vec<Q>, Vec<oneshot::Sender<A>>)> {
        let mut state = self.lock_state();
        if state.waiting.is_empty() {
            state.under_way -= 1;
            return None;
        }
        let together = state.waiting.len().min(TOGETHER_MAX);
        Some(state.waiting.drain(..together).unzip())
    }

    fn lock_state(&self) -> MutexGuard<'_, BatchState<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers each question with itself and the company it was in, after a while.
    fn slowly(questions: Vec<u32>) -> BoxFuture<'static, Vec<(u32, usize)>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            questions
                .iter()
                .map(|question| (*question, questions.len()))
                .collect()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_meanwhile_shares_the_next_answer() {
        let batcher = Arc::new(Batcher::new(2));
        let answers = futures::future::join_all(
            (0..10).map(|question| batcher.ask_together(question, slowly)),
        )
        .await;
        let company: Vec<_> = answers.into_iter().map(Option::unwrap).collect();
        assert_eq!(
            company[..3],
            [(0, 10), (1, 10), (2, 10)],
            "all had asked before the first answer began"
        );
        let first = batcher.ask_together(0, slowly);
        let later = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            futures::future::join_all((1..4).map(|question| batcher.ask_together(question, slowly)))
                .await
        };
        let (first, later) = futures::join!(first, later);
        assert_eq!(first, Some((0, 1)));
        assert_eq!(later, [Some((1, 3)), Some((2, 3)), Some((3, 3))]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_strands_nobody() {
        let batcher = Arc::new(Batcher::new(2));
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
