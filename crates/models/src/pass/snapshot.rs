//! Who answers a batch, fixed when the batch begins.

use std::sync::{Arc, LazyLock};

use candle_core::Tensor;
use tunebook_progress::Stop;

use crate::error::{Error, Result};
use crate::pass::overlay::Overlay;

/// Who answers: one overlay for all rows, or one for each row of a batch. Whoever holds a snapshot
/// keeps its overlays, whatever the model is switched to meanwhile.
#[derive(Clone, Debug)]
pub struct Snapshot {
    overlays: Overlays,
    stop: Stop,
}

#[derive(Clone, Debug)]
enum Overlays {
    One(Arc<Overlay>),
    PerRow { rows: Arc<[Arc<Overlay>]>, mixed: Option<Arc<Mixed>> },
}

impl Snapshot {
    /// One overlay for all rows.
    pub fn one(overlay: Arc<Overlay>, stop: Stop) -> Self {
        Self { overlays: Overlays::One(overlay), stop }
    }

    /// An overlay for each row.
    pub fn per_row(rows: Arc<[Arc<Overlay>]>, stop: Stop) -> Self {
        let mixed = Mixed::new(&rows).map(Arc::new);
        Self { overlays: Overlays::PerRow { rows, mixed }, stop }
    }

    /// An overlay for each row; one for all where they are the same.
    pub(crate) fn of(rows: Vec<Arc<Overlay>>, stop: Stop) -> Self {
        match rows.first() {
            Some(first) if rows.iter().all(|row| Arc::ptr_eq(row, first)) => {
                Self::one(Arc::clone(first), stop)
            }
            _ => Self::per_row(rows.into(), stop),
        }
    }

    /// The snapshot of some rows, in their order; a row may come more than once.
    pub fn select(&self, rows: &[usize]) -> Self {
        match &self.overlays {
            Overlays::One(_) => self.clone(),
            Overlays::PerRow { .. } => {
                let rows: Vec<_> = rows.iter().map(|row| Arc::clone(self.row(*row))).collect();
                Self::per_row(rows.into(), self.stop.clone())
            }
        }
    }

    /// How many rows it is of; `None`: any number.
    pub fn rows(&self) -> Option<usize> {
        match &self.overlays {
            Overlays::One(_) => None,
            Overlays::PerRow { rows, .. } => Some(rows.len()),
        }
    }

    /// # Errors
    /// Another number of texts in the list `field` than there are overlays for.
    pub(crate) fn check_count(&self, field: &'static str, texts: usize) -> Result<()> {
        match self.rows() {
            Some(rows) if rows != texts => Err(Error::Argument {
                field,
                value: format!("of length {texts}, and this handle answers {rows}"),
                expected: "a text for each adapter name of this handle (`with_adapter_names`)",
            }),
            _ => Ok(()),
        }
    }

    /// The overlay of a row; of one that does not exist the last row's, or the base's.
    pub fn row(&self, row: usize) -> &Arc<Overlay> {
        static BASE: LazyLock<Arc<Overlay>> = LazyLock::new(Arc::default);
        match &self.overlays {
            Overlays::One(overlay) => overlay,
            Overlays::PerRow { rows, .. } => rows.get(row).or(rows.last()).unwrap_or(&BASE),
        }
    }

    /// Asked for between blocks and tokens.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// The overlay of the first row, which is everybody's where [`Snapshot::mixed`] is `None`.
    pub(crate) fn first(&self) -> &Overlay {
        match &self.overlays {
            Overlays::One(overlay) => overlay,
            Overlays::PerRow { rows, .. } => rows.first().map_or(Overlay::base(), |row| row),
        }
    }

    /// The groups of rows, if more than one overlay answers.
    pub(crate) fn mixed(&self) -> Option<&Mixed> {
        match &self.overlays {
            Overlays::One(_) => None,
            Overlays::PerRow { mixed, .. } => mixed.as_deref(),
        }
    }

    /// The most vectors before the tokens of any row.
    pub(crate) fn virtual_count(&self) -> usize {
        self.most(Overlay::virtual_count)
    }

    /// The most positions before the keys and values of any row.
    pub(crate) fn past_count(&self) -> usize {
        self.most(Overlay::past_count)
    }

