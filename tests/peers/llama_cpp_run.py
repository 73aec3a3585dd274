"""Runs GGUF files in llama.cpp, for the tests that compare with it.

    llama_cpp_run.py < REQUESTS > ANSWERS

One JSON object a line, each answered with one:
  {"model": FILE, "adapter": FILE or null, "ids": [..], "greedy": N}   -> {"logits": of the last position, "ids": N greedy ones}
  {"model": FILE, "texts": [..]}                                       -> {"ids": of each text}
What llama.cpp says of a file that it refuses goes to standard error. Keys and values are kept in f32 and flash attention is off, so that the arithmetic is as close to f32 as the file allows.
"""

import json
import sys

import llama_cpp
import numpy as np

F32 = 0


def load(request, verbose=False, **options):
    try:
        return llama_cpp.Llama(
            model_path=request["model"], lora_path=request.get("adapter"), n_ctx=request.get("context", 256), n_batch=256, n_threads=2, n_threads_batch=2,
            type_k=F32, type_v=F32, flash_attn=False, verbose=verbose, seed=0, use_mmap=not request.get("adapter"), **options,
        )
    except ValueError:
        if not verbose:
            load(request, verbose=True, **options)
        raise


def run(request):
    llama = load(request)
    llama.eval(request["ids"])
    last = lambda: np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llama._ctx.ctx, -1), shape=(llama.n_vocab(),)).copy()
    logits = last()
    ids, now = [], logits
    for _ in range(request["greedy"]):
        ids.append(int(now.argmax()))
        llama.eval([ids[-1]])
        now = last()
    return {"logits": [float(x) for x in logits], "ids": ids}


def tokenize(request):
    llama = load(request, vocab_only=True)
    return {"ids": [llama.tokenize(text.encode(), add_bos=False, special=True) if text else [] for text in request["texts"]]}


for line in sys.stdin:
    request = json.loads(line)
    answer = tokenize(request) if "texts" in request else run(request)
    print(json.dumps(answer), flush=True)
