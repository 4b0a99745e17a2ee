//! Identifiers and ETags that look random and are the same for the same seed.

/// A source of them.
#[derive(Debug)]
pub(super) struct Mint {
    state: u64,
}

// Version ids of AWS are 32 letters from about this alphabet, in no order.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._";
const VERSION_ID_LETTERS: usize = 32;
const UPLOAD_ID_LETTERS: usize = 64;

impl Mint {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn version_id(&mut self) -> String {
        self.text(VERSION_ID_LETTERS)
    }

    pub(super) fn upload_id(&mut self) -> String {
        self.text(UPLOAD_ID_LETTERS)
    }

    /// An ETag that says nothing of the content, as those of encrypted objects do.
    pub(super) fn etag(&mut self) -> String {
        format!("{:016x}{:016x}", self.next(), self.next())
    }

    /// The next number, by SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>).
    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn text(&mut self, letters: usize) -> String {
        (0..letters)
            .filter_map(|_| LETTERS.get((self.next() >> 58) as usize))
            .map(|letter| char::from(*letter))
            .collect()
    }
}

/// Says whether a text could be a version id at all.
pub(super) fn is_version_id(text: &str) -> bool {
    text == "null"
        || text.len() == VERSION_ID_LETTERS && text.bytes().all(|letter| LETTERS.contains(&letter))
}
