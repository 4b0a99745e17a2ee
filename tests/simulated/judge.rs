//! What must be true of a key when all is settled, and of every state that its destination showed.

mod history;
mod journal;
mod states;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use replicator_fakes::s3::entry::{Entry, Object, Shown};

use crate::sim::{ARCHIVE, SOURCE, Sim};

/// The name of the stamp's header, after `x-amz-meta-`.
const STAMP: &str = "s3-replicator";

/// What the rule and the world allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expect {
    /// Only the newest state is replicated.
    pub(crate) latest: bool,
    /// Delete markers are replicated.
    pub(crate) markers: bool,
    /// Versions that are deleted for good at the source are deleted at the destination.
    pub(crate) version_deletes: bool,
    /// Versions were deleted for good at the source.
    pub(crate) purges: bool,
    /// An upload may be left open: whoever began it died, or never learnt its name.
    pub(crate) orphans: bool,
    /// One daemon did everything, learnt what became of it, and never lost its ledger.
    pub(crate) remembers: bool,
}

impl Expect {
    /// One daemon in a world where nothing is in doubt.
    pub(crate) const EXACT: Self =
        Self { latest: false, markers: true, version_deletes: false, purges: false, orphans: false, remembers: true };

    /// Answers may be lost, or daemons die.
    pub(crate) const IN_DOUBT: Self = Self { orphans: true, remembers: false, ..Self::EXACT };
}

/// One key on both sides: every entry that was ever there, in the order of its bucket, and what is left.
struct Case<'a> {
    key: &'a str,
    expect: Expect,
    source: Vec<Arc<Entry>>,
    source_now: BTreeSet<String>,
    source_shown: Vec<Shown>,
    replicas: Vec<Arc<Entry>>,
    replicas_now: BTreeSet<String>,
}

/// Returns everything that is wrong at the destination that every world has.
pub(crate) fn judge(sim: &Sim, expect: Expect) -> Vec<String> {
    judge_at(sim, ARCHIVE, expect)
}

/// Returns everything that is wrong at a destination.
pub(crate) fn judge_at(sim: &Sim, destination: &str, expect: Expect) -> Vec<String> {
    let mut wrong = Vec::new();
    let keys: BTreeSet<String> = [SOURCE, destination].iter().flat_map(|bucket| sim.s3.keys_ever(bucket)).collect();
    for key in &keys {
        let now = |bucket| sim.s3.history(bucket, key).iter().map(|entry| entry.version_id.clone()).collect();
        let in_scope = |entry: &Entry| expect.markers || !entry.is_marker();
        let case = Case {
            key,
            expect,
            source: sim.s3.ever(SOURCE, key).into_iter().filter(|entry| in_scope(entry)).collect(),
            source_now: now(SOURCE),
            source_shown: sim
                .s3
                .shown(SOURCE, key)
                .into_iter()
                .filter(|state| state.current.as_deref().is_none_or(in_scope))
                .collect(),
            replicas: sim.s3.ever(destination, key),
            replicas_now: now(destination),
        };
        let mut said = Vec::new();
        history::judge(&case, &mut said);
        states::judge(&case, &sim.s3.shown(destination, key), &mut said);
        if !said.is_empty() {
            wrong.extend(said);
            wrong.push(format!("{destination}: {}", case.picture()));
        }
    }
    journal::judge(sim, destination, expect, &mut wrong);
    wrong
}

impl Case<'_> {
    /// Finds the source entry that a replica is of, by its place in the source's order.
    fn origin(&self, replica: &Entry) -> Option<usize> {
        let object = replica.object.as_ref()?;
        match object.user(STAMP) {
            Some(stamp) => {
                let version = stamp.split(';').nth(2)?;
                self.source.iter().position(|entry| entry.version_id == version)
            }
            // Without a stamp: the one with the same content, of which the workload makes no second.
            None => {
                self.source.iter().position(|entry| entry.object.as_ref().is_some_and(|other| is_twin(object, other)))
            }
        }
    }

    /// Says whether the source still has what stood at this place.
    fn has(&self, place: usize) -> bool {
        self.source_now.contains(&self.source[place].version_id)
    }

    /// Says whether the source itself showed this place again after a later one that is gone now, until then
    /// or ever.
    fn went_back(&self, later: usize, place: usize, until: Option<SystemTime>) -> bool {
        let shows = |at: usize| {
            let id = self.source[at].id;
            let in_time = move |at: SystemTime| until.is_none_or(|until| at <= until);
            move |shown: &Shown| in_time(shown.at) && shown.current.as_ref().is_some_and(|current| current.id == id)
        };
        let is_gone = !self.has(later);
        let since = self.source_shown.iter().position(shows(later));
        let again = self.source_shown.iter().rposition(shows(place));
        is_gone && later > place && since.is_some_and(|since| again.is_some_and(|again| since < again))
    }

    /// Says whether a marker above this place was taken back, and someone may not know of it. Who does not know whose replica the marker of the
    /// destination is may have written the place once more on top of it (docs/protocol.md).
    fn is_undeleted(&self, place: usize) -> bool {
        let is_taken_back = |later: usize| self.source[later].is_marker() && self.went_back(later, place, None);
        !self.expect.remembers && (place + 1..self.source.len()).any(is_taken_back)
    }

    /// Draws both histories, oldest first; what is gone is in brackets.
    fn picture(&self) -> String {
        let draw = |entries: &[Arc<Entry>], now: &BTreeSet<String>, name: &dyn Fn(&Entry) -> String| {
            let one = |entry: &Arc<Entry>| match now.contains(&entry.version_id) {
                true => name(entry),
                false => format!("[{}]", name(entry)),
            };
            entries.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        let place = |entry: &Entry| self.source.iter().position(|other| other.id == entry.id);
        let source = |entry: &Entry| label(entry, place(entry));
        let replica = |entry: &Entry| format!("{}@{}", label(entry, self.origin(entry)), entry.by);
        format!(
            "key {:?}: source {} | replicas {}",
            self.key,
            draw(&self.source, &self.source_now, &source),
            draw(&self.replicas, &self.replicas_now, &replica)
        )
    }
}

/// Says whether two objects are the same in bytes and metadata.
fn is_twin(one: &Object, other: &Object) -> bool {
    one.bytes == other.bytes && history::headers(one) == history::headers(other)
}

fn label(entry: &Entry, place: Option<usize>) -> String {
    let place = place.map_or("?".to_owned(), |place| place.to_string());
    match &entry.object {
        Some(object) => {
            let letter = object.bytes.first().map_or('-', |byte| char::from(*byte));
            let parts = if object.etag.contains('-') { "p" } else { "" };
            format!("v{place}({letter}{}{parts})", object.bytes.len())
        }
        None => format!("m{place}"),
    }
}
