//! Rules that compete for the same keys without saying which one wins, or what holds for the key
//! whichever wins.

use replicator_core::rule::Rule;

use super::Edge;
use super::keys::Keys;
use crate::diagnostics::{Location, Problems};
use crate::schema;

/// Reports a rule that ties with an earlier one over the same keys, or disagrees on them.
pub(super) fn refuse(hop: &Edge<'_>, earlier: &[&Edge<'_>], problems: &mut Problems<'_>) {
    let rivals: Vec<_> = earlier
        .iter()
        .copied()
        .filter(|other| compete(hop, other))
        .collect();
    if let Some(other) = rivals.first() {
        refuse_tie(hop, other, problems);
    }
    for matter in &MATTERS {
        let differs = |other: &&&Edge<'_>| (matter.differs)(hop.rule(), other.rule());
        let Some(other) = rivals.iter().find(differs) else {
            continue;
        };
        let message = format!(
            "not the same as in rule {:?}, which competes for the same keys; it belongs to the key, whichever rule takes a version, so say the same in both",
            other.rule().id
        );
        problems.add_problem((matter.spot)(hop.draft.written), message);
    }
}

/// Says whether two rules may need the same key of one bucket for another.
fn compete(one: &Edge<'_>, other: &Edge<'_>) -> bool {
    one.source == other.source
        && one.destination == other.destination
        && Keys::at_source(one.rule()).may_overlap(&Keys::at_source(other.rule()))
}

fn refuse_tie(hop: &Edge<'_>, other: &Edge<'_>, problems: &mut Problems<'_>) {
    let id = &other.rule().id;
    let written = hop.draft.written;
    if hop.rule().priority == other.rule().priority {
        let message = format!(
            "the same as in rule {id:?}, which sends overlapping keys to the same bucket; give them different ones, the higher wins"
        );
        problems.add_problem(&written.priority.spot, message);
    }
}

/// A part of a rule that belongs to the key and not to the version.
struct Matter {
    spot: fn(&schema::Rule) -> &Location,
    differs: fn(&Rule, &Rule) -> bool,
}

const MATTERS: [Matter; 7] = [
    Matter {
        spot: |rule| &rule.history.spot,
        differs: |one, other| one.history != other.history,
    },
    Matter {
        spot: |rule| &rule.since.spot,
        differs: |one, other| one.since != other.since,
    },
    Matter {
        spot: |rule| &rule.unmanaged_objects.spot,
        differs: |one, other| one.unmanaged_objects != other.unmanaged_objects,
    },
    Matter {
        spot: |rule| &rule.delete_markers.spot,
        differs: |one, other| one.delete_markers != other.delete_markers,
    },
    Matter {
        spot: |rule| &rule.version_deletes.spot,
        differs: |one, other| one.version_deletes != other.version_deletes,
    },
    Matter {
        spot: |rule| &rule.version_delete_delay.spot,
        differs: |one, other| one.version_delete_delay != other.version_delete_delay,
    },
    Matter {
        spot: |rule| &rule.version_deletes_per_hour.spot,
        differs: |one, other| one.version_deletes_per_hour != other.version_deletes_per_hour,
    },
];
