//! Which keys fail by themselves: those that failed while the same bucket served other keys. A
//! bucket in trouble fails every key, so the failure of a key on this list proves nothing about the
//! bucket.

use std::collections::VecDeque;

use crate::circuit::FAILURES_MAX;

/// A key by a digest: all that matters here is whether two are the same.
pub type Subject = u64;

/// What the keys of one bucket tell of each other.
#[derive(Debug, Clone, Default)]
pub struct Suspects {
    /// The keys that failed since any was answered.
    failing: Vec<Subject>,
    /// The keys that failed while another succeeded, oldest first.
    alone: VecDeque<Subject>,
}

/// What a failure tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Another key fails: the bucket may be in trouble.
    New,
    /// A key fails that has failed since the last answer.
    Repeated,
    /// A key fails that failed while other keys were served: the cause is the key.
    Own,
}

// More keys than these are beyond doubt; and they are let in before its time to a bucket that
// fails, one at a time, so they are few beside what an outage fails anyway.
const FAILING_MAX: usize = 16;

// As many keys as can fail by themselves at a time; 8 KiB for each bucket.
const ALONE_MAX: usize = 1024;

impl Suspects {
    /// Records that a key failed.
    pub fn record_failure(&mut self, subject: Subject) -> Evidence {
        if self.alone.contains(&subject) {
            return Evidence::Own;
        }
        if self.failing.contains(&subject) {
            return Evidence::Repeated;
        }
        if self.failing.len() < FAILING_MAX {
            self.failing.push(subject);
        }
        Evidence::New
    }

    /// Records that a key was written: the other keys that failed since the last answer fail alone.
    pub fn record_success(&mut self, subject: Subject) {
        self.alone.retain(|alone| *alone != subject);
        let failing = std::mem::take(&mut self.failing);
        self.alone
            .extend(failing.into_iter().filter(|failing| *failing != subject));
        let over = self.alone.len().saturating_sub(ALONE_MAX);
        self.alone.drain(..over);
    }

    /// Records that a key was answered: that the bucket can write other keys does not follow.
    pub fn record_answer(&mut self) {
        self.failing.clear();
    }

    /// Says whether a key fails by itself: other keys were served meanwhile, or few others fail of
    /// a bucket that answered something else of the same attempt.
    pub fn is_own(&self, subject: Subject, was_heard: bool) -> bool {
        self.alone.contains(&subject) || was_heard && !self.are_many()
    }

    /// Says whether so many keys fail that the bucket is the likelier cause.
    pub fn are_many(&self) -> bool {
        self.failing.len() >= FAILURES_MAX as usize
    }

    /// Says whether a key could tell more of a bucket that fails: it did not fail itself, and few
    /// did.
    pub fn may_tell(&self, subject: Subject) -> bool {
        self.failing.len() < FAILING_MAX
            && !self.failing.contains(&subject)
            && !self.alone.contains(&subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_fails_while_another_is_answered_fails_alone_until_it_is_answered() {
        let mut suspects = Suspects::default();
        assert_eq!(suspects.record_failure(1), Evidence::New);
        assert_eq!(suspects.record_failure(1), Evidence::Repeated);
        assert!(!suspects.is_own(1, false));
        suspects.record_success(2);
        assert_eq!(suspects.record_failure(1), Evidence::Own);
        assert!(suspects.is_own(1, false) && !suspects.is_own(2, false));
        suspects.record_success(1);
        assert_eq!(suspects.record_failure(1), Evidence::New);
    }

    #[test]
    fn an_answer_that_is_no_write_proves_nothing() {
        let mut suspects = Suspects::default();
        suspects.record_failure(1);
        suspects.record_answer();
        assert_eq!(suspects.record_failure(1), Evidence::New);
    }

    #[test]
    fn keys_that_all_fail_are_not_to_blame_though_something_was_heard() {
        let mut suspects = Suspects::default();
        for subject in 0..4 {
            suspects.record_failure(subject);
            assert!(suspects.is_own(subject, true) && !suspects.is_own(subject, false));
        }
        suspects.record_failure(4);
        assert!(!suspects.is_own(4, true));
    }

    #[test]
    fn a_key_that_is_new_can_tell_more_as_long_as_few_fail() {
        let mut suspects = Suspects::default();
        suspects.record_failure(0);
        assert!(!suspects.may_tell(0) && suspects.may_tell(1));
        (1..16).for_each(|subject| assert_eq!(suspects.record_failure(subject), Evidence::New));
        assert!(!suspects.may_tell(16));
        suspects.record_success(16);
        assert!(
            suspects.may_tell(16) && !suspects.may_tell(3),
            "it fails alone"
        );
    }

    #[test]
    fn only_so_many_are_remembered_and_the_oldest_are_forgotten_first() {
        let mut suspects = Suspects::default();
        for subject in 0..2000 {
            suspects.record_failure(subject);
            suspects.record_success(Subject::MAX);
        }
        assert_eq!(suspects.alone.len(), ALONE_MAX);
        assert!(suspects.is_own(1999, false) && !suspects.is_own(0, false));
    }
}
