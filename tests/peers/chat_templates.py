"""Renders every chat template that an installed package carries (TRL's) as transformers does.

    chat_templates.py

One JSON object a line: name, source, messages, add_generation_prompt, text; or error, where the template refuses the conversation. Where a
template marks the assistant's words with generation tags, `said` holds those words, as transformers finds them; where it does not, those of
TRL's variant for training, if that gives the same text.
"""

import json
import re
from pathlib import Path

import trl
from transformers.utils.chat_template_utils import render_jinja_template

USER = {"role": "user", "content": "Where is my  <parcel>?\n\nIt's \u201clate\u201d & I'm cross."}
ANSWER = {"role": "assistant", "content": " On its way.\nMonday. "}
CONVERSATIONS = [
    [USER],
    [USER, ANSWER],
    [{"role": "system", "content": "Be brief."}, USER, ANSWER],
    [USER, ANSWER, {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nNow, yes."}],
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def joined(spans):
    """Spans without the borders between neighbours."""
    starts, ends = {start for start, _ in spans}, {end for _, end in spans}
    return list(zip(sorted(starts - ends), sorted(ends - starts)))


def main():
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
        source = path.read_text()
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                case = {"name": path.stem, "source": source, "messages": messages, "add_generation_prompt": prompt}
                try:
                    render = lambda source, marked: render_jinja_template(
                        conversations=[messages], chat_template=source, add_generation_prompt=prompt,
                        return_assistant_tokens_mask=marked, **TOKENS
                    )
                    marked = not prompt and re.search(r"{%-?\s*generation\s*-?%}", source) is not None
                    rendered, said = render(source, marked)
                    case["text"] = rendered[0]
                    variant = path.with_name(f"{path.stem}_training.jinja")
                    if not prompt and not marked and variant.exists():
                        variant, said = render(variant.read_text(), True)
                        marked = variant == rendered
                    if marked:
                        case["said"] = [rendered[0][start:end] for start, end in joined(said[0])]
                except Exception as error:  # the template's own refusal
                    case["error"] = str(error)
                print(json.dumps(case))


main()
