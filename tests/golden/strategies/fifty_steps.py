"""What the generators here share: the rows of `../lora_tiny`, the batches of fifty steps, and a step's loss."""

import json
from pathlib import Path

import torch

HERE = Path(__file__).parent
TINY = HERE.parent / "lora_tiny"
STEPS = 50
rows = json.loads((TINY / "run.json").read_text())["rows"]
batches = [[(3 * s) % 8, (3 * s + 1) % 8, (3 * s + 5) % 8] for s in range(STEPS)]


def batch(indices):
    """Ids, labels and mask of some rows, padded on the right."""
    longest = max(len(rows[i]["ids"]) for i in indices)
    pad = lambda values, filler: values + [filler] * (longest - len(values))
    ids = torch.tensor([pad(rows[i]["ids"], 0) for i in indices])
    labels = torch.tensor([pad(rows[i]["labels"], -100) for i in indices])
    mask = torch.tensor([pad([1] * len(rows[i]["ids"]), 0) for i in indices])
    return ids, labels, mask


def mean_loss(model, ids, labels, mask):
    """The loss per token that bears one. What a soft prompt puts before the text bears none."""
    tokens = int((labels[:, 1:] != -100).sum())
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :][:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / tokens


def groups(named, decays):
    """Tensors for AdamW: those that decay, and those that do not."""
    return [
        {"params": [p for name, p in named.items() if decays(name)], "weight_decay": 0.01},
        {"params": [p for name, p in named.items() if not decays(name)], "weight_decay": 0.0},
    ]


def train(model, trained, optimizer, before=lambda loss: loss, after=lambda step: None):
    """Fifty steps with clipped gradients; gives the loss of each, before its update. `before` may add to a loss, `after` is told each step."""
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = mean_loss(model, *batch(batches[step]))
        losses.append(loss.item())
        before(loss).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        after(step)
    return losses
