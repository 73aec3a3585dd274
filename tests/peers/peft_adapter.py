"""Reads and writes adapters with Python PEFT, for the tests that compare with it.

    peft_adapter.py logits MODEL ADAPTER IDS         load ADAPTER onto MODEL, print the logits of the ids as JSON
    peft_adapter.py save   MODEL FOLDER NAME IDS     save a random adapter NAME with save_pretrained(FOLDER), print its logits

MODEL is a folder of safetensors or a GGUF file; IDS is a JSON list.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
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


command, *arguments = sys.argv[1:]
if command == "logits":
    base, adapter, ids = arguments
    print_logits(PeftModel.from_pretrained(load(base), adapter), ids)
elif command == "save":
    base, folder, name, ids = arguments
    torch.manual_seed(3)
    config = LoraConfig(r=5, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load(base), config, adapter_name=name)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    print_logits(model, ids)
else:
    sys.exit(__doc__)
