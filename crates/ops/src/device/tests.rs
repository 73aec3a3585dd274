//! The composed forms in bf16 with f32 masters, against the plain composition in f32. (In f32 they
//! take all tests of the operations, see `composed_forms_are_right` there.)

use candle_core::{DType, Device, Result, Tensor, Var};

use crate::tests::numbers;
use crate::{
    Attention, Gate, Tape, add, attention, cross_entropy, device, linear, lora_linear, naive,
    rms_norm, rope, swiglu,
};

/// bf16 keeps 8 bits: 0.4 % for each rounding, of which an operation has a few.
const TOLERANCE: f32 = 0.03;

fn close(what: &str, got: &Tensor, right: &Tensor) {
    assert_eq!(got.dims(), right.dims(), "{what}: shape");
    let list = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>();
    let (got, right) = (list(got).expect("numbers"), list(right).expect("numbers"));
    let size = right.iter().fold(1e-3f32, |a, b| a.max(b.abs()));
    for (i, (x, y)) in got.iter().zip(&right).enumerate() {
        assert!((x - y).abs() <= TOLERANCE * size, "{what} [{i}]: {x} for {y} (largest {size})");
    }
}

/// `vars` in f32; those listed in `masters` stay so, the others become bf16. Checks value,
/// gradients and their types.
fn compare(
    vars: &[Tensor],
    masters: &[usize],
    form: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    let rounded = |i: usize, x: &Tensor| match masters.contains(&i) {
        true => Ok(x.clone()),
        false => x.to_dtype(DType::BF16),
    };
    let run =
        |form: &dyn Fn(&[Tensor]) -> Result<Tensor>, wide: bool| -> Result<(Tensor, Vec<Tensor>)> {
            let vars = vars.iter().enumerate().map(|(i, x)| {
                let x = rounded(i, x)?;
                Var::from_tensor(&if wide { x.to_dtype(DType::F32)? } else { x })
            });
            let vars: Vec<Var> = vars.collect::<Result<_>>()?;
            let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
            let tape = Tape::record();
            let y = form(&tensors)?;
            let weights = numbers(y.dims(), 77).to_dtype(DType::BF16)?.to_dtype(y.dtype())?;
            let mut grads = tape.stop().backward(&y, &weights)?;
            let grads =
                tensors.iter().map(|t| Ok(grads.remove(t)?.expect("a gradient for each variable")));
            Ok((y, grads.collect::<Result<_>>()?))
        };
    let (y, grads) = run(&form, false)?;
    let (right, right_grads) = run(&plain, true)?;
    close("value", &y, &right);
    for (i, (got, right)) in grads.iter().zip(&right_grads).enumerate() {
        assert_eq!(got.dtype(), rounded(i, &vars[i])?.dtype(), "type of the gradient of input {i}");
        close(&format!("gradient of input {i}"), got, right);
    }
    Ok(())
}

/// What a frozen tensor is in bf16, in both types.
fn frozen(shape: &[usize], seed: u64) -> Result<(Tensor, Tensor)> {
    let narrow = numbers(shape, seed).to_dtype(DType::BF16)?;
    Ok((narrow.clone(), narrow.to_dtype(DType::F32)?))
}

#[test]
fn linear_maps_in_bf16_with_f32_masters() -> Result<()> {
    let (w, wide) = frozen(&[40, 72], 1)?;
    let x = numbers(&[2, 17, 72], 2);
    compare(
        std::slice::from_ref(&x),
        &[],
        |v| device::linear(&v[0], &w, None),
        |v| naive::linear(&v[0], &wide, None),
    )?;
    compare(
        &[x.clone(), numbers(&[40, 72], 3), numbers(&[40], 4)],
        &[1, 2],
        |v| device::linear(&v[0], &v[1], Some(&v[2])),
        |v| naive::linear(&v[0], &v[1], Some(&v[2])),
    )?;
    let keep = (numbers(x.dims(), 9).ge(-0.5)?.to_dtype(DType::F32)? / 0.75)?;
    for mask in [None, Some(&keep)] {
        compare(
            &[x.clone(), numbers(&[8, 72], 5), numbers(&[40, 8], 6)],
            &[1, 2],
            |v| device::lora_linear(&v[0], &w, None, &v[1], &v[2], 0.5, mask),
            |v| naive::lora_linear(&v[0], &wide, None, &v[1], &v[2], 0.5, mask),
        )?;
    }
    Ok(())
}

