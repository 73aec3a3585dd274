//! New rows that overlap with rows held out before: they are found and kept out, so that the old
//! validation set goes on measuring what it measured.

use std::fmt;

use polars::prelude::*;

use crate::clean::report::{DroppedRow, dropped_frame};
use crate::dataset::Dataset;
use crate::error::Result;
use crate::pipeline::PipelineStep;
use crate::split::audit::{Overlap, OverlapKind};
use crate::text::{counted, excerpt};

/// The result of [`Dataset::without_overlap`].
#[derive(Clone, Debug)]
pub struct WithoutOverlap {
    /// The rows that overlap with no held-out row, in their order.
    pub kept: Dataset,
    /// The overlaps, in the order of the rows that were dropped, each named once: `train_row` is its
    /// index in the set before, `validation_row` that of the held-out row.
    pub overlaps: Vec<Overlap>,
    dropped: DataFrame,
    held_out_rows: usize,
}

impl Dataset {
    /// These rows without those that overlap with a row of `held_out`, by the rules of
    /// [`Splits::audit`](crate::Splits::audit): the same prompt character for character or word for
    /// word, nearly the same prompt, or thirteen words in a row. For new data that an adapter is trained
    /// on further: the validation set of the data before must stay unseen.
    ///
    /// ```
    /// use tunebook_data::Dataset;
    /// let held_out = Dataset::from_rows(&[("Where is my parcel?", "On its way.")]);
    /// let new = Dataset::from_rows(&[
    ///     ("where is my PARCEL", "It has left our warehouse."),
    ///     ("Do you ship to Norway?", "We do, in four days."),
    /// ]);
    /// let found = new.without_overlap(&held_out)?;
    /// assert_eq!(found.kept.len(), 1);
    /// println!("{found}");
    /// # Ok::<(), tunebook_data::DataError>(())
    /// ```
    ///
    /// # Errors
    /// The user pressed Stop; polars refuses a frame.
    pub fn without_overlap(&self, held_out: &Dataset) -> Result<WithoutOverlap> {
        let mut staying: Vec<IdxSize> = (0..self.len() as IdxSize).collect();
        let mut overlaps: Vec<Overlap> = Vec::new();
        let kept = loop {
            let rows = self.take(&staying)?;
            let mut of_row: Vec<Option<Overlap>> = vec![None; rows.len()];
            // From each side the audit names one partner for each row of the other. From this one all
            // rows are found at once, except where very many are alike; the second look is for those.
            for found in held_out.audit_against(&rows)?.overlaps() {
                let (here, there) = (found.validation_row, found.train_row);
                of_row[here] = Some(Overlap { validation_row: there, ..found.clone() });
            }
            if of_row.iter().all(Option::is_none) {
                for found in rows.audit_against(held_out)?.overlaps() {
                    of_row[found.train_row].get_or_insert_with(|| found.clone());
                }
            }
            if of_row.iter().all(Option::is_none) {
                let held_out = held_out.pipeline().cloned().map(Box::new);
                break rows.after(self, held_out.map(PipelineStep::WithoutOverlap));
            }
            let mut rest = Vec::with_capacity(staying.len());
            for (row, found) in staying.iter().zip(of_row) {
                match found {
                    Some(found) => overlaps.push(Overlap { train_row: *row as usize, ..found }),
                    None => rest.push(*row),
                }
            }
            staying = rest;
        };
        overlaps.sort_by_key(|overlap| overlap.train_row);
        let texts: Vec<&str> = held_out.id_texts().collect();
        let drop = |overlap: &Overlap| DroppedRow {
            row: overlap.train_row,
            step: "without_overlap",
            reason: reason(overlap, texts.get(overlap.validation_row).copied().unwrap_or_default()),
        };
        let drops: Vec<DroppedRow> = overlaps.iter().map(drop).collect();
        let dropped = dropped_frame(self.frame_ref(), &drops)?;
        Ok(WithoutOverlap { kept, overlaps, dropped, held_out_rows: held_out.len() })
    }
}

fn reason(overlap: &Overlap, held_out: &str) -> String {
    let near = match overlap.kind {
        OverlapKind::NearPrompt => format!(" (similarity {:.2})", overlap.similarity),
        _ => String::new(),
    };
    let (kind, row) = (overlap.kind.name(), overlap.validation_row);
    format!("{kind}{near} as in held-out row {row}: {}", excerpt(held_out, 80))
}

impl WithoutOverlap {
    /// The rows that were dropped, as they were, with the columns `row` (index in the set before),
    /// `step` and `reason` in front, as [`Dataset::dropped`] has them.
    pub fn dropped(&self) -> DataFrame {
        self.dropped.clone()
    }

    /// The number of rows that were dropped for this kind of overlap.
    pub fn count(&self, kind: OverlapKind) -> usize {
        self.overlaps.iter().filter(|overlap| overlap.kind == kind).count()
    }
}

impl fmt::Display for WithoutOverlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dropped, before) = (self.overlaps.len(), self.kept.len() + self.overlaps.len());
        write!(
            f,
            "{dropped} of {} overlap with the {} held out and are kept out",
            counted(before, "row"),
            counted(self.held_out_rows, "row"),
        )?;
        for kind in OverlapKind::ALL {
            match self.count(kind) {
                0 => {}
                count => write!(f, "\n{:<27} {count:>8}", kind.name())?,
            }
        }
        Ok(())
    }
}
