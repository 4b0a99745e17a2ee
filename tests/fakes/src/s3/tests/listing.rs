//! Lists of versions and of objects.

use super::*;
use crate::s3::traits::{Order, Resolution};

/// The entries of a page as `kind key version`, in the order of the text.
fn listed(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let document = answer
        .text
        .replace("<Version>", "\u{1}v")
        .replace("<DeleteMarker>", "\u{1}m");
    let value = |text: &str, name: &str| {
        let rest = text.split(&format!("<{name}>")).nth(1).unwrap();
        rest.split("</").next().unwrap().to_owned()
    };
    let entries = document.split('\u{1}').skip(1);
    entries
        .map(|entry| {
            format!(
                "{} {} {}",
                &entry[..1],
                value(entry, "Key"),
                value(entry, "VersionId")
            )
        })
        .collect()
}

/// Versions and markers of three keys; returns what the whole list is.
async fn filled(fake: &Fake) -> Vec<String> {
    let mut newest_first = Vec::new();
    for key in ["a", "a/b", "c"] {
        let mut of_key = Vec::new();
        for _ in 0..2 {
            of_key.insert(
                0,
                format!(
                    "v {key} {}",
                    put(fake, &format!("/versioned/{key}"), "x").await.version()
                ),
            );
            of_key.insert(
                0,
                format!(
                    "m {key} {}",
                    delete(fake, &format!("/versioned/{key}")).await.version()
                ),
            );
        }
        newest_first.extend(of_key);
    }
    newest_first
}

#[tokio::test(start_paused = true)]
async fn versions_and_markers_are_mixed_newest_first_within_a_key() {
    let fake = endpoint();
    let all = filled(&fake).await;
    let answer = get(&fake, "/versioned?versions").await;
    assert_eq!(listed(&answer), all);
    assert_eq!(
        answer
            .elements("IsLatest")
            .iter()
            .filter(|latest| **latest == "true")
            .count(),
        3
    );
    assert_eq!(answer.elements("IsLatest")[..2], ["true", "false"]);
    assert_eq!(answer.element("IsTruncated"), "false");
    assert_eq!(
        answer.elements("ETag")[0],
        "\"9dd4e461268c8034f5c8564e155c67a6\""
    );
    assert_eq!(answer.elements("Size")[0], "1");
    assert_eq!(
        listed(&get(&fake, "/versioned?versions&prefix=a/").await),
        all[4..8]
    );
}

/// The whole list in pages of a size.
async fn paged(fake: &Fake, size: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut from = String::new();
    loop {
        let page = get(fake, &format!("/versioned?versions&max-keys={size}{from}")).await;
        found.extend(listed(&page));
        if page.element("IsTruncated") == "false" {
            return found;
        }
        let (key, version) = (
            page.element("NextKeyMarker"),
            page.element("NextVersionIdMarker"),
        );
        assert!(found.last().unwrap().ends_with(&format!("{key} {version}")));
        from = format!("&key-marker={key}&version-id-marker={version}");
    }
}

#[tokio::test(start_paused = true)]
async fn pages_of_any_size_make_the_same_list() {
    let fake = endpoint();
    let all = filled(&fake).await;
    for size in 1..=13 {
        assert_eq!(paged(&fake, size).await, all, "pages of {size}");
    }
    assert!(listed(&get(&fake, "/versioned?versions&max-keys=0").await).is_empty());
}

#[tokio::test(start_paused = true)]
async fn markers_lead_behind_a_key_or_behind_a_version_that_may_be_gone() {
    let fake = endpoint();
    let all = filled(&fake).await;
    assert_eq!(
        listed(&get(&fake, "/versioned?versions&key-marker=a").await),
        all[4..]
    );
    assert_eq!(
        listed(&get(&fake, "/versioned?versions&key-marker=a0").await),
        all[8..]
    );
    let gone = all[1].rsplit(' ').next().unwrap();
    delete(&fake, &format!("/versioned/a?versionId={gone}")).await;
    let from = format!("/versioned?versions&key-marker=a&version-id-marker={gone}");
    assert_eq!(listed(&get(&fake, &from).await), all[2..]);
    let answer = get(
        &fake,
        &format!("/versioned?versions&version-id-marker={gone}"),
    )
    .await;
    assert_eq!(answer.outcome(), "400 InvalidArgument");
    assert_eq!(
        get(&fake, "/another?versions").await.outcome(),
        "404 NoSuchBucket"
    );
}

