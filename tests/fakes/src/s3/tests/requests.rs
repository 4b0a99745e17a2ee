//! Requests as clients wrap them.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_body_in_chunks_is_put_together_and_its_trailer_verified() {
    let fake = endpoint();
    let headers = [
        ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
        ("content-encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", "9"),
        ("x-amz-trailer", "x-amz-checksum-crc32"),
        (
            "authorization",
            "AWS4-HMAC-SHA256 Credential=any, SignedHeaders=host, Signature=none",
        ),
    ];
    let body =
        "4\r\n1234\r\n5;chunk-signature=abc\r\n56789\r\n0\r\nx-amz-checksum-crc32:y/Q5Jg==\r\n\r\n";
    let answer = send(&fake, "PUT /versioned/key", &headers, body).await;
    assert_eq!(
        (answer.status, answer.header("x-amz-checksum-crc32")),
        (200, "y/Q5Jg==")
    );
    let read = get(&fake, "/versioned/key").await;
    assert_eq!(
        (read.text.as_str(), read.header("content-encoding")),
        ("123456789", "")
    );
    let wrong = body.replace("y/Q5Jg==", "AAAAAA==");
    assert_eq!(
        send(&fake, "PUT /versioned/key", &headers, wrong)
            .await
            .outcome(),
        "400 BadDigest"
    );
    let torn = &body[..20];
    assert_eq!(
        send(&fake, "PUT /versioned/key", &headers, torn)
            .await
            .outcome(),
        "400 IncompleteBody"
    );
    let zipped = [headers[0], ("content-encoding", "aws-chunked,gzip")];
    send(&fake, "PUT /versioned/key", &zipped, body).await;
    assert_eq!(
        head(&fake, "/versioned/key")
            .await
            .header("content-encoding"),
        "gzip"
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_the_signed_one_is_refused() {
    let fake = endpoint();
    let of_x = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    for (body, outcome) in [("x", "200"), ("y", "400 XAmzContentSHA256Mismatch")] {
        let answer = send(
            &fake,
            "PUT /versioned/key",
            &[("x-amz-content-sha256", of_x)],
            body,
        )
        .await;
        assert_eq!(answer.outcome(), outcome);
    }
}

#[tokio::test(start_paused = true)]
async fn odd_keys_are_kept_as_they_are() {
    let fake = endpoint();
    for (path, key) in [
        ("a//b", "a//b"),
        ("%20", " "),
        ("a%2Fb%3Fc%23", "a/b?c#"),
        ("%E6%97%A5%E6%9C%AC", "日本"),
        ("./../x", "./../x"),
        ("a+b", "a+b"),
        ("dir/", "dir/"),
    ] {
        assert_eq!(
            put(&fake, &format!("/versioned/{path}"), "x").await.status,
            200,
            "{path}"
        );
        assert_eq!(
            get(&fake, &format!("/versioned/{path}")).await.text,
            "x",
            "{path}"
        );
        assert!(fake.keys("versioned").contains(&key.to_owned()), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_fake_does_not_do_it_says() {
    let fake = endpoint();
    assert_eq!(
        get(&fake, "/versioned?acl").await.outcome(),
        "501 NotImplemented"
    );
    assert_eq!(
        get(&fake, "/versioned?versions&delimiter=/")
            .await
            .outcome(),
        "501 NotImplemented"
    );
    assert_eq!(
        get(&fake, "/versioned?list-type=2&delimiter=/")
            .await
            .outcome(),
        "501 NotImplemented"
    );
}

#[tokio::test(start_paused = true)]
async fn answers_are_the_same_for_the_same_requests() {
    let run = || async {
        let fake = endpoint();
        let mut all = Vec::new();
        for line in [
            "PUT /versioned/key",
            "DELETE /versioned/key",
            "GET /versioned?versions",
            "GET /versioned/key",
        ] {
            let sent = [
                ("x-amz-meta-a", "1"),
                ("x-amz-meta-b", "2"),
                ("x-amz-meta-c", "3"),
            ];
            let answer = send(&fake, line, &sent, "x").await;
            all.push(format!(
                "{} {:?} {}",
                answer.status, answer.headers, answer.text
            ));
        }
        all
    };
    assert_eq!(run().await, run().await);
}
