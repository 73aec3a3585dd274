//! The server that is asked, and addresses.

use std::fmt;

const DEFAULT: &str = "https://huggingface.co";

/// The address of a hub. It may have a user's name and password in it, which are never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Endpoint(String);

impl Endpoint {
    pub(crate) fn new(address: impl AsRef<str>) -> Self {
        Self(address.as_ref().trim().trim_end_matches('/').to_owned())
    }

    /// The address of a path, which begins with a slash.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }

    /// Whether an address is this server's: the same scheme, host and port.
    pub(crate) fn owns(&self, url: &str) -> bool {
        origin(url).is_some_and(|to| Some(to) == origin(&self.0))
    }

    /// # Errors
    /// It is no address that can be asked.
    pub(crate) fn check(&self) -> Result<(), String> {
        match origin(&self.0) {
            Some(_) if !self.0.contains(|c: char| c.is_whitespace() || c.is_control()) => Ok(()),
            _ => Err(format!(
                "the endpoint `{}` is no address: expected `https://host` (HF_ENDPOINT)",
                crate::said::said(&self.to_string(), None)
            )),
        }
    }
}

impl Default for Endpoint {
    fn default() -> Self {
        Self::new(DEFAULT)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = match self.0.split_once("://") {
            Some((scheme, rest)) => (format!("{scheme}://"), rest),
            None => (String::new(), &*self.0),
        };
        write!(f, "{scheme}{}", rest.rsplit('@').next().unwrap_or_default())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

/// Scheme, host and port: `https://example.org:443`.
fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#', '\\']).next()?;
    // A name and a password before the host.
    let host = authority.rsplit('@').next()?.to_ascii_lowercase();
    let scheme = scheme.to_ascii_lowercase();
    let port = match scheme.as_str() {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    let has_port = host.rsplit(':').next().is_some_and(|port| {
        port.len() < host.len() && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
    });
    (!host.is_empty()).then(|| {
        if has_port { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
    })
}

/// The address that a redirect leads to.
pub(crate) fn target(from: &str, location: &str) -> Option<String> {
    let (scheme, rest) = from.split_once("://")?;
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    if location.starts_with('/') {
        let authority = rest.split(['/', '?', '#']).next()?;
        return Some(format!("{scheme}://{authority}{location}"));
    }
    origin(location).map(|_| location.to_owned())
}

/// A part of an address: a branch's name may have a slash, a file's a space.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                quoted.push(char::from(byte));
            }
            byte => quoted.push_str(&format!("%{byte:02X}")),
        }
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same = |a: &str, b: &str| Endpoint::new(a).owns(b);
        assert!(same("https://hub.example", "https://HUB.example:443/x?y"));
        assert!(same("http://127.0.0.1:80/", "http://127.0.0.1"));
        for other in [
            "http://hub.example/x",
            "https://hub.example:8443/x",
            "https://hub.example.evil/x",
            "https://hub.example@evil/x",
            "https://evil/hub.example",
            "https://evil\\@hub.example/",
            "ftp://hub.example/",
            "hub.example",
        ] {
            assert!(!same("https://hub.example", other), "{other}");
        }
    }

    #[test]
    fn redirects_lead_to_a_path_or_an_address() {
        let from = "https://hub.example/a/b?c";
        assert_eq!(target(from, "/x").as_deref(), Some("https://hub.example/x"));
        assert_eq!(target(from, "//cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(target(from, "http://cdn/x").as_deref(), Some("http://cdn/x"));
        assert_eq!(target(from, "file:///x"), None);
    }

    #[test]
    fn a_password_is_not_shown() {
        for address in ["http://me:pw@hub/", "http://me:p/w@hub", "http://me:p@pw@hub"] {
            let endpoint = Endpoint::new(address);
            assert_eq!(format!("{endpoint} {endpoint:?}"), "http://hub Endpoint(http://hub)");
        }
        assert_eq!(Endpoint::new("me:pw@hub").to_string(), "hub");
        assert_eq!(Endpoint::new("http://me:pw@hub/").at("/x"), "http://me:pw@hub/x");
        for none in ["hub", "ftp://hub", "http://", "http://a b", "file:///etc"] {
            assert!(Endpoint::new(none).check().is_err(), "{none}");
        }
    }

    #[test]
    fn a_branch_is_quoted() {
        assert_eq!(quoted("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(quoted("v1.0"), "v1.0");
        assert_eq!(quoted("a?b#ü"), "a%3Fb%23%C3%BC");
    }
}
