//! The tensors a run trains, and their gradients.

use candle_core::{Tensor, Var};

use crate::error::Result;

/// One trainable tensor.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name, unique in the run: `model.layers.0.self_attn.q_proj.lora_A`.
    pub name: String,
    /// The tensor.
    pub var: Var,
    /// The decoder block it is used in.
    pub block: usize,
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

    /// The lowest block that holds one: those below it need no gradient.
    pub(crate) fn first_block(&self) -> Option<usize> {
        self.0.iter().map(|parameter| parameter.block).min()
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

    /// In the order of the parameters.
    pub fn iter(&self) -> impl Iterator<Item = Option<&Tensor>> {
        self.0.iter().map(Option::as_ref)
    }

    /// The norm of all gradients as one vector (`torch.nn.utils.get_total_norm`), summed in f64 in a fixed order.
    pub fn norm(&self) -> Result<f64> {
        let mut squares = 0.0;
        let mut elsewhere = Vec::new();
        for gradient in self.0.iter().flatten() {
            match gradient.device().is_cpu() {
                true => squares += sum_of_squares(gradient)?,
                false => elsewhere.push(gradient.sqr()?.sum_all()?),
            }
        }
        if !elsewhere.is_empty() {
            // Read together: the host waits for the device once.
            squares +=
                Tensor::stack(&elsewhere, 0)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
        }
        Ok(squares.sqrt())
    }
}

/// The factor that brings a gradient of norm `norm` down to `max_norm`, 1 where it is below (`torch.nn.utils.clip_grad_norm_`).
pub fn clip_coefficient(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    with_f32(tensor, |values| values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum())
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
    fn the_norm_is_over_all_gradients() {
        let var = |values: &[f32]| Var::new(values, &Device::Cpu).unwrap();
        let parameters = Parameters::new(vec![
            Parameter { name: "b".into(), var: var(&[0.0, 0.0]), block: 1 },
            Parameter { name: "a".into(), var: var(&[0.0]), block: 2 },
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
