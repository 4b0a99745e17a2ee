//! The judge before histories whose verdict is plain: what it lets pass here, no story would ever
//! find.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{Tag, Tagging};

use super::{ARCHIVE, Expect, SOURCE, STAMP, Sim, judge};
use crate::sim::simulate;

// Longer than any plan lives, so that each step knows of those before it.
const PAUSE: Duration = Duration::from_secs(120);

const FOLLOWS_PURGES: Expect = Expect {
    version_deletes: true,
    ..Expect::IN_DOUBT
};

/// Plays a history and returns what the judge says. `a` puts an object of this content to the
/// source, `M` a delete marker, `-2` deletes the second entry there ever was permanently, `#2x`
/// gives it the tag `x`. After `>` the same happens at the destination, where `>2` puts a replica
/// of the source's second entry, and `>2!` one with other bytes.
fn verdict(history: &str, expect: Expect) -> Vec<String> {
    simulate(0, async |sim| {
        let user = sim.user();
        for step in history.split(' ') {
            match step.strip_prefix('>') {
                Some(step) => play(&sim, &user, ARCHIVE, step).await,
                None => play(&sim, &user, SOURCE, step).await,
            }
            sim.pass(PAUSE).await;
        }
        judge(&sim, expect)
    })
}

async fn play(sim: &Sim, user: &Client, bucket: &str, step: &str) {
    let nth = |bucket: &str, nth: &str| {
        sim.s3.ever(bucket, "k")[nth.parse::<usize>().unwrap() - 1].clone()
    };
    if let Some((place, value)) = step
        .strip_prefix('#')
        .and_then(|tags| tags.split_at_checked(1))
    {
        return tag(user, bucket, &nth(bucket, place).version_id, value).await;
    }
    let put = user.put_object().bucket(bucket).key("k");
    let delete = user.delete_object().bucket(bucket).key("k");
    match (step, step.strip_prefix('-')) {
        ("M", _) => drop(delete.send().await.unwrap()),
        (_, Some(place)) => {
            let delete = delete.version_id(&nth(bucket, place).version_id);
            delete.send().await.unwrap();
        }
        (content, None) if bucket == SOURCE => {
            let put = put.body(content.as_bytes().to_vec().into());
            put.send().await.unwrap();
        }
        (place, None) => {
            let (place, is_spoilt) = place
                .strip_suffix('!')
                .map_or((place, false), |place| (place, true));
            let original = nth(SOURCE, place);
            let stamp = format!("1;{SOURCE};{}", original.version_id);
            let body = original.object.as_ref().unwrap().bytes.clone();
            let body = if is_spoilt { "spoilt".into() } else { body };
            let put = put.metadata(STAMP, stamp).body(body.into());
            put.send().await.unwrap();
        }
    }
}

async fn tag(user: &Client, bucket: &str, version: &str, value: &str) {
    let tag = Tag::builder().key("tier").value(value).build().unwrap();
    let tagging = Tagging::builder().tag_set(tag).build().unwrap();
    let put = user
        .put_object_tagging()
        .bucket(bucket)
        .key("k")
        .version_id(version)
        .tagging(tagging);
    put.send().await.unwrap();
}

