//! The tensors a run trains, and their gradients.

use candle_core::{CpuStorage, InplaceOp3, Layout, Tensor, Var};

use crate::error::Result;

/// Where in the model a tensor is used, from the input to the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What stands before the tokens, as if it were their embeddings.
    Front,
    /// The embedding table (and the output head, if they are tied).
    Embedding,
    /// Every decoder block.
    Blocks,
    /// A decoder block.
    Block(usize),
    /// The last norm and the output head.
    Head,
}

/// One trainable tensor.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name, unique in the run: `model.layers.0.self_attn.q_proj.lora_A`.
    pub name: String,
    /// The tensor.
    pub var: Var,
    /// Where it is used.
    pub part: Part,
}

/// Trainable tensors in the order of their names, so that sums over them are the same in every run.
#[derive(Debug, Clone, Default)]
pub struct Parameters(Vec<Parameter>);

impl Parameters {
    /// Sorts by name.
    pub fn new(mut parameters: Vec<Parameter>) -> Self {
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        Self(parameters)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.0.iter()
    }

    /// The one at `index`, which is below [`Parameters::len`].
    pub(crate) fn get(&self, index: usize) -> &Parameter {
        &self.0[index]
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers all of them hold.
    pub fn elem_count(&self) -> usize {
        self.0.iter().map(|parameter| parameter.var.elem_count()).sum()
    }

    /// The lowest block that a gradient has to go through: those below it need none. `None`: the
    /// head alone is trained.
    pub(crate) fn first_block(&self) -> Option<usize> {
        match self.0.iter().map(|parameter| parameter.part).min()? {
            Part::Front | Part::Embedding | Part::Blocks => Some(0),
            Part::Block(block) => Some(block),
            Part::Head => None,
        }
    }

    /// The index of the tensor in that part of the model, of which there is one at most:
    /// [`Part::Front`] or [`Part::Embedding`].
    pub(crate) fn only(&self, part: Part) -> Option<usize> {
        self.0.iter().position(|parameter| parameter.part == part)
    }
}

/// One gradient, or none yet, for each of a run's [`Parameters`], in their order.
#[derive(Debug, Clone)]
pub struct Gradients(Vec<Option<Tensor>>);

impl Gradients {
    /// None yet.
    pub fn new(parameters: &Parameters) -> Self {
        Self(vec![None; parameters.len()])
    }

    /// Adds to the gradient of parameter `index`, counted in the parameters' order.
    ///
    /// # Errors
    /// The shape is not that of what is there already.
    pub fn add(&mut self, index: usize, gradient: Tensor) -> Result<()> {
        let slot = &mut self.0[index];
        *slot = Some(match slot.take() {
            Some(sum) => (sum + gradient.detach())?,
            None => gradient.detach(), // a graph would keep every activation
        });
        Ok(())
    }

    /// Adds rows to the gradient of an embedding table, parameter `index`: row `ids[i]` gets row i
    /// of `rows`.
    ///
    /// # Shapes
    /// `ids` `[n]` u32, `rows` `[n, hid]`, the table `[vocab, hid]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub(crate) fn add_rows(
        &mut self,
        index: usize,
        table: &Tensor,
        ids: &Tensor,
        rows: &Tensor,
    ) -> Result<()> {
        let slot = &mut self.0[index];
        let sum = match slot.take() {
            Some(sum) => sum,
            None => table.zeros_like()?.detach(),
        };
        *slot = Some(if sum.device().is_cpu() {
            sum.inplace_op3(ids, &rows.contiguous()?, &AddRows)?; // in place: the table is the largest tensor there is
            sum
        } else {
            sum.index_add(ids, rows, 0)?
        });
        Ok(())
    }

    /// Multiplies all of them.
    pub(crate) fn multiply(&mut self, factor: f64) -> Result<()> {
        for gradient in self.0.iter_mut().flatten() {
            *gradient = (&*gradient * factor)?;
        }
        Ok(())
    }

    /// In the order of the parameters.
    pub fn iter(&self) -> impl Iterator<Item = Option<&Tensor>> {
        self.0.iter().map(Option::as_ref)
    }

    /// The norm of all gradients as one vector (`torch.nn.utils.get_total_norm`), summed in f64 in
    /// a fixed order.
    pub fn norm(&self) -> Result<f64> {
        Ok(self.norm_and(&[])?.0)
    }

    /// [`Gradients::norm`], and these scalars in f32: what is on a device is read together, so that
    /// the host waits for it once.
    pub(crate) fn norm_and(&self, scalars: &[Tensor]) -> Result<(f64, Vec<f64>)> {
        let mut squares = 0.0;
        let mut elsewhere = scalars.to_vec();
        for gradient in self.0.iter().flatten() {
            match gradient.device().is_cpu() {
                true => squares += sum_of_squares(gradient)?,
                false => elsewhere.push(gradient.sqr()?.sum_all()?),
            }
        }
        let mut read = read(&elsewhere)?;
        squares += read.split_off(scalars.len()).into_iter().sum::<f64>();
        Ok((squares.sqrt(), read))
    }
}

