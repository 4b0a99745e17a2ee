//! Do the fakes do what S3, SQS and KMS do? The same cases run against them, LocalStack and, as to
//! S3, SeaweedFS. What each case must come to is what the documents of AWS say; where a store
//! differs, `differences` says how, and nowhere else may it. `docs/conformance.md` shows both.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    reason = "a test that cannot go on says so and fails"
)]

mod case;
mod cases;
mod differences;
mod document;
mod ground;
mod stores;

use replicator_fakes::s3::traits::Traits;

use case::run;
use differences::{LOCALSTACK, Listed, SEAWEEDFS};

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_is_as_aws_says() {
    let fake = stores::Fake::start(Traits::aws()).await;
    run(&fake.ground("fake").await, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn localstack_differs_only_where_it_is_listed() {
    let ground = stores::localstack().await;
    run(&ground, LOCALSTACK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_differs_only_where_it_is_listed() {
    let store = stores::SeaweedFs::start().await;
    run(&store.ground().await, SEAWEEDFS).await;
}

// What a store does and the fake can do too, it does when told to: so worlds can be played where
// the endpoint is not AWS.

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_plays_localstack() {
    plays("as LocalStack", Traits::localstack(), LOCALSTACK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_plays_seaweedfs() {
    plays("as SeaweedFS", Traits::seaweedfs(), SEAWEEDFS).await;
}

async fn plays(name: &'static str, traits: Traits, listed: &[Listed]) {
    let fake = stores::Fake::start(traits).await;
    let played: Vec<Listed> = listed
        .iter()
        .filter(|listed| listed.played)
        .copied()
        .collect();
    run(&fake.ground(name).await, &played).await;
    assert!(!played.is_empty(), "{name} plays nothing");
}

#[test]
fn every_listed_difference_is_about_a_case_and_is_one() {
    for listed in LOCALSTACK.iter().chain(SEAWEEDFS) {
        let case = cases::all()
            .into_iter()
            .find(|case| case.name == listed.case);
        let case = case.unwrap_or_else(|| panic!("no case {:?}", listed.case));
        assert_ne!(case.aws, listed.outcome, "{}", listed.case);
    }
}

#[test]
fn cases_have_names_of_their_own() {
    let mut names: Vec<&str> = cases::all().iter().map(|case| case.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!((names.len(), all > 40), (all, true));
}

#[test]
fn the_document_shows_what_is_tested() {
    document::check();
}
