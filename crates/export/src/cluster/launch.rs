//! What stands around an engine's file: accelerate's profile, DeepSpeed's, SkyPilot's, and the pinned
//! versions.

use serde_json::{Value, json};

use super::{Accelerate, Engine, ExportOptions};

/// DeepSpeed's file for Axolotl.
pub(super) const DEEPSPEED: &str = "deepspeed_zero3.json";
/// Accelerate's file for TRL.
pub(super) const ACCELERATE: &str = "accelerate.yaml";

/// Accelerate's profile, as TRL's own of the same name but for the number of cards, the precision and
/// whether FSDP runs the blocks `again` in the backward pass.
pub(super) fn accelerate(
    profile: Accelerate,
    options: &ExportOptions,
    precision: &str,
    again: bool,
) -> Value {
    let around = |kind: &str, config: Value| {
        json!({
            "compute_environment": "LOCAL_MACHINE",
            "debug": false,
            "distributed_type": kind,
            "downcast_bf16": "no",
            (if kind == "FSDP" { "fsdp_config" } else { "deepspeed_config" }): config,
            "machine_rank": 0,
            "main_training_function": "main",
            "mixed_precision": precision,
            "num_machines": 1,
            "num_processes": options.gpus,
            "rdzv_backend": "static",
            "same_network": true,
            "use_cpu": false,
        })
    };
    match profile {
        Accelerate::Fsdp2 => around(
            "FSDP",
            json!({
                "fsdp_activation_checkpointing": again,
                "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "fsdp_cpu_ram_efficient_loading": true,
                "fsdp_offload_params": false,
                "fsdp_reshard_after_forward": true,
                "fsdp_state_dict_type": "FULL_STATE_DICT",
                "fsdp_version": 2,
            }),
        ),
        Accelerate::Zero3 => around(
            "DEEPSPEED",
            json!({
                "deepspeed_multinode_launcher": "standard",
                "offload_optimizer_device": "none",
                "offload_param_device": "none",
                "zero3_init_flag": true,
                "zero3_save_16bit_model": true,
                "zero_stage": 3,
            }),
        ),
    }
}

pub(super) fn fsdp2_of_axolotl(again: bool) -> Value {
    json!({
        "activation_checkpointing": again,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "cpu_ram_efficient_loading": true,
        "offload_params": false,
        "reshard_after_forward": true,
        "state_dict_type": "FULL_STATE_DICT",
    })
}

/// What `auto` stands for comes from the trainer's arguments.
pub(super) fn deepspeed_zero3() -> Value {
    json!({
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": true,
            "contiguous_gradients": true,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": true,
        },
        "bf16": { "enabled": "auto" },
        "fp16": { "enabled": "auto" },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    })
}

/// The command that trains, in the export's folder.
pub(super) fn command(options: &ExportOptions) -> String {
    match (options.engine, options.accelerate) {
        (Engine::Trl, Some(_)) => {
            format!("trl sft --config train.yaml --accelerate_config {ACCELERATE}")
        }
        (Engine::Trl, None) if options.gpus > 1 => {
            format!("trl sft --config train.yaml --num_processes {}", options.gpus)
        }
        (Engine::Trl, None) => "trl sft --config train.yaml".to_owned(),
        (Engine::Axolotl, _) => "axolotl train train.yaml".to_owned(),
    }
}

/// The folder as a task of SkyPilot.
pub(super) fn sky(name: &str, options: &ExportOptions) -> Value {
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect();
    // SkyPilot takes letters, digits and dashes.
    let name = match name.trim_matches('-') {
        "" => "tune".to_owned(),
        name => format!("tune-{name}"),
    };
    json!({
        "name": name,
        "workdir": ".",
        "num_nodes": 1,
        "resources": {
            "accelerators": format!("{}:{}", options.gpu, options.gpus),
            "disk_size": 256,
        },
        "setup": "pip install -r requirements.txt\n",
        "run": format!("python verify.py\n{}\n", command(options)),
    })
}

/// The versions that the files were written for.
pub(super) fn requirements(options: &ExportOptions, quantized: bool, eight_bit: bool) -> String {
    let mut pins: Vec<&str> = match options.engine {
        Engine::Trl => vec![
            "accelerate==1.15.0",
            "datasets==5.2.0",
            "peft==0.21.2",
            "torch==2.15.0",
            "transformers==5.23.0",
            "trl==1.16.0",
        ],
        Engine::Axolotl => vec!["axolotl==0.19.0"],
    };
    if options.accelerate == Some(Accelerate::Zero3) {
        pins.push(match options.engine {
            Engine::Trl => DEEPSPEED_PIN,
            Engine::Axolotl => "deepspeed>=0.18.6,<0.19.0",
        });
    }
    if (quantized || eight_bit) && options.engine == Engine::Trl {
        pins.push(BITSANDBYTES_PIN);
    }
    pins.into_iter().flat_map(|pin| [pin, "\n"]).collect()
}

const DEEPSPEED_PIN: &str = "deepspeed==0.19.8";
const BITSANDBYTES_PIN: &str = "bitsandbytes==0.50.2";
