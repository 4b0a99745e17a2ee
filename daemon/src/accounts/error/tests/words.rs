//! What is kept of a refusal, and how it reads in the log.

use super::*;

#[test]
fn a_code_is_one_where_s3_writes_it_and_nowhere_else() {
    let page = "<html><Code>NoSuchKey</Code></html>";
    for text in [
        page,
        "<Error><Code>NoSuchKey</Code>",
        "<Code>NoSuchKey</Code>",
        "NoSuchKey",
        "",
        "{\"Code\":\"NoSuchKey\"}",
    ] {
        assert_eq!(
            kind(
                Side::Source,
                GetObject,
                ErrorBody::parse_refusal(404, |_| None, text)
            ),
            FailureKind::Transient,
            "{text}"
        );
    }
}

#[test]
fn what_is_kept_of_a_refusal_is_short() {
    let said = coded(400, &"c".repeat(9000), &"m".repeat(9000));
    assert!(said.to_string().len() < 1100, "{}", said.to_string().len());
}

#[test]
fn words_name_the_operation_the_code_and_the_thing() {
    let words = |side, during, said| error_chain(&from_refusal(side, during, said));
    let asked = coded(400, "InvalidArgument", "").with_request("x-amz-storage-class".to_owned());
    assert_eq!(
        words(Side::Write, PutObject, asked),
        "PutObject was refused (RequestRefused): answered 400 InvalidArgument, without a message; the request \
         has x-amz-storage-class"
    );
    assert_eq!(
        words(Side::Source, GetObject, bare(404)),
        "GetObject failed for now: answered 404 with a body of type \"text/html\" that has no S3 error code"
    );
    assert_eq!(
        words(
            Side::Destination,
            ListObjectVersions,
            coded(403, "AccessDenied", "no")
        ),
        "ListObjectVersions was refused (DstListVersionsNotPermitted): answered 403 AccessDenied: no"
    );
}

#[test]
fn an_answer_that_cannot_be_read_is_no_refusal() {
    let response = HttpResponse::new(StatusCode::try_from(200).unwrap(), SdkBody::from("<html/>"));
    let error =
        SdkError::<GetBucketVersioningError, _>::response_error("Unhandled { dump }", response);
    let failure = from_sdk_error(Side::Destination, GetBucketVersioning, error);
    assert_eq!(failure.kind, FailureKind::Transient);
    assert_eq!(
        error_chain(&failure),
        "GetBucketVersioning failed for now: answered 200 with a body of type \"unknown\" that cannot be read"
    );
}

#[test]
fn no_refusal_makes_its_parser_panic_or_keeps_a_long_text() {
    let redirect = b"<Error><Code>PermanentRedirect</Code><Message>use another</Message><Endpoint>b.s3.eu-central-1.amazonaws.com</Endpoint></Error>";
    let header = b"<Error><Code>NotImplemented</Code><Message>A header you provided</Message><Header>If-None-Match</Header></Error>";
    crate::poison::feed(&[redirect, header, b"<html><h1>404</h1></html>"], |text| {
        let text = String::from_utf8_lossy(text);
        for status in [200, 301, 400, 404, 501, 503] {
            let failure = from_refusal(
                Side::Write,
                PutObject,
                ErrorBody::parse_refusal(status, |_| Some(&text), &text),
            );
            assert!(error_chain(&failure).len() < 4096, "{failure:?}");
        }
    });
}
