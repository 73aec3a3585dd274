//! Pages of keys and values that texts with the same beginning share.
//!
//! A whole page of a prompt is kept under everything that computed it: the overlay that answers
//! (the object, not its name), the model's weights as they were, and all tokens up to its end. A
//! text that begins with the same takes it instead of computing it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::pass::kv_cache::SomePage;
use crate::pass::overlay::Overlay;

/// What the first page of a text depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Root {
    /// The overlay's address; the cache keeps the overlay, so that no other can have it.
    overlay: usize,
    /// The text is longer than its family's first angles reach.
    long: bool,
}

/// What a page depends on: where the text is before it, and its own tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    before: Place,
    tokens: Box<[u32]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Begin(Root),
    After(u64),
}

#[derive(Debug)]
struct Kept {
    number: u64,
    page: SomePage,
    last_used: u64,
    /// Pages that follow it.
    followers: usize,
}

/// The pages that are kept.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    pages: HashMap<Key, Kept>,
    overlays: HashMap<usize, Arc<Overlay>>,
    /// Of the weights that computed them.
    version: u64,
    /// The most pages to keep.
    capacity: usize,
    clock: u64,
    /// Pages that the running step computes.
    begun: HashSet<Key>,
    /// Tokens that were taken instead of computed.
    hits: usize,
}

/// A text's way through the cache.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    root: Root,
    at: Option<Place>,
}

/// What the cache has of a text.
pub(super) enum Found {
    /// These pages, and the place behind them.
    Pages(Vec<SomePage>, Walk),
    /// Another text of this step computes the next page.
    Soon,
}

impl PrefixCache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// How many tokens were taken instead of computed.
    pub(super) fn hits(&self) -> usize {
        self.hits
    }

    /// Drops everything when the weights are others than those that computed it.
    pub(super) fn check(&mut self, version: u64) {
        if version != self.version {
            self.pages.clear();
            self.overlays.clear();
            self.version = version;
        }
        self.begun.clear();
    }

    /// The pages of a text's beginning. `tokens` are those of each page, of all pages that may be
    /// shared.
    pub(super) fn find(&mut self, overlay: &Arc<Overlay>, long: bool, tokens: &[&[u32]]) -> Found {
        let root = Root { overlay: Arc::as_ptr(overlay) as usize, long };
        let mut walk = Walk { root, at: Some(Place::Begin(root)) };
        if self.capacity == 0 {
            walk.at = None;
            return Found::Pages(Vec::new(), walk);
        }
        self.clock += 1;
        let mut pages = Vec::new();
        for tokens in tokens {
            let Some(before) = walk.at else { break };
            let key = Key { before, tokens: (*tokens).into() };
            match self.pages.get_mut(&key) {
                Some(kept) => {
                    kept.last_used = self.clock;
                    walk.at = Some(Place::After(kept.number));
                    pages.push(kept.page.clone());
                    self.hits += tokens.len();
                }
                None if self.begun.contains(&key) => return Found::Soon,
                None => {
                    self.begun.insert(key);
                    break;
                }
            }
        }
        Found::Pages(pages, walk)
    }

    /// Keeps the next page of a text.
    pub(super) fn keep(
        &mut self,
        walk: &mut Walk,
        overlay: &Arc<Overlay>,
        tokens: &[u32],
        page: &SomePage,
    ) {
        let Some(before) = walk.at else { return };
        self.overlays.entry(walk.root.overlay).or_insert_with(|| Arc::clone(overlay));
        let key = Key { before, tokens: tokens.into() };
        if let Some(kept) = self.pages.get(&key) {
            walk.at = Some(Place::After(kept.number));
            return;
        }
        self.make_room();
        self.clock += 1;
        let number = self.clock;
        if let Place::After(before) = before {
            match self.pages.values_mut().find(|kept| kept.number == before) {
                Some(kept) => kept.followers += 1,
                None => {
                    // What it follows has been dropped meanwhile, so nobody would find it.
                    walk.at = None;
                    return;
                }
            }
        }
        walk.at = Some(Place::After(number));
        let kept = Kept { number, page: page.clone(), last_used: number, followers: 0 };
        self.pages.insert(key, kept);
    }

    fn make_room(&mut self) {
        while self.pages.len() >= self.capacity.max(1) {
            let oldest = self
                .pages
                .iter()
                .filter(|(_, kept)| kept.followers == 0)
                .min_by_key(|(_, kept)| kept.last_used)
                .map(|(key, _)| key.clone());
            let Some(key) = oldest else { return };
            self.pages.remove(&key);
            if let Place::After(before) = key.before
                && let Some(kept) = self.pages.values_mut().find(|kept| kept.number == before)
            {
                kept.followers -= 1;
            }
        }
        let roots: HashSet<usize> = self
            .pages
            .keys()
            .filter_map(|key| match key.before {
                Place::Begin(root) => Some(root.overlay),
                Place::After(_) => None,
            })
            .collect();
        self.overlays.retain(|overlay, _| roots.contains(overlay));
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::pass::kv_cache::Pages;

    fn page() -> SomePage {
        let pages = Pages::new(1, (1, 1), (DType::F32, DType::F32), &Device::Cpu);
        pages.whole_page_for_tests()
    }

    fn pages_of(found: Found) -> (usize, Walk) {
        match found {
            Found::Pages(pages, walk) => (pages.len(), walk),
            Found::Soon => panic!("nobody computes it"),
        }
    }

    #[test]
    fn a_page_is_found_by_all_that_computed_it() {
        let mut cache = PrefixCache::new(8);
        let (a, b) = (Arc::new(Overlay::default()), Arc::new(Overlay::default()));
        let (first, second): (&[u32], &[u32]) = (&[1, 2], &[3, 4]);
        let (found, mut walk) = pages_of(cache.find(&a, false, &[first, second]));
        assert_eq!(found, 0);
        assert!(matches!(cache.find(&a, false, &[first]), Found::Soon));
        cache.keep(&mut walk, &a, first, &page());
        cache.keep(&mut walk, &a, second, &page());
        cache.check(0);
        assert_eq!(pages_of(cache.find(&a, false, &[first, second])).0, 2);
        assert_eq!(cache.hits(), 4);
        assert_eq!(pages_of(cache.find(&a, false, &[first, first])).0, 1);
        assert_eq!(pages_of(cache.find(&a, true, &[first])).0, 0, "other angles");
        assert_eq!(pages_of(cache.find(&b, false, &[first])).0, 0, "another overlay");
        assert_eq!(pages_of(cache.find(&a, false, &[second])).0, 0, "another beginning");
        cache.check(1);
        assert_eq!(pages_of(cache.find(&a, false, &[first])).0, 0, "other weights");
    }

    #[test]
    fn the_page_that_was_not_used_for_longest_goes_first_and_none_is_orphaned() {
        let mut cache = PrefixCache::new(3);
        let a = Arc::new(Overlay::default());
        let texts: [[&[u32]; 2]; 2] = [[&[1], &[2]], [&[3], &[4]]];
        for text in texts {
            let (_, mut walk) = pages_of(cache.find(&a, false, &text));
            for tokens in text {
                cache.keep(&mut walk, &a, tokens, &page());
            }
            cache.check(0);
        }
        assert_eq!(cache.pages.len(), 3);
        assert_eq!(pages_of(cache.find(&a, false, &texts[0])).0, 1, "its last page has gone");
        assert_eq!(pages_of(cache.find(&a, false, &texts[1])).0, 2);
    }
}
