//! The judge, judged: the comparer's own tests damage a destination in every way it must see.

use crate::world::oracle::Script;

#[tokio::test]
async fn the_comparer_sees_every_kind_of_damage() {
    let output = Script::new("test_compare.py").run().await;
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("Ran 1") || text.contains("Ran 2"), "no tests were run: {text}");
}
