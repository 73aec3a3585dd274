//! The layers that every decoder is built from, and the slots through which a projection is
//! replaced.
//!
//! A decoder does not know what stands in its slots: an adapter library asks for [`Slot`]s by path,
//! builds its own [`Projection`] around the frozen [`Linear`] and puts it there. [`Slot::restore`]
//! brings the base back, bit for bit.

pub(crate) mod attention;
pub mod rope;
pub(crate) mod softcap;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{Tensor, Var};

use crate::error::Result;
use tunebook_ops::Matrix;
use tunebook_ops::{self as ops, Gate};

/// One tensor of a decoder: a constant, until training takes it over with [`Weight::train`].
///
/// A trained weight has one copy in memory: the decoder and the trainer's variable share it, so
/// that an update in place is seen at once. A frozen one may be kept in quantised blocks
/// ([`Matrix`]).
pub struct Weight {
    name: String,
    state: RwLock<WeightState>,
}

struct WeightState {
    values: Matrix,
    /// What was loaded, while something stands in for it.
    base: Option<Matrix>,
    /// The same values as part of the graph, and whether anybody wants them so.
    trained: Option<(Tensor, Arc<AtomicBool>)>,
}

impl Weight {
    /// A weight under Hugging Face's name for it, such as `model.norm.weight`.
    pub fn new(name: impl Into<String>, values: impl Into<Matrix>) -> Self {
        let values = values.into();
        Self {
            name: name.into(),
            state: RwLock::new(WeightState { values, base: None, trained: None }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tensor: part of the graph while it is trained and gradients are wanted, a constant
    /// otherwise. Of a quantised weight this is a new copy in f32; [`Weight::matrix`] is what an
    /// operation takes.
    pub fn get(&self) -> Tensor {
        self.matrix().tensor().expect("as many values as the shape says make a tensor")
    }

    /// What an operation takes: the tensor, or the blocks that it is kept in.
    pub fn matrix(&self) -> Matrix {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        match &state.trained {
            Some((tracked, gradients)) if gradients.load(Ordering::Relaxed) => tracked.into(),
            _ => state.values.clone(),
        }
    }

    /// Lets `var`, which should hold this weight's values, take its place. While `gradients` is
    /// true a forward pass builds a graph to it.
    ///
    /// # Errors
    /// When the shapes differ, or the weight is kept in quantised blocks, which cannot be trained.
    pub fn train(&self, var: &Var, gradients: Arc<AtomicBool>) -> Result<()> {
        if let Matrix::Quantized(blocks) = self.matrix() {
            return Err(crate::Error::QuantizedWeight {
                name: self.name.clone(),
                format: blocks.format(),
            });
        }
        self.put(var, gradients)
    }

    fn put(&self, var: &Var, gradients: Arc<AtomicBool>) -> Result<()> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if var.dims() != state.values.dims() {
            return Err(crate::Error::Shape {
                origin: "the variable".to_owned(),
                name: self.name.clone(),
                expected: state.values.dims().to_vec(),
                found: var.dims().to_vec(),
            });
        }
        state.values = var.as_detached_tensor().into();
        state.trained = Some((var.as_tensor().clone(), gradients));
        Ok(())
    }

    /// The same for as long as [`Weight::restore`] is not called: what was loaded, which may be
    /// quantised, is kept beside it.
    ///
    /// # Errors
    /// When the shapes differ.
    pub fn stand_in(&self, var: &Var, gradients: Arc<AtomicBool>) -> Result<()> {
        let kept = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            state.base.clone().unwrap_or_else(|| state.values.clone())
        };
        self.put(var, gradients)?;
        self.state.write().unwrap_or_else(PoisonError::into_inner).base = Some(kept);
        Ok(())
    }

    /// The tensor without what stands in for it, a constant; of a quantised weight a new copy in
    /// f32.
    pub fn loaded(&self) -> Tensor {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let loaded = state.base.as_ref().unwrap_or(&state.values).detach();
        loaded.tensor().expect("as many values as the shape says make a tensor")
    }

    /// What was loaded, as it is kept.
    pub fn loaded_matrix(&self) -> Matrix {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.base.as_ref().unwrap_or(&state.values).detach()
    }

    /// Whether something stands in for what was loaded.
    pub fn is_replaced(&self) -> bool {
        self.state.read().unwrap_or_else(PoisonError::into_inner).base.is_some()
    }

    /// Puts back what [`Weight::stand_in`] put aside, bit for bit; nothing happens where nothing
    /// stands in.
    pub fn restore(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(base) = state.base.take() {
            state.values = base;
            state.trained = None;
        }
    }

    /// Puts the values that were loaded in place of the empty ones it was made with.
    pub(crate) fn fill(&self, values: Matrix) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).values = values;
    }

    /// Ends training: a constant again, with the values that it has now.
    pub fn freeze(&self) {
        self.state.write().unwrap_or_else(PoisonError::into_inner).trained = None;
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({} {:?})", self.name, self.matrix().dims())
    }
}

