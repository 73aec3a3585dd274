"""Golden runs of fifty steps for each strategy that PEFT has, on the tiny Llama and the rows of `../lora_tiny`.

Writes beside itself, for each case, `CASE/initial` and `CASE/final` (the adapter before and after, saved by PEFT) and
`CASE/run.json` (the loss of every step, before the update; the ranks that AdaLoRA ends with). Dropout is 0.

    python generate.py [CASE ...]      # versions: tests/peers/requirements.txt
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
TINY = HERE.parent / "lora_tiny"
STEPS, RATE = 50, 5e-3
rows = json.loads((TINY / "run.json").read_text())["rows"]
batches = [[(3 * s) % 8, (3 * s + 1) % 8, (3 * s + 5) % 8] for s in range(STEPS)]
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
}


def batch(indices):
    longest = max(len(rows[i]["ids"]) for i in indices)
    pad = lambda values, filler: values + [filler] * (longest - len(values))
    ids = torch.tensor([pad(rows[i]["ids"], 0) for i in indices])
    labels = torch.tensor([pad(rows[i]["labels"], -100) for i in indices])
    mask = torch.tensor([pad([1] * len(rows[i]["ids"]), 0) for i in indices])
    return ids, labels, mask


def run(name, config):
    torch.manual_seed(7)
    torch.set_num_threads(1)
    shutil.rmtree(HERE / name, ignore_errors=True)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY / "model", dtype=torch.float32), config)
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
    model.save_pretrained(HERE / name / "initial")
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "loraplus":
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.01, weight_decay=0.01
        )
    else:
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        ids, labels, mask = batch(batches[step])
        optimizer.zero_grad()
        tokens = int((labels[:, 1:] != -100).sum())
        # `PeftModel`'s own forward adds AdaLoRA's regularisation to a loss that it computes itself: do the same here.
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / tokens
        losses.append(loss.item())
        if name == "adalora":
            regularisation, count = 0.0, 0
            for parameter_name, p in model.named_parameters():
                if "lora_A" in parameter_name or "lora_B" in parameter_name:
                    cov = p @ p.T if "lora_A" in parameter_name else p.T @ p
                    regularisation = regularisation + torch.norm(cov - torch.eye(len(cov)), p="fro")
                    count += 1
            loss = loss + config.orth_reg_weight * regularisation / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if name == "adalora":
            model.base_model.update_and_allocate(step)
    if name in ("pissa", "olora"):
        model.save_pretrained(HERE / name / "final", path_initial_model_for_weight_conversion=HERE / name / "initial")
    else:
        model.save_pretrained(HERE / name / "final")
    result = {"losses": losses, "batches": batches, "learning_rate": RATE}
    if name == "adalora":
        result["rank_pattern"] = model.peft_config["default"].rank_pattern
    (HERE / name / "run.json").write_text(json.dumps(result) + "\n")
    for readme in (HERE / name).glob("**/README.md"):
        readme.unlink()
    for config_file in (HERE / name).glob("*/adapter_config.json"):
        written = json.loads(config_file.read_text()) | {"base_model_name_or_path": "lora_tiny/model"}
        config_file.write_text(json.dumps(written, indent=2) + "\n")
    print(name, [round(loss, 4) for loss in losses[::7]])


for name in sys.argv[1:] or CASES:
    run(name, CASES[name])