    fn most(&self, count: impl Fn(&Overlay) -> usize) -> usize {
        match &self.overlays {
            Overlays::One(overlay) => count(overlay),
            Overlays::PerRow { rows, .. } => rows.iter().map(|row| count(row)).max().unwrap_or(0),
        }
    }

    /// For each row the columns that it has before its text and another row has not, once texts
    /// end in the same column.
    pub(crate) fn missing(&self, b: usize) -> Vec<usize> {
        let most = self.virtual_count() + self.past_count();
        (0..b).map(|row| most - self.row(row).positions_before()).collect()
    }
}

/// The rows of a batch by the overlay that answers them.
#[derive(Debug)]
pub(crate) struct Mixed {
    groups: Vec<Group>,
    /// For each row its place among the rows of all groups in their order; `None`: its own number.
    order: Option<Vec<u32>>,
}

/// Rows that one overlay answers.
#[derive(Debug)]
pub(crate) struct Group {
    overlay: Arc<Overlay>,
    rows: Vec<u32>,
}

impl Mixed {
    /// `None` where one overlay answers all rows.
    fn new(rows: &[Arc<Overlay>]) -> Option<Self> {
        let mut groups: Vec<Group> = Vec::new();
        for (row, overlay) in (0..).zip(rows) {
            match groups.iter_mut().find(|group| Arc::ptr_eq(&group.overlay, overlay)) {
                Some(group) => group.rows.push(row),
                None => groups.push(Group { overlay: Arc::clone(overlay), rows: vec![row] }),
            }
        }
        if groups.len() < 2 {
            return None;
        }
        let all: Vec<u32> = groups.iter().flat_map(|group| group.rows.iter().copied()).collect();
        let mut order = vec![0u32; all.len()];
        for (at, row) in (0..).zip(&all) {
            order[*row as usize] = at;
        }
        let in_order = all.is_sorted();
        Some(Self { groups, order: (!in_order).then_some(order) })
    }

    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The rows of all groups in the order of the batch.
    ///
    /// # Shapes
    /// For each group `[rows of the group, ..]` -> `[rows, ..]`.
    pub(crate) fn join(&self, parts: &[Tensor]) -> Result<Tensor> {
        let all = Tensor::cat(parts, 0)?;
        Ok(match &self.order {
            None => all,
            Some(order) => all.index_select(&Tensor::new(order.as_slice(), all.device())?, 0)?,
        })
    }
}

impl Group {
    pub(crate) fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Their numbers in the batch.
    pub(crate) fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The group's rows of a batch: `[rows, ..]` -> `[rows of the group, ..]`.
    pub(crate) fn take(&self, x: &Tensor) -> Result<Tensor> {
        let (first, n) = (self.rows[0] as usize, self.rows.len());
        if self.rows.iter().zip(self.rows[0]..).all(|(row, next)| *row == next) {
            return Ok(x.narrow(0, first, n)?);
        }
        Ok(x.index_select(&Tensor::new(self.rows.as_slice(), x.device())?, 0)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn column(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, (values.len(), 1), &Device::Cpu).unwrap()
    }

    #[test]
    fn rows_go_by_their_overlay_and_come_back_in_their_order() {
        let (a, b) = (Arc::new(Overlay::default()), Arc::new(Overlay::default()));
        let mixed =
            Mixed::new(&[a.clone(), b.clone(), b.clone(), a.clone()]).expect("two overlays");
        let rows: Vec<_> = mixed.groups().iter().map(|group| group.rows.clone()).collect();
        assert_eq!(rows, [vec![0, 3], vec![1, 2]]);
        let x = column(&[0., 1., 2., 3.]);
        let parts: Vec<_> = mixed.groups().iter().map(|group| group.take(&x).unwrap()).collect();
        let back = mixed.join(&parts).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(back, [0., 1., 2., 3.]);
        assert!(Mixed::new(&[a.clone(), a]).is_none(), "one overlay answers all");
    }

    #[test]
    fn selected_rows_keep_their_overlays() {
        let overlays: Vec<_> = (0..3).map(|_| Arc::new(Overlay::default())).collect();
        let all = Snapshot::per_row(overlays.clone().into(), Stop::never());
        let some = all.select(&[2, 0]);
        assert!(Arc::ptr_eq(some.row(0), &overlays[2]) && Arc::ptr_eq(some.row(1), &overlays[0]));
        assert_eq!(some.rows(), Some(2));
    }
}
