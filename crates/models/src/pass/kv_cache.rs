//! Keys and values of the tokens that a decoder has seen, so that the next token costs one position
//! and not all.
//!
//! One tensor for each block and kind holds all positions that a generation can reach; new ones are
//! written in place. Memory that is not reached yet is not touched either, so a generous capacity
//! costs nothing.

use candle_core::{DType, Device, Tensor};

use crate::error::Result;

/// Keys and values of one block.
#[derive(Debug)]
pub(crate) struct BlockCache {
    /// `[b, capacity, hkv, d]`
    keys: Tensor,
    values: Tensor,
    len: usize,
}

impl BlockCache {
    /// Whether it holds no position yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds positions and gives back all so far.
    ///
    /// # Shapes
    /// `k`, `v` `[b, t, hkv, d]` -> twice `[b, len, hkv, d]`, strided over the batch.
    pub(crate) fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let t = k.dim(1)?;
        self.keys.slice_set(&k.contiguous()?, 1, self.len)?;
        self.values.slice_set(&v.contiguous()?, 1, self.len)?;
        self.len += t;
        Ok((self.keys.narrow(1, 0, self.len)?, self.values.narrow(1, 0, self.len)?))
    }
}

/// Keys and values of all blocks.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) blocks: Vec<BlockCache>,
}

impl KvCache {
    pub(crate) fn new(
        blocks: usize,
        (b, capacity, hkv, d): (usize, usize, usize, usize),
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let empty = || Tensor::zeros((b, capacity, hkv, d), dtype, device);
        let blocks = (0..blocks)
            .map(|_| Ok(BlockCache { keys: empty()?, values: empty()?, len: 0 }))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { blocks })
    }

    /// Drops all rows of the batch but these.
    ///
    /// # Shapes
    /// `rows` `[n]` u32.
    pub(crate) fn keep(&mut self, rows: &Tensor) -> Result<()> {
        for block in &mut self.blocks {
            // One at a time, so that no more than one tensor is doubled.
            block.keys = block.keys.index_select(rows, 0)?;
            block.values = block.values.index_select(rows, 0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_in_order() {
        let device = Device::Cpu;
        let mut cache = KvCache::new(1, (2, 5, 1, 2), DType::F32, &device).unwrap();
        let x = Tensor::arange(0f32, 16., &device).unwrap().reshape((2, 4, 1, 2)).unwrap();
        let part = |from, n| x.narrow(1, from, n).unwrap();
        cache.blocks[0].append(&part(0, 3), &part(0, 3)).unwrap();
        let (k, v) = cache.blocks[0].append(&part(3, 1), &part(3, 1)).unwrap();
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((flat(&k), flat(&v)), (flat(&x), flat(&x)));
        cache.keep(&Tensor::new(&[1u32], &device).unwrap()).unwrap();
        let more = part(0, 1).narrow(0, 0, 1).unwrap();
        let (k, _) = cache.blocks[0].append(&more, &more).unwrap();
        assert_eq!(flat(&k), [8., 9., 10., 11., 12., 13., 14., 15., 0., 1.]);
        assert!(cache.blocks[0].append(&more, &more).is_err(), "the capacity is 5");
    }
}
