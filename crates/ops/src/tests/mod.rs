//! Every fused operation against its plain composition: value and gradient, over random shapes.

mod quantized;

use candle_core::{DType, Device, Result, Tensor, Var};
use proptest::prelude::*;

use crate::cuda::checks;
use crate::{
    Attention, Gate, IGNORE, Tape, add, attention, cross_entropy, gated, layer_norm, linear,
    lora_linear, naive, rms_norm, rope, swiglu,
};

/// [`checks::numbers`], as the tests take them.
pub(crate) fn numbers(shape: &[usize], seed: u64) -> Tensor {
    checks::numbers(shape, seed).expect("as many numbers as the shape has")
}

/// Compares relative to the largest number of `right`.
pub(super) fn close(what: &str, got: &Tensor, right: &Tensor, tolerance: f32) {
    close_above(what, got, right, tolerance, 1e-3);
}

/// The same, where differences count relative to `smallest` at least.
fn close_above(what: &str, got: &Tensor, right: &Tensor, tolerance: f32, smallest: f32) {
    assert_eq!(got.dims(), right.dims(), "{what}: shape");
    let list = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32 values");
    let (got, right) = (list(got), list(right));
    let size = right.iter().fold(smallest, |a, b| a.max(b.abs()));
    for (i, (x, y)) in got.iter().zip(&right).enumerate() {
        assert!((x - y).abs() <= tolerance * size, "{what} [{i}]: {x} for {y} (largest {size})");
    }
}

/// The gradient of attention's softmax is a difference of numbers close to 1 where one probability
/// is close to 1: rounding leaves 1e-7, however small the difference is. So errors are relative to
/// this at least (an absolute 5e-7), against an oracle in f64.
const NEAR_ONE: f32 = 0.025;

/// Runs both forms on the same variables; `Σ y ∘ r` with random `r` gives each a gradient.
fn compare(
    vars: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
    tolerance: f32,
) {
    compare_with(DType::F32, vars, fused, plain, tolerance, 1e-3);
}

/// The same with the plain form in f64, where differences of gradients count relative to `smallest`
/// at least.
fn compare_above(
    vars: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
    tolerance: f32,
    smallest: f32,
) {
    compare_with(DType::F64, vars, fused, plain, tolerance, smallest);
}

