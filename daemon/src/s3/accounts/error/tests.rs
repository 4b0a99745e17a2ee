//! Status by code by side by operation: which kind of failure each refusal is, and how it reads in
//! the log.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::operation::delete_object::DeleteObjectError;
use aws_sdk_s3::operation::get_bucket_versioning::GetBucketVersioningError;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::error::ErrorMetadata;

use super::*;
use replicator_core::failure::Operation::{self, *};

const SIDES: [Side; 4] = [Side::Source, Side::Destination, Side::Write, Side::Prepare];

/// A refusal as S3 writes it.
fn coded(status: u16, code: &str, message: &str) -> ErrorBody {
    let text = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    ErrorBody::parse_refusal(status, |_| None, &text)
}

/// An answer of something in between.
fn bare(status: u16) -> ErrorBody {
    ErrorBody::parse_refusal(
        status,
        with("content-type", "text/html"),
        "<html><h1>Sorry</h1></html>",
    )
}

/// The one header of an answer.
fn with(name: &'static str, value: &'static str) -> impl Fn(&str) -> Option<&'static str> + Copy {
    move |asked| (asked == name).then_some(value)
}

fn kind(side: Side, during: Operation, said: ErrorBody) -> FailureKind {
    from_refusal(side, during, said).kind
}

#[test]
fn nothing_is_definite_without_the_services_own_code() {
    let operations = [
        GetObject,
        GetObjectTagging,
        HeadObject,
        ListObjectVersions,
        PutObject,
    ];
    let writes = [
        PutObject,
        PutObjectTagging,
        DeleteObject,
        CompleteMultipartUpload,
    ];
    for status in [
        200, 301, 302, 307, 400, 401, 403, 404, 405, 409, 411, 412, 416, 500, 501, 502, 504,
    ] {
        for during in operations {
            for side in [Side::Source, Side::Destination, Side::Prepare] {
                assert_eq!(
                    kind(side, during, bare(status)),
                    FailureKind::Transient,
                    "{side:?} {during} {status}"
                );
            }
        }
        for during in writes {
            assert_eq!(
                kind(Side::Write, during, bare(status)),
                FailureKind::OutcomeUnknown,
                "{during} {status}"
            );
        }
    }
    // A HEAD is slowed down without a word; of a write nothing is known then.
    assert_eq!(
        kind(Side::Source, HeadObject, bare(503)),
        FailureKind::Throttled
    );
    assert_eq!(
        kind(Side::Write, PutObject, bare(503)),
        FailureKind::OutcomeUnknown
    );
    assert_eq!(
        kind(Side::Write, PutObject, bare(429)),
        FailureKind::Throttled
    );
}

#[test]
fn what_the_service_says_is_not_there_is_not_there() {
    for code in ["NoSuchKey", "NoSuchVersion"] {
        for during in [GetObject, HeadObject, GetObjectTagging] {
            assert_eq!(
                kind(Side::Source, during, coded(404, code, "")),
                FailureKind::SourceVersionMissing,
                "{during} {code}"
            );
            assert_eq!(
                kind(Side::Destination, during, coded(404, code, "")),
                FailureKind::NotFound,
                "{during} {code}"
            );
        }
        // What a condition was about is not there; and what a change or a removal names is not.
        assert_eq!(
            kind(Side::Write, PutObject, coded(404, code, "")),
            FailureKind::PreconditionFailed
        );
        assert_eq!(
            kind(Side::Write, DeleteObject, coded(404, code, "")),
            FailureKind::PreconditionFailed
        );
        assert_eq!(
            kind(Side::Write, PutObjectTagging, coded(404, code, "")),
            FailureKind::NotFound
        );
        assert_eq!(
            kind(Side::Prepare, DeleteObject, coded(404, code, "")),
            FailureKind::NotFound
        );
    }
    assert_eq!(
        kind(
            Side::Prepare,
            AbortMultipartUpload,
            coded(404, "NoSuchUpload", "")
        ),
        FailureKind::NotFound
    );
    // Another code of that status says nothing of a version.
    assert_eq!(
        kind(Side::Source, GetObject, coded(404, "NoSuchTagSet", "")),
        FailureKind::Transient
    );
}