#[test]
fn the_other_operations_in_bf16() -> Result<()> {
    let (w, wide) = frozen(&[64], 1)?;
    let x = numbers(&[2, 9, 64], 2);
    compare(
        std::slice::from_ref(&x),
        &[],
        |v| device::rms_norm(&v[0], &w, 1e-5),
        |v| naive::rms_norm(&v[0], &wide, 1e-5),
    )?;
    compare(
        &[x.clone(), numbers(&[64], 3)],
        &[1],
        |v| device::rms_norm(&v[0], &v[1], 1e-5),
        |v| naive::rms_norm(&v[0], &v[1], 1e-5),
    )?;
    let pair = [(x.clone() * 4.)?, numbers(&[2, 9, 64], 4)];
    for how in [Gate::Silu, Gate::Gelu, Gate::GeluTanh] {
        compare(
            &pair,
            &[],
            |v| device::gated(&v[0], &v[1], how),
            |v| naive::gated(&v[0], &v[1], how),
        )?;
    }
    compare(
        &[x.clone(), numbers(&[64], 3), numbers(&[64], 4)],
        &[1, 2],
        |v| device::layer_norm(&v[0], &v[1], &v[2], 1e-5),
        |v| naive::layer_norm(&v[0], &v[1], &v[2], 1e-5),
    )?;
    compare(&pair, &[], |v| device::add(&v[0], &v[1]), |v| &v[0] + &v[1])?;
    let (cos, sin) = (numbers(&[16, 8], 5), numbers(&[16, 8], 6));
    let positions: Vec<u32> = (0..18).map(|i| i * 5 % 16).collect();
    let positions = Tensor::from_vec(positions, (2, 9), &Device::Cpu)?;
    compare(
        std::slice::from_ref(&x),
        &[],
        |v| device::rope(&v[0], &cos, &sin, &positions, [2, 9, 4, 16]),
        |v| naive::rope(&v[0].reshape((2, 9, 4, 16))?, &cos, &sin, &positions),
    )
}

#[test]
fn attention_and_loss_in_bf16() -> Result<()> {
    for starts in [None, Some(vec![0, 7])] {
        let how = Attention { scale: 0.25, starts, ..Default::default() };
        compare(
            &[
                numbers(&[2, 70, 4, 16], 1),
                numbers(&[2, 90, 2, 16], 2),
                numbers(&[2, 90, 2, 16], 3),
            ],
            &[],
            |v| attention(&v[0], &v[1], &v[2], &how),
            |v| naive::attention(&v[0], &v[1], &v[2], &how),
        )?;
    }
    let labels: Vec<i64> = (0..30).map(|i| if i % 4 == 0 { -100 } else { i * 3 % 50 }).collect();
    let (head, wide) = frozen(&[50, 24], 4)?;
    let hidden = (numbers(&[30, 24], 5) * 2.)?;
    compare(
        std::slice::from_ref(&hidden),
        &[],
        |v| Ok(device::cross_entropy(&v[0], &head, &labels)?.0),
        |v| Ok(naive::cross_entropy(&v[0], &wide, &labels)?.0),
    )?;
    compare(
        &[hidden, numbers(&[50, 24], 6)],
        &[1],
        |v| Ok(device::cross_entropy(&v[0], &v[1], &labels)?.0),
        |v| Ok(naive::cross_entropy(&v[0], &v[1], &labels)?.0),
    )
}

/// More queries than one block takes, in f32, where blocks could go wrong unnoticed by smaller
/// shapes.
#[test]
fn attention_over_several_blocks() -> Result<()> {
    let how = Attention { scale: 0.25, starts: Some(vec![300]), ..Default::default() };
    let vars =
        [numbers(&[1, 530, 2, 8], 1), numbers(&[1, 560, 1, 8], 2), numbers(&[1, 560, 1, 8], 3)];
    let sizes = crate::attention::Sizes { b: 1, t: 530, s: 560, h: 2, hkv: 1, d: 8 };
    compare(
        &vars,
        &[0, 1, 2],
        |v| device::attention(&v[0], &v[1], &v[2], how.scale, vec![300; 530], sizes),
        |v| naive::attention(&v[0], &v[1], &v[2], &how),
    )
}

/// The names without a module choose the composed forms for bf16 by themselves.
#[test]
fn bf16_takes_the_composed_forms() -> Result<()> {
    let (x, _) = frozen(&[2, 3, 16], 1)?;
    let (w, _) = frozen(&[16, 16], 2)?;
    let (a, b) = (numbers(&[2, 16], 3), numbers(&[16, 2], 4));
    let norm = rms_norm(&x, &w.get(0)?, 1e-5)?;
    let low = lora_linear(&norm, &w, None, &a, &b, 1., None)?;
    let angles = numbers(&[3, 4], 5);
    let positions = Tensor::new(&[[0u32, 1, 2], [0, 1, 2]], &Device::Cpu)?;
    let q = rope(&low, &angles, &angles, &positions)?;
    let y = attention(&q, &q, &q, &Attention { scale: 0.3, ..Default::default() })?;
    let y = add(&x, &swiglu(&linear(&y, &w, None)?, &y)?)?;
    let (loss, count) = cross_entropy(&y.reshape((6, 16))?, &w, &[1, 2, -100, 3, 4, 5])?;
    assert_eq!((y.dtype(), loss.dtype(), count), (DType::BF16, DType::F32, 5));
    assert!(loss.to_scalar::<f32>()?.is_finite());
    Ok(())
}
