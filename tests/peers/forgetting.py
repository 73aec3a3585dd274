"""The loss of general text as PEFT's method comparison measures it, for the tests that compare with it.

    forgetting.py MODEL ADAPTER TEXTS MAX_LENGTH > ANSWER

MODEL is a folder of transformers, ADAPTER one of PEFT's, TEXTS a JSON list in a file. The answer is one object:
the mean loss a token with the adapter off and on, and the divergence of the second from the first.

As `calculate_mean_per_token_loss` of PEFT's method_comparison/MetaMathQA/run.py, but for one thing: there the
logits of a position are compared with the token at this position, which the model has just read (commit 026d1e0).
Here they are compared with the token that follows, as a loss of a language model is defined.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model_path, adapter, texts, max_length = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(model_path)
base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
model = PeftModel.from_pretrained(base, adapter).eval()


@torch.inference_mode()
def measure(rows):
    losses, kl = {"base": [], "tuned": []}, []
    for row in rows:
        ids = tokenizer(row, truncation=True, max_length=int(max_length), return_tensors="pt").input_ids
        with model.disable_adapter():
            before = torch.log_softmax(model(ids).logits[0, :-1], -1)
        after = torch.log_softmax(model(ids).logits[0, :-1], -1)
        for name, logits in [("base", before), ("tuned", after)]:
            losses[name] += torch.nn.functional.nll_loss(logits, ids[0, 1:], reduction="none").tolist()
        kl += (before.exp() * (before - after)).sum(-1).tolist()
    return {"tokens": len(kl), "kl": sum(kl) / len(kl)} | {
        name: sum(values) / len(values) for name, values in losses.items()
    }


print(json.dumps(measure(json.load(open(texts)))))
