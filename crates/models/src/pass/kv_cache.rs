//! Keys and values of the tokens that a decoder has seen, so that the next token costs one position
//! and not all.
//!
//! Each text keeps its own in pages ([`ops::paged_attention`]): it takes pages as it grows, gives
//! them back when it ends, and shares those of a common beginning with others. A pass takes some
//! tokens of some texts, any number of each, as rows of a batch.
//!
//! On the CPU a page is a piece of memory of its own. On other devices, and for numbers that are
//! not f32, pages are stretches of one tensor for each block, which attention gathers.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::layers::attention::{Scores, attention};
use crate::pass::positions::Positions;
use tunebook_ops::cpu::Values;
use tunebook_ops::{self as ops, PAGE, Page, PageShape, Queries, Scoring};

/// Where the pages of a model's texts come from.
#[derive(Clone, Debug)]
pub(crate) struct Pages {
    shape: PageShape,
    /// The pages that are no memory of their own.
    pool: Option<Arc<Pool>>,
}

impl Pages {
    /// Pages for activations of this type on this device. `dtype` is what keys and values are kept
    /// in on the CPU, f32 or bf16.
    pub(crate) fn new(
        blocks: usize,
        (heads, head_dim): (usize, usize),
        (activations, dtype): (DType, DType),
        device: &Device,
    ) -> Self {
        let shape = PageShape { blocks, heads, head_dim, dtype };
        let on_host = device.is_cpu() && activations == DType::F32 && !ops::device::forced();
        let pool = (!on_host).then(|| {
            let tensors = Tensors { keys: Vec::new(), values: Vec::new(), pages: 0 };
            Arc::new(Pool {
                shape: PageShape { dtype: activations, ..shape },
                device: device.clone(),
                tensors: Mutex::new(tensors),
                free: Mutex::default(),
            })
        });
        Self { shape, pool }
    }

    /// Bytes of one page.
    pub(crate) fn page_bytes(&self) -> usize {
        self.pool.as_ref().map_or(self.shape, |pool| pool.shape).bytes()
    }

    /// A text without positions.
    pub(crate) fn text(&self) -> TextCache {
        TextCache { pages: Vec::new(), len: 0 }
    }

    #[cfg(test)]
    pub(crate) fn whole_page_for_tests(&self) -> SomePage {
        self.page().unwrap()
    }

    fn page(&self) -> Result<SomePage> {
        Ok(match &self.pool {
            None => SomePage::Own(Arc::new(Page::new(self.shape))),
            Some(pool) => SomePage::Pooled(Arc::new(pool.take()?)),
        })
    }
}

/// One page, in one of its forms.
#[derive(Clone, Debug)]
pub(crate) enum SomePage {
    Own(Arc<Page>),
    Pooled(Arc<PooledPage>),
}

impl SomePage {
    /// Whether nobody else holds it.
    #[cfg(test)]
    fn is_unshared(&self) -> bool {
        match self {
            Self::Own(page) => Arc::strong_count(page) == 1,
            Self::Pooled(page) => Arc::strong_count(page) == 1,
        }
    }
}

/// Pages that are stretches of tensors.
struct Pool {
    shape: PageShape,
    device: Device,
    tensors: Mutex<Tensors>,
    free: Mutex<Vec<usize>>,
}

/// For each block `[pages · PAGE, hkv · d]`.
struct Tensors {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    pages: usize,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({:?})", self.shape)
    }
}

/// A stretch of a pool's tensors, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct PooledPage {
    index: usize,
    pool: Arc<Pool>,
}

impl Drop for PooledPage {
    fn drop(&mut self) {
        lock(&self.pool.free).push(self.index);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// The least number of pages that the tensors grow by.
    const GROWTH: usize = 64;

    fn take(self: &Arc<Self>) -> Result<PooledPage> {
        let mut free = lock(&self.free);
        if free.is_empty() {
            let mut tensors = lock(&self.tensors);
            let more = tensors.pages.max(Self::GROWTH);
            let width = self.shape.heads * self.shape.head_dim;
            let shape = (more * PAGE, width);
            let Tensors { keys, values, pages } = &mut *tensors;
            for block in 0..self.shape.blocks {
                // One at a time, so that no more than one tensor is there twice.
                for list in [&mut *keys, &mut *values] {
                    let new = Tensor::zeros(shape, self.shape.dtype, &self.device)?;
                    match list.get_mut(block) {
                        Some(old) if old.dim(0)? > *pages * PAGE => {}
                        Some(old) => *old = Tensor::cat(&[&*old, &new], 0)?,
                        None => list.push(new),
                    }
                }
            }
            // Padding reads the first page, so it stays zero.
            free.extend(((*pages).max(1)..*pages + more).rev());
            *pages += more;
        }
        let index = free.pop().unwrap_or(0);
        Ok(PooledPage { index, pool: Arc::clone(self) })
    }

    fn block(&self, block: usize) -> (Tensor, Tensor) {
        let tensors = lock(&self.tensors);
        (tensors.keys[block].clone(), tensors.values[block].clone())
    }
}

/// The keys and values of one text. A clone shares its pages until either writes.
#[derive(Clone, Debug)]
pub(crate) struct TextCache {
    pages: Vec<SomePage>,
    len: usize,
}

impl TextCache {
    /// Positions that it holds.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Its pages, whole ones first.
    pub(crate) fn pages(&self) -> &[SomePage] {
        &self.pages
    }

