//! Text from a model: greedy or sampled, one prompt or many at once.
//!
//! A batch is padded on the left, so that all rows write their next token into one column; rows
//! that have ended leave the batch. Logits are computed for the last position only. Who answers is
//! fixed when a call begins.

mod config;
mod sampler;
mod text_stream;

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use tunebook_progress::ProgressBar;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::pass::Pass;
use crate::pass::positions::Positions;
use crate::pass::snapshot::Snapshot;
pub use config::GenerationConfig;
use sampler::Sampler;
use text_stream::TextStream;

/// One row while it is being generated.
struct Row<'a> {
    /// Its place among the prompts.
    index: usize,
    /// The most tokens of its answer, by what is asked for and by its own room in the context.
    limit: usize,
    sampler: Sampler,
    stream: TextStream<'a>,
}

/// Shows text as it comes: the number of the prompt, and the next piece of its text.
pub(crate) type OnText<'a> = &'a mut dyn FnMut(usize, &str);

/// What was generated for one prompt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generated {
    /// Without the token that ended it.
    pub(crate) ids: Vec<u32>,
    /// Without special tokens and without the stop text.
    pub(crate) text: String,
}

/// Continues each prompt. Returns the answers in the order of the prompts; a request to stop
/// returns the answers so far.
pub(crate) fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    config: &GenerationConfig,
    on_text: OnText<'_>,
) -> Result<Vec<Generated>> {
    config.validate()?;
    let snapshot = model.snapshot();
    if let Some(texts) = snapshot.rows().filter(|texts| *texts != prompts.len()) {
        return Err(Error::Argument {
            field: "prompts",
            value: format!("{} texts for {texts} overlays", prompts.len()),
            expected: "a text for each overlay of this handle",
        });
    }
    let context = model.config().max_position_embeddings;
    for (text, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() {
            return Err(Error::Argument {
                field: "prompt",
                value: "empty".to_owned(),
                expected: "at least one token",
            });
        }
        let tokens = snapshot.row(text).positions_before() + prompt.len();
        if tokens >= context {
            return Err(Error::ContextLength {
                tokens,
                context,
                advice: ", as at least one position must be left for the answer",
            });
        }
    }
    // Prompts of similar length together: the least padding.
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(prompts[*index].len()));
    let mut answers = vec![Generated::default(); prompts.len()];
    // A single answer is shown as it comes, by those who want to see it.
    let bar = (prompts.len() > 1)
        .then(|| ProgressBar::new("Generating", Some(prompts.len() as u64)).unit("answer"));
    for group in order.chunks(config.batch_size) {
        if snapshot.stop().requested() {
            break;
        }
        let batch = Batch { model, prompts, group, config, snapshot: &snapshot };
        match batch.generate(on_text, bar.as_ref(), &mut answers) {
            Err(Error::Interrupted(_)) => break,
            result => result?,
        }
    }
    if let Some(bar) = &bar {
        bar.message("");
    }
    Ok(answers)
}

/// The prompts of one batch, whose places among all are `group`, the longest first.
struct Batch<'a> {
    model: &'a Model,
    prompts: &'a [Vec<u32>],
    group: &'a [usize],
    config: &'a GenerationConfig,
    snapshot: &'a Snapshot,
}

