//! What the destination shows of a key, and how far its history reaches. It is read before the
//! source is listed, so that "absent" is always something seen (protocol rule 2).

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use replicator_core::failure::{Failure, Kind as FailureKind};
use replicator_core::object::ETag;
use replicator_core::plan::{Kind, Known, SourceVersion, Top, VersionRef};
use replicator_core::stamp::{NAME, Stamp};
use tracing::info;

use super::listing;
use super::unstamped::Looks;
use crate::accounts::Access;
use crate::accounts::refusal::{Side, failure};
use crate::engine::Engine;
use crate::ledger::records::{Replica, State};
use crate::task::Task;

/// What was read of a key at the destination.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) known: Known,
    pub(crate) replicas: Vec<Replica>,
    /// What had to be looked at of its history, newest first; without what cannot be ours.
    pub(super) history: Vec<Found>,
    /// The version that is current, where it is an object.
    current: Option<String>,
}

/// An entry of the destination's history that is ours, or may be.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) entry: SourceVersion,
    pub(super) origin: Origin,
}

/// What is known of an entry's origin.
#[derive(Debug)]
pub(super) enum Origin {
    /// It is the replica of this version.
    Replica(VersionRef),
    /// It has no stamp, and no room for one.
    Unstamped(Looks),
}

impl Found {
    /// Returns the looks of an object of unknown origin.
    pub(super) fn looks(&self) -> Option<&Looks> {
        match &self.origin {
            Origin::Replica(_) => None,
            Origin::Unstamped(looks) => Some(looks),
        }
    }

    fn replica_of(&self) -> Option<&VersionRef> {
        match &self.origin {
            Origin::Replica(version) => Some(version),
            Origin::Unstamped(_) => None,
        }
    }
}

impl Shown {
    /// Says whether a replica of this version may be there without our knowing: it was never settled,
    /// or it was reached and perhaps written once more.
    pub(super) fn may_be_unknown(&self, version: &VersionRef) -> bool {
        let settled = self.known.replicated.contains(version) || self.known.skipped.contains(version);
        !settled || self.known.reached.as_ref() == Some(version)
    }

    /// Records what only its content told: that an entry of the history is this version's replica.
    pub(super) fn recognised(
        &mut self,
        engine: &Engine,
        task: &Task,
        at: usize,
        version: &VersionRef,
    ) -> Result<(), Failure> {
        let Some(found) = self.history.get_mut(at).filter(|found| found.looks().is_some()) else { return Ok(()) };
        found.origin = Origin::Replica(version.clone());
        let (id, etag) = (found.entry.version.id.as_str(), found.entry.etag.clone());
        info!(key = %task.lane.key, version = %version.id, replica = id, "recognised by content");
        adopt(engine, task, replica(version.clone(), Some(id.to_owned()), etag), &mut self.replicas)?;
        let is_current = self.current.as_deref() == Some(id);
        if let Top::Object { replica_of, .. } = &mut self.known.top
            && is_current
        {
            *replica_of = Some(version.clone());
        }
        self.known.replicated.insert(version.clone());
        self.known.reached = self.history.iter().find_map(Found::replica_of).cloned();
        Ok(())
    }
}

/// Reads what is current, and from ledger, stamp or history how far it reaches.
pub(crate) async fn read(engine: &Engine, task: &Task) -> Result<Shown, Failure> {
    let access = engine.access(&task.lane.destination)?;
    let reading = Reading { engine, task, access };
    let mut replicas = engine.ledger.replicas(&task.lane)?;
    let mut history = Vec::new();
    let current = current(access, task).await?;
    let shown = match &current {
        Current::Object { version, .. } => version.clone(),
        Current::Nothing | Current::Hidden { .. } => None,
    };
    let (top, reached) = match current {
        Current::Nothing => (Top::Nothing, None),
        Current::Object { etag, version, stamp } => {
            let mut replica_of =
                replica_by_version(&replicas, version.as_deref()).map(|replica| replica.source.clone());
            if let (None, Some(source)) = (&replica_of, stamp) {
                adopt(engine, task, replica(source.clone(), version, Some(etag.clone())), &mut replicas)?;
                replica_of = Some(source);
            }
            let reached = match &replica_of {
                Some(version) => Some(version.clone()),
                None => reading.newest_replica(&mut replicas, &mut history).await?,
            };
            (Top::Object { etag, replica_of }, reached)
        }
        Current::Hidden { marker } => match replica_by_version(&replicas, marker.as_deref()) {
            Some(replica) => (Top::Marker, Some(replica.source.clone())),
            None => (Top::Marker, reading.newest_replica(&mut replicas, &mut history).await?),
        },
    };
    let known = known(top, reached, &replicas);
    Ok(Shown { known, replicas, history, current: shown })
}

/// Reads back every replica that the ledger lacks.
pub(crate) async fn rebuild(engine: &Engine, task: &Task, shown: &mut Shown) -> Result<(), Failure> {
    let access = engine.access(&task.lane.destination)?;
    let reading = Reading { engine, task, access };
    shown.history.clear();
    for entry in reading.history().await? {
        shown.history.extend(reading.identify(entry, &mut shown.replicas).await?);
    }
    shown.known.replicated = known(Top::Nothing, None, &shown.replicas).replicated;
    Ok(())
}

/// Returns the ETag of the object that is current, if one is.
pub(crate) async fn current_etag(access: &Access, task: &Task) -> Result<Option<ETag>, Failure> {
    Ok(match current(access, task).await? {
        Current::Object { etag, .. } => Some(etag),
        Current::Nothing | Current::Hidden { .. } => None,
    })
}