/// A map from `in` to `out` features, applied to the last dimension.
pub trait Projection: Send + Sync + fmt::Debug {
    /// # Shapes
    /// `[.., in]` -> `[.., out]`.
    ///
    /// # Errors
    /// When the last dimension of `x` is not `in`.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;
    /// Size of the last dimension that goes in.
    fn in_features(&self) -> usize;
    /// Size of the last dimension that comes out.
    fn out_features(&self) -> usize;
    /// The frozen weight, `[out, in]`; of a quantised one a new copy in f32.
    fn weight(&self) -> Tensor;
    /// Itself, if it is nothing but a matrix and a bias, as a merged adapter is.
    fn as_linear(&self) -> Option<&Linear> {
        None
    }
}

/// `y = x · wᵀ + b`.
#[derive(Clone)]
pub struct Linear {
    weight: Arc<Weight>,
    bias: Option<Arc<Weight>>,
}

impl Linear {
    /// # Shapes
    /// `weight` `[out, in]`, `bias` `[out]`.
    pub fn new(weight: impl Into<Matrix>, bias: Option<Tensor>) -> Self {
        Self {
            weight: Arc::new(Weight::new("weight", weight)),
            bias: bias.map(|bias| Arc::new(Weight::new("bias", bias))),
        }
    }

    /// Of weights that others hold as well.
    pub(crate) fn of(weight: Arc<Weight>, bias: Option<Arc<Weight>>) -> Self {
        Self { weight, bias }
    }

    /// Another weight `[out, in]` with this one's bias, which stays shared: what is trained of it
    /// is seen in both.
    #[must_use]
    pub fn with_weight(&self, weight: Tensor) -> Self {
        Self { weight: Arc::new(Weight::new("weight", weight)), bias: self.bias.clone() }
    }

    /// The weight as operations take it, `[out, in]`.
    pub fn matrix(&self) -> Matrix {
        self.weight.matrix()
    }

    /// The bias, `[out]`.
    pub fn bias(&self) -> Option<Tensor> {
        self.bias.as_ref().map(|bias| bias.get())
    }
}

impl Projection for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(x, self.matrix(), self.bias().as_ref())?)
    }

    fn in_features(&self) -> usize {
        self.matrix().dims().get(1).copied().unwrap_or(0)
    }

    fn out_features(&self) -> usize {
        self.matrix().dims().first().copied().unwrap_or(0)
    }

    fn weight(&self) -> Tensor {
        self.weight.get()
    }

    fn as_linear(&self) -> Option<&Linear> {
        Some(self)
    }
}

impl fmt::Debug for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bias = if self.bias.is_some() { ", bias" } else { "" };
        let bias = match self.matrix() {
            Matrix::Quantized(blocks) => format!("{bias}, {}", blocks.format()),
            Matrix::Plain(_) => bias.to_owned(),
        };
        write!(f, "Linear({} -> {}{bias})", self.in_features(), self.out_features())
    }
}

/// The place of one projection in a decoder. What stands there can be replaced while the model is
/// in use.
#[derive(Debug)]
pub struct Slot {
    path: String,
    base: Arc<Linear>,
    current: RwLock<Arc<dyn Projection>>,
}

