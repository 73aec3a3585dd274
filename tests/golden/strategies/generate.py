"""Golden runs of fifty steps for each strategy that PEFT has, on the tiny Llama and the rows of `../lora_tiny`.

Writes beside itself, for each case, `CASE/initial` and `CASE/final` (the adapter before and after, saved by PEFT) and
`CASE/run.json` (the loss of every step, before the update; the ranks that AdaLoRA ends with). Dropout is 0.
The cases in BIASED run on `biased/model`, which has biases and an output head of its own; those in OWN train the model's own weights, without
PEFT, and have their final tensors in `CASE/final.safetensors`.

    python generate.py [CASE ...]      # versions: tests/peers/requirements.txt
"""

import json
import shutil
import sys

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from fifty_steps import HERE, STEPS, TINY, batches, groups, train

RATE = 5e-3
common = dict(task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"])
CASES = {
    "patterns": LoraConfig(
        **{**common, "target_modules": ["q_proj", "up_proj", "down_proj"]},
        use_rslora=True,
        layers_to_transform=[1],
        rank_pattern={"up_proj": 2},
        alpha_pattern={"model.layers.1.mlp.down_proj": 9},
    ),
    "dora": LoraConfig(**common, use_dora=True),
    "loraplus": LoraConfig(**common),
    "pissa": LoraConfig(**common, init_lora_weights="pissa"),
    "olora": LoraConfig(**common, init_lora_weights="olora"),
    "adalora": AdaLoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_r=4,
        target_r=2,
        lora_alpha=6,
        tinit=5,
        tfinal=15,
        deltaT=2,
        total_step=STEPS,
        orth_reg_weight=0.5,
    ),
    "blocks": LoraConfig(
        **{**common, "target_modules": ["q_proj", "v_proj", "up_proj"]},
        layers_to_transform=[1],
        layers_pattern="layers",
        exclude_modules=["v_proj"],
    ),
    "ia3": IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "ia3_saved": IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "o_proj"],
        feedforward_modules=["o_proj"],
        modules_to_save=["lm_head"],
    ),
    "bias_all": LoraConfig(**common, bias="all"),
    "bias_lora_only": LoraConfig(**common, bias="lora_only"),
    "saved": LoraConfig(**common, modules_to_save=["embed_tokens", "lm_head"]),
    "tied": LoraConfig(**common, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
}
BIASED = ["ia3_saved", "bias_all", "bias_lora_only", "saved", "bitfit", "upper_block"]
# Which of the model's own weights are trained.
OWN = {
    "bitfit": lambda name: name.endswith(".bias"),
    "upper_block": lambda name: name.startswith("model.layers.1."),
}


def biased():
    """The tiny Llama with biases, none of them zero, and an output head of its own."""
    torch.manual_seed(11)
    config = LlamaConfig.from_pretrained(TINY / "model", attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    folder = HERE / "biased" / "model"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(TINY / "model" / file, folder / file)


def decay_groups(model):
    """As `transformers`' Trainer divides them: norms and biases do not decay."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return groups(named, lambda name: not any("bias" in part or "norm" in part for part in name.split(".")))


def run(name, config):
    torch.manual_seed(7)
    torch.set_num_threads(1)
    shutil.rmtree(HERE / name, ignore_errors=True)
    path = HERE / "biased" / "model" if name in BIASED else TINY / "model"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if name in OWN:
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad = OWN[name](parameter_name)
    else:
        model = get_peft_model(model, config)
    for parameter_name, parameter in model.named_parameters():
        if "ia3_l" in parameter_name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    if name not in ("pissa", "olora", "adalora"):
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
    if name == "adalora":
        for parameter_name, parameter in model.named_parameters():
            if "lora_E" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
            elif "lora_" in parameter_name and "ranknum" not in parameter_name:
                torch.nn.init.normal_(parameter, std=0.2)
    # A PiSSA or OLoRA adapter means nothing without its base: `initial` is its raw tensors, `final` the plain LoRA it is converted to.
    (HERE / name).mkdir()
    if name not in OWN:
        model.save_pretrained(HERE / name / "initial")
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "loraplus":
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.01, weight_decay=0.01
        )
    else:
        optimizer = torch.optim.AdamW(decay_groups(model), lr=RATE)

    def orthogonality(loss):
        # `PeftModel`'s own forward adds this to a loss that it computes itself: do the same here.
        parts = [(n, p) for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n]
        regularisation = 0.0
        for parameter_name, p in parts:
            cov = p @ p.T if "lora_A" in parameter_name else p.T @ p
            regularisation = regularisation + torch.norm(cov - torch.eye(len(cov)), p="fro")
        return loss + config.orth_reg_weight * regularisation / len(parts)

    if name == "adalora":
        losses = train(model, trained, optimizer, orthogonality, model.base_model.update_and_allocate)
    else:
        losses = train(model, trained, optimizer)
    if name in ("pissa", "olora"):
        model.save_pretrained(HERE / name / "final", path_initial_model_for_weight_conversion=HERE / name / "initial")
    elif name in OWN:
        (HERE / name / "final.safetensors").unlink(missing_ok=True)
        save_file({n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, HERE / name / "final.safetensors")
    else:
        model.save_pretrained(HERE / name / "final")
    result = {"losses": losses, "batches": batches, "learning_rate": RATE}
    if name == "adalora":
        result["rank_pattern"] = model.peft_config["default"].rank_pattern
    (HERE / name / "run.json").write_text(json.dumps(result) + "\n")
    for readme in (HERE / name).glob("**/README.md"):
        readme.unlink()
    for config_file in (HERE / name).glob("*/adapter_config.json"):
        base = "strategies/biased/model" if name in BIASED else "lora_tiny/model"
        written = json.loads(config_file.read_text()) | {"base_model_name_or_path": base}
        config_file.write_text(json.dumps(written, indent=2) + "\n")
    print(name, [round(loss, 4) for loss in losses[::7]])


for name in sys.argv[1:] or [*CASES, *OWN]:
    if not (HERE / "biased").exists():
        biased()
    run(name, CASES.get(name))