/// What HEAD says of a key.
enum Current {
    Nothing,
    /// A delete marker, named where the server names it; or perhaps nothing, where it does not
    /// tell the two apart.
    Hidden {
        marker: Option<String>,
    },
    Object {
        etag: ETag,
        version: Option<String>,
        stamp: Option<VersionRef>,
    },
}

async fn current(access: &Access, task: &Task) -> Result<Current, Failure> {
    let place = &task.lane.destination;
    let request = access.s3.head_object().bucket(place.bucket.as_str()).key(task.lane.key.as_str());
    let error = match request.send().await {
        Ok(head) => return object(&head, task),
        Err(error) => error,
    };
    let Some(answer) = error.raw_response().filter(|answer| answer.status().as_u16() == 404) else {
        return Err(failure(Side::Destination, DURING, error));
    };
    if answer.headers().get("x-amz-delete-marker") == Some("true") {
        access.capabilities.told_marker();
        let marker = answer.headers().get("x-amz-version-id").map(str::to_owned);
        return Ok(Current::Hidden { marker });
    }
    let certain = access.is_aws || access.capabilities.tells_markers();
    Ok(if certain { Current::Nothing } else { Current::Hidden { marker: None } })
}

fn object(head: &HeadObjectOutput, task: &Task) -> Result<Current, Failure> {
    let etag = head.e_tag().and_then(|etag| ETag::try_from(etag).ok());
    let etag = etag.ok_or_else(|| Failure::caused(FailureKind::Transient, DURING, "the answer has no ETag"))?;
    Ok(Current::Object { etag, version: head.version_id.clone(), stamp: origin(head, task) })
}

/// Reads the stamp; one of another bucket makes the object a stranger.
fn origin(head: &HeadObjectOutput, task: &Task) -> Option<VersionRef> {
    let text = head.metadata.as_ref()?.get(NAME)?;
    let stamp = Stamp::decode(text).ok()?;
    (stamp.bucket == task.source.bucket).then_some(stamp.version)
}

const DURING: &str = "HeadObject";

struct Reading<'a> {
    engine: &'a Engine,
    task: &'a Task,
    access: &'a Access,
}

impl Reading<'_> {
    /// Finds the newest of our replicas below what is current, and what may be ours above it.
    async fn newest_replica(
        &self,
        replicas: &mut Vec<Replica>,
        history: &mut Vec<Found>,
    ) -> Result<Option<VersionRef>, Failure> {
        for entry in self.history().await? {
            history.extend(self.identify(entry, replicas).await?);
            if let Some(version) = history.last().and_then(Found::replica_of) {
                return Ok(Some(version.clone()));
            }
        }
        Ok(None)
    }

    /// Lists the destination's versions of the key, newest first.
    async fn history(&self) -> Result<Vec<SourceVersion>, Failure> {
        let lane = &self.task.lane;
        listing::history(self.access, Side::Destination, &lane.destination.bucket, &lane.key).await
    }

    /// Says which source version an entry of the destination is the replica of, and records what
    /// only its stamp knew; `None` when it cannot be one.
    async fn identify(&self, entry: SourceVersion, replicas: &mut Vec<Replica>) -> Result<Option<Found>, Failure> {
        let id = entry.version.id.as_str();
        if let Some(replica) = replica_by_version(replicas, Some(id)) {
            return Ok(Some(Found { origin: Origin::Replica(replica.source.clone()), entry }));
        }
        if entry.kind == Kind::Marker {
            return Ok(None);
        }
        let lane = &self.task.lane;
        let request = self.access.s3.head_object().bucket(lane.destination.bucket.as_str()).key(lane.key.as_str());
        let head = match request.version_id(id).send().await {
            Ok(head) => head,
            // Removed since it was listed.
            Err(error) if error.raw_response().is_some_and(|answer| answer.status().as_u16() == 404) => {
                return Ok(None);
            }
            Err(error) => return Err(failure(Side::Destination, DURING, error)),
        };
        let Some(source) = origin(&head, self.task) else {
            let may_be_ours = !head.metadata.as_ref().is_some_and(|metadata| metadata.contains_key(NAME));
            let looks = Looks::of_full(&head).filter(|_| may_be_ours);
            return Ok(looks.map(|looks| Found { entry, origin: Origin::Unstamped(looks) }));
        };
        adopt(self.engine, self.task, replica(source.clone(), Some(id.to_owned()), entry.etag.clone()), replicas)?;
        Ok(Some(Found { entry, origin: Origin::Replica(source) }))
    }
}

/// Records a replica that the ledger did not know: another daemon wrote it, or the ledger was lost.
fn adopt(engine: &Engine, task: &Task, replica: Replica, replicas: &mut Vec<Replica>) -> Result<(), Failure> {
    engine.ledger.put_replica(&task.lane, &replica)?;
    replicas.retain(|other| other.source != replica.source);
    replicas.push(replica);
    Ok(())
}

fn replica(source: VersionRef, destination_version: Option<String>, etag: Option<ETag>) -> Replica {
    Replica { source, kind: Kind::Object, state: State::Replicated, destination_version, etag }
}

fn replica_by_version<'a>(replicas: &'a [Replica], version: Option<&str>) -> Option<&'a Replica> {
    let version = version?;
    replicas
        .iter()
        .find(|replica| replica.state == State::Replicated && replica.destination_version.as_deref() == Some(version))
}

fn known(top: Top, reached: Option<VersionRef>, replicas: &[Replica]) -> Known {
    let of = |wanted: fn(State) -> bool| {
        replicas.iter().filter(|replica| wanted(replica.state)).map(|replica| replica.source.clone()).collect()
    };
    Known {
        top,
        reached,
        replicated: of(|state| matches!(state, State::Replicated | State::Collapsed | State::Removed)),
        skipped: of(|state| matches!(state, State::Skipped | State::Late | State::Gone)),
    }
}
