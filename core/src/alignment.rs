//! Two histories of a key side by side: which original each replica is that does not say so itself.
//! A replica is told by its content, and where contents recur by its place among the others.

use std::collections::HashMap;

use crate::object::Timestamp;
use crate::plan::VersionRef;

/// An entry of the source's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original<P> {
    /// Which version it is.
    pub version: VersionRef,
    /// Its content; `None` where no replica of it is looked for.
    pub print: Option<P>,
}

/// An object of the destination's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<P> {
    /// It is known as the replica of this version, which the source may have lost since.
    Replica(VersionRef),
    /// Nothing is known of it but its content.
    Unknown(P),
}

/// Says for each object of the destination which entry of the source it is the replica of; both
/// histories oldest first.
///
/// Replicas are appended in the source's order, so what was replicated reads as a part of the
/// source's history with gaps. Of the destination the longest newest run is taken that does: what
/// lies below it is older than anything the source still has, or not ours. Within the run each
/// object is the oldest version that it can be, since older ones are replicated first.
pub fn align<P: PartialEq>(source: &[Original<P>], destination: &[Found<P>]) -> Vec<Option<usize>> {
    let places = Places::of(source);
    let constraints: Vec<Constraint<'_, P>> = destination.iter().map(|found| places.constraint(found)).collect();
    let first = places.first_that_fits(&constraints);
    places.oldest_fit(&constraints, first)
}

/// What an object demands of its place in the source's history.
enum Constraint<'a, P> {
    /// It is this entry.
    At(usize),
    /// Its original is gone, and was above all entries before the first place and below all from the second on.
    Between(usize, usize),
    /// It is an entry with this content.
    Like(&'a P),
    /// It is like no entry: not ours, or its original is gone.
    Free,
}

struct Places<'a, P> {
    source: &'a [Original<P>],
    by_version: HashMap<&'a VersionRef, usize>,
}

impl<'a, P: PartialEq> Places<'a, P> {
    fn of(source: &'a [Original<P>]) -> Self {
        let by_version = source.iter().enumerate().map(|(at, original)| (&original.version, at)).collect();
        Self { source, by_version }
    }

    fn constraint<'f>(&self, found: &'f Found<P>) -> Constraint<'f, P> {
        match found {
            Found::Replica(version) => match self.by_version.get(version) {
                Some(at) => Constraint::At(*at),
                None => self.between(version.last_modified),
            },
            Found::Unknown(print) if self.latest_like(print, self.source.len()).is_some() => Constraint::Like(print),
            Found::Unknown(_) => Constraint::Free,
        }
    }

    /// S3 lists times by the second, so of versions in the same second either may be the older one.
    fn between<'f>(&self, time: Timestamp) -> Constraint<'f, P> {
        let older = self.source.partition_point(|original| original.version.last_modified < time);
        let as_old = self.source.partition_point(|original| original.version.last_modified <= time);
        Constraint::Between(older, as_old)
    }

    /// Walks down from the newest object, giving each the newest place left; returns the last object
    /// that found one.
    fn first_that_fits(&self, constraints: &[Constraint<'_, P>]) -> usize {
        // Everything from here on is taken.
        let mut taken = self.source.len();
        for (index, constraint) in constraints.iter().enumerate().rev() {
            let place = match constraint {
                Constraint::At(at) => Some(*at).filter(|at| *at < taken),
                Constraint::Between(older, as_old) => Some(taken.min(*as_old)).filter(|_| *older <= taken),
                Constraint::Like(print) => self.latest_like(print, taken),
                Constraint::Free => Some(taken),
            };
            match place {
                Some(place) => taken = place,
                None => return index + 1,
            }
        }
        0
    }

    /// Walks up from the first object of a run that fits, giving each the oldest place left.
    fn oldest_fit(&self, constraints: &[Constraint<'_, P>], first: usize) -> Vec<Option<usize>> {
        let mut free = 0;
        let place = |(index, constraint): (usize, &Constraint<'_, P>)| {
            let place = match constraint {
                _ if index < first => None,
                Constraint::At(at) => Some(*at),
                Constraint::Between(older, _) => {
                    free = free.max(*older);
                    None
                }
                Constraint::Like(print) => self.oldest_like(print, free),
                Constraint::Free => None,
            };
            free = place.map_or(free, |place| place + 1);
            place
        };
        constraints.iter().enumerate().map(place).collect()
    }

    fn oldest_like(&self, print: &P, from: usize) -> Option<usize> {
        let like = |original: &Original<P>| original.print.as_ref() == Some(print);
        self.source.iter().skip(from).position(like).map(|at| at + from)
    }

    fn latest_like(&self, print: &P, below: usize) -> Option<usize> {
        let like = |original: &Original<P>| original.print.as_ref() == Some(print);
        self.source.iter().take(below).rposition(like)
    }
}

#[cfg(test)]
mod tests;
