//! Files as a whole, with their MD5: a file is read where it is, an object or standard input into a
//! scratch file without a name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::time::Duration;

use anyhow::{Context, ensure};
use aws_smithy_types::body::SdkBody;
use http_body_util::BodyExt;
use md5::{Digest, Md5};
use replicator_core::failure::{Failure, FailureKind, Operation};
use replicator_core::object::{Bucket, ETag, Key};
use replicator_core::parts::Part;
use replicator_core::retry;

use crate::manifest::{ManifestLocation, ManifestStore};
use crate::process::{run_apart, run_blocking};
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::error::Side;
use crate::s3::checksum::hex;
use crate::s3::client::S3Request;

/// A file that is here as a whole.
pub(super) struct LocalFile {
    pub(super) file: File,
    pub(super) md5: String,
}

impl ManifestStore<'_> {
    /// Reads a file as a whole, into the scratch directory if it is no file here: what comes through
    /// a pipe comes once.
    pub(super) async fn fetch(&self, from: &ManifestLocation) -> anyhow::Result<LocalFile> {
        if let ManifestLocation::Path(path) = from
            && !fs::metadata(path).is_ok_and(|found| !found.is_file())
        {
            return run_blocking(|| {
                let mut spool = Spool::new(io::sink());
                let mut file = replicator_config::open_file(path)?;
                io::copy(&mut file, &mut spool)?;
                let md5 = spool.finish().1;
                Ok(LocalFile { file, md5 })
            });
        }
        let scratch = tempfile::tempfile_in(self.scratch);
        let scratch =
            scratch.with_context(|| format!("cannot write to {}", self.scratch.display()));
        let mut spool = Spool::new(scratch?);
        match from {
            ManifestLocation::Object(bucket, key) => {
                download(self.access, (bucket, key), &mut spool).await?;
            }
            ManifestLocation::Input => {
                spool = run_apart(|| spool.filled_from(&mut io::stdin().lock())).await??;
            }
            ManifestLocation::Path(path) => {
                let path = path.clone();
                spool = run_apart(|| spool.filled_from(&mut File::open(path)?)).await??;
            }
        }
        let (file, md5) = spool.finish();
        Ok(LocalFile { file, md5 })
    }
}

/// Says whether a file or an object is not there, as the system or the service says itself.
pub(super) fn is_missing(error: &anyhow::Error) -> bool {
    let failure = error.downcast_ref::<Failure>();
    let file = error.downcast_ref::<io::Error>();
    file.is_some_and(|file| file.kind() == io::ErrorKind::NotFound)
        || failure.is_some_and(|failure| {
            let absent = [FailureKind::NotFound, FailureKind::SourceVersionMissing];
            absent.contains(&failure.kind)
        })
}

/// Reads the text of a manifest.
pub(super) fn read_text(mut file: File) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    run_blocking(|| {
        file.rewind()?;
        file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut text)
    })?;
    ensure!(
        text.len() as u64 <= TEXT_BYTES_MAX,
        "it is longer than {TEXT_BYTES_MAX} bytes"
    );
    Ok(text)
}

// Two hundred bytes for each file: room for 300,000 files, of a million objects each.
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// Takes bytes, and computes their MD5 as they pass.
struct Spool<W> {
    to: W,
    md5: Md5,
    len: u64,
}

impl<W> Spool<W> {
    fn new(to: W) -> Self {
        let md5 = Md5::new();
        Self { to, md5, len: 0 }
    }

    /// Takes all that a reader has.
    fn filled_from(mut self, reader: &mut impl Read) -> io::Result<Self>
    where
        W: Write,
    {
        io::copy(reader, &mut self)?;
        Ok(self)
    }

    fn finish(self) -> (W, String) {
        (self.to, hex(&self.md5.finalize()))
    }
}

impl<W: Write> Write for Spool<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.md5.update(bytes.get(..written).unwrap_or_default());
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Reads an object to its end. Where the connection breaks, it goes on with the bytes that are
/// missing, as long as each time brings some.
async fn download(
    access: &AccountClients,
    (bucket, key): (&Bucket, &Key),
    spool: &mut Spool<File>,
) -> Result<(), Failure> {
    let mut known: Option<(ETag, u64)> = None;
    let mut attempt = 1;
    loop {
        let begun = spool.len;
        let call = S3Request::get_object(Side::Source, bucket, key);
        let call = match &known {
            None => call,
            Some((etag, size_bytes)) => {
                let rest = Part {
                    number: 1,
                    offset: begun,
                    len: size_bytes - begun,
                };
                call.identified(Some(etag), *size_bytes).bytes(rest)
            }
        };
        let (head, body) = access.wire.send(call).await?.split();
        let size_bytes = match &known {
            Some((_, size_bytes)) => *size_bytes,
            None => {
                let stated = head.content_length();
                let size_bytes = stated.ok_or_else(|| broken("the answer has no length"))?;
                let etag = head
                    .etag()
                    .ok_or_else(|| broken("the answer has no ETag"))?;
                known = Some((etag, size_bytes));
                size_bytes
            }
        };
        let read = take_body(body, spool).await;
        if spool.len == size_bytes {
            return Ok(());
        }
        attempt = if spool.len > begun { 1 } else { attempt + 1 };
        if attempt > ATTEMPTS_MAX || spool.len > size_bytes {
            read?;
            return Err(broken("the body has another length than its header says"));
        }
        tokio::time::sleep(retry::jittered_delay(attempt, fastrand::f64())).await;
    }
}

async fn take_body(mut body: SdkBody, spool: &mut Spool<File>) -> Result<(), Failure> {
    while let Some(frame) = tokio::time::timeout(SILENCE_MAX, body.frame())
        .await
        .map_err(|_elapsed| broken("the body stopped coming"))?
    {
        if let Ok(piece) = frame.map_err(broken)?.into_data() {
            run_blocking(|| spool.write_all(&piece))
                .map_err(|error| broken(format!("its bytes cannot be kept here: {error}")))?;
        }
    }
    Ok(())
}

fn broken(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::with_source(FailureKind::Transient, Operation::GetObject, cause)
}

const ATTEMPTS_MAX: u32 = 5;
// As long as the SDK waits for a body that does not come.
const SILENCE_MAX: Duration = Duration::from_secs(20);
