//! Linear maps, and the slots in which another projection may stand for them.

use std::fmt;
use std::sync::Arc;

use candle_core::Tensor;

use crate::error::Result;
use crate::layers::Weight;
use crate::pass::snapshot::Group;
use crate::pass::{Context, Pass};
use tunebook_ops::{self as ops, LowRank, Matrix, Rows};

/// A map from `in` to `out` features, applied to the last dimension.
///
/// In a batch whose rows are answered by different overlays the base's product is computed once for
/// all rows: [`Projection::input`] says what it is computed of, and [`Projection::update`] what
/// becomes of its result. A projection that is no update of the base leaves both as they are, and
/// its rows go through [`Projection::forward`].
pub trait Projection: Send + Sync + fmt::Debug {
    /// # Shapes
    /// `[.., in]` -> `[.., out]`.
    ///
    /// # Errors
    /// When the last dimension of `x` is not `in`.
    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor>;

    /// The input of the base's product, where it is another than `x`.
    ///
    /// # Shapes
    /// `[.., in]` -> `[.., in]`.
    ///
    /// # Errors
    /// When the last dimension of `x` is not `in`.
    fn input(&self, _x: &Tensor, _context: &Context<'_>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// What [`Projection::forward`] gives, from `y`, the base's result on [`Projection::input`];
    /// `None`: this projection is no update of the base.
    ///
    /// # Shapes
    /// `x` `[.., in]`, `y` `[.., out]` -> `[.., out]`.
    ///
    /// # Errors
    /// When the shapes do not fit.
    fn update(&self, _x: &Tensor, _y: &Tensor, _context: &Context<'_>) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// [`Projection::update`] as low-rank products that are added to `y`, where it is nothing else.
    ///
    /// # Errors
    /// When the device refuses.
    fn low_rank(&self, _context: &Context<'_>) -> Result<Option<Vec<LowRank>>> {
        Ok(None)
    }

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

    /// Another weight `[out, in]` with this one's bias, which stays shared: what stands in for it is
    /// seen in both.
    #[must_use]
    pub fn with_weight(&self, weight: Tensor) -> Self {
        Self { weight: Arc::new(Weight::new("weight", weight)), bias: self.bias.clone() }
    }

    /// The weight as it was loaded, `[out, in]`.
    pub fn matrix(&self) -> Matrix {
        self.weight.matrix()
    }

    /// Whether the weight has never been trained in place, so that it still is what was loaded.
    pub fn is_as_loaded(&self) -> bool {
        !self.weight.is_shared()
    }

    /// The weight as an operation of this pass takes it, `[out, in]`.
    pub fn matrix_in(&self, context: &Context<'_>) -> Matrix {
        context.weight(&self.weight)
    }

    /// The bias as it was loaded, `[out]`.
    pub fn bias(&self) -> Option<Tensor> {
        self.bias.as_ref().map(|bias| bias.get())
    }

    /// The bias as an operation of this pass takes it, `[out]`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn bias_in(&self, context: &Context<'_>) -> Result<Option<Tensor>> {
        self.bias.as_ref().map(|bias| context.tensor(bias)).transpose()
    }

    /// Every row with the weights that its overlay has.
    fn by_overlay(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let bias = self.bias.as_deref();
        pass.by_overlay(
            x,
            |overlay| {
                overlay.weight(&self.weight).is_some()
                    || bias.is_some_and(|bias| overlay.weight(bias).is_some())
            },
            |x, context| self.forward(x, context),
        )
    }
}

impl Projection for Linear {
    fn forward(&self, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        Ok(ops::linear(x, self.matrix_in(context), self.bias_in(context)?.as_ref())?)
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

/// The place of one projection in a decoder. An overlay may put another there.
#[derive(Debug)]
pub struct Slot {
    index: usize,
    path: String,
    base: Arc<Linear>,
}

/// Rows of a batch, the projection that their overlay has in a slot, and their context.
type GroupProjection<'a> = (&'a Group, Option<&'a Arc<dyn Projection>>, Context<'a>);

impl Slot {
    pub(crate) fn new(index: usize, path: String, base: Linear) -> Self {
        Self { index, path, base: Arc::new(base) }
    }

    /// Its place in the model's list.
    pub(crate) fn index(&self) -> usize {
        self.index
    }

    /// Hugging Face's module name, such as `model.layers.0.self_attn.q_proj`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The projection that the model was loaded with.
    pub fn base(&self) -> &Arc<Linear> {
        &self.base
    }

