"""Golden values of a batch whose rows have an adapter each, by PEFT: `adapter_names`, with the tiny Llama of `../lora_tiny` and the
adapters of `../weighted`.

Writes `run.json` beside itself: the names, the ids, and the logits of each row.

    python generate.py        # versions: tests/peers/requirements.txt
"""

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
base = AutoModelForCausalLM.from_pretrained(HERE.parent / "lora_tiny" / "model", dtype=torch.float32)
model = PeftModel.from_pretrained(base, HERE.parent / "weighted" / "one", adapter_name="one")
model.load_adapter(HERE.parent / "weighted" / "two", adapter_name="two")
names = ["two", "__base__", "one", "two", "__base__"]
ids = [[(17 * row + 5 * column + 3) % 250 for column in range(9)] for row in range(len(names))]
with torch.no_grad():
    logits = model.eval()(input_ids=torch.tensor(ids), adapter_names=names).logits
(HERE / "run.json").write_text(json.dumps({"names": names, "ids": ids, "logits": logits.flatten(1).tolist()}) + "\n")
