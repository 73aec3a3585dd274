"""Conversations as token ids and loss masks by Python transformers, as reference for crates/models.

Writes beside itself:
  tokenizers/KIND.json   small tokenizers of each kind, trained here
  cases.json             chat templates of published models, and for each conversation the ids of
                         `apply_chat_template(..., tokenize=True)` and the mask of its assistant's tokens

Most templates of published models do not mark the assistant's words. So each has a twin here, the
same text with `{% generation %}` tags around every answer, from the end of the generation prompt to
the end of the turn; the mask is transformers' `return_assistant_tokens_mask=True` with the twin. A
template that ends no turn with an end token gets one after the last answer (`appended`).

    python generate.py      (versions: tests/peers/requirements.txt)
"""

import json
import random
import re
from pathlib import Path

import jinja2
import tokenizers
import transformers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent

# --- tokenizers -----------------------------------------------------------------------------------

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTE_LEVEL = {
    # kind: (pre-tokenizer, special tokens, tokens that are none but are whole)
    "chatml": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]), CHATML, ["<think>", "</think>"]),
    "llama3": (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], [],
    ),
    "deepseek": (
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"], ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"],
    ),
    "falcon": (
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(individual_digits=False)]),
        ["<|endoftext|>"], [],
    ),
}
# SentencePiece's: special tokens, tokens that take the white space after them, how the word mark comes to the text.
PIECES = {
    "llama": (["<unk>", "<s>", "</s>"], [], "prepend"),
    "phi3": (["<unk>", "<s>", "</s>", "<|endoftext|>"], ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], "prepend"),
    "mistral": (["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], [], "metaspace"),
    "gemma": (["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], [], "replace"),
}


def corpus():
    with open(HERE.parent / "tokenizer" / "lines.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [line for line in lines if line.strip()][:3000] + [turn["content"] for chat in CONVERSATIONS.values() for turn in chat] * 20


def byte_level(kind):
    pre_tokenizer, special, whole = BYTE_LEVEL[kind]
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
    if kind in ("llama3", "deepseek"):
        # As Llama 3's: spaces count as part of the token after them, and a text begins with the first token.
        begins = processors.TemplateProcessing(single=f"{special[0]} $A", special_tokens=[(special[0], 0)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begins])
    elif kind == "chatml":
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def pieces(kind):
    """A tokenizer as transformers converts SentencePiece's: byte tokens, a word mark instead of blanks, merges over whole texts."""
    special, greedy, mark = PIECES[kind]
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    latin = [line for line in corpus() if line and max(map(ord, line)) < 0x180]
    trained.train_from_iterator(latin, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocab = {}
    for token in special + [f"<0x{byte:02X}>" for byte in range(256)] + sorted(model["vocab"], key=model["vocab"].get):
        vocab.setdefault(token, len(vocab))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if mark == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif mark == "replace":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = [decoders.Strip(" ", 1, 0)] if mark != "replace" else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True, rstrip=True) for token in greedy])
    begins = "<bos>" if kind == "gemma" else "<s>"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begins} $A", special_tokens=[(begins, tokenizer.token_to_id(begins))])
    return tokenizer


# --- templates ------------------------------------------------------------------------------------
# Each answer stands between « and »: the template has them taken out, its twin has tags instead.

ALTERNATE = "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"


def chatml(default):
    return (
        "{% for message in messages %}"
        + (f"{{% if loop.first and messages[0]['role'] != 'system' %}}{{{{ '<|im_start|>system\\n{default}<|im_end|>\\n' }}}}{{% endif %}}" if default else "")
        + "{{'<|im_start|>' + message['role'] + '\\n'}}{% if message['role'] == 'assistant' %}«{{message['content'] + '<|im_end|>\\n'}}»{% else %}{{message['content'] + '<|im_end|>\\n'}}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


# Thoughts are written into the answers after the last question only. (Tools are left out.)
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' }}«
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}»
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

# Marks the answers itself. (Tools and the date are left out.)
SMOLLM3 = """{%- if messages[0].role == "system" -%}
  {%- set instructions = messages[0].content -%}
{%- else -%}
  {%- set instructions = "You are a helpful AI assistant named SmolLM, trained by Hugging Face." -%}
{%- endif -%}
{{- "<|im_start|>system\\n## Custom Instructions\\n\\n" + instructions + "\\n\\n<|im_end|>\\n" -}}
{%- for message in messages -%}
    {%- if message.role == "user" -%}
{{ "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
{% generation %}
{{- "<|im_start|>assistant\\n<think>\\n\\n</think>\\n" + message.content.lstrip("\\n") + "<|im_end|>\\n" -}}
{% endgeneration %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ "<|im_start|>assistant\\n" }}
{%- endif -%}"""

LLAMA3_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% if loop.index0 == 0 %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}{% if message['role'] == 'assistant' %}«{{ message['content'] | trim + '<|eot_id|>' }}»"
    "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}" + ALTERNATE +
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}«{{ ' ' + content.strip() + ' ' + eos_token }}»{% endif %}{% endfor %}"
)
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
' }}«{{ message['content'] + eos_token }}
»{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
# Refuses system messages.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}" + ALTERNATE +
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}«{{ message['content'] + eos_token + ' ' }}»"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
TURN = "{{ '<start_of_turn>' + role + '\\n' }}{% if role == 'model' %}«{{ message['content'] | trim + '<end_of_turn>\\n' }}»{% else %}{{ %smessage['content'] | trim + '<end_of_turn>\\n' }}{% endif %}"
ROLE = "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
# Refuses system messages.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}" + ALTERNATE + ROLE
    + TURN.replace("%s", "") + "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first_user_prefix = messages[0]['content'] + '\\n\\n' %}{% set loop_messages = messages[1:] %}"
    "{% else %}{% set first_user_prefix = '' %}{% set loop_messages = messages %}{% endif %}{% for message in loop_messages %}" + ALTERNATE + ROLE
    + TURN.replace("%s", "(first_user_prefix if loop.first else '') + ") + "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
