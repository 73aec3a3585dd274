//! Operations on weights in quantised blocks against the same on the dequantised weights: value and
//! gradient, for every type of block.

use candle_core::quantized::GgmlDType::*;
use candle_core::{Result, Tensor, Var};

use super::{close, numbers};
use crate::Matrix;
use crate::quantized::{Format, Quantized};
use crate::{IGNORE, cross_entropy, device, linear, lora_linear, naive};

/// Every type that a GGUF file's matrices come in, and ours.
fn formats() -> Vec<Format> {
    let ggml = [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K];
    ggml.into_iter().map(Format::Ggml).chain([Format::Nf4]).collect()
}

/// A weight in blocks, and the same values as numbers.
fn weight(format: Format, shape: &[usize]) -> (Matrix, Tensor) {
    let values = numbers(shape, 3);
    let blocks = match format {
        Format::Ggml(dtype) => Quantized::ggml(&values, dtype).unwrap(),
        Format::Nf4 => Quantized::nf4(&values).unwrap(),
    };
    let wide = blocks.dequantize().unwrap();
    (blocks.into(), wide)
}

/// Value and gradients of `Σ y ∘ r`.
fn run(inputs: &[Tensor], form: impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
    let vars: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = form(&tensors).unwrap();
    let gradients = y.mul(&numbers(y.dims(), 77)).unwrap().sum_all().unwrap().backward().unwrap();
    let gradients = tensors.iter().map(|tensor| gradients.get(tensor).unwrap().clone());
    std::iter::once(y).chain(gradients).collect()
}

fn same(what: &str, found: &[Tensor], expected: &[Tensor]) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let part = if index == 0 {
            "value".to_owned()
        } else {
            format!("gradient of input {}", index - 1)
        };
        close(&format!("{what}, {part}"), found, expected, 2e-6);
    }
}

#[test]
fn linear_maps_have_the_values_and_gradients_of_dequantised_ones() {
    for format in formats() {
        let inp = if format == Format::Nf4 { 200 } else { 512 };
        for (n, out) in [(1, 40), (5, 33), (70, 96), (130, 300)] {
            let (blocks, wide) = weight(format, &[out, inp]);
            let bias = numbers(&[out], 9);
            let x = numbers(&[2, n, inp], 5);
            let what = format!("{format}, {n} rows, {out} outputs");
            let found = run(std::slice::from_ref(&x), |v| linear(&v[0], &blocks, Some(&bias)));
            let expected =
                run(std::slice::from_ref(&x), |v| naive::linear(&v[0], &wide, Some(&bias)));
            same(&what, &found, &expected);
            let composed =
                run(std::slice::from_ref(&x), |v| device::linear(&v[0], &blocks, Some(&bias)));
            same(&format!("{what}, composed"), &composed, &expected);

            let mask = numbers(&[2, n, inp], 6);
            for mask in [None, Some(&mask)] {
                let inputs = [x.clone(), numbers(&[4, inp], 7), numbers(&[out, 4], 8)];
                let expected = run(&inputs, |v| {
                    naive::lora_linear(&v[0], &wide, Some(&bias), &v[1], &v[2], 1.5, mask)
                });
                let found = run(&inputs, |v| {
                    lora_linear(&v[0], &blocks, Some(&bias), &v[1], &v[2], 1.5, mask)
                });
                same(&format!("LoRA, {what}"), &found, &expected);
                let composed = run(&inputs, |v| {
                    device::lora_linear(&v[0], &blocks, Some(&bias), &v[1], &v[2], 1.5, mask)
                });
                same(&format!("LoRA, {what}, composed"), &composed, &expected);
            }
        }
    }
}

#[test]
fn heads_and_look_ups_have_the_values_of_dequantised_ones() {
    for format in formats() {
        let hidden = if format == Format::Nf4 { 72 } else { 256 };
        let (blocks, wide) = weight(format, &[301, hidden]);
        let labels: Vec<i64> =
            (0..50).map(|i| if i % 3 == 1 { IGNORE } else { ((i * 131) % 301) as i64 }).collect();
        let x = [numbers(&[50, hidden], 5)];
        let found = run(&x, |v| Ok(cross_entropy(&v[0], &blocks, &labels)?.0));
        let expected = run(&x, |v| Ok(naive::cross_entropy(&v[0], &wide, &labels)?.0));
        same(&format!("{format} head"), &found, &expected);

        let ids = Tensor::new(&[300u32, 0, 7, 7, 12], &candle_core::Device::Cpu).unwrap();
        let rows = |matrix: &Matrix| matrix.select(&ids).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows(&blocks), rows(&wide.clone().into()), "{format}");
    }
}
