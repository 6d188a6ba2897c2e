"""The OpenAI-compatible server in this process, on the chat's own engine and pico models."""

import asyncio
import json
import time

import pytest
import torch
from pico_chat import pico_chat
from starlette.testclient import TestClient

from lite_c2f.chat import Pane, answering, fair_queue
from lite_c2f.chat.panes import AnswerForm, ChatSettings, TokenLogprobs
from lite_c2f.chat.server import build
from lite_c2f.chat.server.bodies import Part, ResponseBody
from lite_c2f.chat.server.errors import ApiError
from lite_c2f.chat.server.models import pane_named
from lite_c2f.chat.server.requests import ChatBody, read_request
from lite_c2f.data.records import Turn

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "w1 w2"}]


@pytest.fixture(scope="module")
def chat(pico, tmp_path_factory):
    return pico_chat(pico, tmp_path_factory.mktemp("run"), std=0.2)


@pytest.fixture(scope="module")
def client(chat):
    with TestClient(build(chat)) as made:
        yield made


def asked(client, path=CHAT, **more):
    body = {"model": "fine", "temperature": 1.2, "seed": 3, "max_tokens": 8}
    body |= {"messages": MESSAGES} if path == CHAT else {"prompt": "w1 w2"}
    return client.post(path, json={name: value for name, value in (body | more).items() if value is not ...})


