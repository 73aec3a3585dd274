//! Every configuration goes through JSON whole, and refuses a field that it does not have.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tunebook_models::{AnswerFormat, GenerationConfig};
use tunebook_tune::{
    AdaLora, AdapterConfig, Bias, Bottleneck, BottleneckInit, EvalStrategy, Full, Ia3, Lora,
    LoraInit, LrRangeTest, LrScheduler, Optim, PrefixInit, PrefixTuning, PromptTuning,
    PromptTuningInit, ReductionFactor, SaveStrategy, TargetModules, TrainingArgs,
};

fn fields(value: &impl Serialize) -> Map<String, Value> {
    serde_json::to_value(value).unwrap().as_object().unwrap().clone()
}

/// `config` must differ from the default in every field: one that JSON loses would come back as the
/// default's.
fn check<T: Serialize + DeserializeOwned + Default + PartialEq + Debug>(config: &T) {
    let (json, default) = (fields(config), fields(&T::default()));
    for (name, value) in &json {
        assert_ne!(value, &default[name], "`{name}` of the example is the default's");
    }
    let text = serde_json::to_string(config).unwrap();
    assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), config);
    assert_eq!(serde_json::from_str::<T>("{}").unwrap(), T::default());
    let mut wrong = json;
    wrong.insert("lerning_rate".to_owned(), json!(1));
    let error = serde_json::from_value::<T>(Value::Object(wrong)).unwrap_err().to_string();
    assert!(error.contains("unknown field `lerning_rate`"), "{error}");
}

/// The same as one of the types of adapters.
fn check_adapter<T>(config: &T)
where
    T: Serialize + DeserializeOwned + Default + PartialEq + Debug,
    AdapterConfig: for<'a> From<&'a T>,
{
    check(config);
    let any = AdapterConfig::from(config);
    let json = serde_json::to_value(&any).unwrap();
    assert_eq!(json["peft_type"], any.peft_type());
    assert_eq!(fields(config).len() + 1, json.as_object().unwrap().len());
    assert_eq!(serde_json::from_value::<AdapterConfig>(json.clone()).unwrap(), any);
    let mut wrong = json;
    wrong["rnak"] = json!(8);
    let error = serde_json::from_value::<AdapterConfig>(wrong).unwrap_err().to_string();
    assert!(error.contains("unknown field `rnak`"), "{error}");
}

#[test]
fn low_rank_adapters() {
    check_adapter(&Lora {
        r: 3,
        lora_alpha: 7.5,
        lora_dropout: 0.25,
        target_modules: TargetModules::all_linear(),
        use_rslora: true,
        use_dora: true,
        layers_to_transform: Some(vec![1, 2]),
        layers_pattern: vec!["layers".to_owned()],
        exclude_modules: Some(["up_proj"].into()),
        bias: Bias::LoraOnly,
        modules_to_save: vec!["lm_head".to_owned()],
        ensure_weight_tying: true,
        rank_pattern: [("q_proj".to_owned(), 4)].into(),
        alpha_pattern: [("q_proj".to_owned(), 0.5)].into(),
        init_lora_weights: false,
        lora_init: LoraInit::Pissa,
        init_seed: 7,
    });
    check_adapter(&AdaLora {
        target_r: 2,
        init_r: 3,
        tinit: 4,
        tfinal: 5,
        delta_t: 6,
        beta1: 0.5,
        beta2: 0.25,
        orth_reg_weight: 0.125,
        total_step: Some(100),
        lora_alpha: 7.5,
        lora_dropout: 0.25,
        target_modules: ["q_proj"].into(),
        exclude_modules: Some("up_proj".into()),
        layers_to_transform: Some(vec![1, 2]),
        layers_pattern: vec!["layers".to_owned()],
        bias: Bias::All,
        modules_to_save: vec!["lm_head".to_owned()],
        ensure_weight_tying: true,
        init_lora_weights: false,
        rank_pattern: Some([("q_proj.lora_E".to_owned(), vec![true, false, true])].into()),
        init_seed: 7,
    });
}

