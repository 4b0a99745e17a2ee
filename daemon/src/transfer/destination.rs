//! What the destination shows of a key, and how far its history reaches. It is read before the
//! source is listed, so that "absent" is always something seen (protocol rule 2).

use std::time::Duration;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use replicator_core::failure::{Failure, Kind as FailureKind};
use replicator_core::object::ETag;
use replicator_core::plan::{Kind, Known, SourceVersion, Top, VersionRef};
use replicator_core::stamp::{NAME, Stamp};

use super::basis::{Basis, Entry};
use super::dated::Dated;
use super::listing;
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
    /// What the next write rests on.
    pub(crate) basis: Basis,
}

impl Shown {
    /// Returns what is on record of the entry that is current.
    pub(super) fn current(&self) -> Option<&Replica> {
        match &self.basis.entry {
            Entry::Nothing => None,
            Entry::Marker(id) => replica_by_version(&self.replicas, Some(id)),
            Entry::Object { version, .. } => replica_by_version(&self.replicas, version.as_deref()),
        }
    }
}

/// Reads what is current, and from ledger, stamp or history how far it reaches.
pub(crate) async fn read(engine: &Engine, task: &Task) -> Result<Shown, Failure> {
    let access = engine.access(&task.lane.destination)?;
    let reading = Reading { engine, task, access };
    let mut replicas = engine.ledger.replicas(&task.lane)?;
    let Current { entry, stamp, age } = current(access, task).await?;
    let basis = Basis::read(entry.clone(), age);
    let (top, reached) = match entry {
        Entry::Nothing => (Top::Nothing, None),
        Entry::Object { etag, version } => {
            let mut replica_of =
                replica_by_version(&replicas, version.as_deref()).map(|replica| replica.source.clone());
            if let (None, Some(source)) = (&replica_of, stamp) {
                reading.adopt(source.clone(), version, Some(etag.clone()), &mut replicas)?;
                replica_of = Some(source);
            }
            let reached = match &replica_of {
                Some(version) => Some(version.clone()),
                None => reading.newest_replica(&mut replicas).await?,
            };
            (Top::Object { etag, replica_of }, reached)
        }
        Entry::Marker(id) => match replica_by_version(&replicas, Some(&id)) {
            Some(replica) => (Top::Marker, Some(replica.source.clone())),
            None => (Top::Marker, reading.newest_replica(&mut replicas).await?),
        },
    };
    let known = known(top, reached, &replicas);
    Ok(Shown { known, replicas, basis })
}

/// Reads back every replica that the ledger lacks.
pub(crate) async fn rebuild(engine: &Engine, task: &Task, shown: &mut Shown) -> Result<(), Failure> {
    let access = engine.access(&task.lane.destination)?;
    let reading = Reading { engine, task, access };
    for entry in reading.history().await? {
        reading.identify(&entry, &mut shown.replicas).await?;
    }
    shown.known.replicated = known(Top::Nothing, None, &shown.replicas).replicated;
    Ok(())
}

/// What the destination says of a key's current entry.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) entry: Entry,
    /// Which source version an object is the replica of, by its stamp.
    stamp: Option<VersionRef>,
    /// How old it is, by the server's clock.
    age: Option<Duration>,
}

impl Current {
    fn hidden(entry: Entry) -> Self {
        Self { entry, stamp: None, age: None }
    }
}

/// Reads which entry is current.
pub(super) async fn current(access: &Access, task: &Task) -> Result<Current, Failure> {
    let place = &task.lane.destination;
    let request = access.s3.head_object().bucket(place.bucket.as_str()).key(task.lane.key.as_str());
    let dated = Dated::default();
    let error = match request.customize().interceptor(dated.clone()).send().await {
        Ok(head) => return object(&head, task, &dated),
        Err(error) => error,
    };
    let Some(answer) = error.raw_response().filter(|answer| answer.status().as_u16() == 404) else {
        return Err(failure(Side::Destination, DURING, error));
    };
    if answer.headers().get("x-amz-delete-marker") == Some("true") {
        access.capabilities.told_marker();
        if let Some(marker) = answer.headers().get("x-amz-version-id") {
            return Ok(Current::hidden(Entry::Marker(marker.to_owned())));
        }
    } else if access.is_aws || access.capabilities.tells_markers() {
        return Ok(Current::hidden(Entry::Nothing));
    }
    listed(access, task).await
}

/// Asks the list for what hides a key, where HEAD does not tell a marker from nothing.
async fn listed(access: &Access, task: &Task) -> Result<Current, Failure> {
    let lane = &task.lane;
    let newest = listing::newest(access, Side::Destination, &lane.destination.bucket, &lane.key).await?;
    match newest {
        None => Ok(Current::hidden(Entry::Nothing)),
        Some(entry) if entry.kind == Kind::Marker => {
            Ok(Current::hidden(Entry::Marker(entry.version.id.as_str().to_owned())))
        }
        Some(_) => Err(Failure::caused(FailureKind::Conflict, DURING, "an object appeared behind the 404")),
    }
}

fn object(head: &HeadObjectOutput, task: &Task, dated: &Dated) -> Result<Current, Failure> {
    let etag = head.e_tag().and_then(|etag| ETag::try_from(etag).ok());
    let etag = etag.ok_or_else(|| Failure::caused(FailureKind::Transient, DURING, "the answer has no ETag"))?;
    // An object uploaded in parts is dated by the beginning of its upload, not by its appearance:
    // https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
    let age = head.last_modified.as_ref().filter(|_| !etag.has_parts()).and_then(|then| dated.age(then));
    let entry = Entry::Object { etag, version: head.version_id.clone() };
    Ok(Current { entry, stamp: origin(head, task), age })
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
    /// Finds the newest of our replicas below what is current.
    async fn newest_replica(&self, replicas: &mut Vec<Replica>) -> Result<Option<VersionRef>, Failure> {
        for entry in self.history().await? {
            if let Some(version) = self.identify(&entry, replicas).await? {
                return Ok(Some(version));
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
    /// only its stamp knew.
    async fn identify(
        &self,
        entry: &SourceVersion,
        replicas: &mut Vec<Replica>,
    ) -> Result<Option<VersionRef>, Failure> {
        let id = entry.version.id.as_str();
        if let Some(replica) = replica_by_version(replicas, Some(id)) {
            return Ok(Some(replica.source.clone()));
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
        let Some(source) = origin(&head, self.task) else { return Ok(None) };
        self.adopt(source.clone(), Some(id.to_owned()), entry.etag.clone(), replicas)?;
        Ok(Some(source))
    }

    /// Records a replica that only its stamp knew: another daemon wrote it, or the ledger was lost.
    fn adopt(
        &self,
        source: VersionRef,
        destination_version: Option<String>,
        etag: Option<ETag>,
        replicas: &mut Vec<Replica>,
    ) -> Result<(), Failure> {
        let (kind, state) = (Kind::Object, State::Replicated);
        let replica = Replica { source, kind, state, destination_version, etag, written: None };
        self.engine.ledger.put_replica(&self.task.lane, &replica)?;
        replicas.retain(|other| other.source != replica.source);
        replicas.push(replica);
        Ok(())
    }
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