fn compare_with(
    oracle: DType,
    vars: &[Tensor],
    fused: impl Fn(&[Tensor]) -> Result<Tensor>,
    plain: impl Fn(&[Tensor]) -> Result<Tensor>,
    tolerance: f32,
    smallest: f32,
) {
    let run = |form: &dyn Fn(&[Tensor]) -> Result<Tensor>,
               dtype: DType|
     -> Result<(Tensor, Vec<Tensor>)> {
        let var = |value: &Tensor| Var::from_tensor(&value.to_dtype(dtype)?);
        let vars: Vec<Var> = vars.iter().map(var).collect::<Result<_>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = form(&tensors)?;
        let weights = numbers(y.dims(), 77).to_dtype(dtype)?;
        let grads = y.mul(&weights)?.sum_all()?.backward()?;
        let grads = tensors.iter().map(|t| grads.get(t).expect("a gradient for each variable"));
        let grads = grads.map(|grad| grad.to_dtype(DType::F32)).collect::<Result<_>>()?;
        Ok((y.to_dtype(DType::F32)?, grads))
    };
    let (y, grads) = run(&fused, DType::F32).expect("the fused form runs");
    let (right, right_grads) = run(&plain, oracle).expect("the plain form runs");
    close("value", &y, &right, tolerance);
    for (i, (got, right)) in grads.iter().zip(&right_grads).enumerate() {
        close_above(&format!("gradient of input {i}"), got, right, tolerance, smallest);
    }
    // The same on a tape.
    let taped = || -> Result<(Tensor, Vec<Tensor>)> {
        let vars: Vec<Var> = vars.iter().map(Var::from_tensor).collect::<Result<_>>()?;
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let tape = Tape::record();
        let y = fused(&tensors)?;
        let mut grads = tape.stop().backward(&y, &numbers(y.dims(), 77))?;
        let grads =
            tensors.iter().map(|t| Ok(grads.remove(t)?.expect("a gradient for each variable")));
        Ok((y, grads.collect::<Result<_>>()?))
    };
    let (y, grads) = taped().expect("the taped form runs");
    close("taped value", &y, &right, tolerance);
    for (i, (got, right)) in grads.iter().zip(&right_grads).enumerate() {
        close_above(&format!("taped gradient of input {i}"), got, right, tolerance, smallest);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn frozen_linear(n in 1usize..70, inp in 1usize..130, out in 1usize..130, bias: bool, seed: u64) {
        let w = numbers(&[out, inp], seed ^ 1);
        let b = bias.then(|| numbers(&[out], seed ^ 2));
        compare(
            &[numbers(&[2, n, inp], seed)],
            |v| linear(&v[0], &w, b.as_ref()),
            |v| naive::linear(&v[0], &w, b.as_ref()),
            1e-5,
        );
    }

    #[test]
    fn weights_in_bf16(n in 1usize..70, inp in 1usize..130, out in 1usize..130, r in 1usize..20, low: bool, seed: u64) {
        // Against f32 products of the rounded weight: what is left is the rounding of the other
        // operand, 2⁻⁹ each.
        let w = numbers(&[out, inp], seed ^ 1).to_dtype(DType::BF16).expect("bf16");
        let bias = numbers(&[out], seed ^ 2);
        if low {
            compare(
                &[numbers(&[2, n, inp], seed), numbers(&[r, inp], seed ^ 4), numbers(&[out, r], seed ^ 5)],
                |v| lora_linear(&v[0], &w, Some(&bias), &v[1], &v[2], 1.5, None),
                |v| naive::lora_linear(&v[0], &w, Some(&bias), &v[1], &v[2], 1.5, None),
                1e-2,
            );
        } else {
            compare(
                &[numbers(&[2, n, inp], seed)],
                |v| linear(&v[0], &w, Some(&bias)),
                |v| naive::linear(&v[0], &w, Some(&bias)),
                1e-2,
            );
        }
    }

    #[test]
    fn head_in_bf16(n in 1usize..60, hid in 1usize..70, vocab in 2usize..300, seed: u64) {
        let labels: Vec<i64> = (0..n).map(|i| if i % 3 == 1 { IGNORE } else { ((i * 131) % vocab) as i64 }).collect();
        let head = numbers(&[vocab, hid], seed ^ 1).to_dtype(DType::BF16).expect("bf16");
        compare_above(
            &[numbers(&[n, hid], seed)],
            |v| Ok(cross_entropy(&v[0], &head, &labels)?.0),
            |v| Ok(naive::cross_entropy(&v[0], &head, &labels)?.0),
            1e-2,
            0.5,
        );
    }

    #[test]
    fn trained_linear(n in 1usize..70, inp in 1usize..130, out in 1usize..130, seed: u64) {
        compare(
            &[numbers(&[n, inp], seed), numbers(&[out, inp], seed ^ 1), numbers(&[out], seed ^ 2)],
            |v| linear(&v[0], &v[1], Some(&v[2])),
            |v| naive::linear(&v[0], &v[1], Some(&v[2])),
            1e-5,
        );
    }

    #[test]
    fn low_rank_linear(
        n in 1usize..70, inp in 1usize..130, out in 1usize..130, r in 1usize..20, bias: bool, mask: bool, seed: u64,
    ) {
        let w = numbers(&[out, inp], seed ^ 1);
        let bias = bias.then(|| numbers(&[out], seed ^ 2));
        let mask = mask.then(|| {
            let keep = numbers(&[2, n, inp], seed ^ 3).ge(-0.5).and_then(|m| m.to_dtype(DType::F32));
            (keep.expect("a comparison") / 0.75).expect("a quotient")
        });
        compare(
            &[numbers(&[2, n, inp], seed), numbers(&[r, inp], seed ^ 4), numbers(&[out, r], seed ^ 5)],
            |v| lora_linear(&v[0], &w, bias.as_ref(), &v[1], &v[2], 1.5, mask.as_ref()),
            |v| naive::lora_linear(&v[0], &w, bias.as_ref(), &v[1], &v[2], 1.5, mask.as_ref()),
            1e-5,
        );
    }

    #[test]
    fn normalisation(n in 1usize..80, width in 8usize..300, seed: u64) {
        // Narrower rows leave next to nothing of a gradient but rounding.
        let x = numbers(&[2, n, width], seed);
        let w = numbers(&[width], seed ^ 1);
        compare(std::slice::from_ref(&x), |v| rms_norm(&v[0], &w, 1e-5), |v| naive::rms_norm(&v[0], &w, 1e-5), 2e-5);
        compare(&[x, w], |v| rms_norm(&v[0], &v[1], 1e-5), |v| naive::rms_norm(&v[0], &v[1], 1e-5), 2e-5);
    }

    #[test]
    fn gated_activation(n in 1usize..40_000, seed: u64) {
        let gate = (numbers(&[n], seed) * 9.).expect("a product");
        compare(
            &[gate, numbers(&[n], seed ^ 1)],
            |v| swiglu(&v[0], &v[1]),
            |v| naive::swiglu(&v[0], &v[1]),
            1e-5,
        );
    }

    #[test]
    fn gated_gelu(n in 1usize..40_000, seed: u64) {
        let pair = [(numbers(&[n], seed) * 6.).expect("a product"), numbers(&[n], seed ^ 1)];
        for how in [Gate::Gelu, Gate::GeluTanh] {
            compare(&pair, |v| gated(&v[0], &v[1], how), |v| naive::gated(&v[0], &v[1], how), 1e-5);
        }
    }

    #[test]
    fn centred_normalisation(n in 1usize..80, width in 8usize..300, seed: u64) {
        // Away from 0, where a variance computed as a difference of squares would be off.
        let x = (numbers(&[2, n, width], seed) + 3.).expect("a sum");
        let (w, b) = (numbers(&[width], seed ^ 1), numbers(&[width], seed ^ 2));
        let (fused, plain) = (|v: &[Tensor]| layer_norm(&v[0], &v[1], &v[2], 1e-5), |v: &[Tensor]| naive::layer_norm(&v[0], &v[1], &v[2], 1e-5));
        compare(std::slice::from_ref(&x), |v| layer_norm(&v[0], &w, &b, 1e-5), |v| naive::layer_norm(&v[0], &w, &b, 1e-5), 3e-5);
        compare(&[x, w, b], fused, plain, 3e-5);
    }

    #[test]
    fn rotation(b in 1usize..4, t in 1usize..40, h in 1usize..5, half in 1usize..40, flat: bool, seed: u64) {
        let (cos, sin) = (numbers(&[64, half], seed ^ 1), numbers(&[64, half], seed ^ 2));
        let positions: Vec<u32> = (0..b * t).map(|i| ((i as u64 * 31 + seed % 64) % 64) as u32).collect();
        let positions = Tensor::from_vec(positions, (b, t), &Device::Cpu).expect("positions");
        let four = [b, t, h, 2 * half];
        let x = if flat { numbers(&[b, t, h * 2 * half], seed) } else { numbers(&four, seed) };
        compare(
            &[x],
            |v| rope(&v[0], &cos, &sin, &positions),
            |v| naive::rope(&v[0].reshape(&four[..])?, &cos, &sin, &positions),
            1e-5,
        );
    }

    #[test]
    fn tiled_attention(
        b in 1usize..4, t in 1usize..150, extra in 0usize..120, hkv in 1usize..3, group in 1usize..4,
        d in prop::sample::select(vec![4usize, 16, 40, 64]), ragged: bool, seed: u64,
    ) {
        // A batch that decodes with a gradient does not exist; with t = 1 the value alone is
        // checked below.
        let (t, s) = (t + 1, t + 1 + extra);
        let starts = ragged.then(|| (0..b).map(|row| (seed as usize >> (8 * row)) % (s + 2)).collect());
        let how = Attention { scale: 1. / (d as f32).sqrt(), starts, ..Default::default() };
        compare_above(
            &[numbers(&[b, t, hkv * group, d], seed), numbers(&[b, s, hkv, d], seed ^ 1), numbers(&[b, s, hkv, d], seed ^ 2)],
            |v| attention(&(&v[0] * 4.)?, &v[1], &v[2], &how),
            |v| naive::attention(&(&v[0] * 4.)?, &v[1], &v[2], &how),
            2e-5,
            NEAR_ONE,
        );
    }

    #[test]
    fn windowed_and_packed_attention(
        b in 1usize..4, t in 2usize..200, extra in 0usize..120, window in prop::option::of(1usize..120),
        lengths in prop::option::of(prop::collection::vec(0usize..70, 1..6)), ragged: bool, seed: u64,
    ) {
        let (hkv, group, d) = (2, 2, 16);
        let s = if lengths.is_some() { t } else { t + extra };
        // Each row gets the lengths in another order, as many as fit.
        let segments = lengths.map(|lengths| {
            (0..b).map(|row| {
                let mut left = t;
                (0..lengths.len())
                    .map(|i| lengths[(i + row) % lengths.len()])
                    .take_while(|length| { let fits = *length <= left; left -= (*length).min(left); fits })
                    .collect()
            }).collect()
        });
        let starts = ragged.then(|| (0..b).map(|row| (seed as usize >> (8 * row)) % (s + 2)).collect());
        let how = Attention { scale: 0.3, starts, window, segments, bf16: false };
        compare_above(
            &[numbers(&[b, t, hkv * group, d], seed), numbers(&[b, s, hkv, d], seed ^ 1), numbers(&[b, s, hkv, d], seed ^ 2)],
            |v| attention(&v[0], &v[1], &v[2], &how),
            |v| naive::attention(&v[0], &v[1], &v[2], &how),
            2e-5,
            NEAR_ONE,
        );
    }

    #[test]
    fn attention_in_bf16(
        b in 1usize..3, t in 2usize..200, extra in 0usize..80, hkv in 1usize..3, group in 1usize..4,
        d in prop::sample::select(vec![4usize, 16, 40, 64, 80]), window in prop::option::of(1usize..120), ragged: bool, seed: u64,
    ) {
        let s = t + extra;
        let starts = ragged.then(|| (0..b).map(|row| (seed as usize >> (8 * row)) % (s + 2)).collect());
        let how = Attention { scale: 1. / (d as f32).sqrt(), starts, window, bf16: true, ..Default::default() };
        // Operands that bf16 holds exactly: what is left is the rounding of weights and slopes, 2⁻⁹
        // each.
        let exact = |shape: &[usize], seed| {
            let rounded = numbers(shape, seed).to_dtype(DType::BF16).and_then(|x| x.to_dtype(DType::F32));
            rounded.expect("bf16 and back")
        };
        compare_above(
            &[exact(&[b, t, hkv * group, d], seed), exact(&[b, s, hkv, d], seed ^ 1), exact(&[b, s, hkv, d], seed ^ 2)],
            |v| attention(&v[0], &v[1], &v[2], &how),
            |v| naive::attention(&v[0], &v[1], &v[2], &how),
            1e-2,
            0.5,
        );
    }

    #[test]
    fn decoding_attention(
        b in 1usize..4, s in 1usize..300, hkv in 1usize..3, group in 1usize..4, ragged: bool, seed: u64,
        window in prop::option::of(1usize..80),
    ) {
        let d = 32;
        let starts = ragged.then(|| (0..b).map(|row| (seed as usize >> (8 * row)) % (s + 1)).collect());
        let how = Attention { scale: 0.3, starts, window, ..Default::default() };
        let q = numbers(&[b, 1, hkv * group, d], seed);
        let (k, v) = (numbers(&[b, s, hkv, d], seed ^ 1), numbers(&[b, s, hkv, d], seed ^ 2));
        let right = naive::attention(&q, &k, &v, &how).expect("the plain form");
        close("value", &attention(&q, &k, &v, &how).expect("decoding"), &right, 1e-5);
        // The same from a cache with room to spare.
        let cached = |x: &Tensor| -> Result<Tensor> {
            Tensor::cat(&[x, &numbers(&[b, 7, hkv, d], 9)], 1)?.narrow(1, 0, s)
        };
        let (k, v) = (cached(&k).expect("a cache"), cached(&v).expect("a cache"));
        close("value from a cache", &attention(&q, &k, &v, &how).expect("decoding"), &right, 1e-5);
    }

    #[test]
    fn chunked_cross_entropy(n in 1usize..60, hid in 1usize..40, vocab in 2usize..300, train_head: bool, seed: u64) {
        let labels: Vec<i64> = (0..n)
            .map(|i| if (seed >> (i % 60)) & 1 == 0 { IGNORE } else { ((i * 131) % vocab) as i64 })
            .collect();
        let hidden = (numbers(&[n, hid], seed) * 3.).expect("a product");
        let head = numbers(&[vocab, hid], seed ^ 1);
        if labels.iter().all(|&l| l == IGNORE) {
            let (loss, count) = cross_entropy(&hidden, &head, &labels).expect("a loss of nothing");
            prop_assert_eq!((loss.to_scalar::<f32>().expect("a scalar"), count), (0., 0));
        } else if train_head {
            compare_above(
                &[hidden, head],
                |v| Ok(cross_entropy(&v[0], &v[1], &labels)?.0),
                |v| Ok(naive::cross_entropy(&v[0], &v[1], &labels)?.0),
                2e-5,
                1e-3,
            );
        } else {
            compare_above(
                &[hidden],
                |v| Ok(cross_entropy(&v[0], &head, &labels)?.0),
                |v| Ok(naive::cross_entropy(&v[0], &head, &labels)?.0),
                2e-5,
                1e-3,
            );
        }
    }
}

#[test]
fn cross_entropy_over_several_chunks() {
    // 16.8 million logits fill a chunk: here are 25.6 million.
    let (n, hid, vocab) = (80, 3, 400_000);
    let labels: Vec<i64> =
        (0..n as i64).map(|i| if i % 5 == 0 { IGNORE } else { i * 4_500 }).collect();
    let head = numbers(&[vocab, hid], 1);
    compare(
        &[numbers(&[n, hid], 2)],
        |v| Ok(cross_entropy(&v[0], &head, &labels)?.0),
        |v| Ok(naive::cross_entropy(&v[0], &head, &labels)?.0),
        2e-5,
    );
}

#[test]
fn a_frozen_side_gets_no_gradient() -> Result<()> {
    let x = Var::from_tensor(&numbers(&[4, 8], 1))?;
    let w = numbers(&[6, 8], 2);
    let grads = linear(x.as_tensor(), &w, None)?.sum_all()?.backward()?;
    assert!(grads.get(&x).is_some());
    assert!(grads.get(&w).is_none(), "a frozen weight");

    let (a, b) = (Var::from_tensor(&numbers(&[2, 8], 3))?, Var::from_tensor(&numbers(&[6, 2], 4))?);
    let plain = numbers(&[4, 8], 5);
    let grads = lora_linear(&plain, &w, None, a.as_tensor(), b.as_tensor(), 1., None)?
        .sum_all()?
        .backward()?;
    assert!(grads.get(&a).is_some() && grads.get(&b).is_some());
    assert!(grads.get(&plain).is_none() && grads.get(&w).is_none(), "an input that nothing trains");
    Ok(())
}

#[test]
fn the_same_numbers_give_the_same_bits() -> Result<()> {
    let run = || -> Result<Vec<Vec<f32>>> {
        let q = Var::from_tensor(&numbers(&[2, 130, 6, 16], 1))?;
        let k = Var::from_tensor(&numbers(&[2, 130, 2, 16], 2))?;
        let y = attention(&q, &k, &k, &Attention { scale: 0.25, ..Default::default() })?;
        let y = linear(&y, numbers(&[96, 96], 3), None)?;
        let (loss, _) = cross_entropy(&y.reshape((260, 96))?, numbers(&[500, 96], 4), &[7; 260])?;
        let grads = loss.backward()?;
        [q, k].iter().map(|v| grads.get(v).expect("a gradient").flatten_all()?.to_vec1()).collect()
    };
    let first = run()?;
    for _ in 0..5 {
        assert!(run()? == first);
    }
    Ok(())
}

#[test]
fn wrong_shapes_are_named() {
    let x = numbers(&[2, 3, 8], 1);
    let error = |r: Result<Tensor>| r.expect_err("a refusal").to_string();
    assert!(error(linear(&x, numbers(&[4, 7], 2), None)).contains("expected x [.., 7]"));
    assert!(error(rms_norm(&x, &numbers(&[7], 2), 1e-5)).contains("expected x [.., 7]"));
    assert!(error(swiglu(&x, &numbers(&[2, 3, 7], 2))).contains("one shape"));
    assert!(error(layer_norm(&x, &numbers(&[7], 2), &numbers(&[7], 3), 1e-5)).contains("[7]"));
    let q = numbers(&[1, 2, 3, 4], 1);
    let how = Attention::default();
    assert!(
        error(attention(&q, &numbers(&[1, 2, 2, 4], 1), &numbers(&[1, 2, 2, 4], 1), &how))
            .contains("multiple")
    );
    let mask = |how: Attention| {
        error(attention(&q, &numbers(&[1, 2, 3, 4], 1), &numbers(&[1, 2, 3, 4], 1), &how))
    };
    assert!(mask(Attention { window: Some(0), ..Default::default() }).contains("at least 1 key"));
    assert!(
        mask(Attention { segments: Some(vec![vec![2, 1]]), ..Default::default() })
            .contains("2 tokens in all")
    );
    assert!(
        mask(Attention { segments: Some(vec![]), ..Default::default() }).contains("each of 1 rows")
    );
    let labels = [0, 9];
    let loss = cross_entropy(&numbers(&[2, 4], 1), numbers(&[9, 4], 2), &labels);
    assert!(loss.expect_err("a refusal").to_string().contains("found 9"));
}

/// A small block: a tensor used twice, candle's own operations between fused ones and at the end.
fn block(v: &[Tensor], plain: bool) -> Result<Tensor> {
    let [x, a, b, w] = v else { candle_core::bail!("four variables") };
    let (w1, w2) = (numbers(&[24, 16], 5), numbers(&[16, 24], 6));
    let norm = if plain { naive::rms_norm(x, w, 1e-5)? } else { rms_norm(x, w, 1e-5)? };
    let (gate, up) = if plain {
        (naive::lora_linear(&norm, &w1, None, a, b, 0.5, None)?, naive::linear(&norm, &w1, None)?)
    } else {
        (lora_linear(&norm, &w1, None, a, b, 0.5, None)?, linear(&norm, &w1, None)?)
    };
    // Candle's, from two fused results to two fused inputs, which share a part.
    let mixed = (&gate * 0.5)?.tanh()?;
    let (gate, up) = ((&mixed + &gate)?, (&mixed * &up)?);
    let y = if plain {
        naive::linear(&naive::swiglu(&gate, &up)?, &w2, None)?
    } else {
        linear(&swiglu(&gate, &up)?, &w2, None)?
    };
    let y = if plain { (x + y)? } else { add(x, &y)? };
    y.transpose(0, 1)?.sqr()
}

#[test]
fn candles_own_operations_may_stand_between() {
    let vars =
        [numbers(&[10, 16], 1), numbers(&[3, 16], 2), numbers(&[24, 3], 3), numbers(&[16], 4)];
    compare(&vars, |v| block(v, false), |v| block(v, true), 2e-5);
}

#[test]
fn a_dropped_or_inner_recording_leaves_the_outer_one_alone() -> Result<()> {
    let x = Var::from_tensor(&numbers(&[4, 8], 1))?;
    let outer = Tape::record();
    let y = swiglu(x.as_tensor(), x.as_tensor())?;
    drop(Tape::record());
    let inner = Tape::record();
    let z = swiglu(x.as_tensor(), x.as_tensor())?;
    assert!(inner.stop().backward(&z, &z.ones_like()?)?.remove(x.as_tensor())?.is_some());
    let y = swiglu(&y, &y)?;
    assert!(outer.stop().backward(&y, &y.ones_like()?)?.remove(x.as_tensor())?.is_some());
    assert!(!crate::tape::recording());
    Ok(())
}

/// The same tests with the forms that other processors run, each in a process of its own: the level
/// is found once.
#[test]
fn every_level_of_instructions_is_right() {
    if std::env::var_os("TUNEBOOK_SIMD").is_some() || std::env::var_os("TUNEBOOK_OPS").is_some() {
        return;
    }
    for level in ["avx512bf16", "avx512", "avx2", "baseline"] {
        let tests = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args([
                "--skip",
                "every_level",
                "--skip",
                "composed_forms",
                "--skip",
                "cuda::",
                "--skip",
                "several_chunks",
            ])
            .env("TUNEBOOK_SIMD", level)
            .output()
            .expect("the tests start");
        let text = String::from_utf8_lossy(&tests.stdout);
        assert!(tests.status.success(), "{level}: {text}");
        assert!(text.contains("tests::tiled_attention"), "{level} ran other tests: {text}");
    }
}

/// Scores that rise from tile to tile by more than an f32's exponent holds: powers relative to what
/// was seen first would be infinite.
#[test]
fn attention_whose_scores_rise() -> Result<()> {
    let (t, d) = (200, 16);
    let factors: Vec<f32> = (0..t).map(|key| [1., 30., 120., 240.][key / 64]).collect();
    let factors = Tensor::from_vec(factors, (1, t, 1, 1), &Device::Cpu)?;
    let k = numbers(&[1, t, 2, d], 2).broadcast_mul(&factors)?;
    let exact = |x: Tensor| x.to_dtype(DType::BF16)?.to_dtype(DType::F32);
    let vars =
        [exact((numbers(&[1, t, 4, d], 1) * 4.)?)?, exact(k)?, exact(numbers(&[1, t, 2, d], 3))?];
    let how = |bf16: bool| Attention { scale: 1., bf16, ..Default::default() };
    let plain = |v: &[Tensor]| naive::attention(&v[0], &v[1], &v[2], &how(false));
    compare_above(&vars, |v| attention(&v[0], &v[1], &v[2], &how(false)), plain, 5e-3, NEAR_ONE);
    // A gradient is a difference times a key of hundreds: bf16 holds the value alone.
    close("value", &attention(&vars[0], &vars[1], &vars[2], &how(true))?, &plain(&vars)?, 1e-2);
    Ok(())
}

/// The same tests with the forms that a device without fused ones runs, in a process of their own:
/// the switch is read once.
#[test]
fn composed_forms_are_right() {
    if std::env::var_os("TUNEBOOK_SIMD").is_some() || std::env::var_os("TUNEBOOK_OPS").is_some() {
        return;
    }
    let tests = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--skip", "every_level", "--skip", "composed_forms", "--skip", "cuda::"])
        // Composed operations keep what they read.
        .args(["--skip", "made_again"])
        .env("TUNEBOOK_OPS", "composed")
        .output()
        .expect("the tests start");
    let text = String::from_utf8_lossy(&tests.stdout);
    assert!(tests.status.success(), "{text}");
    assert!(text.contains("tests::tiled_attention"), "other tests ran: {text}");
}