#[test]
fn other_adapters() {
    check_adapter(&Ia3 {
        target_modules: ["q_proj", "up_proj"].into(),
        feedforward_modules: ["up_proj"].into(),
        exclude_modules: Some(["k_proj"].into()),
        modules_to_save: vec!["lm_head".to_owned()],
    });
    check_adapter(&PromptTuning {
        num_virtual_tokens: 3,
        prompt_tuning_init: PromptTuningInit::SampleVocab,
        prompt_tuning_init_text: Some("Hello".to_owned()),
        token_dim: Some(16),
        num_layers: Some(2),
        num_attention_heads: Some(4),
        init_seed: 7,
    });
    check_adapter(&PrefixTuning {
        num_virtual_tokens: 3,
        prefix_projection: true,
        encoder_hidden_size: Some(5),
        init_weights: PrefixInit::Zero,
        token_dim: Some(16),
        num_layers: Some(2),
        num_attention_heads: Some(4),
        init_seed: 7,
    });
    check_adapter(&Bottleneck {
        mh_adapter: true,
        output_adapter: false,
        reduction_factor: ReductionFactor::Blocks([("default".to_owned(), 4.0)].into()),
        non_linearity: "gelu".to_owned(),
        original_ln_before: false,
        is_parallel: true,
        scaling: 0.5,
        dropout: 0.25,
        leave_out: vec![1],
        init_weights: BottleneckInit::Houlsby,
        init_seed: 7,
    });
}

#[test]
fn training_and_generation() {
    check(&Full {
        target_modules: Some(["norm"].into()),
        layers_to_transform: Some(vec![1]),
        bias_only: true,
    });
    check(&LrRangeTest { start: 1e-5, end: 0.5, steps: 7, diverged: 0.25 });
    check(&TrainingArgs {
        epochs: 7,
        max_steps: Some(8),
        batch_size: 9,
        eval_batch_size: 10,
        gradient_accumulation_steps: 11,
        learning_rate: 0.5,
        lr_scheduler: LrScheduler::CosineWithRestarts { num_cycles: 2 },
        warmup_ratio: 0.25,
        warmup_steps: Some(12),
        weight_decay: 0.125,
        adam_beta1: 0.5,
        adam_beta2: 0.25,
        adam_epsilon: 0.5,
        optim: Optim::AdamW8bit,
        fp16: true,
        fp16_init_scale: 2.0,
        max_grad_norm: 0.5,
        label_smoothing_factor: 0.25,
        neftune_noise_alpha: Some(5.0),
        l2_sp: 1.5,
        kl_coef: 0.75,
        loraplus_lr_ratio: Some(16.0),
        group_by_length: true,
        packing: true,
        max_length: Some(128),
        eval_strategy: EvalStrategy::Steps(3),
        eval_on_start: true,
        early_stopping_patience: Some(2),
        early_stopping_threshold: 0.5,
        eval_metrics: vec!["exact_match".to_owned()],
        eval_metrics_rows: Some(40),
        metric_for_best_model: "accuracy".to_owned(),
        load_best_model_at_end: true,
        save_strategy: SaveStrategy::Steps(4),
        output_dir: Some("out".into()),
        save_total_limit: Some(2),
        gradient_checkpointing: true,
        checkpointed_blocks: Some(3),
        memory_budget: Some(2_000_000_000),
        seed: 7,
        data_seed: Some(8),
    });
    check(&GenerationConfig {
        max_new_tokens: 7,
        temperature: 0.5,
        top_p: 0.25,
        top_k: 8,
        repetition_penalty: 1.5,
        seed: 9,
        stop: vec!["\n".to_owned()],
        batch_size: 10,
        min_p: 0.1,
        logit_bias: [(3, -1.5)].into(),
        num_return_sequences: 2,
        top_logprobs: 5,
        ignore_eos: true,
        format: Some(AnswerFormat::Choice(vec!["yes".to_owned(), "no".to_owned()])),
    });
}
