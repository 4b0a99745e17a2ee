//! What a fault does to a request, and several faults together.

use std::time::Duration;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The answer is an error. Where it `lands` the request was executed all the same, as a 500 or
    /// a 503 may be.
    Refuse {
        /// The status.
        status: u16,
        /// The error's code, in the way the service writes it.
        code: &'static str,
        /// Whether it was executed.
        lands: bool,
    },
    /// The answer is 200 with an error in its body, as S3 may give to a copy or a completed upload:
    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html>
    ErrorInside {
        /// The error's code.
        code: &'static str,
        /// Whether it was executed.
        lands: bool,
    },
    /// It is executed so much later, and answered then.
    Delay(Duration),
    /// No connection can be made.
    Unreachable,
    /// The connection dies and nothing is executed.
    Drop,
    /// It is executed and the connection dies.
    LoseAnswer,
    /// The connection dies now, and the request is executed so much later.
    LandLate(Duration),
    /// The connection stays open, and no answer comes.
    Silence {
        /// Whether it was executed.
        lands: bool,
    },
    /// The connection is reset after so many bytes of the answer's body.
    ResetAt(usize),
    /// The connection ends in order after so many bytes, fewer than were announced.
    TruncateAt(usize),
    /// Nothing more comes after so many bytes, and the connection stays open.
    StallAt(usize),
    /// The body is cut to so many bytes, and the announced length says the same: only a checksum,
    /// or the size of the object, tells.
    Shorten(usize),
    /// One bit of this byte of the answer's body is another one; beyond its end, counted round.
    Corrupt(usize),
    /// The same for the body of the request, before it is executed.
    CorruptUpload(usize),
    /// The answer names an `ETag` that the object does not have.
    WrongETag,
    /// A list of versions names of each key the second entry as the latest, if it has one, as
    /// SeaweedFS does between writing an entry and naming it.
    LateLatest,
    /// The answer names no `ETag`, or an empty one where a document has to have one.
    NoETag,
    /// The answer has this header instead of its own of the name, or none.
    Answer(&'static str, Option<&'static str>),
    /// The answer's document lacks the first element of this name.
    Without(&'static str),
    /// The request had this header instead of its own of the name, or none.
    Ask(&'static str, Option<&'static str>),
}

impl Effect {
    /// An error answer to a request that is not executed.
    pub fn refuse(status: u16, code: &'static str) -> Self {
        Self::Refuse {
            status,
            code,
            lands: false,
        }
    }

    /// Too many requests, as S3 says it.
    pub fn slow_down() -> Self {
        Self::refuse(503, "SlowDown")
    }
}

/// What happens to one request, all faults together.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) names: Vec<String>,
    pub(crate) delay: Duration,
    pub(crate) course: Course,
    /// The bytes of the request's body to corrupt.
    pub(crate) uploads: Vec<usize>,
    /// The headers of the request that are others.
    pub(crate) asked: Vec<Header>,
    /// What happens to the answer, in the order of the script.
    pub(crate) answers: Vec<Spoil>,
}

/// What happens to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoil {
    Corrupt(usize),
    Shorten(usize),
    WrongETag,
    LateLatest,
    NoETag,
    Header(Header),
    Without(&'static str),
    Break(Break),
}

/// A header, and what it is instead; none takes it away.
pub(crate) type Header = (&'static str, Option<&'static str>);

/// How a body ends before its end, and after how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    Reset(usize),
    Truncate(usize),
    Stall(usize),
}

/// The way that a request goes; the first fault that sets one decides.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) enum Course {
    #[default]
    Normal,
    Refuse {
        status: u16,
        code: &'static str,
        lands: bool,
    },
    Unreachable,
    Drop,
    LoseAnswer,
    LandLate(Duration),
    Silence {
        lands: bool,
    },
}

impl Verdict {
    pub(super) fn add(&mut self, name: &str, effect: &Effect) {
        self.names.push(name.to_owned());
        let course = match effect.clone() {
            Effect::Delay(delay) => return self.delay += delay,
            Effect::CorruptUpload(byte) => return self.uploads.push(byte),
            Effect::Refuse {
                status,
                code,
                lands,
            } => Course::Refuse {
                status,
                code,
                lands,
            },
            Effect::ErrorInside { code, lands } => Course::Refuse {
                status: 200,
                code,
                lands,
            },
            Effect::Unreachable => Course::Unreachable,
            Effect::Drop => Course::Drop,
            Effect::LoseAnswer => Course::LoseAnswer,
            Effect::LandLate(delay) => Course::LandLate(delay),
            Effect::Silence { lands } => Course::Silence { lands },
            Effect::Corrupt(byte) => return self.answers.push(Spoil::Corrupt(byte)),
            Effect::Shorten(bytes) => return self.answers.push(Spoil::Shorten(bytes)),
            Effect::WrongETag => return self.answers.push(Spoil::WrongETag),
            Effect::LateLatest => return self.answers.push(Spoil::LateLatest),
            Effect::NoETag => return self.answers.push(Spoil::NoETag),
            Effect::Answer(name, value) => return self.answers.push(Spoil::Header((name, value))),
            Effect::Without(name) => return self.answers.push(Spoil::Without(name)),
            Effect::Ask(name, value) => return self.asked.push((name, value)),
            Effect::ResetAt(at) => return self.answers.push(Spoil::Break(Break::Reset(at))),
            Effect::TruncateAt(at) => return self.answers.push(Spoil::Break(Break::Truncate(at))),
            Effect::StallAt(at) => return self.answers.push(Spoil::Break(Break::Stall(at))),
        };
        if self.course == Course::Normal {
            self.course = course;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_add_up_and_the_first_course_stands() {
        let mut verdict = Verdict::default();
        let second = Duration::from_secs(1);
        for effect in [
            Effect::Delay(second),
            Effect::LoseAnswer,
            Effect::Delay(second),
            Effect::Drop,
        ] {
            verdict.add("it", &effect);
        }
        assert_eq!(
            (verdict.delay, verdict.course),
            (2 * second, Course::LoseAnswer)
        );
        assert_eq!(verdict.names.len(), 4);
    }
}
