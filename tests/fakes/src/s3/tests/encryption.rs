//! Encryption, and keys that cannot be used.

use super::*;
use crate::s3::KeyRing;
use crate::s3::entry::Encryption;

const KMS: [(&str, &str); 2] = [
    ("x-amz-server-side-encryption", "aws:kms"),
    ("x-amz-server-side-encryption-aws-kms-key-id", "good"),
];
const CUSTOMER: [(&str, &str); 3] = [
    ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
    (
        "x-amz-server-side-encryption-customer-key",
        "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
    ),
    (
        "x-amz-server-side-encryption-customer-key-md5",
        "4VTPfP6nS+lQ2JNHKwTZbg==",
    ),
];

/// Only the key "good" works, until it is lost too.
struct Ring(Mutex<&'static str>);

impl KeyRing for Ring {
    fn usable(&self, key: &str) -> Result<(), (u16, &'static str, String)> {
        if key == *self.0.lock().unwrap() {
            Ok(())
        } else {
            Err((400, "KMS.DisabledException", format!("{key} is off")))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn under_kms_every_write_has_its_own_etag_and_the_key_is_named() {
    let fake = endpoint();
    let dsse = [("x-amz-server-side-encryption", "aws:kms:dsse"), KMS[1]];
    let mut etags = Vec::new();
    for headers in [KMS, KMS, dsse] {
        let answer = send(&fake, "PUT /versioned/key", &headers, "x").await;
        assert_eq!(answer.header("x-amz-server-side-encryption"), headers[0].1);
        etags.push(answer.header("etag").to_owned());
        let read = get(&fake, "/versioned/key").await;
        assert_eq!(
            read.header("x-amz-server-side-encryption-aws-kms-key-id"),
            "good"
        );
        assert_eq!(
            (read.text.as_str(), read.header("etag")),
            ("x", etags.last().unwrap().as_str())
        );
    }
    etags.sort();
    etags.dedup();
    assert_eq!(etags.len(), 3);
    assert!(!etags.contains(&"\"9dd4e461268c8034f5c8564e155c67a6\"".to_owned()));
    let upload = begin(&fake, "/versioned/key", &KMS).await;
    let etag = part(&fake, "/versioned/key", &upload, 1, "x").await;
    assert_ne!(etag, "\"9dd4e461268c8034f5c8564e155c67a6\"");
    let done = complete(&fake, "/versioned/key", &upload, &[(1, &etag)], &[]).await;
    assert!(done.element("ETag").ends_with("-1\""), "{done:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_cannot_be_used_stops_writes_and_reads_with_its_own_words() {
    let fake = endpoint();
    let ring = Arc::new(Ring(Mutex::new("good")));
    fake.set_key_ring(Arc::clone(&ring) as Arc<dyn KeyRing>);
    let bad = [
        KMS[0],
        ("x-amz-server-side-encryption-aws-kms-key-id", "bad"),
    ];
    let refused = "400 KMS.DisabledException";
    assert_eq!(
        send(&fake, "PUT /versioned/key", &bad, "x").await.outcome(),
        refused
    );
    assert_eq!(
        send(&fake, "POST /versioned/key?uploads", &bad, "x")
            .await
            .outcome(),
        refused
    );
    assert_eq!(
        send(&fake, "PUT /versioned/key", &KMS, "x").await.outcome(),
        "200"
    );
    let upload = begin(&fake, "/versioned/key", &KMS).await;
    let etag = part(&fake, "/versioned/key", &upload, 1, "x").await;
    *ring.0.lock().unwrap() = "none";
    assert_eq!(get(&fake, "/versioned/key").await.outcome(), refused);
    assert_eq!(head(&fake, "/versioned/key").await.outcome(), "200");
    let asking = [("x-amz-checksum-mode", "ENABLED")];
    assert_eq!(
        send(&fake, "HEAD /versioned/key", &asking, "").await.status,
        400
    );
    let line = format!("PUT /versioned/key?partNumber=2&uploadId={upload}");
    assert_eq!(send(&fake, &line, &[], "x").await.outcome(), refused);
    assert_eq!(
        complete(&fake, "/versioned/key", &upload, &[(1, &etag)], &[])
            .await
            .outcome(),
        refused
    );
    let copy = [("x-amz-copy-source", "/versioned/key")];
    assert_eq!(
        send(&fake, "PUT /versioned/to", &copy, "").await.outcome(),
        refused
    );
    assert_eq!(contents(&fake, "versioned", "key"), ["x"]);
}

#[tokio::test(start_paused = true)]
async fn a_bucket_encrypts_by_default_and_a_writer_may_say_otherwise() {
    let fake = endpoint();
    let key = Encryption::Kms {
        key: "default".to_owned(),
        dual: false,
        bucket_key: true,
    };
    fake.set_encryption("versioned", key);
    put(&fake, "/versioned/key", "x").await;
    let read = head(&fake, "/versioned/key").await;
    assert_eq!(
        read.header("x-amz-server-side-encryption-aws-kms-key-id"),
        "default"
    );
    assert_eq!(
        read.header("x-amz-server-side-encryption-bucket-key-enabled"),
        "true"
    );
    send(
        &fake,
        "PUT /versioned/key",
        &[("x-amz-server-side-encryption", "AES256")],
        "x",
    )
    .await;
    assert_eq!(
        head(&fake, "/versioned/key")
            .await
            .header("x-amz-server-side-encryption"),
        "AES256"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_customers_key_encrypted_is_read_with_that_key_only() {
    let fake = endpoint();
    assert_eq!(
        send(&fake, "PUT /versioned/key", &CUSTOMER, "x")
            .await
            .outcome(),
        "200"
    );
    assert_eq!(
        get(&fake, "/versioned/key").await.outcome(),
        "400 InvalidRequest"
    );
    assert_eq!(head(&fake, "/versioned/key").await.status, 400);
    let other = [
        CUSTOMER[0],
        CUSTOMER[1],
        (
            "x-amz-server-side-encryption-customer-key-md5",
            "AAAAAAAAAAAAAAAAAAAAAA==",
        ),
    ];
    assert_eq!(
        send(&fake, "GET /versioned/key", &other, "")
            .await
            .outcome(),
        "403 AccessDenied"
    );
    assert_eq!(
        send(&fake, "GET /versioned/key", &CUSTOMER, "").await.text,
        "x"
    );
    let copy = [("x-amz-copy-source", "/versioned/key")];
    assert_eq!(
        send(&fake, "PUT /versioned/to", &copy, "").await.outcome(),
        "400 InvalidRequest"
    );
}
