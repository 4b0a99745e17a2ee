//! Named places around every step that changes the outside world, at which a test can end the
//! daemon. Unless armed, a place costs one look at an empty pointer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use strum::{EnumString, VariantArray};

/// Arms a place of a binary that was built with the feature `failpoints`, as `put_object.after` or,
/// for its third time, `put_object.after=3`.
pub const VARIABLE: &str = "S3_REPLICATOR_FAILPOINT";

/// A step that changes the outside world, or that such a step depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, EnumString, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Step {
    /// Both sides of a key are read.
    Read,
    /// A small object is written.
    PutObject,
    /// A multipart upload begins.
    CreateUpload,
    /// A part is uploaded.
    UploadPart,
    /// A multipart upload becomes visible.
    CompleteUpload,
    /// A multipart upload is given up.
    AbortUpload,
    /// A delete marker is written.
    DeleteMarker,
    /// A replica is removed because its source was.
    DeleteVersion,
    /// Tags are written.
    PutTags,
    /// What became of a version is written to the ledger.
    Commit,
    /// A task is parked in the ledger.
    Park,
    /// The work of events is sent to the work queues.
    Route,
    /// A message is sent to the dead-letter queue.
    DeadLetter,
    /// The ledger is made durable.
    Sync,
    /// Messages are deleted from their queue.
    Ack,
    /// Messages are given back to their queue.
    Release,
}

/// On which side of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display, EnumString, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Phase {
    /// Nothing has happened yet.
    Before,
    /// It has happened, and the answer was not used yet.
    After,
}

/// A place: a step and a side of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failpoint {
    /// The step.
    pub step: Step,
    /// The side.
    pub moment: Phase,
}

impl Failpoint {
    /// Lists every place.
    pub fn all_places() -> impl Iterator<Item = Self> {
        let sides = |step: &Step| {
            let step = *step;
            Phase::VARIANTS.iter().map(move |moment| Self {
                step,
                moment: *moment,
            })
        };
        Step::VARIANTS.iter().flat_map(sides)
    }

    fn named(text: &str) -> Option<Self> {
        let (step, moment) = text.split_once('.')?;
        Some(Self {
            step: step.parse().ok()?,
            moment: moment.parse().ok()?,
        })
    }
}

impl fmt::Display for Failpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.step, self.moment)
    }
}

/// What is armed; clones share the count.
#[derive(Clone, Default)]
pub struct Failpoints(Option<Arc<Armed>>);

struct Armed {
    /// `None` is any place.
    at: Option<Failpoint>,
    left: AtomicU32,
    end: Box<dyn Fn(Failpoint) + Send + Sync>,
}

impl Failpoints {
    /// Arms a place, or any place, for the n-th time it is passed: then `end` is called, and the
    /// task that passes it goes no further.
    pub fn armed_at(
        at: Option<Failpoint>,
        nth: u32,
        end: impl Fn(Failpoint) + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(Armed {
            at,
            left: AtomicU32::new(nth.max(1)),
            end: Box::new(end),
        })))
    }

    /// Arms what the environment names: there this process dies as by kill -9. Only test builds do.
    pub fn from_env() -> anyhow::Result<Self> {
        let variable = std::env::var(VARIABLE).ok();
        let Some(text) = variable.filter(|_| cfg!(feature = "failpoints")) else {
            return Ok(Self::default());
        };
        let (name, nth) = text.split_once('=').unwrap_or((&text, "1"));
        let place = Failpoint::named(name).zip(nth.parse().ok());
        let (at, nth) = place.with_context(|| {
            let steps = Step::VARIANTS;
            format!("{VARIABLE}={text:?} is not STEP.before or STEP.after of {steps:?}")
        })?;
        Ok(Self::armed_at(Some(at), nth, |_| kill_process()))
    }

    /// Does a step with a place before and a place after it.
    pub(crate) async fn around<T>(&self, step: Step, work: impl Future<Output = T>) -> T {
        self.pass_place(step, Phase::Before).await;
        let done = work.await;
        self.pass_place(step, Phase::After).await;
        done
    }

    async fn pass_place(&self, step: Step, moment: Phase) {
        let Some(armed) = &self.0 else { return };
        let here = Failpoint { step, moment };
        if armed.at.is_some_and(|at| at != here) {
            return;
        }
        let (order, count_down) = (Ordering::Relaxed, |left: u32| left.checked_sub(1));
        if armed.left.fetch_update(order, order, count_down) == Ok(1) {
            (armed.end)(here);
            std::future::pending::<()>().await;
        }
    }
}

fn kill_process() {
    use rustix::process::{Signal, getpid};
    // The signal cannot be caught, so an error could only mean that the process is gone already.
    let _gone = rustix::process::kill_process(getpid(), Signal::KILL);
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.0.as_ref().map(|armed| armed.at);
        f.debug_tuple("Failpoints").field(&at).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn every_place_reads_back_as_written() {
        for place in Failpoint::all_places() {
            assert_eq!(Failpoint::named(&place.to_string()), Some(place));
        }
        assert_eq!(Failpoint::named("put_object"), None);
    }

    #[tokio::test]
    async fn the_nth_passing_ends_it_and_others_go_on() {
        let ended = Arc::new(AtomicBool::new(false));
        let at = Failpoint {
            step: Step::Ack,
            moment: Phase::After,
        };
        let failpoints = Failpoints::armed_at(Some(at), 2, {
            let ended = Arc::clone(&ended);
            move |_| ended.store(true, Ordering::Relaxed)
        });
        failpoints.around(Step::Ack, async {}).await;
        failpoints.around(Step::Sync, async {}).await;
        assert!(!ended.load(Ordering::Relaxed));
        let again = failpoints.around(Step::Ack, async {});
        assert!(futures::poll!(std::pin::pin!(again)).is_pending());
        assert!(ended.load(Ordering::Relaxed));
    }
}
