//! Pages of keys and values that texts with the same beginning share.
//!
//! A whole page of a prompt is kept under everything that computed it: the overlay that answers
//! (the object, not its name), the model's weights as they were, and all tokens up to its end. A
//! text that begins with the same takes it instead of computing it; of the last page that it has in
//! common with another it takes the positions up to the first token that differs, as a copy.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use crate::pass::kv_cache::SomePage;
use crate::pass::overlay::Overlay;

/// What the first page of a text depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Root {
    /// The overlay's address. Every page has a pointer to it, so that no other can have it.
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
    /// Keeps the address, and nothing of what the overlay holds.
    overlay: Weak<Overlay>,
    last_used: u64,
    /// Pages that follow it.
    followers: usize,
}

/// The pages that are kept.
#[derive(Debug, Default)]
pub(super) struct PrefixCache {
    pages: HashMap<Key, Kept>,
    /// Of the weights that computed them.
    version: u64,
    /// The most pages to keep.
    capacity: usize,
    clock: u64,
    /// Pages that the running step computes.
    begun: HashSet<Key>,
    /// The tokens of the pages that follow a place.
    next: HashMap<Place, Vec<Box<[u32]>>>,
}

/// A text's way through the cache.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    root: Root,
    at: Option<Place>,
    /// Pages before the place.
    pages: usize,
    /// Of the weights when it began.
    version: u64,
}

impl Walk {
    /// How many pages of the text lie behind it.
    pub(super) fn pages(&self) -> usize {
        self.pages
    }

    /// Back to the text's beginning.
    pub(super) fn restart(&mut self) {
        (self.at, self.pages) = (self.at.map(|_| Place::Begin(self.root)), 0);
    }
}

/// Tokens of a page that are worth sharing without the rest of it.
const WORTH: usize = 8;

/// What the cache has of a text.
pub(super) enum Found {
    /// These pages and the place behind the whole ones, and how many tokens of one more page, which
    /// is the last.
    Pages(Vec<SomePage>, usize, Walk),
    /// Another text of this step computes the next page.
    Soon,
}

impl PrefixCache {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// Drops everything when the weights are others than those that computed it.
    pub(super) fn check(&mut self, version: u64) {
        if version != self.version {
            self.pages.clear();
            self.next.clear();
            self.version = version;
        }
        self.begun.clear();
    }

    /// The pages of a text's beginning. `tokens` are those of each page; the last is not taken whole,
    /// and is kept for others only if it `fills` its page.
    pub(super) fn find(
        &mut self,
        overlay: &Arc<Overlay>,
        long: bool,
        tokens: &[&[u32]],
        fills: bool,
    ) -> Found {
        let root = Root { overlay: Arc::as_ptr(overlay) as usize, long };
        let begin = Place::Begin(root);
        let mut walk = Walk { root, at: Some(begin), pages: 0, version: self.version };
        if self.capacity == 0 {
            walk.at = None;
            return Found::Pages(Vec::new(), 0, walk);
        }
        self.clock += 1;
        let mut pages = Vec::new();
        let mut before = begin;
        let Some((last, whole)) = tokens.split_last() else {
            return Found::Pages(pages, 0, walk);
        };
        let (mut rest, mut fills) = (*last, fills);
        for tokens in whole {
            let key = Key { before, tokens: (*tokens).into() };
            let Some(kept) = self.pages.get_mut(&key) else {
                (rest, fills) = (*tokens, true);
                break;
            };
            kept.last_used = self.clock;
            before = Place::After(kept.number);
            pages.push(kept.page.clone());
        }
        (walk.at, walk.pages) = (Some(before), pages.len());
        let alike = |tokens: &[u32]| tokens.iter().zip(rest).take_while(|(a, b)| a == b).count();
        // A page that begins alike; the text's last token is computed in any case.
        let next = self.next.get(&before).into_iter().flatten();
        let best = next.map(|tokens| (alike(tokens), tokens)).max_by_key(|(common, _)| *common);
        let soon = self.begun.iter().filter(|key| key.before == before);
        let soon = soon.map(|key| alike(&key.tokens)).max().unwrap_or(0);
        let common = best.as_ref().map_or(0, |(common, _)| *common);
        if soon >= WORTH && soon > common {
            return Found::Soon;
        }
        let mut part = 0;
        if let Some((common, tokens)) = best.filter(|(common, _)| *common >= WORTH)
            && let Some(kept) = self.pages.get_mut(&Key { before, tokens: tokens.clone() })
        {
            kept.last_used = self.clock;
            pages.push(kept.page.clone());
            part = common;
        }
        if fills {
            self.begun.insert(Key { before, tokens: rest.into() });
        }
        Found::Pages(pages, part, walk)
    }

    /// Keeps the next page of a text.
    pub(super) fn keep(
        &mut self,
        walk: &mut Walk,
        overlay: &Arc<Overlay>,
        tokens: &[u32],
        page: &SomePage,
    ) {
        walk.pages += 1;
        if walk.version != self.version {
            // The weights have changed since the text began.
            walk.at = None;
        }
        let Some(before) = walk.at else { return };
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
        self.next.entry(before).or_default().push(key.tokens.clone());
        let kept = Kept {
            number,
            page: page.clone(),
            overlay: Arc::downgrade(overlay),
            last_used: number,
            followers: 0,
        };
        self.pages.insert(key, kept);
    }

    /// Drops what overlays computed that are gone: nobody can ask for it any more.
    pub(super) fn forget_gone(&mut self) {
        let Self { pages, next, .. } = self;
        pages.retain(|key, kept| {
            let is_there = kept.overlay.strong_count() > 0;
            if !is_there {
                next.remove(&key.before); // all that follows a place is of one overlay
            }
            is_there
        });
    }

