"""Reads and writes soft prompts and prefixes with Python PEFT, for the tests that compare with it.

    peft_virtual_tokens.py logits MODEL ADAPTER IDS        load ADAPTER onto MODEL, print the logits of the ids as JSON
    peft_virtual_tokens.py save   MODEL FOLDER KIND IDS    save a random adapter with save_pretrained(FOLDER), print its logits

MODEL is a folder of safetensors or a GGUF file; KIND is `prompt`, `prefix` or `prefix-projection`; IDS is a JSON list.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM


def load(path):
    path = Path(path)
    if path.suffix == ".gguf":
        return AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)


def print_logits(model, ids):
    ids = torch.tensor([json.loads(ids)])
    with torch.no_grad():
        # A soft prompt's own positions come first.
        logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -ids.shape[1] :]
    print(json.dumps(logits.flatten().tolist()))


command, *arguments = sys.argv[1:]
if command == "logits":
    base, adapter, ids = arguments
    print_logits(PeftModel.from_pretrained(load(base), adapter), ids)
elif command == "save":
    base, folder, kind, ids = arguments
    torch.manual_seed(3)
    common = dict(task_type="CAUSAL_LM", num_virtual_tokens=6)
    config = {
        "prompt": PromptTuningConfig(**common),
        "prefix": PrefixTuningConfig(**common),
        "prefix-projection": PrefixTuningConfig(**common, prefix_projection=True),
    }[kind]
    model = get_peft_model(load(base), config)
    model.save_pretrained(folder)
    print_logits(model, ids)
else:
    sys.exit(__doc__)
