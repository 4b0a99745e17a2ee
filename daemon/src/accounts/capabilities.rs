//! What an endpoint can do, per operation: found out rather than assumed, and withdrawn when the
//! endpoint contradicts itself.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tracing::warn;

/// Something that not every S3-compatible endpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ability {
    /// `If-Match` and `If-None-Match` on PutObject.
    ConditionalPut,
    /// The same on CompleteMultipartUpload.
    ConditionalComplete,
    /// `If-Match` on DeleteObject.
    ConditionalDelete,
    /// CRC64NVME checksums of whole objects.
    Crc64Nvme,
}

impl Ability {
    /// Returns the operation whose answers tell about the ability.
    pub(crate) fn operation(self) -> &'static str {
        match self {
            Self::ConditionalPut | Self::Crc64Nvme => "PutObject",
            Self::ConditionalComplete => "CompleteMultipartUpload",
            Self::ConditionalDelete => "DeleteObject",
        }
    }
}

/// How tags were given to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TagsGiven {
    /// With PutObject.
    WithPut,
    /// With CreateMultipartUpload.
    WithUpload,
    /// With PutObjectTagging.
    Apart,
}

/// What is known of one endpoint.
#[derive(Debug)]
pub(crate) struct Capabilities {
    put: Capability,
    complete: Capability,
    delete: Capability,
    crc64: Capability,
    tells_markers: AtomicBool,
    counts_tags: AtomicBool,
    hashes_parts: AtomicBool,
    keeps_tags: [OnceLock<bool>; 3],
}

#[derive(Debug)]
struct Capability {
    works: AtomicBool,
    contradictions: AtomicU32,
}

// One refusal that a fresh read contradicts can be another daemon that wrote and removed; the
// second in a row on the same reading is the endpoint's own fault.
const CONTRADICTIONS_MAX: u32 = 2;

impl Capabilities {
    /// Starts in good faith, or without conditions where the configuration says so.
    pub(crate) fn new(conditional: bool) -> Self {
        Self {
            put: Capability::new(conditional),
            complete: Capability::new(conditional),
            delete: Capability::new(conditional),
            crc64: Capability::new(true),
            tells_markers: AtomicBool::new(false),
            counts_tags: AtomicBool::new(false),
            hashes_parts: AtomicBool::new(false),
            keeps_tags: Default::default(),
        }
    }

    /// Says whether to make use of an ability.
    pub(crate) fn has(&self, ability: Ability) -> bool {
        self.capability(ability).works.load(Ordering::Relaxed)
    }

    /// Gives an ability up, loudly: order then rests on fewer guarantees.
    pub(crate) fn withdraw(&self, ability: Ability, account: &str, why: &str) {
        if self.capability(ability).works.swap(false, Ordering::Relaxed) {
            warn!(account, ?ability, why, "endpoint lacks an ability, going on without it");
        }
    }

    /// Takes note of a refused condition that a fresh read says should have held.
    pub(crate) fn contradicted(&self, ability: Ability, account: &str) {
        let earlier = self.capability(ability).contradictions.fetch_add(1, Ordering::Relaxed);
        if earlier + 1 >= CONTRADICTIONS_MAX {
            self.withdraw(ability, account, "refused a condition twice that a fresh read says holds");
        }
    }

    /// Takes note that a condition was met as it should be.
    pub(crate) fn kept(&self, ability: Ability) {
        self.capability(ability).contradictions.store(0, Ordering::Relaxed);
    }

    /// Takes note that a HEAD of a deleted key named its delete marker.
    pub(crate) fn told_marker(&self) {
        self.tells_markers.store(true, Ordering::Relaxed);
    }

    /// Says whether a 404 without a delete marker's headers proves that there is none.
    pub(crate) fn tells_markers(&self) -> bool {
        self.tells_markers.load(Ordering::Relaxed)
    }

    /// Takes note that an answer said how many tags an object has.
    pub(crate) fn counted_tags(&self) {
        self.counts_tags.store(true, Ordering::Relaxed);
    }

    /// Says whether the endpoint is known to count tags.
    pub(crate) fn counts_tags(&self) -> bool {
        self.counts_tags.load(Ordering::Relaxed)
    }

    /// Takes note that the ETag of an upload in parts was the MD5 of its parts' MD5s.
    pub(crate) fn hashed_parts(&self) {
        self.hashes_parts.store(true, Ordering::Relaxed);
    }

    /// Says whether the endpoint is known to make ETags of uploads in parts from the MD5s of the parts.
    pub(crate) fn hashes_parts(&self) -> bool {
        self.hashes_parts.load(Ordering::Relaxed)
    }

    /// Takes note whether tags that were given were there afterwards.
    pub(crate) fn saw_tags(&self, given: TagsGiven, are_there: bool, account: &str) {
        let is_news = self.keeps_tags.get(given as usize).is_some_and(|known| known.set(are_there).is_ok());
        if is_news && !are_there {
            warn!(account, ?given, "endpoint drops tags that are given so");
        }
    }

    /// Says whether the endpoint keeps tags that are given so, if that is known.
    pub(crate) fn keeps_tags(&self, given: TagsGiven) -> Option<bool> {
        self.keeps_tags.get(given as usize)?.get().copied()
    }

    fn capability(&self, ability: Ability) -> &Capability {
        match ability {
            Ability::ConditionalPut => &self.put,
            Ability::ConditionalComplete => &self.complete,
            Ability::ConditionalDelete => &self.delete,
            Ability::Crc64Nvme => &self.crc64,
        }
    }
}

impl Capability {
    fn new(works: bool) -> Self {
        Self { works: AtomicBool::new(works), contradictions: AtomicU32::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was logged.
    #[derive(Debug, Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_ability_is_given_up_aloud_and_once() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            let known = Capabilities::new(true);
            known.withdraw(Ability::ConditionalDelete, "archive", "answered 501 Not Implemented");
            known.withdraw(Ability::ConditionalDelete, "archive", "answered 501 Not Implemented");
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        for said in ["WARN", "archive", "ConditionalDelete", "answered 501 Not Implemented"] {
            assert!(line.contains(said), "{line}");
        }
    }

    #[test]
    fn one_contradiction_is_forgiven_and_the_second_withdraws_the_ability() {
        let known = Capabilities::new(true);
        known.contradicted(Ability::ConditionalPut, "archive");
        assert!(known.has(Ability::ConditionalPut));
        known.contradicted(Ability::ConditionalPut, "archive");
        assert!(!known.has(Ability::ConditionalPut));
        assert!(known.has(Ability::ConditionalComplete));
    }
}
