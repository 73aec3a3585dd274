//! Numbers for mutations, the same for the same seed.

/// Xorshift.
pub struct Random(pub u64);

impl Random {
    /// A number below `n`, 0 if there is none.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}