    /// Begins with `len` positions that another text has computed. The last of their pages may go
    /// on otherwise there.
    pub(crate) fn begin_with(&mut self, pages: Vec<SomePage>, len: usize) {
        self.len = len.min(pages.len() * PAGE);
        self.pages = pages;
    }

    /// Makes room for more positions, pages of its own behind those that it may share.
    fn reserve(&mut self, more: usize, pages: &Pages) -> Result<()> {
        let needed = (self.len + more).div_ceil(PAGE);
        // The page that is written next, if it has been begun.
        if !self.len.is_multiple_of(PAGE)
            && let Some(last) = self.pages.get_mut(self.len / PAGE)
            && let SomePage::Pooled(page) = last
            && Arc::strong_count(page) > 1
        {
            let own = page.pool.take()?;
            for block in 0..page.pool.shape.blocks {
                let (keys, values) = page.pool.block(block);
                for tensor in [keys, values] {
                    let begun = tensor.narrow(0, page.index * PAGE, PAGE)?.copy()?;
                    tensor.slice_set(&begun, 0, own.index * PAGE)?;
                }
            }
            *last = SomePage::Pooled(Arc::new(own));
        }
        while self.pages.len() < needed {
            self.pages.push(pages.page()?);
        }
        Ok(())
    }

    /// The row of a pool's tensors in which a position lies.
    fn row(&self, position: usize) -> u32 {
        match &self.pages[position / PAGE] {
            SomePage::Pooled(page) => (page.index * PAGE + position % PAGE) as u32,
            SomePage::Own(_) => 0,
        }
    }
}

/// The texts of one pass: which rows of the batch are whose next tokens.
#[derive(Debug)]
pub(crate) struct KvCache {
    pages: Pages,
    texts: Vec<(Range<usize>, TextCache)>,
    /// The rows of the pool's tensors, found once for all blocks: where to write, and what to read.
    places: Option<Places>,
}

#[derive(Debug)]
struct Places {
    /// `[n, hkv · d]`
    write: Tensor,
    /// For each call of attention: the rows of the batch, the rows of the tensors `[b · s]`, and
    /// the padding before each text.
    read: Vec<(Range<usize>, Tensor, Vec<usize>)>,
}

impl KvCache {
    /// `texts` are given the next rows of the batch, so many each.
    pub(crate) fn new(pages: &Pages, texts: Vec<(usize, TextCache)>) -> Result<Self> {
        let mut from = 0;
        let mut all = Vec::with_capacity(texts.len());
        for (count, mut text) in texts {
            text.reserve(count, pages)?;
            all.push((from..from + count, text));
            from += count;
        }
        let mut cache = Self { pages: pages.clone(), texts: all, places: None };
        if let Some(pool) = &pages.pool {
            cache.places = Some(cache.places_in(pool)?);
        }
        Ok(cache)
    }

    /// The texts, with the positions of the pass.
    pub(crate) fn into_texts(self) -> Vec<TextCache> {
        let grown = |(rows, mut text): (Range<usize>, TextCache)| {
            text.len += rows.len();
            text
        };
        self.texts.into_iter().map(grown).collect()
    }

    fn places_in(&self, pool: &Pool) -> Result<Places> {
        let width = pool.shape.heads * pool.shape.head_dim;
        let written = |(rows, text): &(Range<usize>, TextCache)| {
            (0..rows.len()).map(|i| text.row(text.len + i)).collect::<Vec<_>>()
        };
        let write: Vec<u32> = self.texts.iter().flat_map(written).collect();
        let n = write.len();
        let write = Tensor::from_vec(write, (n, 1), &pool.device)?;
        let write = write.broadcast_as((n, width))?.contiguous()?;
        let keys = |text: &TextCache, end: usize| (0..end).map(|at| text.row(at)).collect();
        let mut read = Vec::new();
        if self.texts.iter().all(|(rows, _)| rows.len() == 1) {
            // One token of each: a batch, padded on the left.
            let longest = self.texts.iter().map(|(_, text)| text.len + 1).max().unwrap_or(0);
            let mut ids = Vec::with_capacity(n * longest);
            let mut starts = Vec::with_capacity(n);
            for (_, text) in &self.texts {
                let padding = longest - (text.len + 1);
                ids.extend(std::iter::repeat_n(0, padding));
                ids.extend::<Vec<u32>>(keys(text, text.len + 1));
                starts.push(padding);
            }
            read.push((0..n, Tensor::from_vec(ids, n * longest, &pool.device)?, starts));
        } else {
            for (rows, text) in &self.texts {
                let ids: Vec<u32> = keys(text, text.len + rows.len());
                let count = ids.len();
                let ids = Tensor::from_vec(ids, count, &pool.device)?;
                read.push((rows.clone(), ids, vec![0]));
            }
        }
        Ok(Places { write, read })
    }