impl Batch<'_> {
    fn generate(
        &self,
        on_text: OnText<'_>,
        bar: Option<&ProgressBar>,
        answers: &mut [Generated],
    ) -> Result<()> {
        let Self { model, prompts, group, config, snapshot } = *self;
        let Some(longest) = group.first().map(|index| prompts[*index].len()) else {
            return Ok(());
        };
        let device = model.device();
        let context = model.config().max_position_embeddings;
        let vocab_size = model.config().vocab_size;
        let mut snapshot = snapshot.select(group);
        let mut rows: Vec<Row<'_>> = group
            .iter()
            .enumerate()
            .map(|(row, index)| {
                let taken = snapshot.row(row).positions_before() + prompts[*index].len();
                Row {
                    index: *index,
                    limit: config.max_new_tokens.min(context - taken),
                    sampler: Sampler::new(config, *index, &prompts[*index], vocab_size),
                    stream: TextStream::new(model.tokenizer(), &config.stop),
                }
            })
            .collect();
        let most_new = rows.iter().map(|row| row.limit).max().unwrap_or(0);
        if most_new == 0 {
            return Ok(());
        }
        // Columns of the cache before those of the tokens, in every row.
        let (past, virtual_tokens) = (snapshot.past_count(), snapshot.virtual_count());
        let before = past + virtual_tokens;
        let capacity = before + longest + most_new;
        let mut cache = model.cache(group.len(), capacity)?;
        let cache_ends_at = model.decoder().cache_ends_at();
        let pad = model.pad_id();
        // The columns of each row that hold padding: before its tokens, and in the cache.
        let mut padding: Vec<usize> =
            group.iter().map(|index| longest - prompts[*index].len()).collect();
        let missing = snapshot.missing(group.len());
        let mut starts: Vec<usize> =
            padding.iter().zip(&missing).map(|(padding, missing)| padding + missing).collect();
        let mut ids: Vec<u32> = Vec::with_capacity(group.len() * longest);
        for (index, padding) in group.iter().zip(&padding) {
            ids.extend(std::iter::repeat_n(pad, *padding));
            ids.extend(&prompts[*index]);
        }
        let (mut from, mut t) = (0, longest);
        let mut written = 0;
        loop {
            if let Some(most) = cache_ends_at
                && from > 0
                && starts.iter().any(|start| before + from - start == most)
            {
                // A text has outgrown the angles that it began with, so its keys are computed anew.
                ids.clear();
                for (row, padding) in rows.iter().zip(&padding) {
                    ids.extend(std::iter::repeat_n(pad, *padding));
                    ids.extend(prompts[row.index].iter().chain(&row.stream.ids));
                }
                cache = model.cache(rows.len(), capacity)?;
                (from, t) = (0, from + 1);
            }
            let input = Tensor::from_vec(std::mem::take(&mut ids), (rows.len(), t), device)?;
            // The first call takes what stands before the tokens along; columns count with it from
            // then on.
            let positions = match from {
                0 => Positions::padded(past, virtual_tokens + t, &starts, device)?,
                _ => Positions::padded(before + from, t, &starts, device)?,
            };
            // [b, t] -> [b, vocab] -> [b·vocab]
            let logits = model.next_logits(&input, &Pass::new(&snapshot, &positions), &mut cache);
            let mut logits = match logits {
                Ok(logits) => logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?,
                Err(error) => {
                    if matches!(error, Error::Interrupted(_)) {
                        for row in &mut rows {
                            row.finish(on_text, answers)?;
                        }
                    }
                    return Err(error);
                }
            };
            (from, t) = (from + t, 1);
            let mut going = Vec::with_capacity(rows.len());
            // Sampling sorts the vocabulary for each row, which would take longer than the decoder.
            let next = rows
                .par_iter_mut()
                .zip(logits.par_chunks_mut(vocab_size))
                .map(|(row, logits)| row.sampler.next(logits))
                .collect::<Result<Vec<_>>>()?;
            for (row, id) in rows.iter_mut().zip(next) {
                let ended = model.is_end(id);
                if !ended {
                    on_text(row.index, row.stream.push(id)?);
                }
                let go_on = !ended && !row.stream.stopped && row.stream.ids.len() < row.limit;
                if go_on {
                    ids.push(id);
                } else {
                    row.finish(on_text, answers)?;
                }
                going.push(go_on);
            }
            if let Some(bar) = bar {
                written += 1;
                bar.message(format!("token {written} of at most {most_new}"));
                bar.advance(going.iter().filter(|go_on| !**go_on).count() as u64);
            }
            if ids.is_empty() {
                return Ok(());
            }
            if ids.len() < rows.len() {
                let kept: Vec<usize> = going
                    .iter()
                    .enumerate()
                    .filter(|(_, go_on)| **go_on)
                    .map(|(row, _)| row)
                    .collect();
                let numbers: Vec<u32> = kept.iter().map(|row| *row as u32).collect();
                cache.keep(&Tensor::new(numbers.as_slice(), device)?)?;
                snapshot = snapshot.select(&kept);
                let mut of = going.iter();
                rows.retain(|_| of.next() == Some(&true));
                starts = kept.iter().map(|row| starts[*row]).collect();
                padding = kept.iter().map(|row| padding[*row]).collect();
            }
        }
    }
}

impl Row<'_> {
    /// Hands the answer over.
    fn finish(&mut self, on_text: OnText<'_>, answers: &mut [Generated]) -> Result<()> {
        on_text(self.index, self.stream.finish()?);
        answers[self.index] = Generated {
            ids: std::mem::take(&mut self.stream.ids),
            text: std::mem::take(&mut self.stream.text),
        };
        Ok(())
    }
}