#[test]
fn a_marker_is_known_by_the_headers_that_s3_alone_sends() {
    let marker =
        |status, text| ErrorBody::parse_refusal(status, with("x-amz-delete-marker", "true"), text);
    let refused = "<Error><Code>MethodNotAllowed</Code></Error>";
    assert_eq!(
        kind(Side::Source, GetObject, marker(405, refused)),
        FailureKind::SourceVersionMissing
    );
    assert_eq!(
        kind(Side::Destination, HeadObject, marker(404, "")),
        FailureKind::NotFound
    );
    // It is also what the wrong method is answered with.
    let refusal = FailureKind::NeedsOperator(Reason::RequestRefused);
    assert_eq!(
        kind(Side::Source, GetObject, coded(405, "MethodNotAllowed", "")),
        refusal
    );
}

#[test]
fn another_region_is_named() {
    let region = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region is wrong</Message>\
                  <Region>eu-central-1</Region></Error>";
    let endpoint = "<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message>\
                    <Endpoint>orders.s3-eu-central-1.amazonaws.com</Endpoint></Error>";
    let header = with("x-amz-bucket-region", "eu-central-1");
    let table = [
        ErrorBody::parse_refusal(301, header, ""),
        ErrorBody::parse_refusal(307, header, "<Error><Code>TemporaryRedirect</Code></Error>"),
        ErrorBody::parse_refusal(301, |_| None, endpoint),
        ErrorBody::parse_refusal(400, |_| None, region),
    ];
    for said in table {
        let failure = from_refusal(Side::Write, PutObject, said);
        assert_eq!(
            failure.kind,
            FailureKind::NeedsOperator(Reason::DstBucketInvalidRegion),
            "{failure:?}"
        );
        assert!(
            error_chain(&failure).contains("the bucket is ")
                && error_chain(&failure).contains("eu-central-1"),
            "{failure:?}"
        );
        assert!(failure.answer.is_some_and(|answer| answer.is_own));
    }
    let source = from_refusal(
        Side::Source,
        HeadObject,
        ErrorBody::parse_refusal(301, header, ""),
    );
    assert_eq!(
        source.kind,
        FailureKind::NeedsOperator(Reason::SrcBucketInvalidRegion)
    );
    // Of a request that is refused for something else the header only says where the bucket is.
    assert_eq!(
        kind(
            Side::Source,
            HeadObject,
            ErrorBody::parse_refusal(400, header, "")
        ),
        FailureKind::Transient
    );
    let date = coded(400, "AuthorizationHeaderMalformed", "the date is wrong");
    assert_eq!(
        kind(Side::Source, GetObject, date),
        FailureKind::NeedsOperator(Reason::RequestRefused)
    );
}

#[test]
fn what_a_store_does_not_implement_is_named_by_its_header() {
    let aws = "<Error><Code>NotImplemented</Code><Message>A header you provided implies functionality that is not \
               implemented</Message><Header>If-Match</Header></Error>";
    let table = [
        (
            ErrorBody::parse_refusal(501, |_| None, aws),
            Some("if-match"),
        ),
        (coded(501, "NotImplemented", "no such thing"), None),
        (
            coded(
                400,
                "InvalidArgument",
                "Unsupported header 'x-amz-checksum-crc64nvme' received for this API call.",
            ),
            Some("x-amz-checksum-crc64nvme"),
        ),
        (
            coded(
                501,
                "NotImplemented",
                "Header 'x-amz-server-side-encryption' with value 'AES256' not implemented",
            ),
            Some("x-amz-server-side-encryption"),
        ),
        (
            coded(
                400,
                "InvalidRequest",
                "The algorithm type you specified in x-amz-checksum- header is invalid.",
            ),
            Some("x-amz-checksum-"),
        ),
    ];
    for (said, header) in table {
        let failure = from_refusal(Side::Write, PutObject, said);
        assert_eq!(
            (failure.kind, failure.header.as_deref()),
            (FailureKind::NotImplemented, header)
        );
    }
    let other = coded(400, "InvalidArgument", "Invalid x-amz-storage-class");
    assert_eq!(
        kind(Side::Write, PutObject, other),
        FailureKind::NeedsOperator(Reason::RequestRefused)
    );
}