    /// Writes the keys and values of the rows' positions in one block and attends over all
    /// positions of each row's text.
    ///
    /// # Shapes
    /// `q` `[n, 1, h, d]`, `k` and `v` `[n, 1, hkv, d]` or `[n, 1, hkv·d]` -> `[n, 1, h·d]`.
    pub(crate) fn attend(
        &mut self,
        block: usize,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        positions: &Positions,
        scores: &Scores,
    ) -> Result<Tensor> {
        if let (Some(pool), Some(places)) = (&self.pages.pool, &self.places) {
            return places.attend(&pool.clone(), block, (q, k, v), positions, scores);
        }
        self.write(block, k, v)?;
        let texts: Vec<Queries<'_>> = self
            .texts
            .iter()
            .map(|(rows, text)| Queries {
                rows: rows.clone(),
                position: text.len,
                pages: text.pages.iter().filter_map(own).collect(),
            })
            .collect();
        let scoring = Scoring {
            scale: scores.scale,
            window: scores.window,
            softcap: scores.softcap.map(|cap| cap as f32),
            alibi: scores.alibi.as_deref(),
        };
        Ok(ops::paged_attention(q, &texts, block, &scoring)?)
    }

    fn write(&mut self, block: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let (k, v) = (k.contiguous()?, v.contiguous()?);
        let (k, v) = (Values::of(&k)?, Values::of(&v)?);
        let width = self.pages.shape.heads * self.pages.shape.head_dim;
        for (rows, text) in &mut self.texts {
            for (i, row) in rows.clone().enumerate() {
                let position = text.len + i;
                let Some(SomePage::Own(page)) = text.pages.get_mut(position / PAGE) else {
                    return Err(missing(position));
                };
                let part = row * width..(row + 1) * width;
                // A page that was begun together with others becomes one of its own here.
                Arc::make_mut(page).write(block, position % PAGE, &k[part.clone()], &v[part]);
            }
        }
        Ok(())
    }

    /// Writes what stands before the rows' positions, in one block: keys and values of a text's
    /// first positions.
    ///
    /// # Shapes
    /// `k` and `v` `[n, hkv, d]`, as many as the text has rows in this pass.
    pub(crate) fn put(&mut self, block: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        if let (Some(pool), Some(places)) = (&self.pages.pool, &self.places) {
            return places.put(pool, block, k, v);
        }
        let f32s = |x: &Tensor| -> Result<Tensor> { Ok(x.to_dtype(DType::F32)?) };
        self.write(block, &f32s(k)?, &f32s(v)?)
    }
}

fn own(page: &SomePage) -> Option<&Page> {
    match page {
        SomePage::Own(page) => Some(page),
        SomePage::Pooled(_) => None,
    }
}

fn missing(position: usize) -> Error {
    Error::Argument {
        field: "cache",
        value: format!("without a page for position {position}"),
        expected: "pages for all positions of the pass",
    }
}

impl Places {
    fn put(&self, pool: &Pool, block: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        let (keys, values) = pool.block(block);
        for (tensor, new) in [(keys, k), (values, v)] {
            let new = new.reshape(self.write.shape())?.to_dtype(tensor.dtype())?.contiguous()?;
            tensor.scatter_set(&self.write, &new.detach(), 0)?;
        }
        Ok(())
    }

