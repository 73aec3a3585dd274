//! Weighted mixes of adapters, against the weights that they stand for.

use std::sync::Arc;

use tunebook_models::{GenerationConfig, Linear, Model, Overlay, Projection as _, Tensor};
use tunebook_tune::{
    Active, AdaLora, AdapterConfig, AdapterMix, Adapters, Bottleneck, BottleneckInit,
    CombinationType, FrozenAdapter, Ia3, Lora, LoraInit, PrefixTuning, PromptTuning, Stepper,
    TrainingArgs, answering_fingerprint,
};

use crate::common::*;

const IDS: [u32; 6] = [40, 41, 42, 7, 99, 3];

/// An adapter with other numbers than it began with.
fn adapter(model: &Model, name: &str, config: impl Into<AdapterConfig>) -> FrozenAdapter {
    model.add_adapter_of(name, config.into()).unwrap();
    let stepper = Stepper::new(model, &TrainingArgs::default(), 1).unwrap();
    for parameter in stepper.parameters().iter() {
        let var = &parameter.var;
        let noise: Vec<f32> = (0..var.elem_count()).map(|i| 0.4 * (1.7 * i as f32).sin()).collect();
        let noise = Tensor::from_vec(noise, var.shape(), model.device()).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
    drop(stepper);
    FrozenAdapter::of_resident(model, name, name).unwrap()
}

fn lora(r: usize, use_dora: bool) -> Lora {
    Lora {
        r,
        use_dora,
        target_modules: "all-linear".into(),
        init_seed: r as u64,
        ..Default::default()
    }
}

fn handle(model: &Model, parts: &[(&FrozenAdapter, f64)]) -> Model {
    let parts: Vec<_> = parts.iter().map(|(part, weight)| ((*part).clone(), *weight)).collect();
    model.with_overlay(AdapterMix::new(model, &parts).unwrap().overlay())
}

/// A handle whose projections have the weights `W + Σ wᵢ·(Wᵢ − W)`, of merged adapters.
fn with_mixed_weights(model: &Model, parts: &[(&FrozenAdapter, f64)]) -> Model {
    let mut overlay = Overlay::default();
    let merged: Vec<_> = parts
        .iter()
        .map(|(part, weight)| {
            model.merge_adapter(part.name()).unwrap();
            (model.overlay(), *weight)
        })
        .collect();
    model.disable_adapters();
    for slot in model.slots() {
        let base = slot.base();
        let mut sum = base.weight();
        for (merged, weight) in &merged {
            if let Some(projection) = merged.projection(&slot) {
                let change = (projection.weight() - base.weight()).unwrap();
                sum = (sum + (change * *weight).unwrap()).unwrap();
            }
        }
        overlay.put_projection(&slot, Arc::new(Linear::new(sum, base.bias()))).unwrap();
    }
    model.with_overlay(Arc::new(overlay))
}

#[test]
fn a_mix_is_the_base_plus_the_weighted_changes() {
    let model = tiny();
    let adapters = [
        adapter(&model, "lora", lora(2, false)),
        adapter(&model, "dora", lora(3, true)),
        adapter(&model, "ia3", Ia3::default()),
        adapter(&model, "adalora", AdaLora { init_lora_weights: false, ..Default::default() }),
        adapter(&model, "pissa", Lora { lora_init: LoraInit::Pissa, ..lora(2, false) }),
    ];
    let [lora, dora, ia3, adalora, pissa] = adapters.each_ref();
    let base = logits(&model.base(), &IDS);
    for parts in [
        vec![(lora, 0.7), (adalora, -0.4)],
        vec![(dora, 0.6), (lora, 0.4)],
        vec![(ia3, 0.5)],
        vec![(ia3, 0.3), (dora, 0.5), (lora, 0.2)],
        vec![(pissa, 1.5), (ia3, -0.2)],
    ] {
        let found = logits(&handle(&model, &parts), &IDS);
        let expected = logits(&with_mixed_weights(&model, &parts), &IDS);
        let error = relative_error(&found, &expected);
        assert!(error < 1e-4, "{parts:?}: logits differ by {error}");
        assert!(relative_error(&found, &base) > 1e-3, "{parts:?} changes nothing");
    }
}

#[test]
fn a_mix_of_loras_is_the_weighted_adapter() {
    let model = tiny();
    let names = ["one", "two"];
    let [one, two] = names.map(|name| {
        model.load_adapter(golden("weighted").join(name), name).unwrap();
        FrozenAdapter::of_resident(&model, name, name).unwrap()
    });
    model.add_weighted_adapter(&[("one", 0.7), ("two", 0.3)], "sum", CombinationType::Cat).unwrap();
    let expected = logits(&model.with_adapter("sum").unwrap(), &IDS);
    let found = logits(&handle(&model, &[(&one, 0.7), (&two, 0.3)]), &IDS);
    assert!(relative_error(&found, &expected) < 1e-5);
}

#[test]
fn a_mixed_branch_adds_its_part() {
    let model = tiny();
    let houlsby = Bottleneck {
        reduction_factor: 4.0.into(),
        init_weights: BottleneckInit::Bert,
        scaling: 8.0,
        ..Bottleneck::double_seq_bn()
    };
    let whole = adapter(&model, "whole", houlsby.clone());
    // The same numbers, of one seed and one noise.
    let half = adapter(&model, "half", Bottleneck { scaling: 4.0, ..houlsby });
    let expected = logits(&model.with_overlay(half.overlay()), &IDS);
    let found = logits(&handle(&model, &[(&whole, 0.5)]), &IDS);
    assert!(relative_error(&found, &expected) < 1e-5);
}

#[test]
fn weights_of_zero_and_one_are_the_base_and_the_adapter() {
    let model = tiny();
    let (one, two) =
        (adapter(&model, "one", lora(2, false)), adapter(&model, "two", lora(2, true)));
    let prompt = PromptTuning { num_virtual_tokens: 3, ..Default::default() };
    let prompt = adapter(&model, "prompt", prompt);
    let mix = |parts: &[(&FrozenAdapter, f64)]| {
        let parts: Vec<_> = parts.iter().map(|(part, weight)| ((*part).clone(), *weight)).collect();
        AdapterMix::new(&model, &parts).unwrap()
    };
    for parts in [vec![(&one, 0.0)], vec![(&prompt, 0.0), (&two, -0.0)], vec![]] {
        let none = mix(&parts);
        assert!(none.overlay().is_base());
        assert_eq!(none.fingerprint(), answering_fingerprint(&model.base()).unwrap());
    }
    for adapter in [&one, &two, &prompt] {
        let alone = mix(&[(adapter, 1.0), (&one, 0.0)]);
        assert!(Arc::ptr_eq(&alone.overlay(), &adapter.overlay()));
        assert_eq!(alone.fingerprint(), adapter.fingerprint());
    }
    // The order of the parts is of no account; their weights are.
    let (a, b) = (mix(&[(&one, 0.7), (&two, 0.3)]), mix(&[(&two, 0.3), (&one, 0.7)]));
    assert_eq!(a.fingerprint(), b.fingerprint());
    let of = |mix: &AdapterMix| logits(&model.with_overlay(mix.overlay()), &IDS);
    assert_eq!(of(&a), of(&b), "bit for bit");
    let other = mix(&[(&one, 0.3), (&two, 0.7)]);
    assert_ne!(a.fingerprint(), other.fingerprint());
    let handle = model.with_overlay(a.overlay());
    assert_eq!(answering_fingerprint(&handle).unwrap(), a.fingerprint());
    assert!(matches!(handle.active(), Active::Adapter(name) if name.contains("one:0.7")));
    let error = Stepper::new(&handle, &TrainingArgs::default(), 1).unwrap_err().to_string();
    assert!(error.contains("frozen copy of"), "{error}");
}

#[test]
fn adapters_without_a_weighted_form_are_refused_by_name() {
    let model = tiny();
    let plain = adapter(&model, "plain", lora(2, false));
    let prompt = PromptTuning { num_virtual_tokens: 3, ..Default::default() };
    let prefix = PrefixTuning { num_virtual_tokens: 3, ..Default::default() };
    let norm = Lora { modules_to_save: vec!["norm".to_owned()], ..lora(2, false) };
    for (other, says) in [
        (adapter(&model, "prompt", prompt), "vectors before a text"),
        (adapter(&model, "prefix", prefix), "vectors before a text"),
        (adapter(&model, "norm", norm), "whole weights are no updates"),
    ] {
        let error = AdapterMix::new(&model, &[(plain.clone(), 0.5), (other.clone(), 0.5)]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(&format!("`{}`", other.name())) && error.contains(says), "{error}");
    }
    let error = AdapterMix::new(&model, &[(plain, f64::NAN)]).unwrap_err().to_string();
    assert!(error.contains("`plain` with the weight NaN"), "{error}");
}

#[test]
fn mixes_generate_the_same_in_any_company() {
    let model = tiny();
    let lora_ = adapter(&model, "lora", lora(2, false));
    let dora = adapter(&model, "dora", lora(3, true));
    let ia3 = adapter(&model, "ia3", Ia3::default());
    let bottleneck =
        Bottleneck { reduction_factor: 4.0.into(), scaling: 8.0, ..Bottleneck::seq_bn() };
    let bottleneck = adapter(&model, "bottleneck", bottleneck);
    let overlays: Vec<Arc<Overlay>> = [
        vec![(&lora_, 0.7), (&dora, 0.3)],
        vec![],
        vec![(&ia3, 0.5), (&bottleneck, 0.5)],
        vec![(&lora_, 1.0)],
        vec![(&lora_, -0.5), (&lora_, 1.25)],
        vec![(&dora, 0.5), (&ia3, 0.5), (&lora_, 0.5)],
    ]
    .iter()
    .map(|parts| handle(&model, parts).overlay())
    .collect();
    let prompts: Vec<Vec<u32>> = (0..overlays.len())
        .map(|row| (0..3 + (5 * row) % 7).map(|i| ((11 * row + 3 * i) % 250) as u32).collect())
        .collect();
    let config = GenerationConfig { max_new_tokens: 24, ..Default::default() };
    let together = model.with_overlays(overlays.clone()).completions(&prompts, &config).unwrap();
    for ((overlay, prompt), together) in overlays.into_iter().zip(&prompts).zip(together) {
        let alone = model.with_overlay(overlay);
        let alone = alone.completions(std::slice::from_ref(prompt), &config).unwrap().remove(0);
        assert_eq!(alone.log_probabilities, together.log_probabilities);
        assert_eq!(alone.ids, together.ids);
    }
}
