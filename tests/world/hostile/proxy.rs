//! The proxy: it reads requests whole, and what it sends back is whatever bytes its script says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::world::request::Seen;

/// What a request is answered with.
#[derive(Clone)]
pub(crate) enum Reply {
    /// These bytes as they are, status line included; then the connection is closed.
    Raw(Vec<u8>),
    /// The fakes' own answer, altered.
    Alter(Arc<dyn Fn(&mut Answer) + Send + Sync>),
    /// These bytes, and then a piece so many times, each after a pause; then the connection is
    /// closed.
    Drip {
        head: Vec<u8>,
        piece: Vec<u8>,
        every: Duration,
        times: usize,
    },
    /// Nothing, on a connection that stays open.
    Hang,
    /// The end of the connection.
    Close,
    /// The same once the request was carried out.
    Lose,
    /// The server's own answer, so much later.
    Late(Duration),
}

/// An answer that the proxy can alter. `Content-Length` is written anew from the body, unless the
/// headers have one.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case, without the length.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// Makes a whole answer of a status, more header lines (each ended by `\r\n`) and a body.
    pub(crate) fn whole(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let head = format!(
            "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        Self::Raw([head.as_bytes(), body].concat())
    }

    /// Makes what a proxy says that found nothing behind it: a page for people, with S3's status
    /// but not its code.
    pub(crate) fn page(status: &str) -> Self {
        Self::whole(
            status,
            "content-type: text/html\r\n",
            format!("<html><body>{status}</body></html>"),
        )
    }

    /// Makes S3's refusal.
    pub(crate) fn refusal(status: &str, code: &str, message: &str) -> Self {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        );
        Self::whole(status, "content-type: application/xml\r\n", body)
    }

    /// Says whether it comes instead of the server's.
    fn is_instead(&self) -> bool {
        !matches!(self, Self::Alter(_) | Self::Lose | Self::Late(_))
    }

    /// Alters the fakes' answer.
    pub(crate) fn alter(change: impl Fn(&mut Answer) + Send + Sync + 'static) -> Self {
        Self::Alter(Arc::new(change))
    }
}

impl Answer {
    /// Sets a header, in place of the one that there may be.
    pub(crate) fn set(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.remove(name);
        self.headers
            .push((name.to_owned(), value.as_ref().to_vec()));
    }

    /// Takes a header away.
    pub(crate) fn remove(&mut self, name: &str) {
        self.headers.retain(|(other, _)| other != name);
    }
}

/// What stands between the daemon and the fakes.
pub(super) struct Proxy {
    upstream: String,
    client: Client<HttpConnector, Full<Bytes>>,
    pub(super) script: Mutex<Vec<Line>>,
    pub(super) journal: Mutex<Vec<Seen>>,
    pub(super) hits: Mutex<usize>,
    /// Whether requests are written down.
    has_journal: bool,
}

/// A line of the script.
pub(super) struct Line {
    pub(super) when: Box<dyn Fn(&Seen) -> bool + Send>,
    pub(super) reply: Reply,
    pub(super) times: usize,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

/// Serves every connection until it is dropped.
pub(super) async fn accept(listener: TcpListener, proxy: Arc<Proxy>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let proxy = Arc::clone(&proxy);
        // A client that goes away ends the conversation: as meant.
        connections.spawn(async move { drop(proxy.converse(stream).await) });
        while connections.try_join_next().is_some() {}
    }
}

