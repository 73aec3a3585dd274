//! Continuations of one context as a tree, in which tokens that several begin with stand once.

use std::collections::HashMap;

/// The tree.
pub(super) struct Trie {
    nodes: Vec<Node>,
}

/// A token after those above it. The last token of a continuation has no node, since none follows.
struct Node {
    token: u32,
    children: Vec<usize>,
    /// What follows here, and in which continuation.
    asked: Vec<(u32, usize)>,
    /// One of the continuations that go through here.
    number: usize,
}

/// Nodes one below the other without a branch between them.
pub(super) type Stretch = Vec<usize>;

impl Trie {
    /// The context.
    pub(super) const ROOT: usize = 0;

    /// Of numbered continuations.
    pub(super) fn of<'a>(continuations: impl IntoIterator<Item = (usize, &'a [u32])>) -> Self {
        let node = |token, number| Node { token, children: Vec::new(), asked: Vec::new(), number };
        let mut nodes = vec![node(0, 0)];
        let mut places: HashMap<(usize, u32), usize> = HashMap::new();
        for (number, ids) in continuations {
            let mut at = Self::ROOT;
            let Some((last, before)) = ids.split_last() else { continue };
            for token in before {
                nodes[at].asked.push((*token, number));
                let next = *places.entry((at, *token)).or_insert(nodes.len());
                if next == nodes.len() {
                    nodes.push(node(*token, number));
                    nodes[at].children.push(next);
                }
                at = next;
            }
            nodes[at].asked.push((*last, number));
        }
        Self { nodes }
    }

    /// The tokens that follow a node, each with the number of its continuation.
    pub(super) fn asked(&self, node: usize) -> &[(u32, usize)] {
        &self.nodes[node].asked
    }

    /// One of the continuations that go through a node.
    pub(super) fn number(&self, node: usize) -> usize {
        self.nodes[node].number
    }

    /// The tokens of some nodes.
    pub(super) fn tokens(&self, nodes: &[usize]) -> Vec<u32> {
        nodes.iter().map(|node| self.nodes[*node].token).collect()
    }

    /// Each branch below a node, up to the next one.
    pub(super) fn stretches(&self, node: usize) -> Vec<Stretch> {
        let stretch = |first: &usize| {
            let mut nodes = vec![*first];
            let mut at = *first;
            while let [only] = self.nodes[at].children[..] {
                nodes.push(only);
                at = only;
            }
            nodes
        };
        self.nodes[node].children.iter().map(stretch).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_alike_stands_once() {
        let texts: [&[u32]; 5] = [&[1, 2, 3], &[1, 2, 4, 5, 6], &[1, 2, 4, 5], &[7], &[1, 2, 3]];
        let trie = Trie::of(texts.into_iter().enumerate());
        assert_eq!(trie.asked(Trie::ROOT), [(1, 0), (1, 1), (1, 2), (7, 3), (1, 4)]);
        let [first] = &trie.stretches(Trie::ROOT)[..] else { panic!("one branch has nodes") };
        // Only 4 goes on after 1, 2; nothing goes on after 3, and 6 is the last.
        assert_eq!(trie.tokens(first), [1, 2, 4, 5]);
        assert_eq!(trie.asked(first[1]), [(3, 0), (4, 1), (4, 2), (3, 4)]);
        assert_eq!(trie.asked(first[2]), [(5, 1), (5, 2)]);
        assert_eq!(trie.asked(first[3]), [(6, 1)]);
        assert_eq!(trie.number(first[2]), 1);
    }
}
