//! Checksums: verified when sent, kept, and given back on request.

use super::*;
use crate::s3::checksums::Algorithm;

const MODE: (&str, &str) = ("x-amz-checksum-mode", "ENABLED");

// Of "123456789", the check values of the CRC catalogue and of the hash standards' own tools.
const KNOWN: [(Algorithm, &str); 5] = [
    (Algorithm::Crc64Nvme, "rosUhgp5mIg="),
    (Algorithm::Crc32, "y/Q5Jg=="),
    (Algorithm::Crc32C, "4waSgw=="),
    (Algorithm::Sha1, "98O8HYCOBHMq32eZZczDTKeuNEE="),
    (
        Algorithm::Sha256,
        "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU=",
    ),
];

#[tokio::test(start_paused = true)]
async fn each_algorithm_is_verified_and_given_back() {
    let fake = endpoint();
    for (algorithm, value) in KNOWN {
        let header = algorithm.header();
        let wrong = algorithm.of(b"something else");
        let refused = send(
            &fake,
            "PUT /versioned/key",
            &[(&header, &wrong)],
            "123456789",
        )
        .await;
        assert_eq!(refused.outcome(), "400 BadDigest", "{algorithm:?}");
        let answer = send(
            &fake,
            "PUT /versioned/key",
            &[(&header, value)],
            "123456789",
        )
        .await;
        assert_eq!(
            (answer.status, answer.header(&header)),
            (200, value),
            "{algorithm:?}"
        );
        let head = send(&fake, "HEAD /versioned/key", &[MODE], "").await;
        assert_eq!(
            (head.header(&header), head.header("x-amz-checksum-type")),
            (value, "FULL_OBJECT")
        );
    }
    assert_eq!(
        fake.history("versioned", "key").len(),
        KNOWN.len(),
        "what was refused left nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn without_one_s3_adds_its_own_and_shows_it_only_to_those_who_ask() {
    let fake = endpoint();
    put(&fake, "/versioned/key", "123456789").await;
    let asked = send(&fake, "GET /versioned/key", &[MODE], "").await;
    assert_eq!(asked.header("x-amz-checksum-crc64nvme"), KNOWN[0].1);
    assert_eq!(
        get(&fake, "/versioned/key")
            .await
            .header("x-amz-checksum-crc64nvme"),
        ""
    );
    let ranged = send(
        &fake,
        "GET /versioned/key",
        &[MODE, ("range", "bytes=0-1")],
        "",
    )
    .await;
    assert_eq!(
        ranged.header("x-amz-checksum-crc64nvme"),
        "",
        "it is not that of the range"
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_may_add_no_checksum() {
    let fake = endpoint();
    fake.set_traits(Traits {
        adds_checksums: false,
        ..fake.traits()
    });
    put(&fake, "/versioned/key", "123456789").await;
    let asked = || send(&fake, "HEAD /versioned/key", &[MODE], "");
    assert_eq!(asked().await.header("x-amz-checksum-type"), "");
    in_parts(&fake, &[], &[]).await;
    assert_eq!(asked().await.header("x-amz-checksum-type"), "");
    send(
        &fake,
        "PUT /versioned/key",
        &[("x-amz-checksum-crc32", KNOWN[1].1)],
        "123456789",
    )
    .await;
    assert_eq!(asked().await.header("x-amz-checksum-crc32"), KNOWN[1].1);
}

#[tokio::test(start_paused = true)]
async fn content_md5_is_verified() {
    let fake = endpoint();
    for (value, outcome) in [
        ("JfnnlDI7RTiF9RgfG2JNCw==", "200"),
        ("JfnnlDI7RTiF9RgfG2JNDA==", "400 BadDigest"),
        ("short", "400 InvalidDigest"),
    ] {
        let answer = send(
            &fake,
            "PUT /versioned/key",
            &[("content-md5", value)],
            "123456789",
        )
        .await;
        assert_eq!(answer.outcome(), outcome, "{value}");
    }
}

/// Uploads "12345" and "6789" with an algorithm, and completes with these headers.
async fn in_parts(fake: &Fake, create: &[(&str, &str)], finish: &[(&str, &str)]) -> Answer {
    let upload = begin(fake, "/versioned/key", create).await;
    let one = part(fake, "/versioned/key", &upload, 1, "12345").await;
    let two = part(fake, "/versioned/key", &upload, 2, "6789").await;
    complete(
        fake,
        "/versioned/key",
        &upload,
        &[(1, &one), (2, &two)],
        finish,
    )
    .await
}

#[tokio::test(start_paused = true)]
async fn an_upload_has_the_checksum_of_the_whole_and_verifies_it() {
    let fake = endpoint();
    let create = [
        ("x-amz-checksum-algorithm", "CRC64NVME"),
        ("x-amz-checksum-type", "FULL_OBJECT"),
    ];
    let right = [
        ("x-amz-checksum-crc64nvme", KNOWN[0].1),
        ("x-amz-checksum-type", "FULL_OBJECT"),
    ];
    assert_eq!(
        in_parts(&fake, &create, &right)
            .await
            .element("ChecksumCRC64NVME"),
        KNOWN[0].1
    );
    let wrong = [("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=")];
    assert_eq!(
        in_parts(&fake, &create, &wrong).await.outcome(),
        "400 BadDigest"
    );
    let composite = [("x-amz-checksum-type", "COMPOSITE")];
    assert_eq!(
        in_parts(&fake, &create, &composite).await.outcome(),
        "400 BadDigest"
    );
    assert_eq!(
        in_parts(&fake, &[], &[("x-amz-mp-object-size", "8")])
            .await
            .outcome(),
        "400 InvalidRequest"
    );
}

#[tokio::test(start_paused = true)]
async fn a_checksum_of_checksums_says_how_many_there_are() {
    let fake = endpoint();
    let upload = begin(
        &fake,
        "/versioned/key",
        &[("x-amz-checksum-algorithm", "SHA256")],
    )
    .await;
    let line = |number| format!("PUT /versioned/key?partNumber={number}&uploadId={upload}");
    assert_eq!(
        send(&fake, &line(1), &[], "12345").await.outcome(),
        "400 InvalidRequest",
        "it was announced"
    );
    let mut etags = Vec::new();
    for (number, body) in [(1, "12345"), (2, "6789")] {
        let sum = Algorithm::Sha256.of(body.as_bytes());
        let sent = send(
            &fake,
            &line(number),
            &[("x-amz-checksum-sha256", &sum)],
            body,
        )
        .await;
        etags.push(sent.header("etag").to_owned());
    }
    complete(
        &fake,
        "/versioned/key",
        &upload,
        &[(1, &etags[0]), (2, &etags[1])],
        &[],
    )
    .await;
    let head = send(&fake, "HEAD /versioned/key", &[MODE], "").await;
    // base64(sha256(sha256("12345") + sha256("6789")))
    assert_eq!(
        head.header("x-amz-checksum-sha256"),
        "/wiQ+jHXUUcr18tTEaeru5H1cBgrYDQGvfxkGFLzgl4=-2"
    );
    assert_eq!(head.header("x-amz-checksum-type"), "COMPOSITE");
}

#[tokio::test(start_paused = true)]
async fn a_part_with_another_algorithm_than_its_upload_is_refused() {
    let fake = endpoint();
    let upload = begin(
        &fake,
        "/versioned/key",
        &[("x-amz-checksum-algorithm", "CRC64NVME")],
    )
    .await;
    let line = format!("PUT /versioned/key?partNumber=1&uploadId={upload}");
    let answer = send(
        &fake,
        &line,
        &[("x-amz-checksum-crc32", KNOWN[1].1)],
        "123456789",
    )
    .await;
    assert_eq!(answer.outcome(), "400 InvalidRequest");
    let answer = send(
        &fake,
        &line,
        &[("x-amz-checksum-crc64nvme", KNOWN[0].1)],
        "123456788",
    )
    .await;
    assert_eq!(answer.outcome(), "400 BadDigest");
}
