//! What is trained, in TRL's and Axolotl's names. Every field of [`Lora`] and [`Full`] is decided on
//! here; the other types no engine has, so that the type itself is refused.

use serde_json::{Value, json};
use tunebook_runs::StrategyRecipe;
use tunebook_tune::{AdapterConfig, Bias, Full, Lora, LoraInit, Strategy, TargetModules};

use super::mapped::Mapped;
use super::{Engine, ExportOptions};

pub(super) fn strategy(strategy: &StrategyRecipe, options: &ExportOptions, out: &mut Mapped) {
    // An engine's one adapter is `default`; it comes back under the recipe's name.
    let StrategyRecipe { adapter_name: _, config } = strategy;
    match config {
        Strategy::Full(full) => self::full(full, options, out),
        Strategy::Adapter(config) => match &**config {
            AdapterConfig::Lora(lora) => self::lora(lora, options.engine, out),
            other => {
                let name = strategy.type_name();
                let reason = match other {
                    AdapterConfig::Bottleneck(_) => {
                        "it is AdapterHub's type, which PEFT and the engines on it do not have"
                    }
                    _ => "the engine's command trains LoRA or all weights",
                };
                let reason = format!("{reason}: train it here, or choose `type: lora`");
                out.refuse("strategy.type", name, &reason);
            }
        },
    }
}