def answer(client, **more):
    response = asked(client, **more)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def events(response):
    """The contents of a stream's events; the last one is [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, end = response.text.removesuffix("\n\n").split("\n\n")
    assert end == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_models_are_listed(client):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    ratios = ["fine@0.25", "fine@0.5", "fine@0.75", "fine@1"]
    assert [model["id"] for model in listed["data"]] == ["coarse", "fine", *ratios, "baseline", "base"]
    assert client.get("/v1/models/fine@0.3").json()["max_model_len"] == 64
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("name", "pane"),
    [("fine", Pane("k", "fine")), ("fine@0.5", Pane("k", "fine", 0.5)), ("fine@1e-05", Pane("k", "fine", 1e-5))],
)
def test_a_ratio_is_part_of_a_models_name(name, pane):
    assert pane_named(name, "k") == pane


@pytest.mark.parametrize(
    "name", ["fine@", "fine@x", "fine@-1", "fine@nan", "fine@inf", "fine@0_5", "fine@ 1", "coarse@0.5", "Fine", ""]
)
def test_other_names_are_no_models(name):
    with pytest.raises(ApiError) as error:
        pane_named(name, "k")
    assert (error.value.status, error.value.param, error.value.code) == (404, "model", "model_not_found")


@pytest.mark.parametrize("model", ["coarse", "fine", "fine@0.5", "baseline", "base"])
def test_an_answer_is_the_engines_own(chat, client, model):
    pane = pane_named(model, "x")
    expected = chat.answer("w1 w2", [pane], max_tokens=8, temperature=1.2, seed=3)["x"]
    response = asked(client, model=model).json()
    (choice,) = response["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None} and expected.text
    assert choice["finish_reason"] == "length" and choice["index"] == 0 and choice["logprobs"] is None
    # [INST] w1 w2 [/INST], and Human: w1 w2 Assistant: for the actors on the base model
    assert response["usage"] == {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12}
    assert response["object"] == "chat.completion" and response["model"] == model


def test_the_actors_differ(client):
    """The tests above compare something."""
    assert len({answer(client, model=model) for model in ("coarse", "fine", "fine@3", "baseline", "base")}) == 5


def test_a_stream_adds_up_to_the_answer(client):
    parts = events(asked(client, stream=True))
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert text == answer(client) and len(parts) > 2
    reasons = [part["choices"][0]["finish_reason"] for part in parts]
    assert reasons == [None] * (len(parts) - 1) + ["length"]
    assert len({part["id"] for part in parts}) == 1 and not any("usage" in part for part in parts)
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}


def test_usage_is_the_last_event_of_a_stream_that_asks_for_it(client):
    *parts, last = events(asked(client, stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == [] and last["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 8,
        "total_tokens": 12,
    }
    assert all(part["usage"] is None for part in parts)


@pytest.mark.parametrize("model", ["coarse", "fine"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer_and_is_left_out(client, model, stream):
    words = answer(client, model=model, max_tokens=24).split()
    place = next(place for place in range(2, 24) if words[place] not in words[:place])
    stop = f"{words[place - 1]} {words[place]}"  # of two tokens: the first is held back until the second is known
    before = " ".join(words[: place - 1])
    for given in (stop, ["never", stop]):
        response = asked(client, model=model, max_tokens=24, stop=given, stream=stream)
        if stream:
            choices = [part["choices"][0] for part in events(response)]
            text, reason = "".join(each["delta"].get("content", "") for each in choices), choices[-1]["finish_reason"]
        else:
            (choice,) = response.json()["choices"]
            text, reason = choice["message"]["content"], choice["finish_reason"]
            assert response.json()["usage"]["completion_tokens"] == place + 1
        assert (text.rstrip(), reason) == (before, "stop")


def test_a_begun_stop_text_is_no_end(client):
    """At the limit the text is complete: what looked like a beginning of the stop text belongs to it."""
    text = answer(client)
    assert answer(client, stop=f"{text.split()[-1]} and more") == text


def test_a_seed_repeats_an_answer_and_choices_differ(client):
    body = {"temperature": 1.5, "seed": 5, "n": 3}
    first, again = (asked(client, **body).json() for _ in range(2))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert texts == [choice["message"]["content"] for choice in again["choices"]]
    assert len(set(texts)) == 3 and [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert first["usage"] == {"prompt_tokens": 4, "completion_tokens": 24, "total_tokens": 28}
    assert texts[1] == answer(client, temperature=1.5, seed=6)  # the second choice has the next seed
    assert answer(client, temperature=1.5, seed=-1)
    streamed = events(asked(client, stream=True, **body))
    for index, text in enumerate(texts):
        mine = [choice for part in streamed for choice in part["choices"] if choice["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in mine) == text


def instruct_logprobs(chat, ids):
    """(V,) of the next token, by the instruct model alone."""
    model = chat.actors.multi_model.models[1]
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_logprobs_are_the_models_own(chat, client, temperature):
    options = {"model": "baseline", "logprobs": True, "top_logprobs": 3, "max_tokens": 4, "seed": 1}
    response = asked(client, temperature=temperature, **options).json()
    entries = response["choices"][0]["logprobs"]["content"]
    tokenizer = chat.actors.instruct_tokenizer
    ids = chat.encoded([Turn("human", "w1 w2")], "baseline", ChatSettings(max_tokens=4)).ids
    assert len(entries) == 4
    for entry in entries:
        expected = instruct_logprobs(chat, ids)
        token = tokenizer.convert_tokens_to_ids(entry["token"].strip())
        assert entry["logprob"] == pytest.approx(expected[token].item(), abs=1e-4)
        assert bytes(entry["bytes"]).decode() == entry["token"]
        best = expected.topk(3)
        assert [top["logprob"] for top in entry["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        words = tokenizer.convert_ids_to_tokens(best.indices.tolist())
        assert [top["token"].strip() for top in entry["top_logprobs"]] == words
        ids = [*ids, token]
    streamed = events(asked(client, temperature=temperature, stream=True, **options))
    parts = [part["choices"][0]["logprobs"] for part in streamed]
    assert [entry for part in parts if part for entry in part["content"]] == entries


def test_a_raw_prompt_is_continued_as_it_is(chat, client):
    response = asked(client, TEXT, model="base", max_tokens=..., temperature=0).json()
    (choice,) = response["choices"]
    assert response["object"] == "text_completion" and choice["finish_reason"] == "length"
    # 16 is OpenAI's default. One of them may be a special token, which has no text.
    assert response["usage"] == {"prompt_tokens": 2, "completion_tokens": 16, "total_tokens": 18}
    assert choice["text"].startswith(" ")
    model, ids = chat.actors.roles.model, chat.actors.tokenizer.encode("w1 w2", add_special_tokens=False)
    with torch.inference_mode(), model.disable_adapter():
        first = model(torch.tensor([ids])).logits[0, -1].argmax().item()
    assert choice["text"].split()[0] == chat.actors.tokenizer.convert_ids_to_tokens(first)
    parts = events(asked(client, TEXT, model="base", max_tokens=16, temperature=0, stream=True))
    assert "".join(part["choices"][0]["text"] for part in parts) == choice["text"]


def test_several_raw_prompts_and_their_logprobs(client):
    prompts = ["w1 w2", "w3 w4 w5"]
    body = asked(client, TEXT, model="base", prompt=prompts, n=2, logprobs=2, max_tokens=3, temperature=0).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}  # each prompt once
    texts = [choice["text"] for choice in body["choices"]]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    found = body["choices"][2]["logprobs"]
    assert "".join(found["tokens"]) == texts[2] and len(found["token_logprobs"]) == 3
    assert found["text_offset"] == [0, len(found["tokens"][0]), len(found["tokens"][0] + found["tokens"][1])]
    assert (
        found["top_logprobs"][0][found["tokens"][0]]
        == found["token_logprobs"][0]
        == max(found["top_logprobs"][0].values())
    )


def test_offsets_of_tokens_whose_text_waits(client):
    """A text that may be a stop's beginning waits; its tokens are listed at once, each after the one before it."""
    options = {"model": "base", "logprobs": 1, "max_tokens": 3, "temperature": 0}
    whole = asked(client, TEXT, **options).json()["choices"][0]
    options |= {"stop": whole["text"] + " more", "stream": True}
    parts = [part["choices"][0]["logprobs"]["text_offset"] for part in events(asked(client, TEXT, **options))]
    assert [offset for part in parts for offset in part] == whole["logprobs"]["text_offset"]