impl Slot {
    pub(crate) fn new(path: String, base: Linear) -> Self {
        let base = Arc::new(base);
        Self { path, current: RwLock::new(base.clone()), base }
    }

    /// Hugging Face's module name, such as `model.layers.0.self_attn.q_proj`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The projection that the model was loaded with.
    pub fn base(&self) -> Arc<Linear> {
        self.base.clone()
    }

    /// What stands here now.
    pub fn current(&self) -> Arc<dyn Projection> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another projection here, from the next forward pass on.
    ///
    /// # Errors
    /// When it maps between other sizes than the base.
    pub fn replace(&self, projection: Arc<dyn Projection>) -> Result<()> {
        let (found, expected) = (
            [projection.out_features(), projection.in_features()],
            [self.base.out_features(), self.base.in_features()],
        );
        if found != expected {
            return Err(crate::Error::Shape {
                origin: "the replacement".to_owned(),
                name: self.path.clone(),
                expected: expected.to_vec(),
                found: found.to_vec(),
            });
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = projection;
        Ok(())
    }

    /// Puts the base back.
    pub fn restore(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = self.base.clone();
    }

    /// The current projection of `x`.
    ///
    /// # Shapes
    /// `[.., in]` -> `[.., out]`.
    ///
    /// # Errors
    /// When the last dimension of `x` is not `in`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.current().forward(x)
    }
}

/// Root-mean-square normalisation with a learned scale.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Arc<Weight>,
    eps: f64,
    /// Added to the weight: 1 in Gemma, whose weights are stored as their difference from 1.
    offset: f64,
}

impl RmsNorm {
    /// # Shapes
    /// `weight` `[n]`.
    pub fn new(weight: Arc<Weight>, eps: f64) -> Self {
        Self { weight, eps, offset: 0.0 }
    }

    /// The same, with the scale `1 + weight`.
    pub(crate) fn around_one(weight: Arc<Weight>, eps: f64) -> Self {
        Self { weight, eps, offset: 1.0 }
    }

    /// # Shapes
    /// `[.., n]` -> `[.., n]`.
    ///
    /// # Errors
    /// When the last dimension of `x` is not `n`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight.get();
        let weight = if self.offset == 0.0 { weight } else { (weight + self.offset)? };
        Ok(ops::rms_norm(x, &weight, self.eps)?)
    }
}

/// Normalisation to mean 0 and variance 1 (<https://arxiv.org/abs/1607.06450>) with a learned scale
/// and shift.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Arc<Weight>,
    bias: Arc<Weight>,
    eps: f64,
}

impl LayerNorm {
    /// # Shapes
    /// `weight` and `bias` `[n]`.
    pub fn new(weight: Arc<Weight>, bias: Arc<Weight>, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    /// # Shapes
    /// `[.., n]` -> `[.., n]`, reduced in f32.
    ///
    /// # Errors
    /// When the last dimension of `x` is not `n`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::layer_norm(x, &self.weight.get(), &self.bias.get(), self.eps)?)
    }
}

/// The non-linear function of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x · sigmoid(x)`
    Silu,
    /// With the error function.
    Gelu,
    /// GELU's approximation with a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

impl Activation {
    /// The names that [`Activation::from_name`] knows.
    pub(crate) const KNOWN: &str = "silu, gelu, gelu_new, gelu_pytorch_tanh, relu";

    /// By Hugging Face's name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluTanh,
            "relu" => Self::Relu,
            _ => return None,
        })
    }

    /// # Shapes
    /// Any, which is the result's.
    pub(crate) fn forward(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Silu => x.silu()?,
            Self::Gelu => x.gelu_erf()?,
            Self::GeluTanh => x.gelu()?,
            Self::Relu => x.relu()?,
        })
    }

    /// `activation(gate) · up`
    pub(crate) fn gate(self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let how = match self {
            Self::Silu => Gate::Silu,
            Self::Gelu => Gate::Gelu,
            Self::GeluTanh => Gate::GeluTanh,
            Self::Relu => return Ok((gate.relu()? * up)?),
        };
        Ok(ops::gated(gate, up, how)?)
    }
}

