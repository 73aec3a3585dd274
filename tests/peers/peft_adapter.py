"""Reads and writes adapters with Python PEFT, for the tests that compare with it.

    peft_adapter.py logits MODEL ADAPTER IDS [MODEL ADAPTER IDS ...]
                                    load ADAPTER onto MODEL, print the logits of the ids as JSON, a line for each
    peft_adapter.py save MODEL FOLDER NAME IDS [KIND ...]
                                    save a random adapter NAME with save_pretrained(FOLDER), print its logits; of several KINDs (lora, adalora,
                                    ia3, bias, saved) each in a folder of its name below FOLDER, a line for each

MODEL is a folder of safetensors or a GGUF file; IDS is a JSON list.
"""

import json
import sys
from pathlib import Path

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def load(path):
    path = Path(path)
    if path.suffix == ".gguf":
        return AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)


def print_logits(model, ids):
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([json.loads(ids)])).logits
    print(json.dumps(logits.flatten().tolist()))


def save(base, folder, name, ids, kind):
    torch.manual_seed(3)
    lora = dict(r=5, lora_alpha=8, task_type="CAUSAL_LM")
    config = {
        "lora": lambda: LoraConfig(**lora, target_modules="all-linear"),
        "adalora": lambda: AdaLoraConfig(
            task_type="CAUSAL_LM", init_r=6, target_r=3, total_step=10, target_modules=["q_proj", "o_proj", "up_proj"]
        ),
        "ia3": lambda: IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "up_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "bias": lambda: LoraConfig(**lora, target_modules=["k_proj", "up_proj"], bias="all"),
        "saved": lambda: LoraConfig(**lora, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
    }[kind]()
    model = get_peft_model(load(base), config, adapter_name=name)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name or "lora_E" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif "ia3_l" in parameter_name or parameter.requires_grad and parameter_name.endswith((".bias", f"{name}.weight")):
            parameter.data += 0.1 * torch.randn_like(parameter)
    if kind == "adalora":  # as after an allocation: singular values dropped, unevenly
        pattern = {}
        for number, (parameter_name, parameter) in enumerate(model.named_parameters()):
            if "lora_E" in parameter_name:
                kept = [(i * 7 + number) % 5 < 3 for i in range(len(parameter))]
                parameter.data[[not k for k in kept]] = 0.0
                pattern[parameter_name.removeprefix("base_model.model.")] = kept
        model.peft_config[name].rank_pattern = pattern
    model.save_pretrained(folder)
    print_logits(model, ids)


command, *arguments = sys.argv[1:]
if command == "logits":
    for base, adapter, ids in zip(*[iter(arguments)] * 3):
        print_logits(PeftModel.from_pretrained(load(base), adapter), ids)
elif command == "save":
    base, folder, name, ids, *kinds = arguments
    for kind in kinds:
        save(base, str(Path(folder) / kind), name, ids, kind)
    if not kinds:
        save(base, folder, name, ids, "lora")
else:
    sys.exit(__doc__)