/// Histories and what is said of them, where permanent deletes are followed.
const WRONG: &str = "\
    a >1 >1                           whole history: v0 has two replicas
    a b >2 >1                         whole history: v0 stands above
    a b >2                            whole history: v0 has no replica
    a M b >1 >3                       whole history: the marker above v0 is missing
    a M b c -4 >1 >3 >4 >-3           whole history: the marker above v0 is missing
    a M b M -3 >1 >M >M               whole history: two markers in a row
    a M >1 >M >M                      whole history: two markers in a row
    M >M                              whole history: a marker over nothing
    a M -1 >M                         whole history: a marker over nothing
    a >1 >M                           whole history: a marker above Some(0) the source never had
    a M b -3 >1 >M >3 >M >-3          whole history: a marker above Some(0) the source never had
    a M >1                            converges: the destination shows an object
    a >1 >M                           converges: the source shows an object
    a b >1 >2 >-1                     safe deletes: v0 was removed, which the source had
    a M >1 >M >-2 >M                  safe deletes: a marker was removed, which the source had
    a M >1 >M >-2 >M                  never goes back: user shows v0
    a M >1 >M >-2 -2                  safe deletes: a marker was removed, which the source had
    a M b >1 >M >3 >M -3              never goes back: user shows a marker
    a b >1 >2!                        equal: the replica of v1 has other bytes
    a b -1 >1! >-1 >2                 equal: the replica of v0 has other bytes
    a >1 #1x #1y >#1y >#1x >#1y       never goes back: user gives v0 the tags
    a b #1x #1y >1 >2 >#1y >#1x >#1y  never goes back: user gives v0 the tags
    a >1 >#1x #1x                     never goes back: user gives v0 the tags
    a #1x >1 >#1x #1y                 equal: the replica of v0 has the tags
    a #1x >1 >#1x b >2 #1y            equal: the replica of v0 has the tags
";

/// The same where they are not.
const WRONG_WITHOUT_PURGES: &str = "\
    a b c -2 >1 >2    converges: the destination shows another object
    a b M -3 >1       converges: the destination shows another object
    a b -1 >1         converges: the destination shows another object
    a M b -1 >3 >M    converges: the source shows an object
    a b -1 >1 >2 >-1  safe deletes: v0 was removed
    a M b c -3 >1 >4  whole history: the marker above v0 is missing
    a M -1 >M         whole history: a marker over nothing
    a M -2 >1 >M      never goes back: user shows a marker
";

#[test]
fn what_is_wrong_is_said() {
    assert_said(WRONG, FOLLOWS_PURGES);
}

#[test]
fn what_is_wrong_is_said_where_purges_are_not_followed() {
    assert_said(WRONG_WITHOUT_PURGES, Expect::IN_DOUBT);
}

fn assert_said(table: &str, expect: Expect) {
    for line in table.lines() {
        let (history, complaint) = line.trim_start().split_once("  ").unwrap();
        let (said, complaint) = (verdict(history, expect), complaint.trim_start());
        assert!(
            said.iter().any(|said| said.starts_with(complaint)),
            "{history}: {said:?}"
        );
    }
}

#[test]
fn what_is_right_passes() {
    let table = [
        ("a M b >1 >M >3", Expect::EXACT),
        ("a #1x >1 #1y #1x >#1x", Expect::EXACT),
        ("a >1 #1x >#1x #1y >#1y #1x >#1x", Expect::EXACT),
        ("a #1x >1 b >2 >#1x #1y >#1y -1", Expect::EXACT),
        ("M a >2", Expect::EXACT),
        ("a M M b >1 >M >4", Expect::EXACT),
        ("a M >1 >M -2 >-2", FOLLOWS_PURGES),
        ("a M >1 >M -2 >-2 M >M", FOLLOWS_PURGES),
        ("a M >1 >M -2 >1", FOLLOWS_PURGES),
        ("a M b M >1 >M >3 >M -3 >-3", FOLLOWS_PURGES),
        ("a M >1 >M -1 >-1", FOLLOWS_PURGES),
        ("a M b >1 >M >3 -3 >-3", FOLLOWS_PURGES),
        ("a b >1 >2 -2 >-2", FOLLOWS_PURGES),
        ("a M b -3 >1 >M", FOLLOWS_PURGES),
        ("a b -2 >1 >2", Expect::IN_DOUBT),
        ("a M >1 >M -2", Expect::IN_DOUBT),
        ("a M b -3 >1 >M", Expect::IN_DOUBT),
    ];
    for (history, expect) in table {
        assert_eq!(verdict(history, expect), Vec::<String>::new(), "{history}");
    }
}