    /// The projection of `x` in this pass: each row's own.
    ///
    /// # Shapes
    /// `[.., in]` -> `[.., out]`.
    ///
    /// # Errors
    /// When the last dimension of `x` is not `in`.
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let snapshot = pass.snapshot();
        let Some(mixed) = snapshot.mixed() else {
            let context = Context::new(snapshot.first(), pass.mode());
            let Some(projection) = snapshot.first().projection(self) else {
                return self.base.forward(x, &context);
            };
            // A text that is generated alone goes the way that it would go among others.
            let updated = match Rows::current() {
                Rows::Any => None,
                _ => self.updated(x, projection, &context, pass)?,
            };
            return match updated {
                Some(y) => Ok(y),
                None => projection.forward(x, &context),
            };
        };
        let groups: Vec<_> = mixed
            .groups()
            .iter()
            .map(|group| {
                let context = Context::new(group.overlay(), pass.mode());
                (group, group.overlay().projection(self), context)
            })
            .collect();
        if groups.iter().all(|(_, projection, _)| projection.is_none()) {
            return self.base.by_overlay(x, pass);
        }
        if let Some(y) = self.with_low_ranks(x, &groups, pass)? {
            return Ok(y);
        }
        let mut inputs = Vec::with_capacity(groups.len());
        let mut changed = false;
        for (group, projection, context) in &groups {
            let x = group.take(x)?;
            let input = match projection {
                Some(projection) => projection.input(&x, context)?,
                None => None,
            };
            changed |= input.is_some();
            inputs.push((x.clone(), input.unwrap_or(x)));
        }
        let y = if changed {
            let inputs: Vec<Tensor> = inputs.iter().map(|(_, input)| input.clone()).collect();
            self.base.by_overlay(&mixed.join(&inputs)?, pass)?
        } else {
            self.base.by_overlay(x, pass)?
        };
        let mut parts = Vec::with_capacity(groups.len());
        for ((group, projection, context), (x, _)) in groups.iter().zip(&inputs) {
            let y = group.take(&y)?;
            parts.push(match projection {
                None => y,
                Some(projection) => match add_low_rank(x, &y, projection, context)? {
                    Some(y) => y,
                    None => match projection.update(x, &y, context)? {
                        Some(y) => y,
                        None => projection.forward(x, context)?,
                    },
                },
            });
        }
        mixed.join(&parts)
    }

    /// The base's result of all rows, updated by one projection; `None`: it is no update.
    fn updated(
        &self,
        x: &Tensor,
        projection: &Arc<dyn Projection>,
        context: &Context<'_>,
        pass: &Pass<'_>,
    ) -> Result<Option<Tensor>> {
        if projection.as_linear().is_some() {
            return Ok(None);
        }
        let input = projection.input(x, context)?;
        let y = self.base.by_overlay(input.as_ref().unwrap_or(x), pass)?;
        match add_low_rank(x, &y, projection, context)? {
            Some(y) => Ok(Some(y)),
            None => projection.update(x, &y, context),
        }
    }

    /// The base's result of all rows, to which each group's low-rank products are added at once;
    /// `None`: some group's update is another.
    fn with_low_ranks(
        &self,
        x: &Tensor,
        groups: &[GroupProjection<'_>],
        pass: &Pass<'_>,
    ) -> Result<Option<Tensor>> {
        if !ops::adds_low_rank(x) {
            return Ok(None);
        }
        let mut parts = Vec::with_capacity(groups.len());
        for (group, projection, context) in groups {
            let Some(projection) = projection else { continue };
            match projection.low_rank(context)? {
                Some(low) => parts.push((group.rows(), low)),
                None => return Ok(None),
            }
        }
        let parts: Vec<_> = parts.iter().map(|(rows, low)| (Some(*rows), low.as_slice())).collect();
        let y = self.base.by_overlay(x, pass)?;
        Ok(ops::add_low_rank(x, &y, &parts)?)
    }
}

/// `y` with a projection's low-rank products, if that is what its update is.
fn add_low_rank(
    x: &Tensor,
    y: &Tensor,
    projection: &Arc<dyn Projection>,
    context: &Context<'_>,
) -> Result<Option<Tensor>> {
    match projection.low_rank(context)? {
        Some(low) => Ok(ops::add_low_rank(x, y, &[(None, &low)])?),
        None => Ok(None),
    }
}
