//! The same content right above itself: a condition must be able to tell the replicas apart (protocol rule 4).

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

#[test]
fn equal_neighbours_never_share_an_etag_however_their_originals_were_written() {
    // Whether each of the originals went in one part of an upload or in one piece.
    for ways in [[false, false, true, true], [true, true, true, true], [true, false, true, false]] {
        simulate(1, async |mut sim| {
            sim.post_everything();
            for in_parts in ways {
                write(&sim, in_parts).await;
            }
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            daemon.stop().await;
            let replicas = sim.s3.history(ARCHIVE, "a");
            let etags: Vec<_> = replicas.iter().map(|entry| &entry.object.as_ref().unwrap().etag).collect();
            assert_eq!(etags.len(), ways.len());
            assert!(etags.windows(2).all(|pair| pair[0] != pair[1]), "{ways:?}: {etags:?}");
        });
    }
}

#[test]
fn large_neighbours_never_share_an_etag_whatever_stood_between_them_when_they_were_written() {
    for between in [Between::Nothing, Between::Purge, Between::Stranger] {
        simulate(2, async |mut sim| {
            sim.post_everything();
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            for then in [Between::Nothing, between, Between::Nothing, Between::Nothing] {
                sim.user().put_object().bucket(SOURCE).key("a").body(vec![7; 20 << 20].into()).send().await.unwrap();
                sim.drained().await;
                interfere(&sim, then).await;
            }
            daemon.stop().await;
            let replicas = sim.s3.history(ARCHIVE, "a");
            let etags: Vec<_> = replicas.iter().map(|entry| &entry.object.as_ref().unwrap().etag).collect();
            assert_eq!(etags.len(), 4 + usize::from(between == Between::Stranger));
            assert!(etags.windows(2).all(|pair| pair[0] != pair[1]), "{between:?}: {etags:?}");
        });
    }
}

/// What upsets the order in which neighbours are written in one way and the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Nothing,
    /// The newest goes from the source.
    Purge,
    /// Someone else writes at the destination.
    Stranger,
}

async fn interfere(sim: &Sim, between: Between) {
    let newest = sim.s3.history(SOURCE, "a").last().unwrap().version_id.clone();
    let user = sim.user();
    match between {
        Between::Nothing => {}
        Between::Purge => drop(user.delete_object().bucket(SOURCE).key("a").version_id(newest).send().await.unwrap()),
        Between::Stranger => {
            drop(user.put_object().bucket(ARCHIVE).key("a").body(b"other".to_vec().into()).send().await.unwrap());
        }
    }
}

async fn write(sim: &Sim, in_parts: bool) {
    if !in_parts {
        return sim.put("a", b"content").await;
    }
    let user = sim.user();
    let begun = user.create_multipart_upload().bucket(SOURCE).key("a").send().await.unwrap();
    let id = begun.upload_id.unwrap();
    let part = user.upload_part().bucket(SOURCE).key("a").upload_id(&id).part_number(1);
    let part = part.body(ByteStream::from_static(b"content")).send().await.unwrap();
    let part = CompletedPart::builder().part_number(1).set_e_tag(part.e_tag).build();
    let parts = CompletedMultipartUpload::builder().parts(part).build();
    let complete = user.complete_multipart_upload().bucket(SOURCE).key("a").upload_id(&id).multipart_upload(parts);
    complete.send().await.unwrap();
}
