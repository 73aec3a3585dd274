"""Logits of Python transformers for models that tunebook saved.

    saved_models.py < REQUESTS > ANSWERS

One JSON object a line, each answered with one: {"model": FOLDER, "ids": [..]} -> {"logits": .., "class": .., "tokens": ids of "text"}
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

for line in sys.stdin:
    request = json.loads(line)
    model, info = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], (request["model"], problem, info[problem])
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([request["ids"]])).logits
    tokens = AutoTokenizer.from_pretrained(request["model"])(request["text"], add_special_tokens=False).input_ids
    eos = GenerationConfig.from_pretrained(request["model"]).eos_token_id
    print(json.dumps({"logits": logits.flatten().tolist(), "class": type(model).__name__, "tokens": tokens, "eos": eos}), flush=True)
