//! Which source version an entry of the destination's history is the replica of: by the ledger, or
//! else by its stamp, if the source bears that out.

use replicator_core::claim::{Belief, ClaimRejection, OriginClaim};
use replicator_core::failure::{Failure, FailureKind, Reason};
use replicator_core::object::{ETag, Timestamp};
use replicator_core::operation::Operation;
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::stamp;
use tracing::warn;

use super::head::{has_own_key, read_claim};
use super::listing;
use super::version_reader::VersionReader;
use crate::accounts::AccountClients;
use crate::accounts::capabilities::Feature;
use crate::accounts::error::Side;
use crate::engine::Engine;
use crate::ledger::records::{Replica, ReplicaState};
use crate::s3_http::{ResponseHead, S3Request};
use crate::task::Task;

/// What it takes to look an entry up.
pub(super) struct Lookup<'a> {
    pub(super) engine: &'a Engine,
    pub(super) task: &'a Task,
    pub(super) access: &'a AccountClients,
    /// All that the source has of the key, in any order.
    pub(super) listed: &'a [SourceVersion],
    /// What time it is at the destination, or later.
    pub(super) now: Option<Timestamp>,
}

impl Lookup<'_> {
    /// Says whether two daemons may write one marker twice: where deletes have no conditions. Where
    /// versions are deleted permanently, what stood between two markers may have gone.
    pub(super) fn may_double_markers(&self) -> bool {
        let is_guarded = self
            .access
            .capabilities
            .always_had(Feature::ConditionalDelete);
        !is_guarded && !self.task.rules.primary.version_deletes
    }

    /// Returns the record of a replica that is found there.
    pub(super) fn found_replica(
        &self,
        source: VersionRef,
        destination_version: Option<String>,
        etag: Option<ETag>,
    ) -> Replica {
        Replica {
            found: self.now,
            ..replicated_record(source, destination_version, etag)
        }
    }

    /// Says which version an object is the replica of, if its stamp is borne out. Else it counts as
    /// foreign, and that is logged: the destination's owner may take it for a replica.
    pub(super) async fn believed(
        &self,
        claim: OriginClaim,
        id: Option<&str>,
    ) -> Result<Option<VersionRef>, Failure> {
        let read = claim.clone();
        let claim = OriginClaim {
            version: self.named(claim.version),
            ..claim
        };
        let belief = match claim.judge(self.listed) {
            // What was read of it counts more than what is said of it.
            Ok(_) if self.is_refuted(id)? => Err(ClaimRejection::Content),
            Ok(Belief::Undigested) if self.original_has_digest(&claim.version).await? => {
                Err(ClaimRejection::Content)
            }
            belief => belief,
        };
        let Err(doubt) = belief else {
            return Ok(Some(claim.version));
        };
        self.read_again(&read, id).await?;
        let (rule, reason) = (
            &self.task.rules.primary.id,
            Reason::StampNotBorneOut.as_str(),
        );
        self.engine.metrics.count_failed(rule, reason);
        let (key, version, replica) = (
            &self.task.target.key,
            &claim.version.id,
            id.unwrap_or("none"),
        );
        warn!(rule, %key, %version, replica, reason, error = %doubt, "the stamp is not confirmed, the object counts as unmanaged");
        Ok(None)
    }

    /// Makes sure that an object is as it was read: on one answer that something in between spoilt,
    /// its replica would be overwritten as a foreign object.
    async fn read_again(&self, read: &OriginClaim, id: Option<&str>) -> Result<(), Failure> {
        let Some(id) = id else { return Ok(()) };
        let again = self
            .head(id)
            .await?
            .and_then(|head| read_claim(&head, self.task));
        match again.is_some_and(|again| again.is_of_same(read)) {
            true => Ok(()),
            false => {
                let words = "two answers say different things of one version";
                Err(Failure::with_source(
                    FailureKind::Transient,
                    Operation::HeadObject,
                    words,
                ))
            }
        }
    }

    /// Reads what is said of a version of the key; none if it is not there any more.
    async fn head(&self, id: &str) -> Result<Option<ResponseHead>, Failure> {
        let target = &self.task.target;
        let call =
            S3Request::head_object(Side::Destination, &target.destination.bucket, &target.key)
                .version(id);
        match self.access.wire.send(call).await {
            Ok(answer) => Ok(Some(answer.into_head())),
            Err(refusal) if refusal.is_absent() => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    /// Returns the version that a stamp means. A compact one says of a version that the source has
    /// lost no more than its time, unless a message is about it.
    fn named(&self, said: VersionRef) -> VersionRef {
        if let Some(entry) = self
            .listed
            .iter()
            .find(|entry| stamp::names_version(&said, &entry.version))
        {
            return entry.version.clone();
        }
        let told = self
            .task
            .events
            .iter()
            .filter_map(|pending| pending.version.clone());
        let mut told = told.map(|id| VersionRef::new(id, said.last_modified, None));
        told.find(|version| stamp::names_version(&said, version))
            .unwrap_or(said)
    }

    fn is_refuted(&self, id: Option<&str>) -> Result<bool, Failure> {
        id.map_or(Ok(false), |id| {
            self.engine.ledger.is_refuted(&self.task.target, id)
        })
    }

    /// Says whether the ETag of a version of the source is a digest of its content, which no list
    /// tells.
    async fn original_has_digest(&self, version: &VersionRef) -> Result<bool, Failure> {
        let Some(entry) = self.listed.iter().find(|entry| entry.version == *version) else {
            return Ok(false);
        };
        let source = self.engine.access_to(&self.task.source)?;
        match VersionReader::pin_source(source, self.task, entry)
            .head()
            .await
            .map_err(Failure::from)
        {
            Ok(head) => Ok(!has_own_key(&head)),
            // Under a customer's key it cannot be read, and has no replica.
            Err(Failure {
                kind:
                    FailureKind::Ineligible(_) | FailureKind::NeedsOperator(Reason::RequestRefused),
                ..
            }) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// Lists the destination's versions of the key, newest first.
    pub(super) async fn history(&self) -> Result<Vec<SourceVersion>, Failure> {
        let target = &self.task.target;
        listing::list_history(
            self.access,
            Side::Destination,
            &target.destination.bucket,
            &target.key,
        )
        .await
    }

    /// Says which source version an entry of the destination is the replica of, and records what
    /// only its stamp knew, unless a newer entry is a replica of the same; `None` when it cannot be
    /// one.
    pub(super) async fn identify(
        &self,
        entry: SourceVersion,
        replicas: &mut Vec<Replica>,
        newer: &[VersionRef],
    ) -> Result<Option<VersionRef>, Failure> {
        let id = entry.version.id.as_str();
        if let Some(replica) = replica_by_version(replicas, Some(id)) {
            return Ok(Some(replica.source.clone()));
        }
        if entry.kind == VersionKind::Marker {
            return Ok(None);
        }
        // Else it was removed since it was listed.
        let Some(head) = self.head(id).await? else {
            return Ok(None);
        };
        let Some(claim) = read_claim(&head, self.task) else {
            return Ok(None);
        };
        let Some(source) = self.believed(claim, Some(id)).await? else {
            return Ok(None);
        };
        // Of two replicas of one version the newer is what readers see, and what tags have to go
        // to.
        if !newer.contains(&source) {
            let found = self.found_replica(source.clone(), Some(id.to_owned()), entry.etag.clone());
            adopt_replica(self.engine, self.task, found, replicas)?;
        }
        Ok(Some(source))
    }
}

/// Records a replica that the ledger did not have: another daemon wrote it, or the ledger was lost.
pub(super) fn adopt_replica(
    engine: &Engine,
    task: &Task,
    replica: Replica,
    replicas: &mut Vec<Replica>,
) -> Result<(), Failure> {
    engine.ledger.put_replica(&task.target, &replica)?;
    replicas.retain(|other| other.source != replica.source);
    replicas.push(replica);
    Ok(())
}

pub(super) fn replicated_record(
    source: VersionRef,
    destination_version: Option<String>,
    etag: Option<ETag>,
) -> Replica {
    Replica {
        destination_version,
        etag,
        ..Replica::new(source, VersionKind::Object, ReplicaState::Replicated)
    }
}

pub(super) fn replica_by_version<'a>(
    replicas: &'a [Replica],
    version: Option<&str>,
) -> Option<&'a Replica> {
    let version = version?;
    replicas.iter().find(|replica| {
        replica.state == ReplicaState::Replicated
            && replica.destination_version.as_deref() == Some(version)
    })
}
