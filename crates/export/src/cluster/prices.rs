//! A user's own table of prices. None is built in: they change faster than programs do.
//!
//! ```toml
//! currency = "EUR"
//!
//! [gpus]                        # an hour of one card
//! H100 = 2.99
//!
//! [hosted."small-model"]        # a provider's model
//! per_million_tokens = 3.0      # of training
//! max_example_tokens = 65536
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::error::{Error, Result};

/// Prices in one currency.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Its name.
    pub currency: String,
    /// An hour of one card, by the card's name.
    #[serde(default)]
    pub gpus: BTreeMap<String, f64>,
    /// Models that providers train.
    #[serde(default)]
    pub hosted: BTreeMap<String, HostedPrice>,
}

/// What training of a provider's model costs.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostedPrice {
    /// The price of a million tokens of training.
    pub per_million_tokens: f64,
    /// The most tokens of an example; `None`: not known.
    #[serde(default)]
    pub max_example_tokens: Option<usize>,
}

impl Prices {
    /// Reads a table.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, has another key or a price that is none.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let refuse = |problem: String| Error::File { path: path.to_owned(), problem };
        let prices: Self = toml::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        let hosted = prices.hosted.iter().map(|(name, price)| (name, price.per_million_tokens));
        let mut all = prices.gpus.iter().map(|(name, price)| (name, *price)).chain(hosted);
        match all.find(|(_, price)| !(price.is_finite() && *price >= 0.0)) {
            Some((name, price)) => Err(refuse(format!(
                "the price of `{name}` is {price}, expected a number of at least 0"
            ))),
            None => Ok(prices),
        }
    }
}
