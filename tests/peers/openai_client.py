"""OpenAI's own client against a server: what each of its ways to ask answers.

    openai_client.py URL MODEL > ANSWERS

The answer is one object, with the same greedy answer whole, asynchronous and streamed, and what the client makes
of structured outputs, of log-probabilities and of refusals.
"""

import asyncio
import json
import sys

import openai
from pydantic import BaseModel

url, model = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
ASK = {"model": model, "messages": [{"role": "user", "content": "Where is my parcel?"}]}
GREEDY = ASK | {"temperature": 0, "max_completion_tokens": 24}


async def asynchronous():
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answer, stream = await asyncio.gather(
            client.chat.completions.create(**GREEDY),
            client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}),
        )
        chunks = [chunk async for chunk in stream]
    return answer, chunks


class Parcel(BaseModel):
    city: str
    days: int
    late: bool


def refusal(**changes):
    try:
        client.chat.completions.create(**(GREEDY | changes))
    except openai.APIStatusError as error:
        return [type(error).__name__, error.code, error.param]


whole = client.chat.completions.with_raw_response.create(**GREEDY)
parsed_whole = whole.parse()
answer, chunks = asyncio.run(asynchronous())
completion = client.completions.create(
    model=model, prompt="Hello", temperature=0, max_tokens=4, logprobs=2, extra_body={"echo": True}
)
parsed = client.chat.completions.parse(
    **ASK, temperature=1, seed=3, max_completion_tokens=200, response_format=Parcel
)
parsed_choice = parsed.choices[0]
with client.chat.completions.stream(**ASK, temperature=1, seed=3, max_completion_tokens=200, response_format=Parcel) as stream:
    streamed = stream.get_final_completion().choices[0]

json.dump(
    {
        "models": [card.id for card in client.models.list()],
        "request_id": whole.headers["x-request-id"],
        "whole": parsed_whole.choices[0].message.content,
        "asynchronous": answer.choices[0].message.content,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices),
        "usage": chunks[-1].usage.total_tokens == parsed_whole.usage.total_tokens,
        "fingerprint": parsed_whole.system_fingerprint,
        "logprobs": len(completion.choices[0].logprobs.token_logprobs),
        "parsed": parsed_choice.message.parsed and parsed_choice.message.parsed.model_dump(),
        "parsed_streamed": streamed.message.parsed and streamed.message.parsed.model_dump(),
        "parsed_finish_reason": parsed_choice.finish_reason,
        "refusals": [refusal(model="none"), refusal(temperature=1000), refusal(tools=[{"type": "function"}])],
    },
    sys.stdout,
)
