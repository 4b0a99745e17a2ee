//! What must be true of a key when all is settled, and of every state that its destination showed.
//! A complaint opens with the guarantee of `docs/guarantees.md` that is broken.

mod history;
mod journal;
mod markers;
mod objects;
mod states;
mod tags;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use replicator_fakes::s3::entry::{Entry, Object, Shown};

use crate::sim::{ARCHIVE, SOURCE, Sim};
pub(crate) use objects::differences;

/// The name of the stamp's header, after `x-amz-meta-`.
const STAMP: &str = "s3-replicator";

/// More daemons than this share no queue here.
pub(crate) const DAEMONS_MAX: usize = 4;

/// What the rule and the world allow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Expect {
    /// Only the newest state is replicated.
    pub(crate) latest: bool,
    /// Delete markers are replicated.
    pub(crate) markers: bool,
    /// Versions that are deleted permanently at the source are deleted at the destination.
    pub(crate) version_deletes: bool,
    /// Which of the daemons may have forgotten the name of an upload: they died as they learnt it,
    /// or lost their disk.
    pub(crate) forgetful: [bool; DAEMONS_MAX],
    /// One daemon did everything, learnt what became of it, and never lost its ledger.
    pub(crate) remembers: bool,
    /// One daemon did everything and never died, so that nothing of another life was on its way.
    pub(crate) alone: bool,
}

impl Expect {
    /// One daemon in a world where nothing is in doubt.
    pub(crate) const EXACT: Self = Self {
        latest: false,
        markers: true,
        version_deletes: false,
        forgetful: [false; DAEMONS_MAX],
        remembers: true,
        alone: true,
    };

    /// Answers may be lost, or daemons die.
    pub(crate) const IN_DOUBT: Self = Self {
        remembers: false,
        alone: false,
        ..Self::EXACT
    };
}

/// One key on both sides: every entry that was ever there, in the order of its bucket, and what is
/// left.
struct Case<'a> {
    key: &'a str,
    expect: Expect,
    source: Vec<Arc<Entry>>,
    source_now: BTreeSet<String>,
    source_shown: Vec<Shown>,
    replicas: Vec<Arc<Entry>>,
    replicas_now: BTreeSet<String>,
    /// Where each of the source's versions stands. Judges ask for every pair of a history's entries,
    /// so that a search would take the cube of its length.
    places: HashMap<String, usize>,
    /// The place of each replica's original.
    origins: Vec<Option<usize>>,
    /// When which version of either side was deleted permanently.
    removed: &'a BTreeMap<String, SystemTime>,
}

/// Returns everything that is wrong at the destination that every world has.
pub(crate) fn judge(sim: &Sim, expect: Expect) -> Vec<String> {
    judge_at(sim, ARCHIVE, expect)
}

/// Returns everything that is wrong at a destination.
pub(crate) fn judge_at(sim: &Sim, destination: &str, expect: Expect) -> Vec<String> {
    let mut wrong = Vec::new();
    let removed = removed(sim);
    let keys: BTreeSet<String> = [SOURCE, destination]
        .iter()
        .flat_map(|bucket| sim.s3.keys_ever(bucket))
        .collect();
    for key in &keys {
        let case = Case::of(sim, destination, key, expect, &removed);
        let shown = sim.s3.shown(destination, key);
        let mut said = Vec::new();
        history::judge(&case, &mut said);
        states::judge(&case, &shown, &mut said);
        tags::judge(&case, &sim.s3.shown(SOURCE, key), &shown, &mut said);
        if !said.is_empty() {
            wrong.extend(said);
            wrong.push(format!("{destination}: {}", case.picture()));
        }
    }
    journal::judge(sim, destination, expect, &mut wrong);
    wrong
}

/// Says when each version was deleted permanently, by its id.
fn removed(sim: &Sim) -> BTreeMap<String, SystemTime> {
    let began = sim.clock.now() - sim.net.journal().now();
    let mut removed = BTreeMap::new();
    for entry in sim.net.journal().of("DeleteObject") {
        if let (Some(version), Some((at, 200..300))) = (entry.call.version, entry.executed) {
            let _first = removed.entry(version).or_insert(began + at);
        }
    }
    removed
}

