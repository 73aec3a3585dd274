//! The key that clients must know.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::{Error, Result};

/// A key, of which the hash alone is kept.
#[derive(Clone)]
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// Blanks around it do not count: a key usually comes from a file.
    ///
    /// # Errors
    /// Fewer than 16 characters, or others than visible ASCII ones.
    pub fn new(key: &str) -> Result<Self> {
        let key = key.trim();
        if key.len() < 16 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Config {
                field: "ServerConfig.api_key",
                value: format!("a text of {} characters", key.chars().count()),
                expected: "at least 16 visible ASCII characters, as `openssl rand -hex 24` gives",
            });
        }
        Ok(Self(hash(key.as_bytes())))
    }

    /// Whether a client's key is this one. The time does not depend on where they differ: hashes
    /// are compared, all bytes of them.
    pub(crate) fn is(&self, key: &[u8]) -> bool {
        self.0.ct_eq(&hash(key)).into()
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_and_never_shown() {
        let key = ApiKey::new("0123456789abcdef\n").unwrap();
        assert!(key.is(b"0123456789abcdef"));
        for other in ["0123456789abcdeg", "0123456789abcde", "0123456789abcdef0", ""] {
            assert!(!key.is(other.as_bytes()), "{other}");
        }
        assert_eq!(format!("{key:?}"), "ApiKey(…)");
        for weak in ["", "short", "0123456789 abcdef", "0123456789abcdé!"] {
            assert!(ApiKey::new(weak).is_err(), "{weak}");
        }
    }
}