#[tokio::test(start_paused = true)]
async fn keys_are_encoded_when_asked_and_else_may_break_xml() {
    let fake = endpoint();
    put(&fake, "/versioned/a%20b%2B%01%C3%A9%26", "x").await;
    let encoded = get(&fake, "/versioned?versions&encoding-type=url").await;
    assert_eq!(encoded.element("Key"), "a+b%2B%01%C3%A9%26");
    assert_eq!(encoded.element("EncodingType"), "url");
    assert_eq!(
        get(&fake, "/versioned?versions").await.element("Key"),
        "a b+&#x1;é&amp;"
    );
    let found = get(
        &fake,
        "/versioned?versions&encoding-type=url&key-marker=a%20b%2B%01",
    )
    .await;
    assert_eq!(listed(&found).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_may_list_the_two_kinds_apart() {
    let fake = endpoint();
    let all = filled(&fake).await;
    fake.set_traits(Traits {
        lists_apart: true,
        ..fake.traits()
    });
    let kind = |wanted: &str| {
        all.iter()
            .filter(|entry| entry.starts_with(wanted))
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(
        listed(&get(&fake, "/versioned?versions").await),
        [kind("m"), kind("v")].concat()
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_may_list_in_another_order_than_it_shows() {
    let fake = endpoint();
    fake.set_versioning("suspended", Versioning::Enabled);
    let kept = put(&fake, "/suspended/key", "x").await.version();
    fake.set_versioning("suspended", Versioning::Suspended);
    put(&fake, "/suspended/key", "y").await;
    fake.set_traits(Traits {
        lists_null_last: true,
        order: Order::LastCompletedListedAsBegun,
        ..fake.traits()
    });
    let answer = get(&fake, "/suspended?versions").await;
    assert_eq!(
        listed(&answer),
        [format!("v key {kept}"), "v key null".to_owned()]
    );
    assert_eq!(answer.elements("IsLatest"), ["false", "true"]);
    let upload = begin(&fake, "/versioned/key", &[]).await;
    let etag = part(&fake, "/versioned/key", &upload, 1, "upload").await;
    let newer = put(&fake, "/versioned/key", "put").await.version();
    let current = complete(&fake, "/versioned/key", &upload, &[(1, &etag)], &[])
        .await
        .version();
    let answer = get(&fake, "/versioned?versions").await;
    assert_eq!(
        listed(&answer),
        [format!("v key {newer}"), format!("v key {current}")]
    );
    assert_eq!(answer.elements("IsLatest"), ["false", "true"]);
    assert_eq!(get(&fake, "/versioned/key").await.text, "upload");
    let first = get(&fake, "/versioned?versions&max-keys=1").await;
    assert_eq!(first.element("NextVersionIdMarker"), newer);
    let rest = get(
        &fake,
        &format!("/versioned?versions&key-marker=key&version-id-marker={newer}"),
    )
    .await;
    assert_eq!(listed(&rest), [format!("v key {current}")]);
}

#[tokio::test(start_paused = true)]
async fn times_are_as_fine_as_the_endpoint_states_them() {
    let fake = endpoint();
    tokio::time::advance(Duration::from_millis(1234)).await;
    put(&fake, "/versioned/key", "x").await;
    assert_eq!(
        get(&fake, "/versioned?versions")
            .await
            .element("LastModified"),
        "2026-01-01T00:00:01.000Z"
    );
    fake.set_traits(Traits {
        last_modified: Resolution::Milliseconds,
        ..fake.traits()
    });
    assert_eq!(
        get(&fake, "/versioned?versions")
            .await
            .element("LastModified"),
        "2026-01-01T00:00:01.234Z"
    );
}

#[tokio::test(start_paused = true)]
async fn a_list_of_objects_has_what_is_current_in_pages() {
    let fake = endpoint();
    for key in ["a", "b%20c", "d", "e"] {
        put(&fake, &format!("/versioned/{key}"), "x").await;
    }
    delete(&fake, "/versioned/d").await;
    let all = get(&fake, "/versioned?list-type=2").await;
    assert_eq!(
        (all.elements("Key"), all.element("IsTruncated")),
        (vec!["a", "b c", "e"], "false")
    );
    let page = get(&fake, "/versioned?list-type=2&max-keys=2&encoding-type=url").await;
    assert_eq!(
        (page.elements("Key"), page.element("KeyCount")),
        (vec!["a", "b+c"], "2")
    );
    let token = page.element("NextContinuationToken").replace(' ', "%20");
    let rest = get(
        &fake,
        &format!("/versioned?list-type=2&continuation-token={token}"),
    )
    .await;
    assert_eq!(rest.elements("Key"), ["e"]);
    assert_eq!(
        get(&fake, "/versioned?list-type=2&start-after=a&prefix=b")
            .await
            .elements("Key"),
        ["b c"]
    );
}
