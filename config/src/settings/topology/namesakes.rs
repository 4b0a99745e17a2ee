//! Source buckets of one name in different places, whose events look alike.

use super::Edge;
use crate::diagnostics::Problems;

/// Reports a rule whose source bucket has its name from another place than that of an earlier one.
pub(super) fn refuse(hop: &Edge<'_>, earlier: &[&Edge<'_>], problems: &mut Problems<'_>) {
    let namesake =
        |other: &&&Edge<'_>| other.source.bucket == hop.source.bucket && other.source != hop.source;
    let Some(other) = earlier.iter().find(namesake) else {
        return;
    };
    let message = format!(
        "rule {:?} has a source bucket of this name at another endpoint or partition, and events name only the bucket; give each a daemon and a queue of its own",
        other.rule().id
    );
    problems.add_problem(&hop.draft.written.source.spot, message);
}
