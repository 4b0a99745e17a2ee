//! Tags and Object Lock.

use super::*;

const HOUR: u64 = 3600;
// Any checksum will do for requests about locks: this is Content-MD5 of each body below.
fn proof(body: &str) -> String {
    use base64::Engine;
    use md5::Digest;
    base64::engine::general_purpose::STANDARD.encode(md5::Md5::digest(body))
}

fn tagging(tags: &[(&str, &str)]) -> String {
    let tags: String = tags
        .iter()
        .map(|(k, v)| format!("<Tag><Key>{k}</Key><Value>{v}</Value></Tag>"))
        .collect();
    format!("<Tagging><TagSet>{tags}</TagSet></Tagging>")
}

#[tokio::test(start_paused = true)]
async fn tags_belong_to_a_version() {
    let fake = endpoint();
    let old = send(
        &fake,
        "PUT /versioned/key",
        &[("x-amz-tagging", "a=1&b=x%20y%26")],
        "1",
    )
    .await
    .version();
    let new = put(&fake, "/versioned/key", "2").await.version();
    let tags = get(&fake, &format!("/versioned/key?tagging&versionId={old}")).await;
    assert_eq!(
        (tags.elements("Key"), tags.elements("Value")),
        (vec!["a", "b"], vec!["1", "x y&amp;"])
    );
    assert_eq!(tags.header("x-amz-version-id"), old);
    let set = send(
        &fake,
        &format!("PUT /versioned/key?tagging&versionId={old}"),
        &[],
        tagging(&[("c", "3")]),
    )
    .await;
    assert_eq!((set.status, set.version()), (200, old.clone()));
    assert_eq!(
        get(&fake, &format!("/versioned/key?tagging&versionId={old}"))
            .await
            .elements("Key"),
        ["c"]
    );
    assert!(
        get(&fake, "/versioned/key?tagging")
            .await
            .elements("Key")
            .is_empty()
    );
    send(
        &fake,
        "PUT /versioned/key?tagging",
        &[],
        tagging(&[("d", "4")]),
    )
    .await;
    assert_eq!(
        head(&fake, "/versioned/key")
            .await
            .header("x-amz-tagging-count"),
        "1"
    );
    let unset = delete(&fake, "/versioned/key?tagging").await;
    assert_eq!((unset.status, unset.version()), (204, new));
    assert_eq!(
        head(&fake, "/versioned/key")
            .await
            .header("x-amz-tagging-count"),
        ""
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_tagged_is_refused() {
    let fake = endpoint();
    put(&fake, "/versioned/key", "x").await;
    let eleven: Vec<String> = (0..11).map(|number| number.to_string()).collect();
    let eleven: Vec<(&str, &str)> = eleven.iter().map(|number| (number.as_str(), "x")).collect();
    let answer = send(&fake, "PUT /versioned/key?tagging", &[], tagging(&eleven)).await;
    assert_eq!(answer.outcome(), "400 BadRequest");
    let answer = send(
        &fake,
        "PUT /versioned/key?tagging",
        &[],
        tagging(&[("a", "1"), ("a", "2")]),
    )
    .await;
    assert_eq!(answer.outcome(), "400 InvalidTag");
    let marker = delete(&fake, "/versioned/key").await.version();
    let answer = get(&fake, &format!("/versioned/key?tagging&versionId={marker}")).await;
    assert_eq!(answer.outcome(), "405 MethodNotAllowed");
    assert_eq!(
        get(&fake, "/versioned/key?tagging").await.outcome(),
        "404 NoSuchKey"
    );
}

fn lockable() -> Fake {
    let fake = endpoint();
    fake.enable_object_lock("versioned");
    fake
}

#[tokio::test(start_paused = true)]
async fn a_retained_version_is_not_removed_before_its_time() {
    let fake = lockable();
    for (mode, bypassed) in [("GOVERNANCE", 204), ("COMPLIANCE", 403)] {
        let until = (
            "x-amz-object-lock-retain-until-date",
            "2026-01-01T01:00:00Z",
        );
        let (lock, md5) = (("x-amz-object-lock-mode", mode), proof("x"));
        assert_eq!(
            send(&fake, "PUT /versioned/key", &[lock, until], "x")
                .await
                .outcome(),
            "400 InvalidRequest"
        );
        let put = send(
            &fake,
            "PUT /versioned/key",
            &[lock, until, ("content-md5", &md5)],
            "x",
        )
        .await;
        let path = format!("/versioned/key?versionId={}", put.version());
        let read = head(&fake, &path).await;
        assert_eq!(read.header("x-amz-object-lock-mode"), mode);
        assert_eq!(
            read.header("x-amz-object-lock-retain-until-date"),
            "2026-01-01T01:00:00.000Z"
        );
        assert_eq!(delete(&fake, &path).await.outcome(), "403 AccessDenied");
        assert_eq!(
            delete(&fake, "/versioned/key").await.status,
            204,
            "a marker is no removal"
        );
        let bypass = [("x-amz-bypass-governance-retention", "true")];
        assert_eq!(
            send(&fake, &format!("DELETE {path}"), &bypass, "")
                .await
                .status,
            bypassed,
            "{mode}"
        );
    }
    pass(HOUR).await;
    let left = fake.history("versioned", "key");
    let object = left.iter().find(|entry| !entry.is_marker()).unwrap();
    assert_eq!(
        delete(
            &fake,
            &format!("/versioned/key?versionId={}", object.version_id)
        )
        .await
        .outcome(),
        "204"
    );
}

#[tokio::test(start_paused = true)]
async fn a_legal_hold_stands_until_it_is_lifted() {
    let fake = lockable();
    let on = [
        ("x-amz-object-lock-legal-hold", "ON"),
        ("content-md5", &proof("x")),
    ];
    let held = send(&fake, "PUT /versioned/key", &on, "x").await;
    let path = format!("/versioned/key?versionId={}", held.version());
    assert_eq!(
        head(&fake, &path)
            .await
            .header("x-amz-object-lock-legal-hold"),
        "ON"
    );
    assert_eq!(
        get(&fake, "/versioned/key?legal-hold")
            .await
            .element("Status"),
        "ON"
    );
    assert_eq!(delete(&fake, &path).await.outcome(), "403 AccessDenied");
    let off = "<LegalHold><Status>OFF</Status></LegalHold>";
    let answer = send(
        &fake,
        "PUT /versioned/key?legal-hold",
        &[("content-md5", &proof(off))],
        off,
    )
    .await;
    assert_eq!(answer.outcome(), "200");
    assert_eq!(delete(&fake, &path).await.outcome(), "204");
}

#[tokio::test(start_paused = true)]
async fn retention_can_be_made_longer_and_only_governance_be_bypassed() {
    let fake = lockable();
    put(&fake, "/versioned/key", "x").await;
    assert_eq!(
        get(&fake, "/versioned/key?retention").await.outcome(),
        "404 NoSuchObjectLockConfiguration"
    );
    let bypass = ("x-amz-bypass-governance-retention", "true");
    for (mode, hour, more, outcome) in [
        ("GOVERNANCE", 2, None, "200"),
        ("GOVERNANCE", 1, None, "403 AccessDenied"),
        ("GOVERNANCE", 1, Some(bypass), "200"),
        ("COMPLIANCE", 3, None, "200"),
        ("COMPLIANCE", 2, Some(bypass), "403 AccessDenied"),
        ("COMPLIANCE", 4, None, "200"),
    ] {
        let body = format!(
            "<Retention><Mode>{mode}</Mode><RetainUntilDate>2026-01-01T0{hour}:00:00Z</RetainUntilDate></Retention>"
        );
        let proof = proof(&body);
        let mut headers = vec![("content-md5", proof.as_str())];
        headers.extend(more);
        let answer = send(&fake, "PUT /versioned/key?retention", &headers, body).await;
        assert_eq!(answer.outcome(), outcome, "{mode} {hour}");
    }
    let read = get(&fake, "/versioned/key?retention").await;
    assert_eq!(read.element("Mode"), "COMPLIANCE");
    assert!(
        read.element("RetainUntilDate")
            .starts_with("2026-01-01T04:00:00"),
        "{read:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn locks_need_a_bucket_that_has_them_and_a_proved_body() {
    let fake = endpoint();
    let on = [("x-amz-object-lock-legal-hold", "ON")];
    assert_eq!(
        send(&fake, "PUT /versioned/key", &on, "x").await.outcome(),
        "400 InvalidRequest"
    );
    assert_eq!(
        get(&fake, "/versioned?object-lock").await.outcome(),
        "404 ObjectLockConfigurationNotFoundError"
    );
    fake.enable_object_lock("versioned");
    assert_eq!(
        get(&fake, "/versioned?object-lock")
            .await
            .element("ObjectLockEnabled"),
        "Enabled"
    );
    put(&fake, "/versioned/key", "x").await;
    let body = "<LegalHold><Status>ON</Status></LegalHold>";
    assert_eq!(
        send(&fake, "PUT /versioned/key?legal-hold", &[], body)
            .await
            .outcome(),
        "400 InvalidRequest"
    );
    let suspend = "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";
    assert_eq!(
        send(&fake, "PUT /versioned?versioning", &[], suspend)
            .await
            .outcome(),
        "409 InvalidBucketState"
    );
}
