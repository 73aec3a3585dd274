"""Two-layer models of every family with random weights, and what Python transformers computes with them, as reference for
crates/models.

Writes one folder each, beside itself: what `save_pretrained` writes (weights rounded to bf16 and stored so, which halves
them; computed in f32), a tokenizer of plain words, and expected.safetensors: a batch padded on the right, its logits, the loss
over the labelled tokens, the gradients of every parameter, and 64 greedily generated tokens for each row.

    python families.py [NAME ...]      (versions: tests/peers/requirements.txt)
"""

import copy
import shutil
import sys
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}
VOCAB = 72
SPECIAL = dict(bos_token_id=0, eos_token_id=None, pad_token_id=2)  # nothing ends a text: all are 64 tokens long
SMALL = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=128, **SPECIAL)
LONG = [1.0 + 0.5 * i for i in range(4)]


def rope(**parameters):
    return {"rope_parameters": {"rope_theta": 5000.0, **parameters}}


# name: (model class, config class, options)
FAMILIES = {
    "llama3": ("Llama", dict(SMALL, tie_word_embeddings=True,
               **rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32))),
    "llama-linear": ("Llama", dict(SMALL, tie_word_embeddings=True, num_key_value_heads=4, **rope(rope_type="linear", factor=4.0))),
    "llama-dynamic": ("Llama", dict(SMALL, tie_word_embeddings=True, **rope(rope_type="dynamic", factor=2.0))),
    "mistral": ("Mistral", dict(SMALL, head_dim=12, sliding_window=7, tie_word_embeddings=False, **rope(rope_type="default"))),
    "qwen2": ("Qwen2", dict(SMALL, tie_word_embeddings=True, use_sliding_window=True, sliding_window=6, max_window_layers=1,
              **rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32))),
    "qwen3": ("Qwen3", dict(SMALL, head_dim=12, tie_word_embeddings=True, **rope(rope_type="default"))),
    "smollm3": ("SmolLM3", dict(SMALL, tie_word_embeddings=True, no_rope_layers=[1, 0], **rope(rope_type="default"))),
    "gemma": ("Gemma", dict(SMALL, head_dim=12, num_key_value_heads=1, tie_word_embeddings=True, **rope(rope_type="default"))),
    "gemma2": ("Gemma2", dict(SMALL, head_dim=12, tie_word_embeddings=True, sliding_window=6, query_pre_attn_scalar=9,
               attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **rope(rope_type="default"))),
    "gemma3": ("Gemma3", dict(SMALL, head_dim=12, tie_word_embeddings=True, sliding_window=6, query_pre_attn_scalar=12,
               layer_types=["sliding_attention", "full_attention"],
               rope_parameters={"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 8000.0},
                                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}})),
    "phi3": ("Phi3", dict(SMALL, tie_word_embeddings=False, sliding_window=9, **rope(rope_type="default", partial_rotary_factor=0.5))),
    "phi3-longrope": ("Phi3", dict(SMALL, tie_word_embeddings=False, original_max_position_embeddings=14,
                      **rope(rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=LONG, original_max_position_embeddings=14))),
    "falcon-7b": ("Falcon", dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=48,
                  multi_query=True, parallel_attn=True, bias=False, max_position_embeddings=128, **SPECIAL, **rope(rope_type="default"))),
    "falcon-40b": ("Falcon", dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2, ffn_hidden_size=48,
                   new_decoder_architecture=True, bias=False, max_position_embeddings=128, **SPECIAL, **rope(rope_type="default"))),
    "falcon-rw": ("Falcon", dict(vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=6, ffn_hidden_size=48,
                  multi_query=False, parallel_attn=False, alibi=True, bias=True, max_position_embeddings=128, **SPECIAL)),
    "gpt2": ("GPT2", dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, n_inner=48, **SPECIAL)),
}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}
MODELS = {"GPT2": "GPT2LMHeadModel"}


def words():
    """One word for each id."""
    vocab = {"<s>": 0, "w1": 1, "<pad>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, VOCAB)}}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", unk_token="<unk>")


def family(name, seed):
    """Whether the texts are worth comparing: none is one word over and over."""
    kind, options = FAMILIES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, CONFIGS.get(kind, f"{kind}Config"))(**options)
    if kind != "Falcon":  # whose eager form adds ALiBi twice
        config._attn_implementation = "eager"
    for dropout in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        if hasattr(config, dropout):
            setattr(config, dropout, 0.0)
    model = getattr(transformers, MODELS.get(kind, f"{kind}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the initial values: norms that are not one, biases that are not zero
            parameter.add_(torch.randn_like(parameter) * 0.15)
        if kind.startswith("Gemma"):  # else the scale of the embedding drowns the blocks, and every text repeats its last word
            model.model.embed_tokens.weight.mul_(0.08)
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    copy.deepcopy(model).bfloat16().save_pretrained(folder)  # a copy: the rotary frequencies would be rounded as well
    words().save_pretrained(folder)

    lengths, t = [17, 9, 12], 17
    ids = torch.randint(4, VOCAB, (3, t))
    mask = torch.arange(t)[None] < torch.tensor(lengths)[:, None]
    ids[~mask] = 2
    labels = ids.clone()
    labels[~mask] = -100
    labels[:, :4] = -100  # a prompt
    out = model(ids, attention_mask=mask.long(), labels=labels)
    out.loss.backward()
    golden = {"ids": ids.to(torch.uint32), "labels": labels, "lengths": torch.tensor(lengths), "logits": out.logits.detach(), "loss": out.loss.detach()}
    for path, parameter in model.named_parameters():
        golden[f"grad.{path}"] = parameter.grad
    new = 64
    for row, length in enumerate(lengths):
        prompt = ids[row:row + 1, :length]
        text = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=2)
        golden[f"greedy.{row}"] = text[0, length:].to(torch.uint32)
        if len(set(golden[f"greedy.{row}"].tolist())) < (3 if kind in ("Gemma", "Falcon", "GPT2") else 6):
            return False
    save_file({key: value.contiguous() for key, value in golden.items()}, folder / "expected.safetensors", metadata=VERSIONS)
    print(name, float(out.loss), sum(f.stat().st_size for f in folder.iterdir()) // 1000, "kB", golden["greedy.1"].tolist())
    return True


for seed, name in enumerate(FAMILIES):
    if not sys.argv[1:] or name in sys.argv[1:]:
        while not family(name, seed):
            seed += 100
            assert seed < 4000, f"{name}: no seed gives texts worth comparing"