def test_halves_of_characters_keep_the_best_value():
    """Tokens 0 and 1 are halves of characters and have one text: the likelier one's value is listed."""
    body = ResponseBody(chat=False, model="base", tokens=[b"\xf0", b"\xe2", b"a"])
    entry = TokenLogprobs(2, -0.5, [(0, -0.25), (2, -0.5), (1, -4.0)])
    found = body.chunk([Part(0, "a", [entry], None)])["choices"][0]["logprobs"]
    assert found["top_logprobs"] == [{"\N{REPLACEMENT CHARACTER}": -0.25, "a": -0.5}]


def test_a_conversation_in_its_forms():
    """System texts come first wherever they stand, parts are joined, and speakers alternate."""
    messages = [
        {"role": "system", "content": "A"},
        {"role": "user", "content": [{"type": "text", "text": "B"}, {"type": "text", "text": "C"}]},
        {"role": "assistant", "content": "D", "tool_calls": None},
        {"role": "user", "content": "E"},
        {"role": "developer", "content": "F"},
        {"role": "user", "content": "G"},
    ]
    body = read_request(json.dumps({"model": "fine", "messages": messages}).encode(), ChatBody)
    turns = [Turn("human", "B\nC"), Turn("assistant", "D"), Turn("human", "E\n\nG")]
    assert body.conversation() == (turns, "A\n\nF")


def test_system_and_earlier_turns_are_read(client):
    turns = [*MESSAGES, {"role": "assistant", "content": "w7"}, {"role": "user", "content": "w8"}]
    response = asked(client, messages=[{"role": "system", "content": "w9"}, *turns]).json()
    # [INST] w9 w1 w2 [/INST][INST] w7 [/INST][INST] w8 [/INST], one token for each word between spaces
    assert response["usage"]["prompt_tokens"] == 9


OPEN_WEBUI = {
    "stream": True,
    "model": "coarse",
    "messages": [{"role": "system", "content": "w3"}, {"role": "user", "content": "w1 w2"}],
    "stream_options": {"include_usage": True},
    "max_tokens": None,
    "max_completion_tokens": 6,
    "temperature": None,
    "top_p": None,
    "stop": "",
    "seed": None,
    "frequency_penalty": None,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "tools": [],
    "response_format": None,
    "user": {"name": "Ann"},  # some of its versions send an object
    "metadata": {"chat_id": "1"},
    "session_id": "s",
    "keep_alive": "5m",
}


