//! The queue of an engine: requests that wait for a place, and whose turn is next.
//!
//! Places are shared by overlay, not by request: an adapter with a hundred waiting requests has the
//! same claim to the next place as one with a single request.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use crate::generate::engine::{GenerationRequest, RequestId};
use crate::pass::overlay::Overlay;

/// A request that has not begun.
pub(super) struct Waiting {
    pub(super) id: RequestId,
    pub(super) request: GenerationRequest,
    pub(super) overlay: Arc<Overlay>,
}

/// When an overlay had a place last, or came. The weak pointer keeps the address from other overlays.
struct Turn {
    overlay: Weak<Overlay>,
    number: u64,
}

/// Requests in the order in which they came.
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    /// By the overlay's address.
    turns: HashMap<usize, Turn>,
    clock: u64,
}

fn address(overlay: &Arc<Overlay>) -> usize {
    Arc::as_ptr(overlay) as usize
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        // One that had no turn yet is as old as its first request: else ever new ones would keep
        // all others waiting.
        let number = self.clock;
        self.turns
            .entry(address(&waiting.overlay))
            .or_insert_with(|| Turn { overlay: Arc::downgrade(&waiting.overlay), number });
        self.waiting.push_back(waiting);
    }

    pub(super) fn retain(&mut self, keep: impl FnMut(&Waiting) -> bool) {
        self.waiting.retain(keep);
    }

    /// Everything, in the order in which it came.
    pub(super) fn take_all(&mut self) -> VecDeque<Waiting> {
        std::mem::take(&mut self.waiting)
    }

    /// The place in the queue of the request that is next: the first one of the overlay with the
    /// fewest `running` answers, and of equals of the one that had a turn the longest ago.
    pub(super) fn next(&self, running: impl Fn(&Arc<Overlay>) -> usize) -> Option<usize> {
        let mut best: Option<(usize, (usize, u64))> = None;
        let mut seen = Vec::new();
        for (place, waiting) in self.waiting.iter().enumerate() {
            let key = address(&waiting.overlay);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let last = self.turns.get(&key).map_or(0, |turn| turn.number);
            let claim = (running(&waiting.overlay), last);
            if best.is_none_or(|(_, best)| claim < best) {
                best = Some((place, claim));
            }
        }
        best.map(|(place, _)| place)
    }

    pub(super) fn get(&self, place: usize) -> Option<&Waiting> {
        self.waiting.get(place)
    }

    /// Takes a request out, which is its overlay's turn.
    pub(super) fn take(&mut self, place: usize) -> Option<Waiting> {
        let waiting = self.waiting.remove(place)?;
        self.clock += 1;
        let turn = Turn { overlay: Arc::downgrade(&waiting.overlay), number: self.clock };
        self.turns.insert(address(&waiting.overlay), turn);
        Some(waiting)
    }

    /// Forgets the turns of overlays that are gone.
    pub(super) fn forget_gone(&mut self) {
        self.turns.retain(|_, turn| turn.overlay.strong_count() > 0);
    }
}

/// Items in turns: the first of each overlay, in the order in which they come, then the second of
/// each. The number of overlays, and so of first ones, goes with them.
pub(super) fn in_turns(items: impl IntoIterator<Item = (usize, usize)>) -> (Vec<usize>, usize) {
    let mut counts: HashMap<usize, usize> = HashMap::new();
    let mut ranked: Vec<(usize, usize)> = items
        .into_iter()
        .map(|(item, overlay)| {
            let count = counts.entry(overlay).or_default();
            *count += 1;
            (*count, item)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank); // stable
    (ranked.into_iter().map(|(_, item)| item).collect(), counts.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::GenerationConfig;

    fn queue(overlays: &[&Arc<Overlay>]) -> Queue {
        let mut queue = Queue::default();
        for (number, overlay) in (0..).zip(overlays) {
            let request = GenerationRequest::new([1u32], &GenerationConfig::default());
            let id = RequestId::for_tests(number);
            queue.push(Waiting { id, request, overlay: Arc::clone(overlay) });
        }
        queue
    }

    #[test]
    fn overlays_take_turns_whatever_number_of_requests_each_has() {
        let (a, b, c) = (Arc::default(), Arc::default(), Arc::default());
        let mut queue = queue(&[&a, &a, &a, &a, &b, &b, &c]);
        let mut order = Vec::new();
        while let Some(place) = queue.next(|_| 0) {
            order.push(queue.take(place).unwrap().id);
        }
        assert_eq!(order, [0, 4, 6, 1, 5, 2, 3].map(RequestId::for_tests));
        drop(a);
        queue.forget_gone();
        assert_eq!(queue.turns.len(), 2);
    }

    #[test]
    fn ever_new_overlays_do_not_keep_the_others_waiting() {
        let base = Arc::default();
        let mut queue = queue(&[&base, &base]);
        assert_eq!(queue.take(0).unwrap().id, RequestId::for_tests(0));
        let mut served = Vec::new();
        for number in 10..20 {
            for number in [number, number + 100] {
                let request = GenerationRequest::new([1u32], &GenerationConfig::default());
                let id = RequestId::for_tests(number);
                queue.push(Waiting { id, request, overlay: Arc::default() });
            }
            let next = queue.next(|_| 0).unwrap();
            served.push(queue.take(next).unwrap().id);
        }
        assert_eq!(served[..2], [1, 10].map(RequestId::for_tests));
    }

    #[test]
    fn the_overlay_with_the_fewest_answers_comes_first() {
        let (a, b) = (Arc::default(), Arc::default());
        let queue = queue(&[&a, &b]);
        let running = |overlay: &Arc<Overlay>| usize::from(Arc::ptr_eq(overlay, &a));
        assert_eq!(queue.next(running), Some(1));
        assert_eq!(queue.next(|_| 3), Some(0), "the order in which they came");
    }

    #[test]
    fn items_come_by_their_rank_within_their_overlay() {
        let items = [(0, 7), (1, 7), (2, 7), (3, 8), (4, 8)];
        assert_eq!(in_turns(items), (vec![0, 3, 1, 4, 2], 2));
    }
}
