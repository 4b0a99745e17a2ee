//! What goes along with writes: whose bucket is meant, that there is no body, that none is signed
//! where TLS protects it.

use super::*;

#[test]
fn the_owner_goes_along_with_every_request() {
    let account = Account {
        owner: Some("222222222222".to_owned()),
        ..account(None, false)
    };
    let both = Both {
        signs_bodies: false,
        ..Both::by(account, &SdkConfig::builder().build())
    };
    for [sdk, wire] in [both.get("orders-2026", "a"), both.put("a b"), both.part()] {
        assert_eq!(
            wire.header("x-amz-expected-bucket-owner"),
            Some("222222222222")
        );
        assert_eq!(sdk, wire);
        assert!(
            wire.header("authorization")
                .is_some_and(|signed| signed.contains(";x-amz-expected-bucket-owner;"))
        );
    }
}

#[test]
fn an_upload_begins_as_the_sdk_would_begin_it_and_says_that_it_brings_no_body() {
    let [sdk, mut wire] = Both::new(Some("http://store.example:9000"), true).create("a  b");
    assert_eq!(wire.header("content-length"), Some("0"));
    wire.headers.retain(|(name, _)| name != "content-length");
    assert_eq!(sdk, wire);
}

#[test]
fn what_no_header_can_hold_is_not_left_out() {
    let both = Both::new(None, false);
    let (bucket, key) = (
        Bucket::try_from("archive").unwrap(),
        Key::try_from("a").unwrap(),
    );
    for (name, value) in [
        ("x-amz-meta-a", "one\ntwo"),
        ("x-amz-meta-a", "\u{7f}"),
        ("x amz", "a"),
    ] {
        let call = S3Request::put_object(&bucket, &key, content()).header(name, Some(value));
        let refusal = both.runtime.block_on(both.wire.send(call)).unwrap_err();
        assert_eq!(
            refusal.failure.kind,
            FailureKind::NeedsOperator(Reason::RequestRefused)
        );
        assert!(replicator_core::failure::error_chain(&refusal.failure).contains(name));
    }
    assert!(both.tap.0.lock().unwrap().is_empty());
}

#[test]
fn bodies_go_unsigned_where_tls_protects_them() {
    for endpoint in [None, Some("https://store.example:9443")] {
        let both = Both {
            signs_bodies: false,
            ..Both::new(endpoint, true)
        };
        for [sdk, wire] in [both.put("a b"), both.part()] {
            assert_eq!(sdk, wire);
            assert_eq!(
                wire.header("x-amz-content-sha256"),
                Some("UNSIGNED-PAYLOAD")
            );
            assert_eq!(wire.body, CONTENT);
        }
    }
}