def test_open_webuis_requests_are_answered(client):
    """Null for what the visitor left alone, its own fields, the limit under its new name."""
    *parts, usage = events(client.post(CHAT, json=OPEN_WEBUI))
    assert usage["usage"]["completion_tokens"] == 6 and parts[-1]["choices"][0]["finish_reason"] == "length"
    title = OPEN_WEBUI | {"stream": False, "stream_options": None, "user": "u"}
    assert client.post(CHAT, json=title).json()["choices"][0]["message"]["content"]


def test_without_a_limit_the_context_is_the_limit(client):
    """64 tokens, of which 32 are kept for prompts. LM Studio's -1 is no limit."""
    for path, limit in ((CHAT, ...), (CHAT, -1), (TEXT, -1)):
        assert asked(client, path, max_tokens=limit).json()["usage"]["completion_tokens"] == 32


def test_what_programs_send_for_the_most_likely_token(client):
    greedy = answer(client, temperature=0)
    for more in ({"temperature": 1e-5}, {"top_p": 0}, {"top_p": 0.0, "temperature": 2}):
        assert answer(client, **more) == greedy != answer(client), more


def test_values_that_ask_for_nothing_change_nothing(client):
    plain = answer(client)
    nothing = {"stop": ["", ""], "logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "none"}
    assert answer(client, **nothing) == plain
    assert answer(client, stop=["", plain.split()[1]]) == plain.split()[0]
    stopped = [*MESSAGES, {"role": "assistant", "content": None}, *MESSAGES]  # before its first word
    empty = [*MESSAGES, {"role": "assistant", "content": ""}, *MESSAGES]
    assert answer(client, messages=stopped) == answer(client, messages=empty)


@pytest.mark.parametrize("path", ["/v1/models/", "/v1//models", "/v1//models/fine/", f"{CHAT}/", "/v1//completions//"])
def test_slashes_of_a_base_url_that_ends_with_one(client, path):
    """Without a redirection: behind a proxy it would lead to http."""
    if path.rstrip("/").endswith("completions"):
        body = {"model": "fine", "messages": MESSAGES, "prompt": "w1", "max_tokens": 1}
        response = client.post(path, json=body, follow_redirects=False)
    else:
        response = client.get(path, follow_redirects=False)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "more", "status", "param", "code"),
    [
        (CHAT, {"model": "gpt-4"}, 404, "model", "model_not_found"),
        (CHAT, {"model": ...}, 400, "model", "missing_required_parameter"),
        (CHAT, {"messages": ...}, 400, "messages", "missing_required_parameter"),
        (CHAT, {"messages": []}, 400, "messages", "invalid_value"),
        (CHAT, {"messages": "w1"}, 400, "messages", "invalid_value"),
        (CHAT, {"messages": [{"role": "pirate", "content": "w1"}]}, 400, "messages[0].role", "invalid_value"),
        (CHAT, {"messages": [{"role": "tool", "content": "w1"}]}, 400, "messages[0].role", "invalid_value"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content", "invalid_value"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content", None),
        (CHAT, {"messages": [{"role": "user", "content": " "}]}, 400, "messages", None),
        (CHAT, {"messages": [{"role": "assistant", "content": "w1"}, *MESSAGES]}, 400, "messages", None),
        (CHAT, {"messages": [*MESSAGES, {"role": "assistant", "content": "w1"}]}, 400, "messages", None),
        (CHAT, {"messages": [{"role": "user", "content": "w1 " * 60}]}, 400, "messages", "context_length_exceeded"),
        (CHAT, {"messages": [{"role": "user", "content": "w" * 40000}]}, 400, "messages", "context_length_exceeded"),
        (CHAT, {"max_tokens": 61}, 400, "messages", "context_length_exceeded"),  # 4 of the prompt, of 64
        (CHAT, {"max_tokens": 33}, 400, "max_tokens", "invalid_value"),
        (CHAT, {"max_tokens": 0}, 400, "max_tokens", "invalid_value"),
        (CHAT, {"max_tokens": -2}, 400, "max_tokens", "invalid_value"),
        (CHAT, {"max_tokens": "8"}, 400, "max_tokens", "invalid_value"),
        (CHAT, {"max_tokens": True}, 400, "max_tokens", "invalid_value"),
        (CHAT, {"max_completion_tokens": -1}, 400, "max_completion_tokens", "invalid_value"),
        (CHAT, {"temperature": 2.5}, 400, "temperature", "invalid_value"),
        (CHAT, {"temperature": -0.001}, 400, "temperature", "invalid_value"),
        (CHAT, {"temperature": "hot"}, 400, "temperature", "invalid_value"),
        (CHAT, {"top_p": -0.1}, 400, "top_p", "invalid_value"),
        (CHAT, {"n": 17}, 400, "n", "invalid_value"),
        (CHAT, {"seed": 1.5}, 400, "seed", "invalid_value"),
        (CHAT, {"stream": "yes"}, 400, "stream", "invalid_value"),
        (CHAT, {"stop": 5}, 400, "stop", "invalid_value"),
        (CHAT, {"stop": ["x" * 257]}, 400, "stop", None),
        (CHAT, {"stop": ["x"] * 17}, 400, "stop", None),
        (CHAT, {"top_logprobs": 2}, 400, "top_logprobs", None),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
        (CHAT, {"tools": [{"type": "function"}]}, 400, "tools", "unsupported_parameter"),
        (CHAT, {"audio": {"voice": "x"}}, 400, "audio", "unsupported_parameter"),
        (CHAT, {"modalities": ["text", "audio"]}, 400, "modalities", "unsupported_parameter"),
        (CHAT, {"response_format": {"type": "json_schema"}}, 400, "response_format", "unsupported_parameter"),
        (CHAT, {"frequency_penalty": 0.5}, 400, "frequency_penalty", "unsupported_parameter"),
        (CHAT, {"logit_bias": {"5": 1}}, 400, "logit_bias", "unsupported_parameter"),
        (TEXT, {"echo": True}, 400, "echo", "unsupported_parameter"),
        (TEXT, {"suffix": "w1"}, 400, "suffix", "unsupported_parameter"),
        (TEXT, {"prompt": [1, 2]}, 400, "prompt", "invalid_value"),
        (TEXT, {"prompt": ""}, 400, "prompt", None),
        (TEXT, {"prompt": []}, 400, "prompt", None),
        (TEXT, {"prompt": ["w1"] * 9, "n": 2}, 400, "prompt", None),
        (TEXT, {"prompt": "w1 " * 60}, 400, "prompt", "context_length_exceeded"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_openais_form(client, path, more, status, param, code):
    for stream in (False, True):  # an error has its status also where a stream was asked for
        response = asked(client, path, **({"stream": stream} | more))
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (status, param, code), error
        assert error["type"] == "invalid_request_error" and "\n" not in error["message"] and error["message"]
    assert client.app.state.chat.busy() == (0, 0)


def test_a_picture_is_refused_by_its_place(client):
    content = [{"type": "text", "text": "w1"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    error = asked(client, messages=[{"role": "user", "content": content}]).json()["error"]
    assert (error["param"], error["code"]) == ("messages[0].content[1]", "unsupported_parameter")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"a": "\\ud800"}', b"[" * 5000])
def test_a_body_that_is_no_object_is_refused(client, content):
    response = client.post(CHAT, content=content)
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


def test_other_addresses_methods_and_sizes(client):
    unknown = client.get("/v1/embeddings").json()["error"]["message"]
    assert unknown.startswith("unknown address: GET /v1/embeddings; expected /v1/chat/completions, ")
    wrong = client.get(CHAT)
    assert wrong.status_code == 405 and "method" in wrong.json()["error"]["message"]
    large = client.post(CHAT, content=b" " * (2**20 + 1))
    assert large.status_code == 413 and large.json()["error"]["code"] == "request_too_large"


def test_a_key_is_needed_where_one_was_given(chat):
    with TestClient(build(chat, key="secret")) as client:
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "secret"}):
            for response in (client.get("/v1/models", headers=headers), client.get("/other", headers=headers)):
                assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
                assert "secret" not in response.text.replace("Bearer KEY", "")
        assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
        assert client.get("/v1/models", headers={"authorization": "bearer secret"}).status_code == 200
        assert client.get("/health").json() == {"status": "ok"}


def test_foreign_names_and_pages_are_refused(chat):
    with TestClient(build(chat, hosts=["localhost", "[::1]"]), base_url="http://localhost:8000") as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"host": "[::1]:8000"}).status_code == 200
        assert client.get("/v1/models", headers={"origin": "http://localhost:8000"}).status_code == 200
        rebound = client.get("/v1/models", headers={"host": "evil.example"})
        assert rebound.status_code == 400 and rebound.json()["error"]["code"] == "invalid_host"
        for origin in ("http://evil.example", "null", "http://localhost:9000"):
            assert client.get("/v1/models", headers={"origin": origin}).status_code == 403