#[test]
fn an_answer_decides_by_its_code_and_by_the_class_of_one_that_is_not_known() {
    assert_eq!(
        kind(Side::Write, PutObject, coded(503, "SlowDown", "")),
        FailureKind::Throttled
    );
    assert_eq!(
        kind(Side::Write, PutObject, coded(500, "InternalError", "")),
        FailureKind::OutcomeUnknown
    );
    assert_eq!(
        kind(Side::Source, GetObject, coded(500, "InternalError", "")),
        FailureKind::Transient
    );
    assert_eq!(
        kind(
            Side::Write,
            PutObject,
            coded(400, "XAmzContentSHA256Mismatch", "")
        ),
        FailureKind::Transient
    );
    assert_eq!(
        kind(Side::Write, PutObject, coded(412, "PreconditionFailed", "")),
        FailureKind::PreconditionFailed
    );
    assert_eq!(
        kind(Side::Write, PutObject, coded(409, "BucketIsBusy", "")),
        FailureKind::ConcurrentWrite
    );
    assert_eq!(
        kind(Side::Destination, GetObject, coded(418, "Teapot", "")),
        FailureKind::NeedsOperator(Reason::RequestRefused)
    );
    // Completed, or not, with an error in the body.
    assert_eq!(
        kind(Side::Write, CompleteMultipartUpload, coded(200, "Busy", "")),
        FailureKind::OutcomeUnknown
    );
}

#[test]
fn only_what_may_have_been_sent_can_have_been_carried_out() {
    let error = || "broken".into();
    assert_eq!(
        from_lost_answer(Side::Write, PutObject, error()).kind,
        FailureKind::OutcomeUnknown
    );
    assert_eq!(
        unsent(Side::Write, PutObject, error()).kind,
        FailureKind::Unauthenticated
    );
    assert_eq!(
        from_unbuilt(Side::Write, PutObject).kind,
        FailureKind::NeedsOperator(Reason::RequestRefused)
    );
}

#[test]
fn a_role_that_may_not_be_assumed_is_named_and_waits_for_someone_to_act() {
    let refused = |code| {
        let said = ErrorMetadata::builder()
            .code(code)
            .message("not authorized to perform: sts:AssumeRole")
            .build();
        let response = HttpResponse::new(StatusCode::try_from(403).unwrap(), SdkBody::empty());
        CredentialsError::provider_error(SdkError::service_error(
            AssumeRoleError::generic(said),
            response,
        ))
    };
    let parked = FailureKind::NeedsOperator(Reason::AssumeRoleNotPermitted);
    assert_eq!(
        unsent(Side::Write, PutObject, refused("AccessDenied").into()).kind,
        parked
    );
    assert_eq!(
        unsent(
            Side::Write,
            PutObject,
            refused("ExpiredTokenException").into()
        )
        .kind,
        FailureKind::Unauthenticated
    );
    let by_sdk = |code| ConnectorError::other(refused(code).into(), None);
    let error = |code| SdkError::<DeleteObjectError, _>::dispatch_failure(by_sdk(code));
    let failure = |code| from_sdk_error(Side::Write, DeleteObject, error(code));
    assert_eq!(
        failure("Throttling").kind,
        FailureKind::Unauthenticated,
        "it was never sent"
    );
    assert_eq!(failure("AccessDenied").kind, parked);
    let said = "AssumeRole answered AccessDenied: not authorized to perform: sts:AssumeRole";
    assert_eq!(
        error_chain(&failure("AccessDenied")),
        format!("DeleteObject was refused (AssumeRoleNotPermitted): {said}")
    );
    assert_eq!(error_words(&error("AccessDenied")), said);
}

#[test]
fn trouble_is_laid_at_the_door_of_whoever_has_it() {
    assert_eq!(
        responsible_dependency(Side::Source, "KMS.ThrottlingException"),
        Dependency::Source
    );
    assert_eq!(
        responsible_dependency(Side::Destination, "SlowDown"),
        Dependency::Destination
    );
    assert_eq!(
        responsible_dependency(Side::Write, "SlowDown"),
        Dependency::Destination
    );
    assert_eq!(
        responsible_dependency(Side::Prepare, "KMS.ThrottlingException"),
        Dependency::DestinationKey
    );
}

#[test]
fn an_object_under_a_customers_own_key_is_recorded_and_does_not_block_its_neighbours() {
    let message = "The object was stored using a form of Server Side Encryption.";
    let kind = kind(
        Side::Source,
        GetObject,
        coded(400, "InvalidRequest", message),
    );
    assert_eq!(kind, FailureKind::Ineligible(Reason::SrcObjectNotEligible));
}

