//! Lists of versions.

use super::*;
use crate::ground::{Page, element};

pub(super) const CASES: &[Case] = &[
    case!(
        "ListObjectVersions mixes versions and delete markers, newest first",
        VERSIONS,
        mixed,
        "- 3 - 2 1"
    ),
    case!(
        "exactly the newest entry is the latest",
        VERSIONS,
        latest,
        "true false false"
    ),
    case!(
        "pages of one entry make the whole list",
        VERSIONS,
        pages,
        "- 3 - 2 1"
    ),
    case!(
        "a page behind a delete marker begins with what it covers",
        VERSIONS,
        behind_marker,
        "2"
    ),
    case!(
        "keys in the order of their bytes",
        VERSIONS,
        order,
        "a a/b a0 é"
    ),
    case!(
        "a key with a space, a plus and a control character, encoded",
        VERSIONS,
        encoded,
        "a+b%2B%01"
    ),
];

async fn fill(ground: &Ground) {
    ground.put("key", 1).await;
    ground.put("key", 2).await;
    ground.mark("key").await;
    ground.put("key", 3).await;
    ground.mark("key").await;
}

async fn mixed(ground: Ground) -> String {
    fill(&ground).await;
    ground.history("key").await
}

async fn latest(ground: Ground) -> String {
    ground.put("key", 1).await;
    ground.mark("key").await;
    ground.put("key", 2).await;
    let page = ground
        .page(&ground.bucket, &ground.key("key"), &Page::default())
        .await;
    page.iter()
        .map(|entry| entry.is_latest.to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

async fn pages(ground: Ground) -> String {
    fill(&ground).await;
    let mut found = Vec::new();
    let mut from = None;
    // More pages than entries would be a circle.
    for _ in 0..8 {
        let page = Page {
            max: Some(1),
            from: from.clone(),
            encoded: false,
        };
        found.extend(
            ground
                .page(&ground.bucket, &ground.key("key"), &page)
                .await
                .into_iter()
                .map(|entry| entry.what),
        );
        let text = ground
            .page_text(&ground.bucket, &ground.key("key"), &page)
            .await;
        if element(&text, "IsTruncated") != "true" {
            return found.join(" ");
        }
        from = Some((
            element(&text, "NextKeyMarker"),
            element(&text, "NextVersionIdMarker"),
        ));
    }
    format!("{} and no end", found.join(" "))
}

async fn behind_marker(ground: Ground) -> String {
    ground.put("key", 1).await;
    ground.put("key", 2).await;
    let marker = ground.mark("key").await;
    ground.put("key", 3).await;
    let page = Page {
        max: Some(1),
        from: Some((ground.key("key"), marker)),
        encoded: false,
    };
    let page = ground.page(&ground.bucket, &ground.key("key"), &page).await;
    page.into_iter().map(|entry| entry.what).collect()
}

async fn order(ground: Ground) -> String {
    for name in ["é", "a0", "a/b", "a"] {
        ground.put(name, 1).await;
    }
    let page = ground
        .page(&ground.bucket, &ground.key(""), &Page::default())
        .await;
    let names = page
        .iter()
        .map(|entry| entry.key.replace(&ground.key(""), ""));
    names.collect::<Vec<_>>().join(" ")
}

async fn encoded(ground: Ground) -> String {
    ground.put("a b+\u{1}", 1).await;
    let page = Page {
        encoded: true,
        ..Page::default()
    };
    let text = ground
        .page_text(&ground.bucket, &ground.key("a"), &page)
        .await;
    element(&text, "Key")
        .replace(&ground.key(""), "")
        .escape_default()
        .to_string()
}
