//! Poison for parsers of foreign bytes, in tests: real inputs, each broken somewhere, as often as
//! `S3_REPLICATOR_FUZZ_EXECUTIONS` says (20,000 if it says nothing). The seed is printed when a
//! parser panics.

use std::env;

use fastrand::Rng;

/// Hands a parser inputs that are mostly real, and a little broken.
pub(crate) fn feed(real: &[&[u8]], parse: impl Fn(&[u8])) {
    let executions = number("S3_REPLICATOR_FUZZ_EXECUTIONS").unwrap_or(20_000);
    let first = number("S3_REPLICATOR_SEED").unwrap_or(1);
    for input in real {
        parse(input);
    }
    for seed in first..first + executions {
        let input = broken(real, &mut Rng::with_seed(seed));
        let report = PanicReport {
            seed,
            len: input.len(),
        };
        parse(&input);
        std::mem::forget(report);
    }
}

/// Says which input it was when a parser panics and this is dropped.
struct PanicReport {
    seed: u64,
    len: usize,
}

impl Drop for PanicReport {
    #[expect(
        clippy::print_stderr,
        reason = "a test that fails says which input it was"
    )]
    fn drop(&mut self) {
        eprintln!(
            "the parser panicked at S3_REPLICATOR_SEED={} ({} bytes)",
            self.seed, self.len
        );
    }
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// Breaks one of the inputs in up to eight places.
fn broken(real: &[&[u8]], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = rng.choice(real).map_or_else(Vec::new, |real| real.to_vec());
    for _ in 0..rng.usize(0..=8) {
        let (from, to) = range(bytes.len(), rng);
        match rng.u8(0..9) {
            0 if !bytes.is_empty() => bytes[from.min(to - 1)] ^= 1 << rng.u8(0..8),
            1 if !bytes.is_empty() => bytes[from.min(to - 1)] = *rng.choice(BORDERS).unwrap_or(&0),
            2 => drop(bytes.drain(from..to)),
            3 => bytes.truncate(to),
            4 => drop(bytes.splice(from..to, noise(rng))),
            5 => drop(
                bytes.splice(
                    from..to,
                    rng.choice(WORDS)
                        .copied()
                        .unwrap_or_default()
                        .iter()
                        .copied(),
                ),
            ),
            6 => drop(bytes.splice(from..from, piece(real, rng))),
            7 if to - from < 100 => {
                let repeated = bytes[from..to].repeat(rng.usize(1..200));
                drop(bytes.splice(from..from, repeated));
            }
            _ => drop(bytes.splice(from..to, rng.u64(..).to_string().into_bytes())),
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

/// Chooses a range, mostly a short one.
fn range(len: usize, rng: &mut Rng) -> (usize, usize) {
    let from = rng.usize(0..=len);
    let longest = if rng.u8(0..4) == 0 {
        len - from
    } else {
        (len - from).min(16)
    };
    let to = from + rng.usize(0..=longest);
    (from, to.max(usize::from(len > 0)))
}

/// Takes a piece of another input.
fn piece(real: &[&[u8]], rng: &mut Rng) -> Vec<u8> {
    let other = rng.choice(real).copied().unwrap_or_default();
    let (from, to) = range(other.len(), rng);
    other[from.min(to)..to].to_vec()
}

fn noise(rng: &mut Rng) -> Vec<u8> {
    (0..rng.usize(0..16)).map(|_| rng.u8(..)).collect()
}

// Enough for every limit that is a length or a depth to be met.
const INPUT_BYTES_MAX: usize = 64 << 10;

const BORDERS: &[u8] = b"\x00\x01\x1f\x20\x7f\x80\xc2\xff<>&;\"'\\{}[],:-+%/0189eE";

/// What readers of text, numbers and dates stumble over.
const WORDS: &[&[u8]] = &[
    b"",
    b"0",
    b"-1",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"1e999",
    b"NaN",
    b"9999-12-31T23:59:59.999Z",
    b"0000-01-01T00:00:00Z",
    b"-9999-01-01T00:00:00Z",
    b"Fri, 31 Dec 9999 23:59:59 GMT",
    b"Mon, 01 Jan 0001 00:00:00 GMT",
    b"null",
    b"true",
    b"&#x0;",
    b"&#xffffffff;",
    b"&lol;",
    b"<![CDATA[",
    b"]]>",
    b"<!DOCTYPE a [<!ENTITY a \"b\">]>",
    b"<a>",
    b"</a>",
    b"%",
    b"%zz",
    b"%ff%fe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"\xff\xfe",
    b"\\ud800",
    b"=?UTF-8?Q?=ZZ?=",
    b"=?UTF-8?B?",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_broken_in_many_ways_and_the_same_again_by_their_seed() {
        let real: &[&[u8]] = &[b"<a><b>1</b></a>", b"{\"a\":1}"];
        let all: Vec<Vec<u8>> = (0..1_000)
            .map(|seed| broken(real, &mut Rng::with_seed(seed)))
            .collect();
        assert_eq!(all[7], broken(real, &mut Rng::with_seed(7)));
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert!(distinct.len() > 800, "{}", distinct.len());
        assert!(
            all.iter().any(|input| input.len() > 1_000)
                && all.iter().all(|input| input.len() <= INPUT_BYTES_MAX)
        );
    }
}
