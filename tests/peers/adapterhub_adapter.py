"""Reads and writes bottleneck adapters with AdapterHub's package, for the tests that compare with it. It wants an environment of its own
(`tests/golden/strategies/bottleneck-requirements.txt`), as the package pins an older transformers.

    adapterhub_adapter.py logits MODEL ADAPTER IDS             load ADAPTER onto MODEL, print its name, then the logits of the ids as JSON
    adapterhub_adapter.py save   MODEL FOLDER NAME KIND IDS    save a random adapter, print its logits

MODEL is a folder of safetensors; KIND is the package's (`seq_bn`, `double_seq_bn`, `par_bn`); IDS is a JSON list.
"""

import json
import sys

import adapters
import torch
from transformers import AutoModelForCausalLM


def load(path):
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    adapters.init(model)
    return model


def print_logits(model, ids):
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([json.loads(ids)])).logits
    print(json.dumps(logits.flatten().tolist()))


command, *arguments = sys.argv[1:]
if command == "logits":
    base, adapter, ids = arguments
    model = load(base)
    info = {}
    name = model.load_adapter(adapter, use_safetensors=True, set_active=True, loading_info=info)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    print(name)
    print_logits(model, ids)
elif command == "save":
    base, folder, name, kind, ids = arguments
    torch.manual_seed(3)
    model = load(base)
    model.add_adapter(name, config=adapters.AdapterConfig.load(kind, reduction_factor=4), set_active=True)
    for parameter_name, parameter in model.named_parameters():
        if f"adapters.{name}." in parameter_name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_adapter(folder, name, use_safetensors=True)
    print_logits(model, ids)
else:
    sys.exit(__doc__)
