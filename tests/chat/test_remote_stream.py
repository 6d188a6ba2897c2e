"""Streams of other servers' answers: events in any portions, and what each adds to an answer."""

import json

import pytest

from lite_c2f.chat.remote_stream import MAX_EVENT, EventDecoder, Piece, read_piece, well_formed
from lite_c2f.errors import ModelError

STREAM = (
    ": keep-alive\r\n\r\n"
    'event: message\nid: 7\ndata: {"a": "é 😀"}\n\n'
    ":\n\n\n"
    "data:first\r\ndata: second\r\n\r\n"
    "retry: 3\rdata:  two spaces\r\r"
    "data: [DONE]\n\n"
).encode()
EVENTS = ['{"a": "é 😀"}', "first\nsecond", " two spaces", "[DONE]"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 1000])
def test_events_are_whole_however_their_bytes_arrive(size):
    decoder = EventDecoder()
    portions = [STREAM[place : place + size] for place in range(0, len(STREAM), size)]
    assert [data for portion in portions for data in decoder.feed(portion)] == EVENTS
    assert list(decoder.close()) == []


def test_a_last_event_may_lack_its_end():
    for ending in (b"", b"\n", b"\r"):
        decoder = EventDecoder()
        assert list(decoder.feed(b"data: a\n\ndata: b" + ending)) == ["a"] and list(decoder.close()) == ["b"]


def test_an_event_without_end_is_given_up():
    decoder = EventDecoder()
    with pytest.raises(ModelError, match="more than 1048576 bytes"):
        for _ in range(MAX_EVENT // 2**16 + 1):
            list(decoder.feed(b"data: " + b"x" * 2**16))
    decoder = EventDecoder()
    with pytest.raises(ModelError, match="more than 1048576 bytes"):
        for _ in range(MAX_EVENT // 2**16 + 1):
            list(decoder.feed(b"data: " + b"x" * 2**16 + b"\n"))


def chunk(delta, reason=None, name="delta"):
    return json.dumps({"choices": [{"index": 0, name: delta, "finish_reason": reason}]})


@pytest.mark.parametrize(
    ("data", "piece"),
    [
        (chunk({"role": "assistant", "content": ""}), Piece()),
        (chunk({"content": "a b"}), Piece("a b")),
        (chunk({"content": "c"}, "stop"), Piece("c", finish="eos")),
        (chunk({}, "length"), Piece(finish="limit")),
        (chunk({"content": None, "reasoning_content": "hm"}), Piece(thought=True)),
        (chunk({"content": "", "reasoning": "hm"}, ""), Piece(thought=True)),
        (chunk({"refusal": "No."}, "stop"), Piece("No.", finish="eos")),
        (chunk({"content": "whole"}, "stop", "message"), Piece("whole", finish="eos")),
        (chunk({"content": [{"type": "text", "text": "in "}, {"type": "text", "text": "parts"}]}), Piece("in parts")),
        (chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}), Piece(thought=True)),
        (chunk({"content": [3, {"text": None}]}), Piece()),
        (chunk(None), Piece()),
        ('{"choices": [], "usage": {"completion_tokens": 3}}', Piece()),
        ('{"usage": {}}', Piece()),
        (" [DONE]", Piece(done=True)),
    ],
)
def test_what_an_event_adds(data, piece):
    assert read_piece(data) == piece


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"error": {"message": "no\\nmemory for sk-1", "code": 500}}', r"no memory for \*\*\*;"),
        ('{"error": "overloaded"}', "overloaded"),
        ('{"error": {}, "choices": 3}', "another form than OpenAI's"),
        ('{"error": [1]}', "^1;"),
        (chunk({}, "content_filter"), "finish_reason content_filter"),
        (chunk({}, 7), "finish_reason 7"),
        ("<html>", "another form"),
        ("[]", "another form"),
        ('{"choices": [3]}', "another form"),
        (chunk("text"), "another form"),
        ("[" * 100_000, "another form"),
    ],
)
def test_what_is_no_answer_is_said_in_a_line(data, words):
    with pytest.raises(ModelError, match=words) as caught:
        read_piece(data, "sk-1")
    assert "\n" not in str(caught.value)


def test_halves_of_a_character_are_joined():
    pieces = [read_piece(chunk({"content": half})).text for half in ("a\ud83d", "\ude00b")]  # as two escapes
    assert well_formed("".join(pieces)) == "a😀b"
    assert well_formed("a\ude00b\ud83d") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
