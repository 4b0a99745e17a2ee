//! Conditions: what AWS says, and what other endpoints make of them.

use super::*;
use crate::s3::traits::Conditions;

const NEW: (&str, &str) = ("if-none-match", "*");
const ANY: (&str, &str) = ("if-match", "*");
const OTHER: (&str, &str) = ("if-match", "\"d41d8cd98f00b204e9800998ecf8427e\"");
// The MD5 of "x".
const X: (&str, &str) = ("if-match", "\"9dd4e461268c8034f5c8564e155c67a6\"");

/// A key in each state: nothing, an object "x", a marker over it.
async fn states(fake: &Fake) {
    put(fake, "/versioned/object", "x").await;
    put(fake, "/versioned/marker", "x").await;
    delete(fake, "/versioned/marker").await;
}

async fn outcomes(
    fake: &Fake,
    method: &str,
    condition: (&str, &str),
    more: &[(&str, &str)],
) -> [String; 3] {
    let mut found = Vec::new();
    for key in ["nothing", "object", "marker"] {
        let headers = [&[condition][..], more].concat();
        found.push(
            send(fake, &format!("{method} /versioned/{key}"), &headers, "")
                .await
                .outcome(),
        );
    }
    found.try_into().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_put_that_must_be_the_first_counts_a_marker_as_absent() {
    let fake = endpoint();
    states(&fake).await;
    assert_eq!(
        outcomes(&fake, "PUT", NEW, &[]).await,
        ["200", "412 PreconditionFailed", "200"]
    );
    assert_eq!(contents(&fake, "versioned", "object"), ["x"]);
}

#[tokio::test(start_paused = true)]
async fn a_put_over_an_etag_needs_it_to_be_current() {
    let fake = endpoint();
    states(&fake).await;
    assert_eq!(
        outcomes(&fake, "PUT", OTHER, &[]).await,
        ["404 NoSuchKey", "412 PreconditionFailed", "404 NoSuchKey"]
    );
    assert_eq!(
        outcomes(&fake, "PUT", X, &[]).await,
        ["404 NoSuchKey", "200", "404 NoSuchKey"]
    );
    let unquoted = ("if-match", "d41d8cd98f00b204e9800998ecf8427e");
    assert_eq!(
        send(&fake, "PUT /versioned/object", &[unquoted], "y")
            .await
            .outcome(),
        "200"
    );
}

#[tokio::test(start_paused = true)]
async fn only_what_is_current_is_compared() {
    let fake = endpoint();
    put(&fake, "/versioned/key", "x").await;
    put(&fake, "/versioned/key", "y").await;
    assert_eq!(
        send(&fake, "PUT /versioned/key", &[X], "z").await.outcome(),
        "412 PreconditionFailed"
    );
}

#[tokio::test(start_paused = true)]
async fn a_copy_asks_about_its_destination_and_about_its_source() {
    let fake = endpoint();
    states(&fake).await;
    put(&fake, "/versioned/from", "y").await;
    let from = [("x-amz-copy-source", "/versioned/from")];
    assert_eq!(
        outcomes(&fake, "PUT", OTHER, &from).await,
        ["404 NoSuchKey", "412 PreconditionFailed", "404 NoSuchKey"]
    );
    assert_eq!(
        outcomes(&fake, "PUT", NEW, &from).await,
        ["200", "412 PreconditionFailed", "200"]
    );
    // The MD5 of "y".
    let y = "\"415290769594460e2e485922904f345d\"";
    for (condition, outcome) in [
        (("x-amz-copy-source-if-match", y), "200"),
        (
            ("x-amz-copy-source-if-match", "\"other\""),
            "412 PreconditionFailed",
        ),
        (
            ("x-amz-copy-source-if-none-match", y),
            "412 PreconditionFailed",
        ),
        (
            (
                "x-amz-copy-source-if-unmodified-since",
                "Mon, 01 Jan 2024 00:00:00 GMT",
            ),
            "412 PreconditionFailed",
        ),
        (
            (
                "x-amz-copy-source-if-modified-since",
                "Mon, 01 Jan 2024 00:00:00 GMT",
            ),
            "200",
        ),
    ] {
        let answer = send(&fake, "PUT /versioned/to", &[from[0], condition], "").await;
        assert_eq!(answer.outcome(), outcome, "{condition:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_conditional_delete_never_puts_a_marker_on_a_marker() {
    let fake = endpoint();
    states(&fake).await;
    let refused = [
        "404 NoSuchKey",
        "412 PreconditionFailed",
        "412 PreconditionFailed",
    ];
    assert_eq!(outcomes(&fake, "DELETE", OTHER, &[]).await, refused);
    assert_eq!(contents(&fake, "versioned", "object"), ["x"]);
    assert_eq!(
        outcomes(&fake, "DELETE", X, &[]).await,
        ["404 NoSuchKey", "204", "412 PreconditionFailed"]
    );
    assert_eq!(outcomes(&fake, "DELETE", ANY, &[]).await, refused);
    assert_eq!(contents(&fake, "versioned", "object"), ["x", "-"]);
    assert_eq!(contents(&fake, "versioned", "marker"), ["x", "-"]);
}

#[tokio::test(start_paused = true)]
async fn a_complete_has_conditions_and_counts_a_delete_since_its_beginning_as_a_conflict() {
    let fake = endpoint();
    states(&fake).await;
    for (key, condition, outcome) in [
        ("nothing", NEW, "200"),
        ("object", NEW, "412 PreconditionFailed"),
        ("marker", NEW, "200"),
        ("none", X, "404 NoSuchKey"),
        ("object", X, "200"),
    ] {
        let path = format!("/versioned/{key}");
        let upload = begin(&fake, &path, &[]).await;
        let etag = part(&fake, &path, &upload, 1, "p").await;
        let answer = complete(&fake, &path, &upload, &[(1, &etag)], &[condition]).await;
        assert_eq!(answer.outcome(), outcome, "{key} {condition:?}");
    }
    put(&fake, "/versioned/raced", "x").await;
    let upload = begin(&fake, "/versioned/raced", &[]).await;
    let etag = part(&fake, "/versioned/raced", &upload, 1, "p").await;
    delete(&fake, "/versioned/raced").await;
    let answer = complete(&fake, "/versioned/raced", &upload, &[(1, &etag)], &[NEW]).await;
    assert_eq!(answer.outcome(), "409 ConditionalRequestConflict");
    let answer = complete(&fake, "/versioned/raced", &upload, &[(1, &etag)], &[X]).await;
    assert_eq!(answer.outcome(), "404 NoSuchKey");
    assert_eq!(
        fake.open_uploads("versioned").len(),
        3,
        "a refused upload stays open"
    );
    fake.set_traits(Traits {
        conflicts_after_delete: false,
        match_over_nothing: 412,
        ..fake.traits()
    });
    let answer = complete(&fake, "/versioned/raced", &upload, &[(1, &etag)], &[X]).await;
    assert_eq!(answer.outcome(), "412 PreconditionFailed");
    let answer = complete(&fake, "/versioned/raced", &upload, &[(1, &etag)], &[NEW]).await;
    assert_eq!(answer.outcome(), "200");
    assert_eq!(
        send(&fake, "DELETE /versioned/none", &[X], "")
            .await
            .outcome(),
        "412 PreconditionFailed"
    );
}

#[tokio::test(start_paused = true)]
async fn the_removal_of_what_was_current_is_a_conflict_too() {
    let fake = endpoint();
    let old = put(&fake, "/versioned/key", "old").await.version();
    let current = put(&fake, "/versioned/key", "x").await.version();
    let upload = begin(&fake, "/versioned/key", &[]).await;
    let etag = part(&fake, "/versioned/key", &upload, 1, "p").await;
    for (version, outcome) in [
        (old, "412 PreconditionFailed"),
        (current, "409 ConditionalRequestConflict"),
    ] {
        delete(&fake, &format!("/versioned/key?versionId={version}")).await;
        let answer = complete(&fake, "/versioned/key", &upload, &[(1, &etag)], &[NEW]).await;
        assert_eq!(answer.outcome(), outcome);
    }
}

#[tokio::test(start_paused = true)]
async fn reads_have_all_four_conditions() {
    let fake = endpoint();
    put(&fake, "/versioned/key", "x").await;
    for (name, value, status) in [
        ("if-match", "\"9dd4e461268c8034f5c8564e155c67a6\"", 200),
        ("if-match", "\"other\"", 412),
        ("if-none-match", "\"9dd4e461268c8034f5c8564e155c67a6\"", 304),
        ("if-none-match", "\"other\"", 200),
        ("if-modified-since", "Thu, 01 Jan 2026 00:00:00 GMT", 304),
        ("if-modified-since", "Wed, 31 Dec 2025 23:59:59 GMT", 200),
        ("if-unmodified-since", "Thu, 01 Jan 2026 00:00:00 GMT", 200),
        ("if-unmodified-since", "Wed, 31 Dec 2025 23:59:59 GMT", 412),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = send(
                &fake,
                &format!("{method} /versioned/key"),
                &[(name, value)],
                "",
            )
            .await;
            assert_eq!(answer.status, status, "{method} {name} {value}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_may_ignore_conditions_or_not_know_them() {
    let fake = endpoint();
    states(&fake).await;
    let manner = |manner| {
        let traits = Traits {
            put_conditions: manner,
            delete_conditions: manner,
            ..fake.traits()
        };
        fake.set_traits(Traits {
            copy_conditions: manner,
            complete_conditions: manner,
            ..traits
        });
    };
    put(&fake, "/versioned/from", "y").await;
    let from = [("x-amz-copy-source", "/versioned/from")];
    manner(Conditions::NotImplemented);
    for (method, more) in [("PUT", &[][..]), ("PUT", &from), ("DELETE", &[])] {
        assert_eq!(
            outcomes(&fake, method, X, more).await,
            ["501 NotImplemented"; 3]
        );
    }
    assert_eq!(put(&fake, "/versioned/object", "x").await.outcome(), "200");
    manner(Conditions::RefusedOverMarker);
    assert_eq!(
        outcomes(&fake, "PUT", NEW, &[]).await,
        ["200", "412 PreconditionFailed", "412 PreconditionFailed"]
    );
    manner(Conditions::Ignored);
    assert_eq!(outcomes(&fake, "PUT", OTHER, &[]).await, ["200"; 3]);
    assert_eq!(outcomes(&fake, "DELETE", OTHER, &[]).await, ["204"; 3]);
    let upload = begin(&fake, "/versioned/object", &[]).await;
    let etag = part(&fake, "/versioned/object", &upload, 1, "p").await;
    let answer = complete(&fake, "/versioned/object", &upload, &[(1, &etag)], &[OTHER]).await;
    assert_eq!(answer.outcome(), "200");
}