fn lora(lora: &Lora, to: Engine, out: &mut Mapped) {
    let Lora {
        r,
        lora_alpha,
        lora_dropout,
        target_modules,
        use_rslora,
        use_dora,
        layers_to_transform,
        layers_pattern,
        exclude_modules,
        bias,
        modules_to_save,
        ensure_weight_tying,
        rank_pattern,
        alpha_pattern,
        init_lora_weights,
        lora_init,
        init_seed: _, // the initial weights are written beside the engine's file
    } = lora;
    let trl = to == Engine::Trl;
    let only_trl = "`trl sft` has no such option: leave it out, or export to Axolotl";
    match to {
        Engine::Trl => out.set("use_peft", true),
        Engine::Axolotl if out.settings.contains_key("adapter") => {} // qlora
        Engine::Axolotl => out.set("adapter", "lora"),
    }
    out.set("lora_r", *r);
    match whole(*lora_alpha) {
        Some(alpha) => out.set("lora_alpha", alpha),
        None => out.refuse(
            "strategy.lora_alpha",
            lora_alpha,
            "a whole number there: choose one (the learning rate can make up for the difference)",
        ),
    }
    out.set("lora_dropout", *lora_dropout);
    if *lora_dropout > 0.0 {
        out.note("dropout is drawn anew there: losses differ by chance from the first step on");
    }
    match (target_modules, to) {
        (TargetModules::Names(names), _) => out.set("lora_target_modules", json!(names)),
        (TargetModules::Pattern(all), Engine::Axolotl) if all == "all-linear" => {
            out.set("lora_target_linear", true);
        }
        // TRL takes a list of one for the string in it.
        (TargetModules::Pattern(pattern), Engine::Trl) => {
            out.set("lora_target_modules", json!([pattern]));
        }
        (TargetModules::Pattern(pattern), Engine::Axolotl) => {
            out.set("lora_target_modules", pattern.clone());
        }
    }
    out.set(if trl { "use_rslora" } else { "peft_use_rslora" }, *use_rslora);
    out.set(if trl { "use_dora" } else { "peft_use_dora" }, *use_dora);
    if let Some(layers) = layers_to_transform {
        match to {
            Engine::Axolotl => out.set("peft_layers_to_transform", json!(layers)),
            Engine::Trl => out.refuse(
                "strategy.layers_to_transform",
                format!("{layers:?}"),
                "`trl sft` has no such option: name the blocks in target_modules \
                 (`model\\.layers\\.(0|1)\\..*\\.q_proj`), or export to Axolotl",
            ),
        }
    }
    let pattern = layers_pattern.join(", ");
    if trl {
        out.refuse_if(!pattern.is_empty(), "strategy.layers_pattern", pattern, only_trl);
    } else if !layers_pattern.is_empty() {
        out.set("peft_layers_pattern", json!(layers_pattern));
    }
    out.refuse_if(
        exclude_modules.is_some(),
        "strategy.exclude_modules",
        json!(exclude_modules),
        "no option of the engine leaves modules out: write target_modules as an expression without \
         them",
    );
    out.refuse_if(
        *bias != Bias::None,
        "strategy.bias",
        json!(bias),
        "the engine trains no bias with a LoRA: set `none`",
    );
    if !modules_to_save.is_empty() {
        out.set("lora_modules_to_save", json!(modules_to_save));
    }
    if trl {
        out.refuse_if(
            *ensure_weight_tying,
            "strategy.ensure_weight_tying",
            ensure_weight_tying,
            only_trl,
        );
        let (ranks, alphas) = (json!(rank_pattern), json!(alpha_pattern));
        out.refuse_if(!rank_pattern.is_empty(), "strategy.rank_pattern", ranks, only_trl);
        out.refuse_if(!alpha_pattern.is_empty(), "strategy.alpha_pattern", alphas, only_trl);
        out.refuse_if(
            !init_lora_weights,
            "strategy.init_lora_weights",
            init_lora_weights,
            only_trl,
        );
    } else {
        if *ensure_weight_tying {
            out.set("peft_ensure_weight_tying", true);
        }
        if !rank_pattern.is_empty() {
            out.set("lora_rank_pattern", json!(rank_pattern));
        }
        let alphas: Option<serde_json::Map<String, Value>> = alpha_pattern
            .iter()
            .map(|(key, alpha)| Some((key.clone(), whole(*alpha)?.into())))
            .collect();
        match alphas {
            Some(alphas) if alphas.is_empty() => {}
            Some(alphas) => out.set("lora_alpha_pattern", alphas),
            None => out.refuse(
                "strategy.alpha_pattern",
                json!(alpha_pattern),
                "whole numbers there: choose such",
            ),
        }
    }
    let init: Value = match lora_init {
        LoraInit::Kaiming => (*init_lora_weights).into(),
        LoraInit::Gaussian => "gaussian".into(),
        LoraInit::Pissa | LoraInit::Olora => {
            out.refuse(
                "strategy.lora_init",
                json!(lora_init),
                "the engine would save an adapter of a base that it has changed, which fits no other: \
                 choose `kaiming` or `gaussian`",
            );
            return;
        }
    };
    match to {
        Engine::Trl => out.refuse_if(
            *lora_init != LoraInit::Kaiming,
            "strategy.lora_init",
            json!(lora_init),
            only_trl,
        ),
        Engine::Axolotl if init == true => {}
        Engine::Axolotl => out.set("peft_init_lora_weights", init),
    }
}

fn full(full: &Full, options: &ExportOptions, out: &mut Mapped) {
    let Full { target_modules, layers_to_transform, bias_only } = full;
    let reason = "the engine trains all weights: leave it out, or train a LoRA on those modules";
    out.refuse_if(
        target_modules.is_some(),
        "strategy.target_modules",
        json!(target_modules),
        reason,
    );
    out.refuse_if(
        layers_to_transform.is_some(),
        "strategy.layers_to_transform",
        json!(layers_to_transform),
        reason,
    );
    out.refuse_if(
        *bias_only,
        "strategy.bias_only",
        bias_only,
        "the engine trains no biases alone: train them here, or choose `type: lora`",
    );
    if options.engine == Engine::Trl {
        out.set("use_peft", false);
    }
}

/// A number without a fraction.
fn whole(number: f64) -> Option<u64> {
    let fits = number.fract() == 0.0 && (0.0..=u32::MAX.into()).contains(&number);
    fits.then_some(number as u64)
}
