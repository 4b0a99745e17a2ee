//! Taking turns: of the copies in one line only the first competes with the other lines, so that no
//! rule gets more by sending many.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use replicator_core::rule::Rule;
use tokio::sync::OwnedMutexGuard;

/// The lines at one counter.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    lines: Mutex<HashMap<Line, Arc<tokio::sync::Mutex<()>>>>,
}

/// What a copy counts for: the large objects of a rule stand in another line than its small ones.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) is_bulk: bool,
}

/// A rule's id, and whether it is the line of its large objects.
type Line = (String, bool);

impl Turns {
    /// Waits for the turn in the payer's own line; it lasts until it is dropped.
    pub(crate) async fn take(&self, payer: Flow<'_>) -> OwnedMutexGuard<()> {
        let line = (payer.rule.id.clone(), payer.is_bulk);
        let turn = {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(lines.entry(line).or_default())
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns rules as a file would give them: by id, source bucket and destination bucket.
    pub(crate) fn rules(all: &[(&str, &str, &str)]) -> Vec<Rule> {
        let mut file = "listen = \"127.0.0.1:1\"\n[accounts.main]\nregion = \"eu-west-1\"\n[[queues]]\n\
             url = \"https://sqs.eu-west-1.amazonaws.com/111111111111/events\"\naccount = \"main\"\n\
             dead_letter_url = \"https://sqs.eu-west-1.amazonaws.com/111111111111/parked\"\n"
            .to_owned();
        for (id, source, destination) in all {
            file.push_str(&format!(
                "[[rules]]\nid = \"{id}\"\nsource = {{ account = \"main\", bucket = \"{source}\" }}\n\
                 destination = {{ account = \"main\", bucket = \"{destination}\" }}\n"
            ));
        }
        replicator_config::parse(&file).unwrap().rules
    }

    /// Returns a rule of this name.
    pub(crate) fn rule(id: &str) -> Rule {
        rules(&[(id, "orders", "orders-replica")]).remove(0)
    }
}
