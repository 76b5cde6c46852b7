"""The checks of the contract, one function each."""

import base64
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import PIL.Image

from vila_serve.contract.client import CHAT, IMAGES, Client, image_part, require

COUNT = "Count from one to twenty in words."
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"type": "string", "enum": ["red", "blue"]}, "count": {"type": "integer"}},
    "required": ["color", "count"],
    "additionalProperties": False,
}


def models_are_listed(client: Client) -> None:
    """GET /models lists the model."""
    listed = client.http.get("/models").json()
    require(listed["object"] == "list", f"object is {listed['object']!r} instead of 'list'")
    require(any(model["id"] == client.model for model in listed["data"]), f"'{client.model}' is not listed")


def an_answer_has_every_field(client: Client) -> None:
    """A text is answered: role, content, finish_reason and usage."""
    answer = client.ask(client.body("Hello"))
    (choice,) = answer["choices"]
    require(answer["object"] == "chat.completion", f"object is {answer['object']!r}")
    require(isinstance(answer["created"], int), "created is not a whole number")
    require(choice["message"]["role"] == "assistant", "the role is not assistant")
    require(isinstance(choice["message"]["content"], str), "the content is not a text")
    require(choice["finish_reason"] in ("stop", "length"), f"finish_reason is {choice['finish_reason']!r}")
    usage = answer["usage"]
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    require(usage["prompt_tokens"] > 0 and usage["total_tokens"] == total, "the token counts do not add up")


def a_conversation_is_read(client: Client) -> None:
    """A system message and earlier turns are part of the prompt."""
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! What can I do for you?"},
        {"role": "user", "content": "Hello"},
    ]
    whole = client.ask(client.body("Hello", messages=turns))["usage"]["prompt_tokens"]
    single = client.ask(client.body("Hello"))["usage"]["prompt_tokens"]
    require(whole > single, "the prompt of a conversation has no more tokens than its last message")


