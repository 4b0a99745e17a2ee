//! Versions, delete markers, and what a bucket without versions does.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_versioned_bucket_keeps_everything_under_ids_that_do_not_sort() {
    let fake = endpoint();
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(put(&fake, "/versioned/key", "x").await.version());
        pass(1).await;
    }
    let listed: Vec<String> = fake
        .history("versioned", "key")
        .iter()
        .map(|entry| entry.version_id.clone())
        .collect();
    assert_eq!(listed, ids);
    let mut sorted = ids.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(sorted.len(), ids.len());
    let rising = ids.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!((4..16).contains(&rising), "{rising} of 19 rise");
    for id in &ids {
        assert_eq!(
            get(&fake, &format!("/versioned/key?versionId={id}"))
                .await
                .version(),
            *id
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_ids_and_another_seed_others() {
    let id = |seed| async move {
        let fake = Fake::new(Clock::starting_at_unix(START), seed);
        fake.create_bucket("b-1", Versioning::Enabled);
        put(&fake, "/b-1/key", "x").await.version()
    };
    assert_eq!(id(1).await, id(1).await);
    assert_ne!(id(1).await, id(2).await);
}

#[tokio::test(start_paused = true)]
async fn a_delete_marker_hides_the_object_and_says_so() {
    let fake = endpoint();
    let object = put(&fake, "/versioned/key", "x").await.version();
    let deleted = delete(&fake, "/versioned/key").await;
    let marker = deleted.version();
    assert_eq!(
        (deleted.status, deleted.header("x-amz-delete-marker")),
        (204, "true")
    );
    for answer in [
        get(&fake, "/versioned/key").await,
        head(&fake, "/versioned/key").await,
    ] {
        let seen = (
            answer.status,
            answer.header("x-amz-delete-marker"),
            answer.header("x-amz-version-id"),
        );
        assert_eq!(seen, (404, "true", marker.as_str()));
    }
    assert_eq!(
        get(&fake, "/versioned/key").await.element("Code"),
        "NoSuchKey"
    );
    for method in ["GET", "HEAD"] {
        let answer = send(
            &fake,
            &format!("{method} /versioned/key?versionId={marker}"),
            &[],
            "",
        )
        .await;
        assert_eq!(
            (answer.status, answer.header("x-amz-delete-marker")),
            (405, "true"),
            "{method}"
        );
        assert_eq!(answer.header("allow"), "DELETE");
    }
    assert_eq!(
        get(&fake, &format!("/versioned/key?versionId={object}"))
            .await
            .text,
        "x"
    );
}

#[tokio::test(start_paused = true)]
async fn a_marker_over_a_marker_or_over_nothing_is_another_marker() {
    let fake = endpoint();
    for _ in 0..3 {
        delete(&fake, "/versioned/key").await;
    }
    assert_eq!(contents(&fake, "versioned", "key"), ["-", "-", "-"]);
}

#[tokio::test(start_paused = true)]
async fn removing_the_marker_brings_the_object_back() {
    let fake = endpoint();
    put(&fake, "/versioned/key", "x").await;
    let marker = delete(&fake, "/versioned/key").await.version();
    let removed = delete(&fake, &format!("/versioned/key?versionId={marker}")).await;
    let seen = (
        removed.status,
        removed.header("x-amz-delete-marker"),
        removed.header("x-amz-version-id"),
    );
    assert_eq!(seen, (204, "true", marker.as_str()));
    assert_eq!(get(&fake, "/versioned/key").await.text, "x");
}

#[tokio::test(start_paused = true)]
async fn removing_an_exact_version_leaves_the_others_and_is_no_error_twice() {
    let fake = endpoint();
    let first = put(&fake, "/versioned/key", "1").await.version();
    put(&fake, "/versioned/key", "2").await;
    for _ in 0..2 {
        let removed = delete(&fake, &format!("/versioned/key?versionId={first}")).await;
        assert_eq!(
            (removed.status, removed.header("x-amz-delete-marker")),
            (204, "")
        );
    }
    assert_eq!(contents(&fake, "versioned", "key"), ["2"]);
}

#[tokio::test(start_paused = true)]
async fn suspended_versioning_overwrites_null_in_place_and_keeps_older_versions() {
    let fake = endpoint();
    fake.set_versioning("suspended", Versioning::Enabled);
    put(&fake, "/suspended/key", "kept").await;
    fake.set_versioning("suspended", Versioning::Suspended);
    assert_eq!(
        put(&fake, "/suspended/key", "null 1").await.version(),
        "null"
    );
    put(&fake, "/suspended/key", "null 2").await;
    assert_eq!(contents(&fake, "suspended", "key"), ["kept", "null 2"]);
    let marker = delete(&fake, "/suspended/key").await;
    assert_eq!(
        (
            marker.header("x-amz-delete-marker"),
            marker.version().as_str()
        ),
        ("true", "null")
    );
    assert_eq!(contents(&fake, "suspended", "key"), ["kept", "-"]);
    fake.set_versioning("suspended", Versioning::Enabled);
    put(&fake, "/suspended/key", "again").await;
    assert_eq!(contents(&fake, "suspended", "key"), ["kept", "-", "again"]);
    fake.set_versioning("suspended", Versioning::Suspended);
    put(&fake, "/suspended/key", "null 3").await;
    assert_eq!(
        contents(&fake, "suspended", "key"),
        ["kept", "again", "null 3"]
    );
    assert_eq!(
        get(&fake, "/suspended/key?versionId=null").await.text,
        "null 3"
    );
}

#[tokio::test(start_paused = true)]
async fn an_unversioned_bucket_has_one_object_and_no_markers() {
    let fake = endpoint();
    assert_eq!(put(&fake, "/unversioned/key", "1").await.version(), "");
    put(&fake, "/unversioned/key", "2").await;
    assert_eq!(contents(&fake, "unversioned", "key"), ["2"]);
    let deleted = delete(&fake, "/unversioned/key").await;
    assert_eq!(
        (deleted.status, deleted.header("x-amz-delete-marker")),
        (204, "")
    );
    assert_eq!(contents(&fake, "unversioned", "key"), Vec::<String>::new());
    assert_eq!(
        get(&fake, "/unversioned/key")
            .await
            .header("x-amz-delete-marker"),
        ""
    );
}

#[tokio::test(start_paused = true)]
async fn a_bucket_can_be_made_and_its_versioning_read_and_set_by_request() {
    let fake = endpoint();
    assert_eq!(send(&fake, "PUT /made-here", &[], "").await.status, 200);
    assert_eq!(
        send(&fake, "PUT /made-here", &[], "").await.outcome(),
        "409 BucketAlreadyOwnedByYou"
    );
    assert_eq!(
        get(&fake, "/made-here?versioning").await.element("Status"),
        ""
    );
    for status in ["Enabled", "Suspended"] {
        let body =
            format!("<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>");
        assert_eq!(
            send(&fake, "PUT /made-here?versioning", &[], body)
                .await
                .status,
            200
        );
        assert_eq!(
            get(&fake, "/made-here?versioning").await.element("Status"),
            status
        );
    }
    delete(&fake, "/made-here/key").await;
    assert_eq!(
        delete(&fake, "/made-here").await.outcome(),
        "409 BucketNotEmpty"
    );
    assert_eq!(head(&fake, "/made-here").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn many_are_deleted_at_once_each_for_itself() {
    let fake = endpoint();
    let version = put(&fake, "/versioned/a", "x").await.version();
    put(&fake, "/versioned/b", "x").await;
    put(&fake, "/versioned/c", "x").await;
    let body = format!(
        "<Delete><Object><Key>a</Key><VersionId>{version}</VersionId></Object><Object><Key>b</Key></Object>\
         <Object><Key>c</Key><ETag>\"other\"</ETag></Object></Delete>"
    );
    let answer = send(&fake, "POST /versioned?delete", &[], body).await;
    assert_eq!(
        (answer.status, answer.elements("Deleted").len()),
        (200, 2),
        "{answer:?}"
    );
    assert_eq!(answer.element("Code"), "PreconditionFailed");
    let left = ["a", "b", "c"].map(|key| contents(&fake, "versioned", key).join(" "));
    assert_eq!(left, ["", "x -", "x"]);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_may_refuse_to_remove_what_is_gone() {
    let fake = endpoint();
    fake.set_traits(Traits {
        removes_twice: false,
        ..fake.traits()
    });
    let path = format!(
        "/versioned/key?versionId={}",
        put(&fake, "/versioned/key", "x").await.version()
    );
    assert_eq!(delete(&fake, &path).await.outcome(), "204");
    assert_eq!(delete(&fake, &path).await.outcome(), "400 InvalidArgument");
    assert_eq!(delete(&fake, "/unversioned/key").await.outcome(), "204");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_may_say_less_of_markers() {
    let fake = endpoint();
    put(&fake, "/versioned/key", "x").await;
    let marker = delete(&fake, "/versioned/key").await.version();
    fake.set_traits(Traits {
        names_markers: false,
        marker_version: 404,
        ..fake.traits()
    });
    let answer = head(&fake, "/versioned/key").await;
    assert_eq!(
        (answer.status, answer.header("x-amz-delete-marker")),
        (404, "")
    );
    assert_eq!(
        head(&fake, &format!("/versioned/key?versionId={marker}"))
            .await
            .status,
        404
    );
    let answer = get(&fake, &format!("/versioned/key?versionId={marker}")).await;
    assert_eq!(
        (
            answer.outcome().as_str(),
            answer.header("x-amz-delete-marker")
        ),
        ("404 NoSuchKey", "")
    );
}