def test_a_full_queue_is_said_with_a_time_to_wait(client, monkeypatch):
    monkeypatch.setattr(fair_queue, "MAX_PER_CLIENT", 0)
    for stream in (False, True):
        response = asked(client, stream=stream)
        assert response.status_code == 429 and response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "rate_limit_exceeded"


def test_clients_of_one_machine_are_told_apart(chat, client, monkeypatch):
    names = []
    stream = chat.stream
    monkeypatch.setattr(chat, "stream", lambda *given, **named: names.append(named["asker"]) or stream(*given, **named))
    for more, headers in (
        ({}, {}),
        ({"user": "ann"}, {}),
        ({}, {"x-openwebui-user-id": "bob"}),
        ({}, {"authorization": "Bearer k"}),
        ({}, {}),
    ):
        client.post(CHAT, json={"model": "fine", "messages": MESSAGES, "max_tokens": 1, **more}, headers=headers)
    assert len(set(names)) == 4 and names[0] == names[4]


def test_an_answer_that_fails_is_an_error(client, monkeypatch):
    def broken(rows):
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr(answering.AnswerRows, "step", broken)
    response = asked(client)
    assert response.status_code == 500 and response.json()["error"] == {
        "message": "the answer failed: RuntimeError: no memory",
        "type": "server_error",
        "param": None,
        "code": "server_error",
    }
    *_, last = asked(client, stream=True).text.strip().split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(chat, monkeypatch, stream):
    """The answer would have 32 tokens of 10 ms each; the client leaves after its first ones."""
    steps, step = [], answering.AnswerRows.step

    def slow(rows):
        time.sleep(0.01)
        steps.append(sum(row.finish is None for row in rows.rows))
        step(rows)

    monkeypatch.setattr(answering.AnswerRows, "step", slow)
    body = json.dumps({"model": "fine", "messages": MESSAGES, "max_tokens": 32, "stream": stream}).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b""}
    scope |= {"headers": headers, "client": ("127.0.0.1", 1), "scheme": "http", "asgi": {"spec_version": "2.3"}}
    scope |= {"http_version": "1.1", "root_path": "", "server": ("localhost", 80)}

    async def leave():
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            while len(steps) < 4:
                await asyncio.sleep(0.002)
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        await asyncio.wait_for(build(chat)(scope, receive, send), 20)

    asyncio.run(leave())
    until = time.monotonic() + 5
    while chat.busy() != (0, 0) and time.monotonic() < until:
        time.sleep(0.005)
    assert chat.busy() == (0, 0) and 4 <= sum(steps) < 20


def test_the_form_is_read_by_the_engine_alone(chat):
    """The page's settings, saved with every vote, are as before."""
    assert "stop" not in ChatSettings._fields and AnswerForm() == ((), False, None, "", 0)
