//! Which of the competing rules takes a version: the first, by priority, whose filter matches all
//! of it. Tags are read only when a rule filters by them.

use std::sync::Arc;

use replicator_core::failure::Failure;
use replicator_core::plan::SourceVersion;
use replicator_core::rule::{Replicas, Rule};

use super::tags::{self, Tags};
use crate::engine::Engine;
use crate::ledger::records::{ReplicaState, TargetKey};
use crate::task::Task;

/// The rule that takes a version, and the tags where they had to be read.
pub(super) struct SelectedRule {
    pub(super) rule: Arc<Rule>,
    pub(super) tags: Option<Tags>,
}

/// Chooses; `None` when no rule takes the version.
pub(super) async fn rule_for(
    engine: &Engine,
    task: &Task,
    version: &SourceVersion,
) -> Result<Option<SelectedRule>, Failure> {
    let mut tags = None;
    for rule in task
        .rules
        .iter()
        .filter(|rule| rule.filter.admits_size(version.size_bytes))
    {
        if !rule.filter.tags.is_empty() && tags.is_none() {
            let (access, id) = (engine.access_to(&task.source)?, &version.version.id);
            tags =
                Some(tags::read_source(access, &task.source.bucket, &task.source_key, id).await?);
        }
        if tags
            .as_ref()
            .is_some_and(|tags| !rule.filter.admits_tags(tags))
        {
            continue;
        }
        if rule.replicas == Replicas::Skip && is_replica(engine, task, version)? {
            return Ok(None);
        }
        // The version is this rule's, whichever key it has there: a key of another key stands back.
        let here = rule
            .destination_key(&task.source_key)
            .is_ok_and(|key| key == task.target.key);
        return Ok(here.then(|| SelectedRule {
            rule: Arc::clone(rule),
            tags,
        }));
    }
    Ok(None)
}

/// Says whether this daemon wrote the source version itself, for another rule. The stamp on it
/// would be no proof: any client can write one.
fn is_replica(engine: &Engine, task: &Task, version: &SourceVersion) -> Result<bool, Failure> {
    let target = TargetKey {
        destination: task.source.clone(),
        key: task.source_key.clone(),
    };
    let id = version.version.id.as_str();
    Ok(engine.ledger.replicas_of(&target)?.iter().any(|replica| {
        replica.state == ReplicaState::Replicated
            && replica.destination_version.as_deref() == Some(id)
    }))
}