impl Proxy {
    /// Makes a proxy to an address.
    pub(super) fn to(upstream: &str) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .http1_max_headers(HEADERS_MAX)
            .build_http();
        let (script, journal, hits) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self {
            upstream: upstream.trim_end_matches('/').to_owned(),
            client,
            script,
            journal,
            hits,
            has_journal: true,
        }
    }

    /// Writes no request down: of a long run they would fill the memory.
    pub(super) fn without_journal(self) -> Self {
        Self {
            has_journal: false,
            ..self
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut read = Vec::new();
        while let Some(request) = receive(&mut stream, &mut read).await? {
            let seen = Seen::of(&request);
            let is_head = request.method() == http::Method::HEAD;
            let reply = self.reply_to(seen);
            if let Some(reply) = reply.as_ref().filter(|reply| reply.is_instead()) {
                return play(&mut stream, reply).await;
            }
            let Some(mut answer) = self.forward(request).await else {
                return Ok(());
            };
            match reply {
                Some(Reply::Alter(alter)) => alter(&mut answer),
                Some(Reply::Lose) => return Ok(()),
                Some(Reply::Late(pause)) => sleep(pause).await,
                Some(Reply::Raw(_) | Reply::Drip { .. } | Reply::Hang | Reply::Close) | None => {}
            }
            stream.write_all(&written(&answer, is_head)).await?;
        }
        Ok(())
    }

    fn reply_to(&self, seen: Seen) -> Option<Reply> {
        let mut script = self.script.lock().unwrap();
        let line = script
            .iter_mut()
            .find(|line| line.times > 0 && (line.when)(&seen));
        if self.has_journal {
            self.journal.lock().unwrap().push(seen);
        }
        let line = line?;
        line.times -= 1;
        *self.hits.lock().unwrap() += 1;
        Some(line.reply.clone())
    }

    async fn forward(&self, mut request: Request<Full<Bytes>>) -> Option<Answer> {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("{}{path}", self.upstream).parse().ok()?;
        let (head, body) = self.client.request(request).await.ok()?.into_parts();
        let body = body.collect().await.ok()?.to_bytes().to_vec();
        // The length of what a HEAD does not have is kept, the others are told by the body.
        let is_kept = |name: &http::HeaderName| {
            *name != header::TRANSFER_ENCODING
                && (*name != header::CONTENT_LENGTH || body.is_empty())
        };
        let headers = head.headers.iter().filter(|(name, _)| is_kept(name));
        let headers = headers
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect();
        Some(Answer {
            status: head.status.as_u16(),
            headers,
            body,
        })
    }
}

/// Answers in the fakes' stead, and leaves the connection to be closed.
async fn play(stream: &mut TcpStream, reply: &Reply) -> std::io::Result<()> {
    match reply {
        Reply::Raw(bytes) => stream.write_all(bytes).await,
        Reply::Drip {
            head,
            piece,
            every,
            times,
        } => {
            stream.write_all(head).await?;
            for _ in 0..*times {
                // Even no time at all is a millisecond to a timer.
                if !every.is_zero() {
                    sleep(*every).await;
                }
                stream.write_all(piece).await?;
            }
            Ok(())
        }
        Reply::Hang => {
            // Until the client closes it.
            while stream.read(&mut [0; 1024]).await? > 0 {}
            Ok(())
        }
        Reply::Alter(_) | Reply::Close | Reply::Lose | Reply::Late(_) => Ok(()),
    }
}

fn written(answer: &Answer, is_head: bool) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {} Scripted\r\n", answer.status).into_bytes();
    for (name, value) in &answer.headers {
        bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    if answer
        .headers
        .iter()
        .all(|(name, _)| name != "content-length")
    {
        bytes.extend(format!("content-length: {}\r\n", answer.body.len()).as_bytes());
    }
    bytes.extend(b"\r\n");
    if !is_head {
        bytes.extend(&answer.body);
    }
    bytes
}

/// Reads a whole request; what came after it stays for the next one.
async fn receive(
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
) -> std::io::Result<Option<Request<Full<Bytes>>>> {
    let end = loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let length = length
        .map(|(_, value)| value.trim().parse::<usize>().unwrap())
        .next()
        .unwrap_or(0);
    if head
        .to_ascii_lowercase()
        .contains("\r\nexpect: 100-continue")
    {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    while read.len() < end + length {
        if stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
    }
    let request = parsed(
        &read[..end],
        Bytes::copy_from_slice(&read[end..end + length]),
    );
    read.drain(..end + length);
    Ok(Some(request))
}

/// Headers may have any bytes, so the head is no text.
fn parsed(head: &[u8], body: Bytes) -> Request<Full<Bytes>> {
    let mut lines = head
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let mut words = first.split(' ');
    let mut request = Request::builder()
        .method(words.next().unwrap_or("GET"))
        .uri(words.next().unwrap_or("/"));
    for line in lines.filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':').unwrap();
        let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
        if name != "expect" {
            request = request.header(name, line[colon + 1..].trim_ascii());
        }
    }
    request.body(Full::new(body)).unwrap()
}

// Enough for the 2 KB of metadata that S3 allows, in the shortest entries.
const HEADERS_MAX: usize = 1_000;
