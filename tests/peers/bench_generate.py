"""The peers' side of `cargo xtask bench generate`: llama.cpp, transformers, mistral.rs.

    bench_generate.py PEER MODEL PROMPTS --threads=N [--dtype=f32|bf16]

MODEL is a GGUF file, for transformers a folder. PROMPTS is what `crates/tune/examples/bench_generate.rs` writes. Each line of JSON on
standard input is answered with one, as that program does: `{"do": "generate", "prompts": "plain", "rows": 8, "new": 65}` continues the
first rows of these prompts, greedily and whatever ends an answer, and tells `secs`, `cpu_secs`, `rows`, `tokens` (generated ones) and
`ids` (those of the first row, none where the peer does not tell them); `{"do": "end"}` is answered with the peak memory and versions. A peer that cannot
be had here answers `{"reason": ".."}`.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

from bench_train import peak_rss_mb

BATCH = 32


def groups(prompts):
    """Batches of prompts of similar length, with the places that they have among all."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]["ids"]))
    return [order[i : i + BATCH] for i in range(0, len(order), BATCH)]


class LlamaCpp:
    """By llama.cpp's own functions: one batch of several sequences, all in one `llama_decode` a step."""

    package = "llama_cpp_python"

    def __init__(self, args):
        import llama_cpp
        import numpy

        self.llama, self.numpy, self.threads = llama_cpp, numpy, args.threads
        # Kept for as long as the library may call it.
        self.log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(args.model).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {args.model.name}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.shape, self.context = None, None

    def prepare(self, prompts, new):
        llama = self.llama
        shape = (min(len(prompts), BATCH), max(len(p["ids"]) for p in prompts), 128 if new <= 128 else new)
        if shape == self.shape:
            return
        if self.context:
            llama.llama_free(self.context)
            llama.llama_batch_free(self.batch)
        rows, length, room = self.shape = shape
        params = llama.llama_context_default_params()
        params.n_seq_max = rows
        params.n_ctx = rows * (-(-(length + room) // 256) * 256)
        params.n_batch = max(rows * length, params.n_ubatch)
        params.n_threads = params.n_threads_batch = self.threads
        self.context = llama.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp makes no context")
        self.batch = llama.llama_batch_init(rows * length, 0, 1)

    def decode(self, tokens):
        """Tokens as (id, position, sequence, whether its logits are wanted); the likeliest next ones."""
        llama, batch = self.llama, self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
        status = llama.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode answers {status}")
        return [
            int(self.numpy.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, i), shape=(self.vocabulary,)).argmax())
            for i, (_, _, _, wanted) in enumerate(tokens)
            if wanted
        ]

    def generate(self, prompts, new):
        answers = [None] * len(prompts)
        for group in groups(prompts):
            self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), False)
            rows = [prompts[i]["ids"] for i in group]
            last = self.decode([(id, at, row, at + 1 == len(ids)) for row, ids in enumerate(rows) for at, id in enumerate(ids)])
            written = [[id] for id in last]
            for step in range(1, new):
                last = self.decode([(id, len(rows[row]) + step - 1, row, True) for row, id in enumerate(last)])
                for ids, id in zip(written, last):
                    ids.append(id)
            for i, ids in zip(group, written):
                answers[i] = ids
        return answers


class Transformers:
    package = "transformers"

    def __init__(self, args):
        import torch
        import transformers

        torch.set_num_threads(args.threads)
        self.torch = torch
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
        self.model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
        self.model.generation_config.eos_token_id = None

    def prepare(self, prompts, new):
        pass

    def generate(self, prompts, new):
        torch, answers = self.torch, [None] * len(prompts)
        for group in groups(prompts):
            rows = [prompts[i]["ids"] for i in group]
            longest = max(map(len, rows))
            ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            written = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0
            )
            for i, row in zip(group, written[:, longest:].tolist()):
                answers[i] = row
        return answers


class MistralRs:
    """One request at a time, and so few of the rows: its speed does not depend on how many there are."""

    package = "mistralrs"
    most = {"plain": 2, "long": 1, "chat": 10}

    def __init__(self, args):
        import mistralrs

        self.mistralrs = mistralrs
        which = mistralrs.Which.GGUF(quantized_model_id=str(args.model.parent), quantized_filename=args.model.name)
        # Nothing that was computed for one request is kept for the next.
        self.runner = mistralrs.Runner(which=which, prefix_cache_n=0, max_seqs=1, token_source="none")

    def prepare(self, prompts, new):
        pass

    def generate(self, prompts, new):
        answers = []
        for prompt in prompts:
            request = self.mistralrs.CompletionRequest(
                prompt=prompt["text"], model="default", max_tokens=new, temperature=0.0, ignore_eos=True
            )
            answers.append([None] * self.runner.send_completion_request(request).usage.completion_tokens)
        return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = {"llama.cpp": LlamaCpp, "transformers": Transformers, "mistralrs": MistralRs}
    parser.add_argument("peer", choices=peers)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    args = parser.parse_args()
    # Libraries write to standard output, too; it is ours alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        all_prompts = json.loads(args.prompts.read_text())
        kind = peers[args.peer]
        try:
            peer = kind(args)
        except ImportError:
            return answer({"reason": f"{kind.package} is not in the environment of the Python peers"})
        answer({"ready": True})
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "end":
                break
            prompts = all_prompts[request["prompts"]][: request["rows"]]
            if hasattr(peer, "most"):
                prompts = prompts[: peer.most[request["prompts"]]]
            peer.prepare(prompts, request["new"])
            start, cpu = time.perf_counter(), time.process_time()
            written = peer.generate(prompts, request["new"])
            secs, cpu = time.perf_counter() - start, time.process_time() - cpu
            answer({"secs": secs, "cpu_secs": cpu, "rows": len(written), "tokens": sum(map(len, written)), "ids": [id for id in written[0] if id is not None]})
        versions = {kind.package: importlib.metadata.version(kind.package), "python": sys.version.split()[0]}
        answer({"peak_rss_mb": peak_rss_mb(), "versions": versions})
    except Exception as error:
        answer({"reason": f"{args.peer}: {type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