impl<'a> Case<'a> {
    fn of(
        sim: &Sim,
        destination: &str,
        key: &'a str,
        expect: Expect,
        removed: &'a BTreeMap<String, SystemTime>,
    ) -> Self {
        let now = |bucket| {
            let history = sim.s3.history(bucket, key);
            history
                .iter()
                .map(|entry| entry.version_id.clone())
                .collect()
        };
        let in_scope = |entry: &Entry| expect.markers || !entry.is_marker();
        let mut source = sim.s3.ever(SOURCE, key);
        source.retain(|entry| in_scope(entry));
        let mut source_shown = sim.s3.shown(SOURCE, key);
        source_shown.retain(|state| state.current.as_deref().is_none_or(in_scope));
        let mut places = HashMap::new();
        for (place, entry) in source.iter().enumerate() {
            let _first = places.entry(entry.version_id.clone()).or_insert(place);
        }
        let mut case = Self {
            key,
            expect,
            source,
            source_now: now(SOURCE),
            source_shown,
            replicas: sim.s3.ever(destination, key),
            replicas_now: now(destination),
            places,
            origins: Vec::new(),
            removed,
        };
        case.origins = case
            .replicas
            .iter()
            .map(|replica| case.origin(replica))
            .collect();
        case
    }
}

impl Case<'_> {
    /// Finds the source entry that an entry of the destination is of, by its place in the source's
    /// order.
    fn origin(&self, replica: &Entry) -> Option<usize> {
        let object = replica.object.as_ref()?;
        match object.user(STAMP) {
            Some(stamp) if stamp.starts_with("1;") => {
                let version = stamp.split(';').nth(2)?;
                self.places.get(version).copied()
            }
            // A compact stamp: the one with the same content, of which the workload makes no
            // second.
            Some(_) | None => self.source.iter().position(|entry| {
                entry
                    .object
                    .as_ref()
                    .is_some_and(|other| is_twin(object, other))
            }),
        }
    }

    /// Says whether the source still has what stood at this place.
    fn has(&self, place: usize) -> bool {
        self.source_now.contains(&self.source[place].version_id)
    }

    /// Says whether the source had lost by then what stood at this place.
    fn had_lost(&self, place: usize, by: SystemTime) -> bool {
        self.removed
            .get(&self.source[place].version_id)
            .is_some_and(|at| *at <= by)
    }

    /// Says whether an entry of the destination is still there.
    fn is_kept(&self, entry: &Entry) -> bool {
        self.replicas_now.contains(&entry.version_id)
    }

    /// Says whether the source itself showed this place again after a later one that is gone now,
    /// until then or ever.
    fn went_back(&self, later: usize, place: usize, until: Option<SystemTime>) -> bool {
        let shows = |at: usize| {
            let id = self.source[at].id;
            let in_time = move |at: SystemTime| until.is_none_or(|until| at <= until);
            move |shown: &Shown| {
                in_time(shown.at)
                    && shown
                        .current
                        .as_ref()
                        .is_some_and(|current| current.id == id)
            }
        };
        let since = self.source_shown.iter().position(shows(later));
        let again = self.source_shown.iter().rposition(shows(place));
        later > place && since.is_some_and(|since| again.is_some_and(|again| since < again))
    }

    /// Says whether a marker above this place was taken back, and a daemon may have no record of
    /// it. A daemon that cannot tell which marker of the source the destination's is may have
    /// written the place once more on top of it (docs/protocol.md).
    fn is_undeleted(&self, place: usize) -> bool {
        let is_taken_back =
            |later: usize| self.source[later].is_marker() && self.went_back(later, place, None);
        !self.expect.remembers && (place + 1..self.source.len()).any(is_taken_back)
    }

    /// Names an entry of the destination by what it is of.
    fn name(&self, entry: &Entry) -> String {
        match self.origin(entry) {
            Some(place) => format!("v{place}"),
            None if entry.is_marker() => "a marker".to_owned(),
            None => "an unknown object".to_owned(),
        }
    }

    /// Draws both histories, oldest first; what is gone is in brackets.
    fn picture(&self) -> String {
        let draw =
            |entries: &[Arc<Entry>], now: &BTreeSet<String>, name: &dyn Fn(&Entry) -> String| {
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
    let may_differ = |what: &&str| ["lock", "tags"].contains(what);
    differences(one, other).iter().all(may_differ)
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
