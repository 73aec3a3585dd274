"""Logits, gradients and greedy text of Python transformers, as reference for crates/models.

Writes beside itself:
  smollm2.safetensors    the default model from its GGUF file, in f32: for each prompt N its ids, the logits of every 61st
                         token at every position, the largest |logit| and the argmax over the whole vocabulary at every
                         position, and 32 greedily generated tokens
  llama-tied/, llama-untied/
                         two-layer models with random weights as `save_pretrained` writes them: tied embeddings and a head
                         size of its own; biases, an output head and several shards. Each with expected.safetensors: a padded
                         batch, its logits, the loss over the labelled tokens, the gradients of every projection and of the
                         embedded input, and 16 greedily generated tokens for each row

    python generate.py MODEL.gguf      (versions: tests/peers/requirements.txt)
"""

import shutil
import sys
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}
STRIDE = 61
PROMPTS = [
    "Hi",
    "The capital of France is",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"
    "My parcel was due on 2024-03-17 and has not arrived. What can I do?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    \"\"\"Returns the n-th number.\"\"\"\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a\n\n\n"
    "def test_fibonacci():\n    assert [fibonacci(n) for n in range(8)] == [0, 1, 1, 2, 3, 5, 8, 13]\n\n\ndef factorial(n):\n",
    "Once upon a time there was a llama who lived high in the mountains. Every morning it walked down to the lake, where the mist lay "
    "over the water like a blanket, and listened to the birds. One day a stranger came along the path, carrying a heavy box and a map "
    "that was older than both of them. \"Excuse me,\" said the stranger, \"I have been looking for the village of Santa Cruz for three days, "
    "and I am afraid that I have lost my way. The map says: 12 miles north, then 7 east, past the chapel and over the bridge. But there is "
    "no bridge, and I have not seen a chapel since Tuesday.\" The llama thought about it for a while, chewing slowly. Then it said:",
]


def pretrained(gguf):
    load = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **load)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **load).eval()
    golden = {}
    for n, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(ids).logits[0]
        golden[f"{n}.ids"] = ids[0].to(torch.uint32)
        golden[f"{n}.logits"] = logits[:, ::STRIDE].contiguous()
        golden[f"{n}.max_abs"] = logits.abs().amax(-1)
        golden[f"{n}.argmax"] = logits.argmax(-1).to(torch.uint32)
        text = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False, eos_token_id=-1, pad_token_id=2)
        golden[f"{n}.greedy"] = text[0, ids.shape[1]:].to(torch.uint32)
        print(n, ids.shape[1], repr(tokenizer.decode(text[0, ids.shape[1]:])))
    save_file(golden, HERE / "smollm2.safetensors", metadata={**VERSIONS, "stride": str(STRIDE)})


def tiny_tokenizer():
    """Byte-level BPE with a few merges."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(PROMPTS, trainer)
    template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=template)


def tiny(name, seed, shard, **options):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=5000.0, bos_token_id=0, eos_token_id=1, pad_token_id=2, **options,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the initial values: norms that are not one, biases that are not zero
            parameter.add_(torch.randn_like(parameter) * 0.15)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=shard)
    tiny_tokenizer().save_pretrained(folder)

    lengths, t = [17, 9, 12], 17
    ids = torch.randint(3, 300, (3, t))
    mask = torch.arange(t)[None] < torch.tensor(lengths)[:, None]
    ids[~mask] = 2
    labels = ids.clone()
    labels[~mask] = -100
    labels[:, :4] = -100  # a prompt
    embedded = model.model.embed_tokens(ids).detach().requires_grad_()
    out = model(inputs_embeds=embedded, attention_mask=mask.long(), labels=labels)
    out.loss.backward()
    golden = {
        "ids": ids.to(torch.uint32), "labels": labels, "lengths": torch.tensor(lengths), "logits": out.logits.detach(),
        "loss": out.loss.detach(), "grad.embedded": embedded.grad,
    }
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            golden[f"grad.{path}.weight"] = module.weight.grad
    for row, length in enumerate(lengths):
        prompt = ids[row:row + 1, :length]
        text = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False, eos_token_id=-1, pad_token_id=2)
        golden[f"greedy.{row}"] = text[0, length:].to(torch.uint32)
    save_file({key: value.contiguous() for key, value in golden.items()}, folder / "expected.safetensors", metadata=VERSIONS)
    print(name, float(out.loss), [golden[f"greedy.{row}"].tolist() for row in range(3)])


tiny("llama-tied", 1, "50GB", head_dim=12, tie_word_embeddings=True)
tiny("llama-untied", 2, "40KB", attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
pretrained(Path(sys.argv[1]))
