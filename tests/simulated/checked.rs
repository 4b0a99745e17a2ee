//! `check` against services that answer badly: a refusal by the service's own code is a problem, and
//! whatever else comes leaves the question open. Neither goes missing.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Service;
use s3_replicator::check::{CheckName, CheckReport, Severity, check_services};

use crate::fleet;
use crate::sim::{ARCHIVE, NOT_AWS, SOURCE, Sim, simulate};

use CheckName::{
    ConditionalWrites, DestinationKey, DestinationList, DestinationRead, DestinationUploads,
    DestinationWrite, QueueReceive, SourceRead, SourceTags,
};
use Severity::{Problem, Unasked, Warning};

const KEY: &str = "arn:aws:kms:eu-central-1:000000000000:key/1";

type Found = BTreeSet<(CheckName, Severity)>;

async fn check(sim: &mut Sim, is_probing: bool) -> (Found, u8) {
    let rule = format!("encryption = {{ mode = \"kms\", key = \"{KEY}\" }}");
    let settings = fleet::settings(sim, &rule, NOT_AWS);
    let (given, never) = (sim.given("check"), std::future::pending());
    let config = Path::new("/none");
    let report = Box::pin(check_services(
        &settings,
        config,
        is_probing,
        Some(&given),
        never,
    ));
    let report: CheckReport = report.await.unwrap();
    let found = report.findings().map(|found| (found.check, found.severity));
    (found.collect(), report.exit_code())
}

/// Checks a world in which an object is at both ends, without a fault and with one, and returns what
/// that adds, and the exit code.
fn added(place: Place, effect: Effect) -> (Found, u8) {
    simulate(1, async |mut sim| {
        sim.put("a", b"body").await;
        let put = sim.user().put_object().bucket(ARCHIVE).key("a");
        put.body(b"body".to_vec().into()).send().await.unwrap();
        let (good, _) = check(&mut sim, false).await;
        sim.net
            .faults()
            .add(Fault::new("fault", place.client("check"), effect));
        let (found, code) = check(&mut sim, false).await;
        assert!(sim.net.faults().hits("fault") > 0);
        (&found - &good, code)
    })
}

/// A fault, and what it adds.
type Case<'a> = (Place, Effect, &'a [(CheckName, Severity)]);

fn assert_added(cases: &[Case<'_>]) {
    for (place, effect, expected) in cases {
        let what = format!("{place:?} {effect:?}");
        let (found, code) = added(place.clone(), effect.clone());
        assert_eq!(found, expected.iter().copied().collect(), "{what}");
        let has = |severity| expected.iter().any(|(_, one)| *one == severity);
        let expected = match (has(Problem), has(Unasked)) {
            (true, _) => 1,
            (false, true) => 2,
            (false, false) => code,
        };
        assert_eq!(code, expected, "{what}");
    }
}

fn disabled() -> Effect {
    Effect::refuse(400, "KMS.DisabledException")
}

fn failed() -> Effect {
    Effect::refuse(500, "InternalError")
}

#[test]
fn a_read_of_the_source_that_is_refused_or_not_answered_is_found() {
    let source = |operation: &str| Place::s3(operation).bucket(SOURCE);
    let silent = Effect::Silence { lands: false };
    let invalid = Effect::refuse(400, "InvalidTag");
    assert_added(&[
        (
            source("GetObject"),
            Effect::slow_down(),
            &[(SourceRead, Unasked)],
        ),
        (source("GetObject"), silent, &[(SourceRead, Unasked)]),
        (source("GetObject"), disabled(), &[(SourceRead, Problem)]),
        (
            source("GetObjectTagging"),
            failed(),
            &[(SourceTags, Unasked)],
        ),
        (
            source("GetObjectTagging"),
            invalid,
            &[(SourceTags, Problem)],
        ),
    ]);
}

#[test]
fn a_read_of_the_destination_that_is_refused_or_not_answered_is_found() {
    let archive = |operation: &str| Place::s3(operation).bucket(ARCHIVE);
    // S3 says that to one alone that may read it.
    let archived = Effect::refuse(403, "InvalidObjectState");
    let invalid = Effect::refuse(400, "InvalidArgument");
    let (unread, refused) = (
        [(DestinationList, Unasked), (DestinationRead, Unasked)],
        [(DestinationList, Problem), (DestinationRead, Problem)],
    );
    let uploads = || archive("ListMultipartUploads");
    assert_added(&[
        (archive("GetObject"), archived, &[]),
        (archive("GetObject"), Effect::slow_down(), &unread),
        (archive("GetObject"), disabled(), &refused),
        (uploads(), failed(), &[(DestinationUploads, Unasked)]),
        (uploads(), invalid.clone(), &[(DestinationUploads, Warning)]),
        (
            archive("ListObjectVersions"),
            invalid,
            &[(DestinationList, Problem)],
        ),
    ]);
}

#[test]
fn a_key_or_a_queue_that_is_refused_or_does_not_answer_is_found() {
    let describe = || Place::service(Service::Kms).or("DescribeKey");
    let receive = || Place::sqs("ReceiveMessage");
    let silent = Effect::Silence { lands: false };
    let no_arn = Effect::refuse(400, "InvalidArnException");
    let unknown = Effect::refuse(403, "InvalidClientTokenId");
    assert_added(&[
        (describe(), silent, &[(DestinationKey, Unasked)]),
        (describe(), no_arn, &[(DestinationKey, Problem)]),
        (receive(), failed(), &[(QueueReceive, Unasked)]),
        (receive(), unknown, &[(QueueReceive, Problem)]),
    ]);
}

#[test]
fn only_a_failed_precondition_proves_that_conditions_are_honoured() {
    let put = || Place::s3("PutObject").bucket(ARCHIVE);
    let cases = [
        // The second write of the object is the one that has to be refused for its condition.
        (put(), Effect::slow_down(), 2, (ConditionalWrites, Unasked)),
        (
            put(),
            Effect::refuse(403, "AccessDenied"),
            2,
            (ConditionalWrites, Unasked),
        ),
        (
            put(),
            Effect::Answer("x-amz-version-id", None),
            1,
            (DestinationWrite, Unasked),
        ),
    ];
    for (place, effect, nth, expected) in cases {
        simulate(2, async |mut sim| {
            sim.put("a", b"body").await;
            let (good, _) = check(&mut sim, true).await;
            let what = format!("{place:?} {effect:?}");
            let fault = Fault::new("fault", place.client("check"), effect).nth(nth);
            sim.net.faults().add(fault);
            let (found, _) = check(&mut sim, true).await;
            assert_eq!(&found - &good, [expected].into(), "{what}");
            sim.pass(Duration::from_secs(60)).await;
            assert!(sim.s3.keys_ever(ARCHIVE).len() >= 2, "{what}");
            assert_eq!(sim.s3.keys(ARCHIVE), Vec::<String>::new(), "{what}");
        });
    }
}
