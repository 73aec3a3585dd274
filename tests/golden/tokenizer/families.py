"""Small tokenizers of every family's kind, trained here, and the ids that Python transformers gives to 100,000 lines of mixed text.

Writes for each family FAMILY into families/FAMILY/:
  tokenizer.json         byte-level ones: the file itself, as the family's own is built
  vocabulary.gguf        SentencePiece ones: a GGUF file with nothing but the vocabulary and its scores, as llama.cpp's converter writes it
  hashes.safetensors     32-bit FNV-1a of the ids of blocks of 8 lines: `json` by the tokenizer.json, `gguf` by the same without its normalizer
                         (SentencePiece: by transformers from the GGUF file), `transformers` by transformers from a GGUF file (smollm)
The lines are made of those in lines.jsonl: see `lines`; the test makes the same.

    python families.py [FAMILY ..]      (versions: tests/peers/requirements.txt, and sentencepiece)
"""

import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import tokenizers
import transformers
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

HERE = Path(__file__).parent
COUNT = 100_000
BLOCK = 8
SEPARATORS = ["", " ", "  ", "\n", "\t", ", ", "\n\n", " 12 "]


def mixed_lines():
    with open(HERE / "lines.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def lines(base):
    """Line k: one of the base, a separator, another of the base."""
    n = len(base)
    return [base[k % n] + SEPARATORS[k // n % 8] + base[(k * 7919 + 13) % n] for k in range(COUNT)]


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(regex):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


BYTE_LEVEL = {
    # name in GGUF: (pre-tokenizer, the special tokens, whether a text begins with the first)
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"], False),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], False),
    "llama-bpe": (split(LLAMA3), ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], True),
    "qwen2": (split(QWEN2), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], False),
    "tekken": (split(TEKKEN), ["<s>", "</s>", "[INST]", "[/INST]"], True),
    "falcon": (
        pre_tokenizers.Sequence([
            pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]),
        [">>TITLE<<", "<|endoftext|>"], False,
    ),
}


def byte_level(name, corpus, folder):
    pre_tokenizer, special, begins = BYTE_LEVEL[name]
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "tekken")))
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1 % len(special)])
    fast.save_pretrained(folder)
    return fast


SPECIAL = {
    "llama": ["<unk>", "<s>", "</s>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>"],
    "phi3": ["<unk>", "<s>", "</s>"],
}


def sentencepiece_gguf(architecture, corpus, folder):
    """As llama.cpp's converter does it (`_create_vocab_sentencepiece`)."""
    out = io.BytesIO()
    gemma = architecture == "gemma"
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "eos_piece": "<eos>", "bos_piece": "<bos>"} if gemma else {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    options = {"user_defined_symbols": ["\u2581" * n for n in range(2, 8)] + ["\n"]} if gemma else {"user_defined_symbols": ["<|assistant|>"] if architecture == "phi3" else []}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=out, vocab_size=1500, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        add_dummy_prefix=not gemma, remove_extra_whitespaces=False, split_digits=True, allow_whitespace_only_pieces=True, character_coverage=1.0, num_threads=1, minloglevel=2,
        max_sentence_length=100000, **ids, **options,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    tokens, scores, kinds = [], [], []
    for i in range(processor.vocab_size()):
        piece = processor.id_to_piece(i)
        kind = gguf.TokenType.NORMAL
        if processor.is_unknown(i):
            kind = gguf.TokenType.UNKNOWN
        elif processor.is_control(i):
            kind = gguf.TokenType.CONTROL
        elif processor.is_byte(i):
            kind = gguf.TokenType.BYTE
        elif piece in options["user_defined_symbols"]:
            kind = gguf.TokenType.USER_DEFINED
            piece = piece.replace("\u2581", " ") if gemma else piece
        tokens.append(piece)
        scores.append(processor.get_score(i))
        kinds.append(kind)
    path = folder / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "gemma3" if gemma else architecture)  # transformers reads no config of the first Gemma
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    for add, piece in [
        (writer.add_bos_token_id, "<bos>" if gemma else "<s>"), (writer.add_eos_token_id, "<eos>" if gemma else "</s>"), (writer.add_unk_token_id, "<unk>"),
    ]:
        add(tokens.index(piece))
    if gemma:
        writer.add_pad_token_id(0)
        writer.add_add_space_prefix(False)
    # transformers reads the architecture's config on the way to the tokenizer.
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level_gguf(name, fast, path):
    """What transformers reads of a byte-level file."""
    writer = gguf.GGUFWriter(path, "llama")
    content = json.loads(fast.backend_tokenizer.to_str())
    vocab = sorted(fast.get_vocab().items(), key=lambda item: item[1])
    added = {token["id"]: token["special"] for token in content["added_tokens"]}
    kinds = [gguf.TokenType.NORMAL if i not in added else gguf.TokenType.CONTROL if added[i] else gguf.TokenType.USER_DEFINED for _, i in vocab]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_bos_token_id(fast.bos_token_id)
    writer.add_eos_token_id(fast.eos_token_id)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fnv1a(data):
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def hashes(tokenizer, texts):
    ids = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]
    block = lambda start: b"".join(np.array(line + [0xFFFFFFFF], dtype="<u4").tobytes() for line in ids[start:start + BLOCK])
    return np.array([fnv1a(block(start)) for start in range(0, len(ids), BLOCK)], dtype=np.uint32)


def read_gguf(path):
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


def main():
    base = mixed_lines()
    texts = lines(base)
    # Other lines than those that are compared are not needed to learn merges from.
    corpus = [text for text in base if text.strip()][:6000]
    versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__}
    chosen = lambda names: [name for name in names if name in sys.argv[1:] or len(sys.argv) == 1]
    for name in chosen(BYTE_LEVEL):
        folder = HERE / "families" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fast = byte_level(name, corpus, folder)
        golden = {"json": hashes(fast, texts)}
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "vocabulary.gguf"
            byte_level_gguf(name, fast, path)
            theirs = read_gguf(path)
        # A GGUF file has no place for a normalizer.
        fast.backend_tokenizer.normalizer = normalizers.Sequence([])
        golden["gguf"] = hashes(fast, texts)
        if name == "smollm":
            golden["transformers"] = hashes(theirs, texts)
        save_file(golden, folder / "hashes.safetensors", metadata=versions)
        # transformers adds a token <|endoftext|> to every byte-level vocabulary, and knows falcon's and smollm's ways to cut a text not.
        usual = [text for text in texts if "<|endoftext|>" not in text][:20_000]
        differ = int((hashes(fast, usual) != hashes(theirs, usual)).sum())
        print(name, len(fast), differ, "blocks differ between tokenizer.json and transformers' reading of GGUF", flush=True)
    for name in chosen(SPECIAL):
        folder = HERE / "families" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # Other letters are left to the byte tokens.
        latin = [text.replace("\n", " ") for text in corpus if max(map(ord, text)) < 0x180 and "\0" not in text]
        tokenizer = read_gguf(sentencepiece_gguf(name, latin, folder))
        save_file({"gguf": hashes(tokenizer, texts)}, folder / "hashes.safetensors", metadata=versions)
        print(name, len(tokenizer))


if __name__ == "__main__":
    main()