# Writes the end of text after the last turn only.
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\\n'}}«{{message['content'] + '<|end|>\\n'}}»{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}«{{ eos_token }}»{% endif %}"
)
# Ends no turn with a token.
FALCON = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}{% if message['role'] == 'system' %}{{ 'System: ' + message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] }}{% elif message['role'] == 'assistant' %}{{ 'Falcon:' }}«{{ ' ' + message['content'] }}»{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n' + 'Falcon:' }}{% endif %}"
)
# Asks with the beginning of a thought, and takes the thoughts out of answers.
DEEPSEEK = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}{% elif message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' }}«{{ content + '<｜end▁of▁sentence｜>' }}»{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)

FAMILIES = {
    # name: (kind of tokenizer, template, first token, end of text, further tokens that end an answer)
    "smollm2": ("chatml", chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"), "<|im_start|>", "<|im_end|>", []),
    "smollm3": ("chatml", SMOLLM3, None, "<|im_end|>", []),
    "qwen2": ("chatml", chatml("You are a helpful assistant."), None, "<|im_end|>", ["<|endoftext|>"]),
    "qwen3": ("chatml", QWEN3, None, "<|im_end|>", ["<|endoftext|>"]),
    "llama3": ("llama3", LLAMA3_TEMPLATE, "<|begin_of_text|>", "<|end_of_text|>", ["<|eot_id|>"]),
    "llama2": ("llama", LLAMA2, "<s>", "</s>", []),
    "tinyllama": ("llama", ZEPHYR, "<s>", "</s>", []),
    "mistral": ("mistral", MISTRAL, "<s>", "</s>", []),
    "gemma": ("gemma", GEMMA, "<bos>", "<eos>", ["<end_of_turn>"]),
    "gemma3": ("gemma", GEMMA3, "<bos>", "<eos>", ["<end_of_turn>"]),
    "phi3": ("phi3", PHI3, "<s>", "<|endoftext|>", ["<|end|>"]),
    "falcon": ("falcon", FALCON, None, "<|endoftext|>", []),
    "deepseek-r1": ("deepseek", DEEPSEEK, "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", []),
}


def turn(role, content, train=True):
    return {"role": role, "content": content, **({} if train else {"train": False})}


SYSTEM, FIRST = turn("system", "Answer in one line."), turn("user", "Where is my parcel?")
ANSWER, SECOND = turn("assistant", "It's on its way: depot 42."), turn("user", "When does it come?")
CONVERSATIONS = {
    "single": [FIRST, ANSWER],
    "system": [SYSTEM, FIRST, ANSWER],
    "several": [FIRST, ANSWER, SECOND, turn("assistant", "Tomorrow.")],
    "several-system": [SYSTEM, FIRST, ANSWER, SECOND, turn("assistant", "Tomorrow."), turn("user", "Thanks!"), turn("assistant", "You're welcome.")],
    "untrained": [FIRST, turn("assistant", "It is lost.", train=False), turn("user", "Are you sure?"), ANSWER],
    "thoughts": [FIRST, turn("assistant", "<think>\nHm.\n</think>\n\nAt the depot."), SECOND, turn("assistant", "<think>\nLet me see.\n</think>\n\nAt noon.")],
    "foreign": [turn("user", "  Grüße 👋 an <b>alle</b> & {{ mich }}\n"), turn("assistant", "Danke – 谢谢 🎉🎉")],
    "blank": [FIRST, turn("assistant", "\n\n  Two lines,\n  set in. \n")],
    "repeated": [turn("user", "yes"), turn("assistant", "yes"), turn("user", "yes"), turn("assistant", "yes")],
    "empty": [FIRST, turn("assistant", "")],
}


# --- reference ------------------------------------------------------------------------------------


def overlap(offsets, spans):
    """A token bears a loss if it holds a character of an answer; one without characters, if it ends in one."""
    holds = lambda start, end: any((start < e and end > s) if start < end else (s < end <= e) for s, e in spans)
    return [holds(start, end) for start, end in offsets]


def case(tokenizer, template, twin, tokens, end_ids, messages):
    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    folded = False
    try:
        text = tokenizer.apply_chat_template(plain, chat_template=template, tokenize=False)
    except jinja2.exceptions.TemplateError:
        # The system message is put before the first user's.
        folded = True
        plain = [{"role": "user", "content": plain[0]["content"] + "\n\n" + plain[1]["content"]}, *plain[2:]]
        messages = messages[1:]
        text = tokenizer.apply_chat_template(plain, chat_template=template, tokenize=False)
    ids = tokenizer.apply_chat_template(plain, chat_template=template, tokenize=True, return_dict=False)
    rendered, spans = render_jinja_template(conversations=[plain], chat_template=twin, return_assistant_tokens_mask=True, **tokens)
    assert rendered[0] == text, (rendered[0], text)
    spans = spans[0]
    # transformers' own mask. It differs where an answer's last character is several tokens: theirs ends with the first of them.
    theirs = tokenizer.apply_chat_template(plain, chat_template=twin, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)["assistant_masks"]
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    mask = overlap(offsets, spans)
    same = mask == [bool(one) for one in theirs]
    answers = [m for m in messages if m["role"] == "assistant"]
    owners = sorted(range(len(spans)), key=lambda at: spans[at])
    # Phi-3's last stretch is the end of text, which belongs to the last answer.
    kept = [spans[at] for rank, at in enumerate(owners) if answers[min(rank, len(answers) - 1)].get("train", True)]
    mask = overlap(offsets, kept)
    last = spans[owners[-1]] if len(spans) == len(answers) else (spans[owners[-2]][0], spans[owners[-1]][1])
    ended = any(held and token in end_ids for held, token in zip(overlap(offsets, [last]), ids))
    appended = messages[-1].get("train", True) and not ended
    if appended:
        ids, mask = ids + [end_ids[0]], mask + [True]
    asked = tokenizer.apply_chat_template(plain[:-1], chat_template=template, tokenize=True, add_generation_prompt=True, return_dict=False)
    return {
        "ids": ids, "mask": [int(bit) for bit in mask], "asked": asked, "asked_is_prefix": ids[: len(asked)] == asked,
        "folded": folded, "appended": appended, "as_transformers": same,
    }


def main():
    kinds = {kind: byte_level(kind) for kind in BYTE_LEVEL} | {kind: pieces(kind) for kind in PIECES}
    (HERE / "tokenizers").mkdir(exist_ok=True)
    for kind, tokenizer in kinds.items():
        content = json.loads(tokenizer.to_str())
        (HERE / "tokenizers" / f"{kind}.json").write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    families = []
    for name, (kind, source, bos, eos, ends) in FAMILIES.items():
        native = "generation %}" in source
        template = source if native else source.replace("«", "").replace("»", "")
        twin = source if native else source.replace("«", "{% generation %}").replace("»", "{% endgeneration %}")
        special = {"eos_token": eos, **({"bos_token": bos} if bos else {})}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=kinds[kind], **special)
        end_ids = [tokenizer.convert_tokens_to_ids(token) for token in [eos, *ends]]
        cases = []
        for label, messages in CONVERSATIONS.items():
            found = case(tokenizer, template, twin, special, end_ids, messages)
            cases.append({"name": label, "messages": messages, **found})
        families.append({"name": name, "tokenizer": kind, "template": template, "twin": None if native else twin, **special, "end_ids": end_ids, "cases": cases})
        count = lambda key: sum(bool(found[key]) for found in cases)
        print(name, len(cases), {key: count(key) for key in ("asked_is_prefix", "folded", "appended", "as_transformers")})
    versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__, "jinja2": jinja2.__version__}
    text = json.dumps({"versions": versions, "families": families}, ensure_ascii=False, indent=1)
    # Lists of numbers on one line.
    text = re.sub(r"\[\s+(-?\d+(?:,\s+-?\d+)*)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found[1]) + "]", text)
    (HERE / "cases.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
