//! The table before a run: counts and files exactly, activations by the shapes.

use tunebook_tune::{
    AdaLora, AdapterConfig, Adapters, Example, Full, FullTuning, Ia3, Lora, Optim, Stepper,
    Trainer, TrainingArgs, TrainingSummary,
};

use crate::common::*;

fn train() -> Vec<Example> {
    (0..10).map(|i| Example::new("a".repeat(i + 1), "b")).collect()
}

fn summary(model: &tunebook_models::Model, args: &TrainingArgs) -> TrainingSummary {
    Trainer::new(model, args).summary(&train()).unwrap()
}

#[test]
fn the_table_before_a_run_counts_what_the_run_has() {
    let args = TrainingArgs { batch_size: 4, ..Default::default() };
    for config in [
        AdapterConfig::from(Lora { r: 4, ..Default::default() }),
        Lora {
            r: 4,
            target_modules: "all-linear".into(),
            layers_to_transform: Some(vec![1]),
            ..Default::default()
        }
        .into(),
        Lora { modules_to_save: vec!["norm".to_owned()], ..Default::default() }.into(),
        AdaLora { init_r: 6, target_r: 4, ..Default::default() }.into(),
        Ia3::default().into(),
    ] {
        let model = tiny();
        let info = model.add_adapter("a", &config).unwrap();
        let found = summary(&model, &args);
        let numbers = Stepper::new(&model, &args, 1).unwrap().parameters().elem_count();
        assert_eq!(
            (found.trainable_parameters, found.all_parameters),
            (numbers, info.all_parameters)
        );
        assert_eq!(found.modules, info.modules.len());
        assert_eq!(
            (found.gradients_bytes, found.optimizer_bytes),
            (4 * numbers as u64, 8 * numbers as u64)
        );
        assert_eq!(found.weights_bytes, model.memory_bytes() + 4 * numbers as u64);
        let dir = tempfile::tempdir().unwrap();
        let folder = model.save_adapter("a", dir.path()).unwrap();
        let size = std::fs::metadata(folder.join("adapter_model.safetensors")).unwrap().len();
        assert_eq!(found.file_bytes, Some(size));
        let text = found.to_string();
        for line in [
            "trainable parameters",
            "share",
            "memory of the activations",
            "memory of the logits",
            "adapter file",
        ] {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.contains(&info.config.to_string()), "{text}");
    }
}

#[test]
fn activations_follow_the_blocks_that_are_in_the_graph() {
    let args = TrainingArgs { batch_size: 4, ..Default::default() };
    let on = |blocks: Option<Vec<usize>>| {
        let model = tiny();
        model
            .add_adapter("a", &Lora { layers_to_transform: blocks, ..Default::default() })
            .unwrap();
        summary(&model, &args)
    };
    let (both, upper) = (on(None), on(Some(vec![1])));
    assert_eq!(
        both.activations_bytes,
        2 * upper.activations_bytes,
        "below the first trained block nothing is kept"
    );
    let set = Trainer::new(&tiny(), &args).tokenize(&train()).unwrap();
    let longest = set.examples.iter().map(|example| example.ids.len()).max().unwrap();
    let labels = set.examples[0].label_tokens();
    assert!(
        labels < longest && set.examples.iter().all(|example| example.label_tokens() == labels)
    );
    assert_eq!(both.largest_batch_tokens, 4 * longest);
    assert_eq!(both.activations_bytes as usize, 4 * 4 * longest * 2 * (2 * 32 + 2 * 48 + 2 * 48));
    // A prompt bears no loss: as many labels in each row, and all logits of four rows held at once.
    assert_eq!(both.logits_bytes as usize, 4 * 4 * labels * tiny().config().vocab_size);
    let again = TrainingArgs { gradient_checkpointing: true, ..args.clone() };
    let model = tiny();
    model.add_adapter("a", Lora::default()).unwrap();
    let again = summary(&model, &again);
    assert_eq!(
        (again.checkpointed_blocks, again.activations_bytes as usize),
        (2, 4 * 4 * longest * 2 * 32)
    );

    let model = tiny();
    model.unfreeze(&Full::default()).unwrap();
    let full = summary(&model, &TrainingArgs { optim: Optim::AdamW8bit, ..args });
    assert_eq!(
        (full.trainable_parameters, full.all_parameters),
        (model.parameter_count(), model.parameter_count())
    );
    assert_eq!((full.file_bytes, full.weights_bytes), (None, model.memory_bytes()));
    assert!(full.optimizer_bytes < 3 * model.parameter_count() as u64);
}
