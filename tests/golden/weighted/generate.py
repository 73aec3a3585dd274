"""Golden weighted merges of two LoRAs by PEFT's `add_weighted_adapter`, on the tiny Llama.

Writes beside itself `one` and `two` (the adapters) and, for each way to combine them, the folder of that name.

    python generate.py        # versions: tests/peers/requirements.txt
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
torch.manual_seed(11)
base = AutoModelForCausalLM.from_pretrained(HERE.parent / "lora_tiny" / "model", dtype=torch.float32)
common = dict(task_type="CAUSAL_LM", r=4, init_lora_weights=False)
model = get_peft_model(base, LoraConfig(**common, lora_alpha=6, target_modules=["q_proj", "v_proj"]), adapter_name="one")
model.add_adapter("two", LoraConfig(**common, lora_alpha=10, target_modules=["q_proj", "down_proj"]))
ways = ["linear", "cat", "svd", "ties", "magnitude_prune"]
for way in ways:
    model.add_weighted_adapter(["one", "two"], [0.7, -0.4], way, combination_type=way, density=0.6)
model.save_pretrained(HERE)
for name in ["one", "two", *ways]:
    (HERE / name / "README.md").unlink(missing_ok=True)
    file = HERE / name / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "lora_tiny/model"}, indent=2) + "\n")
(HERE / "README.md").unlink(missing_ok=True)
