//! The token by which the hub knows who asks. It is shown to the endpoint, and to nobody else: no error,
//! log or `Debug` has a letter of it.

use std::fmt;

/// The secret of an account.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn new(token: impl Into<String>) -> Self {
        Self(token.into().trim().to_owned())
    }

    /// The value of the header `Authorization`.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Whether it can stand in a header, as every token of the hub can.
    pub(crate) fn is_usable(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|byte| byte.is_ascii_graphic())
    }

    /// Whether a text has it within.
    pub(crate) fn is_in(&self, text: &str) -> bool {
        !self.0.is_empty() && text.contains(&self.0)
    }

    pub(crate) fn is_in_bytes(&self, bytes: &[u8]) -> bool {
        let token = self.0.as_bytes();
        !token.is_empty() && bytes.windows(token.len()).any(|window| window == token)
    }

    /// A text of somebody else without it, should it be in there.
    pub(crate) fn hidden_in(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, "[token]") }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_not_shown() {
        let token = Token::new(" hf_abc\n");
        assert_eq!(token.bearer(), "Bearer hf_abc");
        assert_eq!(format!("{token:?} {:?}", Some(&token)), "Token(hidden) Some(Token(hidden))");
        assert_eq!(token.hidden_in("no hf_abc here"), "no [token] here");
        assert!(token.is_usable() && !Token::new("hf_a\nbc").is_usable());
    }
}
