//! Where the tokens of a call stand in their texts.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};

/// Where the tokens of a call stand in their texts.
#[derive(Clone, Debug)]
pub struct Positions {
    /// `[b, t]` u32, counted from 0 at the first token of each row that is no padding.
    ids: Tensor,
    /// For each row the number of padding tokens on its left; `None`: none anywhere.
    starts: Option<Vec<usize>>,
    /// For each row the lengths of the texts packed into it; `None`: one text each.
    segments: Option<Vec<Vec<usize>>>,
    /// For each row the number of positions so far, those of this call included and padding on the
    /// left not.
    ends: Vec<usize>,
    /// Whether attention's products may round to bf16.
    bf16: bool,
}

impl Positions {
    /// The positions of `t` tokens in each of `b` rows, from 0 on; padding, if any, is on the
    /// right.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(b: usize, t: usize, device: &Device) -> Result<Self> {
        // [t] -> [b, t]
        let ids = Tensor::arange(0u32, t as u32, device)?.broadcast_as((b, t))?.contiguous()?;
        Ok(Self { ids, starts: None, segments: None, ends: vec![t; b], bf16: false })
    }

    /// The positions of rows of `t` tokens into which several texts are packed, `segments[row]`
    /// being their lengths: each text counts from 0 and sees itself alone. What is left of a row is
    /// padding.
    ///
    /// # Errors
    /// When the texts of a row are longer than `t`, or the device has no room.
    pub fn packed(t: usize, segments: &[Vec<usize>], device: &Device) -> Result<Self> {
        let mut ids = Vec::with_capacity(segments.len() * t);
        for row in segments {
            let from = ids.len();
            for length in row {
                ids.extend(0..*length as u32);
            }
            if ids.len() > from + t {
                return Err(Error::Argument {
                    field: "segments",
                    value: format!("{row:?}"),
                    expected: "lengths that fit into the row together",
                });
            }
            let padding = from + t - ids.len();
            ids.extend(0..padding as u32);
        }
        Ok(Self {
            ids: Tensor::from_vec(ids, (segments.len(), t), device)?,
            starts: None,
            ends: segments
                .iter()
                .map(|row| {
                    // The padding counts on from 0, too.
                    let padding = t - row.iter().sum::<usize>();
                    row.iter().copied().max().unwrap_or(0).max(padding)
                })
                .collect(),
            segments: Some(segments.to_vec()),
            bf16: false,
        })
    }

    /// The positions of columns `from..from + t` of rows that begin with `starts[row]` padding
    /// tokens.
    pub(crate) fn padded(from: usize, t: usize, starts: &[usize], device: &Device) -> Result<Self> {
        let ids: Vec<u32> = starts
            .iter()
            .flat_map(|start| {
                (from..from + t).map(move |column| column.saturating_sub(*start) as u32)
            })
            .collect();
        Ok(Self {
            ids: Tensor::from_vec(ids, (starts.len(), t), device)?,
            starts: starts.iter().any(|start| *start > 0).then(|| starts.to_vec()),
            segments: None,
            ends: starts.iter().map(|start| (from + t).saturating_sub(*start)).collect(),
            bf16: false,
        })
    }

    /// The positions of rows of one token each, and for each how many positions its text has, this
    /// pass included.
    pub(crate) fn of_rows(ids: Vec<u32>, ends: Vec<usize>, device: &Device) -> Result<Self> {
        let n = ids.len();
        let ids = Tensor::from_vec(ids, (n, 1), device)?;
        Ok(Self { ids, starts: None, segments: None, ends, bf16: false })
    }

    /// Lets attention's products round to bf16, as those of weights in bf16 do.
    pub(crate) fn in_bf16(self, bf16: bool) -> Self {
        Self { bf16, ..self }
    }

    pub(crate) fn bf16(&self) -> bool {
        self.bf16
    }

    /// `[b, t]` u32
    pub(crate) fn ids(&self) -> &Tensor {
        &self.ids
    }

    pub(crate) fn starts(&self) -> Option<&[usize]> {
        self.starts.as_deref()
    }

    pub(crate) fn segments(&self) -> Option<&[Vec<usize>]> {
        self.segments.as_deref()
    }

    /// For each row the number of its positions so far (of the longest text packed into it).
    pub(crate) fn ends(&self) -> &[usize] {
        &self.ends
    }
}