/// One vector for each token.
#[derive(Clone, Debug)]
pub struct Embedding {
    weight: Arc<Weight>,
}

impl Embedding {
    /// # Shapes
    /// `weight` `[vocab, hid]`.
    pub fn new(weight: Arc<Weight>) -> Self {
        Self { weight }
    }

    /// The table, `[vocab, hid]`.
    pub fn weight(&self) -> &Arc<Weight> {
        &self.weight
    }

    /// # Shapes
    /// `ids` `[b, t]` u32 -> `[b, t, hid]`.
    ///
    /// # Errors
    /// When an id is not below `vocab`.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        // [b, t] -> [b·t, hid] -> [b, t, hid]
        let rows = self.weight.matrix().select(&ids.flatten_all()?)?;
        Ok(rows.reshape((b, t, ()))?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_slot_gives_its_base_back() {
        let weight = |v: f32| Tensor::new(&[[v, 0.], [0., v]], &Device::Cpu).unwrap();
        let slot =
            Slot::new("model.layers.0.mlp.up_proj".to_owned(), Linear::new(weight(2.), None));
        let x = Tensor::new(&[[1f32, 2.]], &Device::Cpu).unwrap();
        let at = |slot: &Slot| slot.forward(&x).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(at(&slot), [[2., 4.]]);
        slot.replace(Arc::new(Linear::new(weight(3.), None))).unwrap();
        assert_eq!(at(&slot), [[3., 6.]]);
        slot.restore();
        assert_eq!(at(&slot), [[2., 4.]]);
    }

    #[test]
    fn a_trained_weight_is_tracked_on_request_and_has_one_copy() {
        let weight = Weight::new("w", Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap());
        let var = Var::from_tensor(&weight.get()).unwrap();
        let gradients = Arc::new(AtomicBool::new(false));
        weight.train(&var, Arc::clone(&gradients)).unwrap();
        assert!(!weight.get().track_op());
        gradients.store(true, Ordering::Relaxed);
        assert!(weight.get().is_variable());
        var.set(&Tensor::new(&[3f32, 4.], &Device::Cpu).unwrap()).unwrap();
        weight.freeze();
        assert!(!weight.get().track_op());
        assert_eq!(weight.get().to_vec1::<f32>().unwrap(), [3., 4.]);
        let other = Var::new(&[1f32], &Device::Cpu).unwrap();
        assert!(weight.train(&other, gradients).unwrap_err().to_string().contains("[1]"));
    }

    #[test]
    fn what_stands_in_for_a_weight_leaves_it_as_it_was() {
        let loaded = Tensor::new(&[1f32, 2.], &Device::Cpu).unwrap();
        let weight = Weight::new("w", loaded);
        let values = |weight: &Weight| weight.get().to_vec1::<f32>().unwrap();
        let gradients = Arc::new(AtomicBool::new(true));
        for value in [3f32, 5.] {
            let var = Var::new(&[value, 4.], &Device::Cpu).unwrap();
            weight.stand_in(&var, Arc::clone(&gradients)).unwrap();
            assert!(weight.get().is_variable());
            assert_eq!(values(&weight), [value, 4.]);
        }
        weight.restore();
        assert!(!weight.get().track_op());
        assert_eq!(values(&weight), [1., 2.]);
        weight.restore();
        assert_eq!(values(&weight), [1., 2.]);
    }

    #[test]
    fn a_slot_refuses_another_shape() {
        let linear = |out| {
            Linear::new(
                Tensor::zeros((out, 2), candle_core::DType::F32, &Device::Cpu).unwrap(),
                None,
            )
        };
        let slot = Slot::new("model.layers.0.mlp.up_proj".to_owned(), linear(2));
        let error = slot.replace(Arc::new(linear(3))).unwrap_err().to_string();
        assert!(
            error.contains("up_proj") && error.contains("[3, 2]") && error.contains("[2, 2]"),
            "{error}"
        );
    }
}
