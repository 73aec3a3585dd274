//! Which of some given answers a model finds likeliest, without scoring all of them whole.
//!
//! The answers to one question form a [`Trie`]. It is searched from the likeliest beginning on: a
//! branch whose beginning is already less likely than the best whole answer, by more than a margin,
//! is left where it is, since more tokens can only lower it.

use crate::error::{Error, Result};
use crate::generate::score::{Asked, Beginnings, CHUNK, Part, Scored, Text};
use crate::generate::trie::{Stretch, Trie};
use crate::model::Model;
use crate::pass::kv_cache::{Pages, TextCache};

/// Prompt tokens whose keys and values are held at a time.
const HELD_TOKENS: usize = 4096;

/// A question and the answers to choose from, as token ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// What stands before the answer, at least one token.
    pub prompt: Vec<u32>,
    /// The answers, each at least one token. With the token that ends an answer, one that begins
    /// with another is told from it.
    pub answers: Vec<Vec<u32>>,
}

/// How likely a model finds one of some answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChoiceScore {
    /// The natural logarithm of its probability, or more than that (see `is_exact`).
    pub log_likelihood: f64,
    /// How many tokens were scored: all, if it is exact.
    pub tokens: usize,
    /// Whether all of its tokens were scored. Otherwise `log_likelihood` is that of its beginning,
    /// which is less than that of the likeliest answer by more than the margin.
    pub is_exact: bool,
}

/// One question while it is searched: those of its answers whose texts have the same angles.
struct Search<'a> {
    context: Part<'a>,
    trie: Trie,
    /// The numbers of its answers among the scores.
    answers: &'a [usize],
    /// Branches that may be followed.
    open: Vec<(Stretch, TextCache)>,
}

impl Search<'_> {
    fn open_below(&mut self, node: usize, cache: TextCache) {
        let stretches = self.trie.stretches(node);
        self.open.extend(stretches.into_iter().map(|nodes| (nodes, cache.clone())));
    }

    /// The branches to follow next: the likeliest one until an answer is whole, then all that may
    /// still lead to an answer within the margin.
    fn next(
        &mut self,
        texts: &[Text],
        scores: &[Vec<Scored>],
        margin: f64,
    ) -> Vec<(Stretch, TextCache)> {
        let sum =
            |number: usize| scores[number].iter().map(|(token, _)| f64::from(*token)).sum::<f64>();
        let whole = self.answers.iter().copied();
        let whole = whole.filter(|number| scores[*number].len() == texts[*number].rest().len());
        let best = whole.map(sum).fold(f64::NEG_INFINITY, f64::max);
        let reached = |(nodes, _): &(Stretch, TextCache)| sum(self.trie.number(nodes[0]));
        if best == f64::NEG_INFINITY {
            let likeliest = (0..self.open.len())
                .max_by(|a, b| reached(&self.open[*a]).total_cmp(&reached(&self.open[*b])));
            return likeliest.map(|at| self.open.swap_remove(at)).into_iter().collect();
        }
        self.open.retain(|branch| reached(branch) >= best - margin);
        // A token at a time, since each may make its branch too unlikely.
        let mut next = std::mem::take(&mut self.open);
        next.iter_mut().for_each(|(nodes, _)| nodes.truncate(1));
        next
    }
}

impl Model {
    /// How likely each answer to each question is. Answers that are less likely than the best by
    /// more than `margin` (in nats; `f64::INFINITY`: none) need not be scored to their end:
    /// `margin` 0 finds the likeliest answer only, 7 all that are at least a thousandth as likely.
    ///
    /// # Errors
    /// When a prompt or an answer is empty, has an id outside the vocabulary or is longer than the
    /// context; another number of questions than overlays.
    pub fn score_choices(
        &self,
        questions: &[Choices],
        margin: f64,
    ) -> Result<Vec<Vec<ChoiceScore>>> {
        if margin.is_nan() || margin < 0.0 {
            return Err(Error::Argument {
                field: "margin",
                value: margin.to_string(),
                expected: "a number of nats, at least 0",
            });
        }
        let snapshot = self.snapshot();
        snapshot.check_count("questions", questions.len())?;
        let mut texts = Vec::new();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (row, question) in questions.iter().enumerate() {
            if question.prompt.is_empty() {
                return Err(Error::Argument {
                    field: "Choices.prompt",
                    value: format!("empty in question {row}"),
                    expected: "at least one token",
                });
            }
            let first = texts.len();
            for answer in &question.answers {
                let text = Text::new(snapshot.row(row), &question.prompt, answer);
                let text = text.and_then(|text| self.check(&text).map(|()| text));
                texts.push(text.map_err(Error::of_item("questions", row))?);
            }
            groups.push((first..texts.len()).collect());
        }
        // Answers of other angles are asked for apart: the prompt is computed with these, too.
        let asked: Vec<Vec<usize>> = groups
            .iter()
            .flat_map(|group| {
                let (long, short): (Vec<usize>, Vec<usize>) =
                    group.iter().partition(|number| self.is_long(&texts[**number]));
                [short, long]
            })
            .filter(|group| !group.is_empty())
            .collect();
        let pages = self.pages();
        let begun = self.beginnings(&texts, &asked, &pages)?;
        let mut scores: Vec<Vec<Scored>> = vec![Vec::new(); texts.len()];
        let mut rest = &asked[..];
        while !rest.is_empty() {
            let mut tokens = 0;
            let fit = rest.iter().take_while(|group| {
                tokens += texts[group[0]].context().len();
                tokens <= HELD_TOKENS
            });
            let count = fit.count().max(1);
            self.search(&texts, &rest[..count], margin, (&begun, &pages), &mut scores)?;
            rest = &rest[count..];
        }
        let score = |number: &usize| ChoiceScore {
            log_likelihood: scores[*number].iter().map(|(token, _)| f64::from(*token)).sum(),
            tokens: scores[*number].len(),
            is_exact: scores[*number].len() == texts[*number].rest().len(),
        };
        Ok(groups.iter().map(|group| group.iter().map(score).collect()).collect())
    }

