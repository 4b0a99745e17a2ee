//! The judge, judged: the comparer's own tests damage a destination in every way it must see.

use crate::world::oracle::Script;

#[tokio::test]
async fn the_comparer_sees_every_kind_of_damage() {
    let output = Script::new("test_compare.py").run().await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let count = text.split("Ran ").nth(1).and_then(|rest| rest.split(' ').next()).and_then(|count| count.parse().ok());
    assert!(count.is_some_and(|count: u32| count >= 18), "tests are missing: {text}");
}
