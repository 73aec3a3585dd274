//! The name that git gives to a file's bytes, by which a file that is on the hub already is known: SHA-1
//! of a header and the bytes. It protects nothing here.

/// The name of a blob, as 40 hexadecimal digits.
pub(crate) fn of_blob(bytes: &[u8]) -> String {
    let mut message = format!("blob {}\0", bytes.len()).into_bytes();
    message.extend_from_slice(bytes);
    sha1(message).iter().map(|word| format!("{word:08x}")).collect()
}

/// FIPS 180-4, section 6.1.
fn sha1(mut message: Vec<u8>) -> [u32; 5] {
    let bits = message.len() as u64 * 8;
    message.push(0x80);
    message.resize((message.len() + 8).next_multiple_of(64) - 8, 0);
    message.extend_from_slice(&bits.to_be_bytes());
    let mut hash: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    for block in message.chunks_exact(64) {
        let mut words = [0; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        for t in 16..80 {
            words[t] = (words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = hash;
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
    hash
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
    }
}
