//! The messages in flight, each until the last of its tasks is closed.

use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;

use crate::lease::Hold;
use crate::message::{AckAction, AckRequest, Message};

/// The messages whose tasks are not all closed, by their numbers.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    messages: BTreeMap<u64, InFlightMessage>,
    /// Tasks of theirs that are not closed.
    open: usize,
    /// What their bodies have.
    bytes: usize,
}

#[derive(Debug)]
struct InFlightMessage {
    message: Message,
    tasks: usize,
    open: usize,
    disposal: AckAction,
}

impl InFlight {
    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Returns how many tasks are open.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    pub(super) fn body_bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a message in flight until so many tasks are closed.
    pub(super) fn take(&mut self, message: Message, disposal: AckAction, open: usize) {
        self.open += open;
        self.bytes += message.body.len();
        self.messages.insert(
            message.number,
            InFlightMessage {
                message,
                tasks: open,
                open,
                disposal,
            },
        );
    }

    /// Returns the id of a message that has more than one task.
    pub(super) fn wants_more(&self, number: u64) -> Option<&str> {
        self.messages
            .get(&number)
            .filter(|in_hand| in_hand.tasks > 1)
            .map(|in_hand| in_hand.message.id.as_str())
    }

    /// Says whether a message is in flight and its lease surely held.
    pub(super) fn holds_lease(&self, number: u64) -> bool {
        self.lost_token(number)
            .is_some_and(|lost| !lost.is_cancelled())
    }

    /// Returns the hold on a message of a work queue.
    pub(super) fn to_hold(&self, number: u64) -> Option<Hold> {
        let message = self.messages.get(&number).map(|in_hand| &in_hand.message)?;
        message.group.as_ref().map(|_| message.lease.to_hold())
    }

    /// Returns what fires when work for a message has to end.
    pub(super) fn over_token(&self, number: u64) -> Option<&CancellationToken> {
        self.messages
            .get(&number)
            .map(|in_hand| in_hand.message.lease.stop_token())
    }

    /// Returns what fires when a message may have gone to another worker.
    fn lost_token(&self, number: u64) -> Option<&CancellationToken> {
        self.messages
            .get(&number)
            .map(|in_hand| in_hand.message.lease.lost_token())
    }

    /// Closes one task of a message; the last one settles it. Of several disposals the most
    /// careful wins.
    pub(super) fn close(
        &mut self,
        number: u64,
        disposal: impl FnOnce(&Message) -> AckAction,
    ) -> Option<AckRequest> {
        let in_hand = self.messages.get_mut(&number)?;
        let disposal = disposal(&in_hand.message);
        let closed = in_hand.open.min(1);
        (in_hand.open, self.open) = (in_hand.open - closed, self.open - closed);
        in_hand.disposal = more_careful(
            std::mem::replace(&mut in_hand.disposal, AckAction::Delete),
            disposal,
        );
        if in_hand.open > 0 {
            return None;
        }
        self.remove_message(number).map(
            |InFlightMessage {
                 message, disposal, ..
             }| AckRequest {
                message,
                action: disposal,
            },
        )
    }

    /// Removes a message that may have gone to another worker, whose work decides what becomes of
    /// it.
    pub(super) fn drop_message(&mut self, number: u64) {
        if let Some(forgotten) = self.remove_message(number) {
            self.open -= forgotten.open;
        }
    }

    /// Removes those that may have gone to another worker.
    pub(super) fn forget_lost(&mut self, numbers: impl Iterator<Item = u64>) {
        for number in numbers {
            if !self.holds_lease(number) {
                self.drop_message(number);
            }
        }
    }

    fn remove_message(&mut self, number: u64) -> Option<InFlightMessage> {
        let removed = self.messages.remove(&number)?;
        self.bytes -= removed.message.body.len();
        Some(removed)
    }

    /// Gives away every message.
    pub(super) fn empty(&mut self) -> Vec<Message> {
        std::mem::take(self)
            .messages
            .into_values()
            .map(|in_hand| in_hand.message)
            .collect()
    }
}

/// To deliver again is more careful than to keep, later more than sooner.
fn more_careful(one: AckAction, other: AckAction) -> AckAction {
    let care = |disposal: &AckAction| match disposal {
        AckAction::Delete => (0, None),
        AckAction::DeadLetter(_) => (1, None),
        AckAction::Forward(_) => (2, None),
        AckAction::ReturnAfter(delay) => (3, Some(*delay)),
    };
    if care(&other) > care(&one) {
        other
    } else {
        one
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use replicator_core::failure::Reason;

    use super::*;

    #[test]
    fn a_message_of_two_tasks_goes_only_when_neither_needs_it() {
        let release = AckAction::ReturnAfter(Duration::ZERO);
        assert_eq!(more_careful(AckAction::Delete, release.clone()), release);
        assert_eq!(more_careful(release.clone(), AckAction::Delete), release);
        let park = AckAction::DeadLetter(Reason::DstBucketNotFound);
        assert_eq!(more_careful(park.clone(), AckAction::Delete), park);
        assert_eq!(more_careful(park, release.clone()), release);
    }

    #[test]
    fn a_message_of_two_tasks_waits_for_the_one_that_needs_longer() {
        let [soon, late] =
            [1, 60].map(|seconds| AckAction::ReturnAfter(Duration::from_secs(seconds)));
        assert_eq!(more_careful(soon.clone(), late.clone()), late);
        assert_eq!(more_careful(late.clone(), soon), late);
    }
}
