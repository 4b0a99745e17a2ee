//! The messages that are hidden for this process, and which of them are of one group.

use std::collections::{BTreeMap, BTreeSet};

use tokio_util::sync::CancellationToken;

use super::HeldMessage;

/// The messages of a queue that are hidden for this process.
#[derive(Debug, Default)]
pub(super) struct Registry {
    pub(super) messages: BTreeMap<u64, HeldMessage>,
    /// The message groups that they are of.
    pub(super) groups: BTreeMap<String, Group>,
    /// Those that wait to be confirmed.
    pub(super) asked: BTreeSet<u64>,
}

/// The messages of one group, which are held together: SQS gives out what shows again of a group,
/// whatever else of it is in flight.
#[derive(Debug, Default)]
pub(super) struct Group {
    messages: usize,
    over: CancellationToken,
}

impl Registry {
    /// Takes a message into its group, and returns what fires when work for that has to end.
    pub(super) fn join_group(&mut self, name: &str) -> CancellationToken {
        let group = self.groups.entry(name.to_owned()).or_default();
        if group.over.is_cancelled() {
            *group = Group::default();
        }
        group.messages += 1;
        group.over.clone()
    }

    /// Takes a message out, and its group with the last of it.
    pub(super) fn remove_message(&mut self, number: u64) -> Option<HeldMessage> {
        self.asked.remove(&number);
        let held = self.messages.remove(&number)?;
        if let Some(name) = &held.group
            && let Some(group) = self.groups.get_mut(name).filter(|_| !held.is_gone())
        {
            group.messages -= 1;
            if group.messages == 0 {
                self.groups.remove(name);
            }
        }
        Some(held)
    }

    /// Ends what is held of a group together with a message; what is received of it from now on is
    /// held anew.
    pub(super) fn end_group(&mut self, held: &HeldMessage) {
        if let Some(name) = held.group.as_ref().filter(|_| !held.is_gone()) {
            self.groups.remove(name);
        }
        held.over.cancel();
    }
}
