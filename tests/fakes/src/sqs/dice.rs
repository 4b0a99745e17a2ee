//! Chance from a seed, and numbers that are given once.

use std::time::Duration;

use fastrand::Rng;

/// Chance, and numbers.
#[derive(Debug)]
pub(super) struct Dice {
    rng: Rng,
    serial: u64,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            serial: 0,
        }
    }

    pub(super) fn falls(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.f64() < share
    }

    /// Returns a message id, which looks like a UUID.
    pub(super) fn id(&mut self) -> String {
        let (high, low) = (self.rng.u64(..), self.rng.u64(..));
        let (a, b, c) = (high >> 32, high >> 16 & 0xffff, high & 0xffff);
        format!(
            "{a:08x}-{b:04x}-{c:04x}-{:04x}-{:012x}",
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }

    pub(super) fn time(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.f64())
    }

    /// Returns a number above all that were returned.
    pub(super) fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        self.rng.shuffle(items);
    }

    pub(super) fn one_to(&mut self, most: usize) -> usize {
        self.rng.usize(1..=most)
    }
}
