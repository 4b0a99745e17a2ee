//! Work queues: one daemon at a time works on a key only if all that is to be done there goes
//! through one queue.

use super::Edge;
use super::keys::Keys;
use crate::diagnostics::Problems;

/// Reports a rule that goes through no work queue beside one that does, through the queue of
/// another bucket, or through another queue than a rule that can write to the same keys.
pub(super) fn refuse(hop: &Edge<'_>, earlier: &[&Edge<'_>], problems: &mut Problems<'_>) {
    let own = &hop.rule().work_queue;
    let wrong = earlier
        .iter()
        .find_map(|other| Some((other.rule(), wrong(hop, other)?)));
    let Some((other, why)) = wrong else { return };
    let spot = match hop.draft.written.work_queue.present_value() {
        Some(_) => &hop.draft.written.work_queue.spot,
        None => &hop.draft.written.id.spot,
    };
    let own = own.as_deref().unwrap_or("none");
    problems.add_problem(
        spot,
        format!("its work queue is {own:?}, and rule {:?} {why}", other.id),
    );
}

fn wrong(hop: &Edge<'_>, other: &Edge<'_>) -> Option<&'static str> {
    let (own, theirs) = (&hop.rule().work_queue, &other.rule().work_queue);
    if own.is_some() != theirs.is_some() {
        return Some("differs in having one; give all rules a work queue, or none");
    }
    let is_same_bucket = hop.destination == other.destination;
    if own.is_some() && own == theirs && !is_same_bucket {
        return Some("sends another bucket's work there; name a queue for each destination bucket");
    }
    let meet = is_same_bucket
        && Keys::at_destination(hop.rule()).may_overlap(&Keys::at_destination(other.rule()));
    (meet && own != theirs)
        .then_some("can write to the same keys by another; name the same queue in both")
}
