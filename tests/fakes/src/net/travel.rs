//! One request's way: there, judged, executed or not, and back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tokio::sync::oneshot;

use super::{Answer, Broken, Delivery, Shared};
use crate::faults::{Course, Verdict, alter, flip, refusal, replace_header};
use crate::journal::Call;

/// A request on its way.
pub(super) struct Travel {
    pub(super) shared: Arc<Shared>,
    pub(super) client: String,
    pub(super) host: String,
    pub(super) there: Duration,
    pub(super) back: Duration,
    /// Where the client listens, until it was told something.
    pub(super) listener: Option<oneshot::Sender<Answer>>,
}

impl Travel {
    /// Arrives, is judged, and goes its course.
    pub(super) async fn go(mut self, request: Request<Bytes>) {
        let sent = self.shared.journal.now();
        pause(self.there).await;
        let call = Call::of(&request);
        let number = self
            .shared
            .journal
            .arrived(&self.client, &self.host, call.clone(), sent);
        let verdict = self.shared.faults.judge(&self.client, &call);
        self.shared.journal.met(number, verdict.names.clone());
        pause(verdict.delay).await;
        let request = spoil(request, &verdict);
        match verdict.course {
            Course::Normal => {
                let response = self.execute(number, call, request).await;
                self.answer(number, alter(response, &verdict.answers)).await;
            }
            Course::Refuse {
                status,
                code,
                lands,
            } => {
                if lands {
                    self.execute(number, call.clone(), request).await;
                }
                self.answer(number, refusal(&call, status, code).map(Delivery::whole))
                    .await;
            }
            Course::Unreachable => self.end(number, Broken::Unreachable),
            Course::Drop => self.end(number, Broken::Closed),
            Course::LoseAnswer => {
                self.execute(number, call, request).await;
                self.end(number, Broken::Closed);
            }
            Course::LandLate(delay) => {
                self.end(number, Broken::Closed);
                pause(delay).await;
                self.execute(number, call, request).await;
            }
            Course::Silence { lands } => {
                self.shared.journal.lost(number);
                if lands {
                    self.execute(number, call, request).await;
                }
            }
        }
    }

    async fn execute(&self, number: usize, call: Call, request: Request<Bytes>) -> Response<Bytes> {
        let server = self.shared.server(&self.host, call.service);
        let response = server.serve(request, &self.client).await;
        let begun = (call.operation == "CreateMultipartUpload")
            .then(|| upload_id(response.body()))
            .flatten();
        self.shared
            .journal
            .executed(number, response.status().as_u16(), begun);
        response
    }

    async fn answer(&mut self, number: usize, response: Response<Delivery>) {
        pause(self.back).await;
        let status = response.status().as_u16();
        if self.send(Ok(response)) {
            self.shared.journal.given(number, status);
        } else {
            self.shared.journal.lost(number);
        }
    }

    /// Ends the connection; the request may still be executed.
    fn end(&mut self, number: usize, how: Broken) {
        self.shared.journal.lost(number);
        self.send(Err(how));
    }

    /// Returns whether the client still listened.
    fn send(&mut self, answer: Answer) -> bool {
        self.listener
            .take()
            .is_some_and(|listener| listener.send(answer).is_ok())
    }
}

/// A sleep of nothing would still take a tick of tokio's clock.
async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

fn spoil(mut request: Request<Bytes>, verdict: &Verdict) -> Request<Bytes> {
    verdict
        .asked
        .iter()
        .for_each(|header| replace_header(request.headers_mut(), header));
    request.map(|body| {
        verdict
            .uploads
            .iter()
            .fold(body, |body, byte| flip(&body, *byte))
    })
}

fn upload_id(body: &Bytes) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, rest) = text.split_once("<UploadId>")?;
    Some(rest.split_once("</UploadId>")?.0.to_owned())
}