    /// How many pages are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pages.len()
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
            if let Some(next) = self.next.get_mut(&key.before) {
                next.retain(|tokens| *tokens != key.tokens);
                if next.is_empty() {
                    self.next.remove(&key.before);
                }
            }
            if let Place::After(before) = key.before
                && let Some(kept) = self.pages.values_mut().find(|kept| kept.number == before)
            {
                kept.followers -= 1;
            }
        }
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

    fn pages_of(found: Found) -> (usize, usize, Walk) {
        match found {
            Found::Pages(pages, part, walk) => (pages.len(), part, walk),
            Found::Soon => panic!("nobody computes it"),
        }
    }

    fn page_tokens(from: u32) -> Vec<u32> {
        (from..from + 32).collect()
    }

    #[test]
    fn a_page_is_found_by_all_that_computed_it() {
        let mut cache = PrefixCache::new(8);
        let (a, b) = (Arc::new(Overlay::default()), Arc::new(Overlay::default()));
        let (first, second) = (page_tokens(0), page_tokens(100));
        let text: [&[u32]; 3] = [&first, &second, &[7]];
        let (found, part, mut walk) = pages_of(cache.find(&a, false, &text, false));
        assert_eq!((found, part), (0, 0));
        assert!(matches!(cache.find(&a, false, &text, false), Found::Soon));
        cache.keep(&mut walk, &a, &first, &page());
        assert_eq!(Arc::strong_count(&a), 1, "a page keeps nothing of what computed it");
        cache.keep(&mut walk, &a, &second, &page());
        let mut find = |overlay: &Arc<Overlay>, long, text: &[&[u32]]| {
            cache.check(0);
            let (found, part, _) = pages_of(cache.find(overlay, long, text, false));
            (found, part)
        };
        assert_eq!(find(&a, false, &text), (2, 0));
        assert_eq!(find(&a, false, &[&first, &first, &[7]]), (1, 0));
        // The last page is never taken whole, but as far as it is the same.
        assert_eq!(find(&a, false, &[&first, &second]), (2, 32));
        assert_eq!(find(&a, false, &[&first, &second[..20]]), (2, 20));
        assert_eq!(find(&a, false, &[&first[..7]]), (0, 0), "too few to be worth it");
        assert_eq!(find(&a, true, &text), (0, 0), "other angles");
        assert_eq!(find(&b, false, &text), (0, 0), "another overlay");
        assert_eq!(find(&a, false, &[&second, &[7]]), (0, 0), "another beginning");
        let (_, _, mut walk) = pages_of(cache.find(&b, false, &text, false));
        cache.check(1);
        assert_eq!(pages_of(cache.find(&a, false, &text, false)).0, 0, "other weights");
        cache.keep(&mut walk, &b, &first, &page());
        cache.check(1);
        assert_eq!(pages_of(cache.find(&b, false, &text, false)).0, 0, "begun with others");
    }

    #[test]
    fn pages_go_with_the_overlay_that_computed_them() {
        let mut cache = PrefixCache::new(8);
        let (a, b) = (Arc::new(Overlay::default()), Arc::new(Overlay::default()));
        let (first, second) = (page_tokens(0), page_tokens(100));
        for overlay in [&a, &b] {
            let text: [&[u32]; 3] = [&first, &second, &[7]];
            let (_, _, mut walk) = pages_of(cache.find(overlay, false, &text, false));
            cache.keep(&mut walk, overlay, &first, &page());
            cache.keep(&mut walk, overlay, &second, &page());
            cache.check(0);
        }
        drop(a);
        // Its address is nobody else's as long as a page has it.
        assert!(cache.pages.values().filter(|kept| kept.overlay.strong_count() == 0).count() == 2);
        cache.forget_gone();
        assert_eq!((cache.pages.len(), cache.next.len()), (2, 2));
        let found = cache.find(&b, false, &[&first, &second, &[7]], false);
        assert_eq!(pages_of(found).0, 2);
    }

    #[test]
    fn nobody_waits_for_a_page_that_does_not_fill() {
        let mut cache = PrefixCache::new(8);
        let a = Arc::new(Overlay::default());
        let short = page_tokens(0);
        pages_of(cache.find(&a, false, &[&short[..20]], false));
        pages_of(cache.find(&a, false, &[&short[..20]], false));
        pages_of(cache.find(&a, false, &[&short], true));
        assert!(matches!(cache.find(&a, false, &[&short[..20]], false), Found::Soon));
    }

    #[test]
    fn the_page_that_was_not_used_for_longest_goes_first_and_none_is_orphaned() {
        let mut cache = PrefixCache::new(3);
        let a = Arc::new(Overlay::default());
        let texts = [[page_tokens(0), page_tokens(100)], [page_tokens(200), page_tokens(300)]];
        for text in &texts {
            let (_, _, mut walk) =
                pages_of(cache.find(&a, false, &[&text[0], &text[1], &[7]], false));
            for tokens in text {
                cache.keep(&mut walk, &a, tokens, &page());
            }
            cache.check(0);
        }
        assert_eq!(cache.pages.len(), 3);
        let mut find = |text: &[Vec<u32>; 2]| {
            cache.check(0);
            pages_of(cache.find(&a, false, &[&text[0], &text[1], &[7]], false)).0
        };
        assert_eq!(find(&texts[0]), 1, "its last page has gone");
        assert_eq!(find(&texts[1]), 2);
    }
}
