//! Named places around every step that changes the outside world, at which a test can end the
//! daemon. Off, which is how it starts unless told otherwise, a place costs one look at an empty
//! pointer.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use thiserror::Error;

/// Arms a place of a binary that was built with the feature `failpoints`, as `put_object.after` or,
/// for its third time, `put_object.after=3`.
pub const VARIABLE: &str = "S3_REPLICATOR_FAILPOINT";

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A step that changes the outside world, or that such a step depends on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step {
            $($(#[$doc])* $name,)*
        }

        impl Step {
            /// Every step.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Returns the step's name.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

steps! {
    /// Both sides of a key are read.
    Read = "read",
    /// A small object is written.
    PutObject = "put_object",
    /// A multipart upload begins.
    CreateUpload = "create_upload",
    /// A part is uploaded.
    UploadPart = "upload_part",
    /// A multipart upload becomes visible.
    CompleteUpload = "complete_upload",
    /// A multipart upload is given up.
    AbortUpload = "abort_upload",
    /// A delete marker is written.
    DeleteMarker = "delete_marker",
    /// A replica is removed because its source was.
    DeleteVersion = "delete_version",
    /// Tags are written.
    PutTags = "put_tags",
    /// What became of a version is written to the ledger.
    Commit = "commit",
    /// A task is parked in the ledger.
    Park = "park",
    /// The work of events is sent to the work queues.
    Route = "route",
    /// A message is sent to the dead-letter queue.
    DeadLetter = "dead_letter",
    /// The ledger is made durable.
    Sync = "sync",
    /// Messages are deleted from their queue.
    Ack = "ack",
    /// Messages are given back to their queue.
    Release = "release",
}

/// On which side of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// What is armed; clones share the count.
#[derive(Clone, Default)]
pub struct Failpoints(Option<Arc<Armed>>);

struct Armed {
    /// `None` is any place.
    at: Option<Failpoint>,
    left: AtomicU32,
    end: Box<dyn Fn(Failpoint) + Send + Sync>,
}

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{VARIABLE}={0:?} names no failpoint; write STEP.before or STEP.after, with STEP one of {steps}", steps = names())]
pub struct Unknown(String);

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
    pub fn from_env() -> Result<Self, Unknown> {
        if !cfg!(feature = "failpoints") {
            return Ok(Self::default());
        }
        let Ok(text) = std::env::var(VARIABLE) else {
            return Ok(Self::default());
        };
        let (name, nth) = text.split_once('=').unwrap_or((&text, "1"));
        let unknown = || Unknown(text.clone());
        let nth = nth.parse().map_err(|_| unknown())?;
        let at = name.parse().map_err(|_| unknown())?;
        Ok(Self::armed_at(Some(at), nth, |_| die()))
    }

    /// Does a step with a place before and a place after it.
    pub(crate) async fn around<T>(&self, step: Step, work: impl Future<Output = T>) -> T {
        self.pass_place(Failpoint {
            step,
            moment: Phase::Before,
        })
        .await;
        let done = work.await;
        self.pass_place(Failpoint {
            step,
            moment: Phase::After,
        })
        .await;
        done
    }

    async fn pass_place(&self, here: Failpoint) {
        let Some(armed) = &self.0 else { return };
        if armed.at.is_some_and(|at| at != here) {
            return;
        }
        if armed
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            })
            == Ok(1)
        {
            (armed.end)(here);
            std::future::pending::<()>().await;
        }
    }
}

fn die() {
    // The signal cannot be caught, so an error could only mean that the process is gone already.
    let _gone =
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
}

fn names() -> String {
    Step::ALL
        .iter()
        .map(|step| step.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

impl Failpoint {
    /// Lists every place.
    pub fn all_places() -> impl Iterator<Item = Self> {
        Step::ALL.iter().flat_map(|step| {
            [Phase::Before, Phase::After].map(|moment| Self {
                step: *step,
                moment,
            })
        })
    }
}

impl fmt::Display for Failpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = match self.moment {
            Phase::Before => "before",
            Phase::After => "after",
        };
        write!(f, "{}.{moment}", self.step.as_str())
    }
}

impl FromStr for Failpoint {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        Self::all_places()
            .find(|place| place.to_string() == text)
            .ok_or_else(|| Unknown(text.to_owned()))
    }
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("Failpoints(off)"),
            Some(armed) => write!(f, "Failpoints({:?}, {:?} left)", armed.at, armed.left),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn every_place_reads_back_as_written() {
        for place in Failpoint::all_places() {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        assert!("put_object".parse::<Failpoint>().is_err());
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