    fn search(
        &self,
        texts: &[Text],
        groups: &[Vec<usize>],
        margin: f64,
        (begun, pages): (&Beginnings, &Pages),
        scores: &mut [Vec<Scored>],
    ) -> Result<()> {
        let (contexts, caches) = self.contexts(texts, groups, begun, pages);
        let (caches, last) = self.prefilled(pages, &contexts, caches, &mut |_, _, _| Ok(()))?;
        let mut searches: Vec<Search<'_>> = groups
            .iter()
            .zip(&contexts)
            .map(|(group, context)| Search {
                context: *context,
                trie: Trie::of(group.iter().map(|number| (*number, texts[*number].rest()))),
                answers: group,
                open: Vec::new(),
            })
            .collect();
        let roots = searches.iter().zip(last).map(|(search, hidden)| Asked {
            hidden,
            overlay: search.context.overlay,
            tokens: search.trie.asked(Trie::ROOT),
        });
        self.score_rows(&roots.collect::<Vec<_>>(), scores)?;
        for (search, cache) in searches.iter_mut().zip(caches) {
            search.open_below(Trie::ROOT, cache);
        }
        loop {
            let mut followed = Vec::new();
            for (at, search) in searches.iter_mut().enumerate() {
                let next = search.next(texts, scores, margin);
                followed.extend(next.into_iter().map(|(nodes, cache)| (at, nodes, cache)));
            }
            if followed.is_empty() {
                return Ok(());
            }
            // Branches of all questions go through the model together.
            while !followed.is_empty() {
                let mut tokens = 0;
                let fit = followed.iter().take_while(|(_, nodes, _)| {
                    tokens += nodes.len();
                    tokens <= CHUNK
                });
                let chunk: Vec<_> = followed.drain(..fit.count().max(1)).collect();
                self.follow(chunk, &mut searches, pages, scores)?;
            }
        }
    }

    /// Some branches through the model.
    fn follow(
        &self,
        branches: Vec<(usize, Stretch, TextCache)>,
        searches: &mut [Search<'_>],
        pages: &Pages,
        scores: &mut [Vec<Scored>],
    ) -> Result<()> {
        let mut caches = Vec::new();
        let mut taken: Vec<(usize, Stretch, Vec<u32>)> = Vec::new();
        for (at, nodes, cache) in branches {
            let ids = searches[at].trie.tokens(&nodes);
            caches.push(cache);
            taken.push((at, nodes, ids));
        }
        let parts: Vec<Part<'_>> =
            taken.iter().map(|(at, _, ids)| Part { ids, ..searches[*at].context }).collect();
        // The output head meets the tokens of all branches at once.
        let mut asked = Vec::new();
        let (caches, _) = self.prefilled(pages, &parts, caches, &mut |branch, from, hidden| {
            let (at, nodes, _) = &taken[branch];
            let search = &searches[*at];
            for row in 0..hidden.dim(0)? {
                asked.push(Asked {
                    hidden: hidden.narrow(0, row, 1)?,
                    overlay: search.context.overlay,
                    tokens: search.trie.asked(nodes[from + row]),
                });
            }
            Ok(())
        })?;
        self.score_rows(&asked, scores)?;
        drop(asked);
        drop(parts);
        for ((at, nodes, _), cache) in taken.iter().zip(caches) {
            if let Some(last) = nodes.last() {
                searches[*at].open_below(*last, cache);
            }
        }
        Ok(())
    }
}