def an_image_is_read(client: Client) -> None:
    """An image in a data: URI is part of the prompt."""
    answer = client.ask(client.body(image_part("red"), "Which color is this?"))
    plain = client.ask(client.body("Which color is this?"))
    require(answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"], "the image adds no tokens")


def several_images_are_read(client: Client) -> None:
    """Two images add more tokens than one."""
    two = client.ask(client.body(image_part("red"), image_part("blue"), "Which is red?"))["usage"]["prompt_tokens"]
    one = client.ask(client.body(image_part("red"), "Which is red?"))["usage"]["prompt_tokens"]
    require(two > one, "the second image adds no tokens")


def an_image_of_one_pixel_is_survived(client: Client) -> None:
    """An image of 1 x 1 pixels is answered or refused, and the server lives on."""
    response = client.http.post(CHAT, json=client.body(image_part("red", size=1), "What is this?"))
    require(response.status_code < 500, f"status {response.status_code}")
    client.ask(client.body("Hello"))


def a_stream_joins_to_the_answer(client: Client) -> None:
    """A streamed answer has a role, pieces of text and a finish_reason, and joins to the answer."""
    chunks = list(client.chunks(client.body(COUNT)))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    require(choices[0]["delta"].get("role") == "assistant", "the first chunk has no role")
    require(choices[-1]["finish_reason"] in ("stop", "length"), "the last chunk has no finish_reason")
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    whole = client.text(client.body(COUNT))
    require(text == whole, f"the stream gives {text[:40]!r}, the answer is {whole[:40]!r}")


def a_stream_has_token_counts(client: Client) -> None:
    """`stream_options.include_usage` adds a last chunk with the token counts."""
    *_, last = client.chunks(client.body("Hello", stream_options={"include_usage": True}))
    require(last["choices"] == [] and bool(last.get("usage")), "the last chunk is not one with usage and no choices")


def max_tokens_cuts(client: Client) -> None:
    """`max_tokens` cuts the answer, with finish_reason length."""
    answer = client.ask(client.body(COUNT, max_tokens=1))
    require(answer["usage"]["completion_tokens"] == 1, f"{answer['usage']['completion_tokens']} tokens instead of 1")
    require(answer["choices"][0]["finish_reason"] == "length", "finish_reason is not length")


def max_completion_tokens_cuts(client: Client) -> None:
    """`max_completion_tokens` does the same."""
    answer = client.ask(client.body(COUNT, max_tokens=None, max_completion_tokens=1))
    require(answer["usage"]["completion_tokens"] == 1, f"{answer['usage']['completion_tokens']} tokens instead of 1")


def a_stop_string_ends(client: Client) -> None:
    """`stop` ends the answer before the string."""
    whole = client.text(client.body(COUNT))
    require(len(whole) > 1, f"the answer {whole!r} is too short to test this")
    stop = whole[len(whole) // 2]
    cut = client.text(client.body(COUNT, stop=[stop]))
    require(cut.strip() == whole.partition(stop)[0].strip(), f"stop {stop!r} gives {cut!r} of {whole!r}")


def a_seed_repeats(client: Client) -> None:
    """The same `seed` gives the same answer."""
    body = client.body(COUNT, temperature=1, seed=7)
    require(client.text(body) == client.text(body), "two answers with the same seed differ")


def several_answers(client: Client) -> None:
    """`n` gives several answers."""
    choices = client.ask(client.body(COUNT, n=2, temperature=1, seed=1))["choices"]
    require([choice["index"] for choice in choices] == [0, 1], f"{len(choices)} answers instead of 2")


def log_probabilities(client: Client) -> None:
    """`logprobs` and `top_logprobs` give the tokens with their log-probabilities."""
    (choice,) = client.ask(client.body(COUNT, logprobs=True, top_logprobs=2))["choices"]
    tokens = choice["logprobs"]["content"]
    require(bool(tokens) and all(token["logprob"] <= 0 for token in tokens), "no log-probabilities, or above 0")
    require(all(len(token["top_logprobs"]) == 2 for token in tokens), "not two likeliest tokens each")


def json_mode(client: Client) -> None:
    """`response_format` json_object gives JSON."""
    body = client.body("Reply with a JSON object.", response_format={"type": "json_object"}, max_tokens=256)
    (choice,) = client.ask(body)["choices"]
    require(choice["message"]["content"].lstrip()[:1] in ("{", "["), "the answer does not begin as JSON does")
    if choice["finish_reason"] == "stop":
        json.loads(choice["message"]["content"])


def json_schema(client: Client) -> None:
    """`response_format` json_schema gives JSON that follows the schema."""
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    (choice,) = client.ask(client.body("Reply with JSON.", response_format=form, max_tokens=128))["choices"]
    if choice["finish_reason"] == "stop":
        found = json.loads(choice["message"]["content"])
        require(set(found) == {"color", "count"}, f"the keys are {sorted(found)}")
        require(found["color"] in ("red", "blue") and isinstance(found["count"], int), f"the values are {found}")


def penalties(client: Client) -> None:
    """`presence_penalty`, `frequency_penalty` and `logit_bias` are accepted."""
    client.ask(client.body("Hello", presence_penalty=0.5, frequency_penalty=0.5, logit_bias={"10": -100}))


def an_unknown_model_is_refused(client: Client) -> None:
    """An unknown model gives 404."""
    client.refuse((404,), client.body("Hello", model="no-such-model"))


def values_out_of_range_are_refused(client: Client) -> None:
    """Values out of range give 400 (or 422)."""
    for field, value in (("temperature", 7), ("max_tokens", -1), ("n", 0), ("top_p", 2), ("messages", [])):
        client.refuse((400, 422), client.body("Hello", **{field: value}))


def half_a_body_is_refused(client: Client) -> None:
    """Half a JSON body gives 400 (or 422)."""
    client.refuse((400, 422), b'{"model": "x", "messages": [{"role": "us')


def a_broken_image_is_refused(client: Client) -> None:
    """A file that is not an image gives 400 (or 422)."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8gd29ybGQ="}}
    client.refuse((400, 422), client.body(part, "What is this?"))


def local_files_are_refused(client: Client) -> None:
    """A file:// URL gives 400 (or 422)."""
    part = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    client.refuse((400, 422), client.body(part, "What is this?"))


def inner_addresses_are_refused(client: Client) -> None:
    """The address of a cloud's metadata service gives 400 (or 422)."""
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data/"}}
    client.refuse((400, 422), client.body(part, "What is this?"))


def too_long_a_prompt_is_refused(client: Client) -> None:
    """A prompt over the context gives 400 (or 413)."""
    client.refuse((400, 413), client.body("word " * 2_000_000))


def clients_that_leave_are_survived(client: Client) -> None:
    """A client that disconnects in the middle of a stream does not affect other requests."""
    stream = client.chunks(client.body(COUNT, max_tokens=256))
    next(stream)
    stream.close()
    client.ask(client.body("Hello"))


def clients_at_the_same_time(client: Client) -> None:
    """Eight clients at the same time get the answers that they get alone."""
    body = client.body(COUNT)
    alone = client.text(body)
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(client.text, [body] * 8))
    require(all(text == alone for text in together), "answers differ from those of a single client")


def pictures_are_drawn(client: Client) -> None:
    """A model that draws (`output_modalities`) gives `n` pictures as base64; others refuse it."""
    body = {"model": client.model, "prompt": "a red circle", "n": 2}
    response = client.http.post(IMAGES, json=body)
    if not client.draws:
        require(response.status_code < 500, f"status {response.status_code}")
        return
    require(response.status_code == 200, f"status {response.status_code}: {response.text[:200]}")
    data = response.json()["data"]
    require(len(data) == 2, f"{len(data)} pictures instead of 2")
    sizes = {PIL.Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).size for one in data}
    require(len(sizes) == 1, f"the sizes are {sorted(sizes)}")


def pictures_out_of_range_are_refused(client: Client) -> None:
    """A model that draws refuses `n` 0 and an empty prompt with 400 (or 422)."""
    if client.draws:
        for field, value in (("n", 0), ("prompt", "")):
            client.refuse((400, 422), {"model": client.model, "prompt": "a red circle", field: value}, IMAGES)


CHECKS: tuple[Callable[[Client], None], ...] = (
    models_are_listed,
    an_answer_has_every_field,
    a_conversation_is_read,
    an_image_is_read,
    several_images_are_read,
    an_image_of_one_pixel_is_survived,
    a_stream_joins_to_the_answer,
    a_stream_has_token_counts,
    max_tokens_cuts,
    max_completion_tokens_cuts,
    a_stop_string_ends,
    a_seed_repeats,
    several_answers,
    log_probabilities,
    json_mode,
    json_schema,
    penalties,
    an_unknown_model_is_refused,
    values_out_of_range_are_refused,
    half_a_body_is_refused,
    a_broken_image_is_refused,
    local_files_are_refused,
    inner_addresses_are_refused,
    too_long_a_prompt_is_refused,
    pictures_are_drawn,
    pictures_out_of_range_are_refused,
    clients_that_leave_are_survived,
    clients_at_the_same_time,
)
