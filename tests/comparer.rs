//! The judges, judged: the comparer's own tests damage a destination in every way it must see, and
//! the protocol's model, without one of its rules, must find what that rule prevents.

use crate::world::oracle::Script;

#[tokio::test]
async fn the_comparer_sees_every_kind_of_damage() {
    assert_passes(Script::new("test_compare.py"), 18).await;
}

#[tokio::test]
async fn the_protocol_is_clean_under_its_rules_and_needs_each_of_them() {
    assert_passes(Script::of("tests/protocol", "test_model.py"), 3).await;
}

async fn assert_passes(script: Script, tests_min: u64) {
    let output = script.run().await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let count = text
        .split("Ran ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|count| count.parse().ok());
    assert!(
        count.is_some_and(|count: u64| count >= tests_min),
        "tests are missing: {text}"
    );
}