#[test]
fn a_refusal_names_the_permission_that_is_missing() {
    use Reason::*;
    let cases = [
        (Side::Source, GetObject, SrcGetObjectNotPermitted),
        (Side::Source, HeadObject, SrcGetObjectNotPermitted),
        (Side::Source, GetObjectTagging, SrcGetTaggingNotPermitted),
        (
            Side::Source,
            ListObjectVersions,
            SrcListVersionsNotPermitted,
        ),
        (Side::Destination, HeadObject, DstHeadObjectNotPermitted),
        (
            Side::Destination,
            ListObjectVersions,
            DstListVersionsNotPermitted,
        ),
        (
            Side::Destination,
            GetBucketVersioning,
            DstGetVersioningNotPermitted,
        ),
        (Side::Write, PutObject, DstPutObjectNotPermitted),
        (Side::Write, PutObjectTagging, DstPutTaggingNotPermitted),
        (Side::Write, DeleteObject, DstDelObjNotPermitted),
        (
            Side::Prepare,
            CreateMultipartUpload,
            DstMultipartInitNotPermitted,
        ),
        (Side::Prepare, UploadPart, DstMultipartUploadNotPermitted),
        (
            Side::Prepare,
            AbortMultipartUpload,
            DstMultipartAbortNotPermitted,
        ),
        (
            Side::Write,
            CompleteMultipartUpload,
            DstMultipartCompleteNotPermitted,
        ),
    ];
    let codes = [
        "AccessDenied",
        "AllAccessDisabled",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "Forbidden",
    ];
    for (side, during, reason) in cases {
        let refused = FailureKind::NeedsOperator(reason);
        for code in codes {
            let kind = kind(side, during, coded(403, code, ""));
            assert_eq!(kind, refused, "{during} {code}");
        }
        let kind = kind(side, during, coded(401, "Unauthorized", ""));
        assert_eq!(kind, refused, "{during}");
    }
}

#[test]
fn what_is_wrong_with_a_bucket_or_a_key_is_named_by_whose_it_is() {
    use Reason::*;
    let (source_key, key) = (SrcKmsKeyInvalidState, DstKmsKeyInvalidState);
    let cases = [
        (404, "NoSuchBucket", SrcBucketNotFound, DstBucketNotFound),
        (400, "KMS.NotFoundException", source_key, DstKmsKeyNotFound),
        (400, "KMS.DisabledException", source_key, key),
        (400, "KMS.KMSInvalidStateException", source_key, key),
    ];
    for (status, code, source, destination) in cases {
        assert_eq!(
            kind(Side::Source, GetObject, coded(status, code, "")),
            FailureKind::NeedsOperator(source),
            "{code}"
        );
        for side in [Side::Write, Side::Prepare] {
            assert_eq!(
                kind(side, PutObject, coded(status, code, "")),
                FailureKind::NeedsOperator(destination),
                "{code}"
            );
        }
    }
}

#[test]
fn a_missing_object_lock_configuration_is_named_and_trouble_of_kms_passes() {
    let lock = coded(
        400,
        "InvalidRequest",
        "Bucket is missing Object Lock Configuration",
    );
    let unlocked = FailureKind::NeedsOperator(Reason::DstBucketObjectLockConfigMissing);
    assert_eq!(kind(Side::Write, PutObject, lock), unlocked);
    let internal = coded(500, "KMS.InternalException", "");
    let internal = kind(Side::Source, GetObject, internal);
    assert_eq!(internal, FailureKind::Transient);
    let timeout = coded(503, "KMS.DependencyTimeoutException", "");
    let timeout = kind(Side::Write, PutObject, timeout);
    assert_eq!(timeout, FailureKind::OutcomeUnknown);
}

#[test]
fn a_version_whose_name_is_none_is_not_there() {
    let kind = |side, during, message| kind(side, during, coded(400, "InvalidArgument", message));
    assert_eq!(
        kind(Side::Source, HeadObject, "Invalid version id specified"),
        FailureKind::SourceVersionMissing
    );
    assert_eq!(
        kind(
            Side::Destination,
            HeadObject,
            "Invalid version id specified"
        ),
        FailureKind::NotFound
    );
    // All else stays a refusal: a wrong marker of a list, an argument that is another one.
    let refused = FailureKind::NeedsOperator(Reason::RequestRefused);
    assert_eq!(
        kind(
            Side::Source,
            ListObjectVersions,
            "Invalid version id specified"
        ),
        refused
    );
    assert_eq!(
        kind(Side::Write, PutObject, "Invalid version id specified"),
        refused
    );
    assert_eq!(kind(Side::Source, HeadObject, "Invalid argument"), refused);
}

#[test]
fn clocks_and_tokens_that_ended_are_tried_again() {
    for code in [
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidToken",
        "RequestTimeTooSkewed",
    ] {
        for side in SIDES {
            assert_eq!(
                kind(side, PutObject, coded(403, code, "")),
                FailureKind::Unauthenticated,
                "{code}"
            );
        }
    }
}

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