    fn attend(
        &self,
        pool: &Pool,
        block: usize,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        positions: &Positions,
        scores: &Scores,
    ) -> Result<Tensor> {
        self.put(pool, block, k, v)?;
        let (keys, values) = pool.block(block);
        let (heads, d) = (pool.shape.heads, pool.shape.head_dim);
        let mut parts = Vec::with_capacity(self.read.len());
        for (rows, ids, starts) in &self.read {
            let (b, t) = (starts.len(), rows.len() / starts.len().max(1));
            let (_, _, h, _) = q.dims4()?;
            // [n, 1, h, d] -> [b, t, h, d]
            let q = q.narrow(0, rows.start, rows.len())?.contiguous()?.reshape((b, t, h, d))?;
            // [b · s] -> [b, s, hkv, d]
            let gather = |tensor: &Tensor| -> Result<Tensor> {
                Ok(tensor.index_select(ids, 0)?.reshape((b, (), heads, d))?)
            };
            let (k, v) = (gather(&keys)?, gather(&values)?);
            let padded = Positions::padded(k.dim(1)? - t, t, starts, &pool.device)?;
            let padded = padded.in_bf16(positions.bf16());
            // [b, t, h·d] -> [n, 1, h·d]
            parts.push(attention(&q, &k, &v, &padded, scores)?.reshape((rows.len(), 1, h * d))?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(pooled: bool) -> Pages {
        let device = Device::Cpu;
        let mut pages = Pages::new(1, (1, 2), (DType::F32, DType::F32), &device);
        if pooled {
            // As on a device whose pages are no memory of their own.
            pages = Pages::new(1, (1, 2), (DType::F64, DType::F32), &device);
            let pool = Pool {
                shape: pages.shape,
                device,
                tensors: Mutex::new(Tensors { keys: Vec::new(), values: Vec::new(), pages: 0 }),
                free: Mutex::default(),
            };
            pages.pool = Some(Arc::new(pool));
        }
        pages
    }

    fn numbers(n: usize, seed: usize) -> Tensor {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.;
        Tensor::from_vec((0..2 * n).map(value).collect(), (n, 1, 1, 2), &Device::Cpu).unwrap()
    }

    fn step(pages: &Pages, texts: Vec<(usize, TextCache)>, seed: usize) -> (Tensor, KvCache) {
        let n = texts.iter().map(|(count, _)| count).sum();
        let mut cache = KvCache::new(pages, texts).unwrap();
        let positions = Positions::new(n, 1, &Device::Cpu).unwrap();
        let scores = Scores { scale: 0.5, ..Scores::default() };
        let (q, k, v) = (numbers(n, seed), numbers(n, seed + 1), numbers(n, seed + 2));
        let y = cache.attend(0, (&q, &k, &v), &positions, &scores).unwrap();
        (y, cache)
    }

    fn flat(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Both forms of pages, over the ends of pages, with a text that another shares its beginning
    /// with.
    #[test]
    fn pages_of_both_forms_hold_the_same_and_clones_go_their_own_ways() {
        let run = |pooled| {
            let pages = pages(pooled);
            let (first, cache) = step(&pages, vec![(40, pages.text()), (3, pages.text())], 1);
            let mut texts = cache.into_texts();
            assert_eq!((texts[0].len(), texts[1].len()), (40, 3));
            assert_eq!(texts[0].pages().len(), 2);
            let fork = texts[0].clone();
            assert!(!fork.pages()[0].is_unshared());
            let (second, cache) = step(&pages, texts.drain(..).map(|text| (1, text)).collect(), 7);
            let grown = cache.into_texts();
            let (third, _) = step(&pages, vec![(1, fork.clone())], 7);
            let (again, _) = step(&pages, vec![(1, fork)], 7);
            assert_eq!(flat(&third), flat(&again), "what the other text wrote is not seen");
            assert_eq!(flat(&third)[..2], flat(&second)[..2], "as the text that it is a copy of");
            assert_eq!(grown[0].len(), 41);
            [first, second, third].iter().flat_map(flat).collect::<Vec<_>>()
        };
        for (own, pooled) in run(false).iter().zip(run(true)) {
            assert!((own - pooled).abs() < 1e-5, "{own} {pooled}");
        }
    }

    #[test]
    fn a_text_that_ends_gives_its_pages_back() {
        let pages = pages(true);
        let (_, cache) = step(&pages, vec![(70, pages.text())], 1);
        let pool = pages.pool.clone().unwrap();
        let free = lock(&pool.free).len();
        drop(cache.into_texts());
        assert_eq!(lock(&pool.free).len(), free + 3);
    }

    /// Keys and values of 32 texts of 2,000 tokens, as SmolLM2-135M has them.
    #[test]
    fn pages_are_little_more_than_what_is_written_to_them() {
        let (blocks, heads, d) = (30, 3, 64);
        for (dtype, bytes) in [(DType::F32, 4), (DType::BF16, 2)] {
            let pages = Pages::new(blocks, (heads, d), (DType::F32, dtype), &Device::Cpu);
            let tokens = 2000;
            let mut text = pages.text();
            text.reserve(tokens, &pages).unwrap();
            let (held, needed) =
                (text.pages.len() * pages.page_bytes(), tokens * 2 * blocks * heads * d * bytes);
            assert!(held as f64 <= 1.05 * needed as f64, "{held} for {needed}");
        }
    }
}