/// Scalars in f32, in one copy from where they are.
pub(crate) fn read(scalars: &[Tensor]) -> Result<Vec<f64>> {
    if scalars.is_empty() {
        return Ok(Vec::new());
    }
    Ok(Tensor::stack(scalars, 0)?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
}

/// See [`Gradients::add_rows`].
struct AddRows;

impl InplaceOp3 for AddRows {
    fn name(&self) -> &'static str {
        "add_rows"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        layout: &Layout,
        ids: &CpuStorage,
        ids_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (CpuStorage::F32(sum), CpuStorage::U32(ids), CpuStorage::F32(rows)) = (sum, ids, rows)
        else {
            candle_core::bail!("add_rows: expected f32 rows under u32 ids")
        };
        let (Some(at), Some(ids_at), Some(rows_at)) = (
            layout.contiguous_offsets(),
            ids_layout.contiguous_offsets(),
            rows_layout.contiguous_offsets(),
        ) else {
            candle_core::bail!("add_rows: expected contiguous tensors")
        };
        let (sum, ids, rows) =
            (&mut sum[at.0..at.1], &ids[ids_at.0..ids_at.1], &rows[rows_at.0..rows_at.1]);
        let width = layout.dims().last().copied().unwrap_or(0);
        if width == 0 || rows.len() != ids.len() * width {
            candle_core::bail!(
                "add_rows: expected {} rows of {width}, found {} values",
                ids.len(),
                rows.len()
            )
        }
        // In the order of the positions, so that a run repeats bit for bit.
        for (id, row) in ids.iter().zip(rows.chunks_exact(width)) {
            let from = *id as usize * width;
            let Some(into) = sum.get_mut(from..from + width) else {
                candle_core::bail!("add_rows: expected ids below {}, found {id}", layout.dims()[0])
            };
            into.iter_mut().zip(row).for_each(|(into, value)| *into += value);
        }
        Ok(())
    }
}

/// The factor that brings a gradient of norm `norm` down to `max_norm`, 1 where it is below
/// (`torch.nn.utils.clip_grad_norm_`).
pub fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    with_f32(tensor, |values| {
        values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum()
    })
}

/// Reads a CPU tensor's values in place where it is contiguous, from a copy otherwise.
pub(crate) fn with_f32<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let candle_core::Storage::Cpu(storage) = &*storage else {
        return Err(candle_core::Error::Msg("expected a tensor on the CPU".to_owned()).bt().into());
    };
    let values = storage.as_slice::<f32>()?;
    Ok(read(&values[layout.start_offset()..layout.start_offset() + layout.shape().elem_count()]))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rows_are_added_to_the_table_s_gradient() {
        let device = Device::Cpu;
        let var = Var::zeros((4, 2), candle_core::DType::F32, &device).unwrap();
        let parameters = Parameters::new(vec![Parameter {
            name: "e".into(),
            var: var.clone(),
            part: Part::Embedding,
        }]);
        let mut gradients = Gradients::new(&parameters);
        let ids = Tensor::new(&[3u32, 1, 3], &device).unwrap();
        let rows = Tensor::new(&[[1f32, 2.], [3., 4.], [5., 6.]], &device).unwrap();
        gradients.add_rows(0, var.as_tensor(), &ids, &rows).unwrap();
        gradients.add_rows(0, var.as_tensor(), &ids, &rows).unwrap();
        let found = gradients.iter().next().flatten().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(found, [[0., 0.], [6., 8.], [0., 0.], [12., 16.]]);
        let beyond = Tensor::new(&[4u32, 0, 0], &device).unwrap();
        assert!(gradients.add_rows(0, var.as_tensor(), &beyond, &rows).is_err());
        assert_eq!(
            (parameters.first_block(), parameters.only(Part::Embedding)),
            (Some(0), Some(0))
        );
    }

    #[test]
    fn the_norm_is_over_all_gradients() {
        let var = |values: &[f32]| Var::new(values, &Device::Cpu).unwrap();
        let parameters = Parameters::new(vec![
            Parameter { name: "b".into(), var: var(&[0.0, 0.0]), part: Part::Block(1) },
            Parameter { name: "a".into(), var: var(&[0.0]), part: Part::Block(2) },
        ]);
        assert_eq!(parameters.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(parameters.first_block(), Some(1));
        let mut gradients = Gradients::new(&parameters);
        gradients.add(0, Tensor::new(&[2f32], &Device::Cpu).unwrap()).unwrap();
        gradients.add(1, Tensor::new(&[1f32, 4.0], &Device::Cpu).unwrap()).unwrap();
        gradients.add(1, Tensor::new(&[2f32, 2.0], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(gradients.norm().unwrap(), 7.0);
        assert!((clip_coefficient(7.0, 1.0) - 1.0 / 7.0).abs() < 1e-6);
        assert_eq!(clip_coefficient(0.5, 1.0), 1.0);
    }
}
