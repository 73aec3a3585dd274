//! The name that git gives to a file's bytes, by which the hub knows a small file: SHA-1 of a header and
//! the bytes. It tells a damaged file from a whole one, and protects nothing.

/// The name of a blob, as 40 hexadecimal digits.
pub(crate) fn of_blob(bytes: &[u8]) -> String {
    let mut hash = Sha1::of_blob(bytes.len() as u64);
    hash.update(bytes);
    hash.finish()
}

/// SHA-1 of bytes that come one after the other (FIPS 180-4, section 6.1).
pub(crate) struct Sha1 {
    state: [u32; 5],
    /// The bytes that do not fill a block yet.
    rest: Vec<u8>,
    length: u64,
}

impl Sha1 {
    pub(crate) fn new() -> Self {
        let state = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
        Self { state, rest: Vec::new(), length: 0 }
    }

    /// Git's name of so many bytes.
    pub(crate) fn of_blob(length: u64) -> Self {
        let mut hash = Self::new();
        hash.update(format!("blob {length}\0").as_bytes());
        hash
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.rest.extend_from_slice(bytes);
        let whole = self.rest.len() / 64 * 64;
        self.rest[..whole].chunks_exact(64).for_each(|block| mix(&mut self.state, block));
        self.rest.drain(..whole);
    }

    /// The hash, as 40 hexadecimal digits.
    pub(crate) fn finish(mut self) -> String {
        self.rest.push(0x80);
        self.rest.resize((self.rest.len() + 8).next_multiple_of(64) - 8, 0);
        self.rest.extend_from_slice(&(self.length * 8).to_be_bytes());
        self.rest.chunks_exact(64).for_each(|block| mix(&mut self.state, block));
        self.state.iter().map(|word| format!("{word:08x}")).collect()
    }
}

fn mix(hash: &mut [u32; 5], block: &[u8]) {
    let mut words = [0; 80];
    for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
        *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    for t in 16..80 {
        words[t] = (words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16]).rotate_left(1);
    }
    let [mut a, mut b, mut c, mut d, mut e] = *hash;
    for (t, word) in words.into_iter().enumerate() {
        let (mixed, constant) = match t {
            0..20 => (b & c | !b & d, 0x5a82_7999),
            20..40 => (b ^ c ^ d, 0x6ed9_eba1),
            40..60 => (b & c | b & d | c & d, 0x8f1b_bcdc_u32),
            _ => (b ^ c ^ d, 0xca62_c1d6),
        };
        let next = [a.rotate_left(5), mixed, e, constant, word];
        let next = next.into_iter().fold(0_u32, u32::wrapping_add);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    for (sum, part) in hash.iter_mut().zip([a, b, c, d, e]) {
        *sum = sum.wrapping_add(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `git hash-object` says.
    #[test]
    fn it_is_gits() {
        assert_eq!(of_blob(b""), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(of_blob(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(of_blob(&[b'a'; 1000]), "a50be72b20f0e3f078d252e8e56b11b4bec67509");
        let mut parts = Sha1::of_blob(1000);
        [&[b'a'; 1][..], &[b'a'; 63], &[b'a'; 500], &[], &[b'a'; 436]]
            .iter()
            .for_each(|part| parts.update(part));
        assert_eq!(parts.finish(), of_blob(&[b'a'; 1000]));
    }

    /// What `sha1sum` says.
    #[test]
    fn it_is_sha1() {
        let mut hash = Sha1::new();
        hash.update(b"abc");
        assert_eq!(hash.finish(), "a9993e364706816aba3e25717850c26c9cd0d89d");
    }
}
