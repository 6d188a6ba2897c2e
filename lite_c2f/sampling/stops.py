"""Stop texts: where a response ends because the next turn's marker was written, in whatever tokens it was spelt.

A marker is text, not token ids: Llama-3's and Qwen's tokenizers join a full stop with the line breaks after it, so the
ids of `\\n\\nHuman:` never occur after a sentence. The rule is an Aho-Corasick automaton (Aho and Corasick, 1975) over
the bytes that tokens stand for, as a table [state, token]: one look-up per step on the device, and the same table on
the host for the chat. The marker that ends first wins; of several that end together, the longest.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from lite_c2f.data.encode import continuation
from lite_c2f.errors import ConfigError

_BYTES: WeakKeyDictionary[Any, tuple[int, list[bytes]]] = WeakKeyDictionary()  # by tokenizer: its size, token bytes


class CutResponse(NamedTuple):
    """A response up to its marker."""

    text: list[int]  # token ids of the text before the marker
    ending: int  # how many of the last tokens hold something of the marker


class Stops:
    """Stop texts of responses, for one tokenizer.

    tokenizer: of the model that responds; texts: the markers. A special token counts as its own text (`<|im_end|>`), so
    that a marker may hold one, spelt as the special token or in ordinary ones. Raises ConfigError for an empty text.

    >>> stops = Stops(tokenizer, ["\\n\\nHuman:"])
    >>> stops.cut(tokenizer.encode(" It is 5.\\n\\nHuman:", add_special_tokens=False)).ending
    3
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self.tokenizer, self.texts = tokenizer, tuple(texts)
        self._markers = [text.encode() for text in texts]
        self._bytes = token_bytes(tokenizer)
        if not all(self._markers):
            raise ConfigError.because("a stop sequence without text ('')", "at least one character", "remove it")
        self._automaton = automaton(self._markers)  # [state, byte] int32
        self.end = len(self._automaton) - 1  # the state of a response that has ended
        self._tables: dict[tuple[torch.device, int], Tensor] = {}

    @functools.cached_property
    def table(self) -> np.ndarray:
        """Transitions [state, token] int32; the chat follows single tokens without it."""
        return _table(self._automaton, self._bytes)

    def check(self) -> None:
        """Raise ConfigError for a text that no sequence of tokens spells: no response would ever end by it."""
        for text, marker in zip(self.texts, self._markers, strict=True):
            if not _can_end(_table(automaton([marker]), self._bytes)):
                raise ConfigError.because(
                    f"stop sequence {text!r} has no tokens",
                    "a text that the tokenizer can spell",
                    "remove or correct it in model.stop",
                )

    def on(self, device: torch.device, width: int) -> Tensor:
        """The table [states, width] int32 on a device; width: of the logits. Ids beyond the tokenizer have no text."""
        key = device, width
        if key not in self._tables:
            states, tokens = self.table.shape
            table = np.repeat(np.arange(states, dtype=np.int32)[:, None], max(width, tokens), axis=1)
            table[:, :tokens] = self.table
            self._tables[key] = torch.from_numpy(table[:, :width].copy()).to(device)
        return self._tables[key]

    def follow(self, state: int, token: int) -> int:
        """The state after one more token; `end` once a marker is complete. A response begins in state 0."""
        for byte in self._bytes_of([token])[0]:
            state = self._automaton[state, byte]
        return int(state)

    def cut(self, tokens: Sequence[int]) -> CutResponse:
        """A response without its marker; all of it where there is none.

        Where one token holds the end of the text and the beginning of the marker (`.` and a line break), the text keeps
        its part and is encoded again, as the reward model's answers are.
        """
        parts = self._bytes_of(tokens)
        text = b"".join(parts)
        span = first_marker(text, self._markers)
        if span is None:
            return CutResponse(list(tokens), 0)
        before = whole_tokens = 0  # bytes and tokens that are wholly of the text
        while whole_tokens < len(parts) and before + len(parts[whole_tokens]) <= span[0]:
            before += len(parts[whole_tokens])
            whole_tokens += 1
        whole = list(tokens[:whole_tokens])
        if before < span[0]:
            whole = self._encoded(whole, text[before : span[0]])
        return CutResponse(whole, len(tokens) - whole_tokens)

    def _encoded(self, whole: list[int], rest: bytes) -> list[int]:
        """Ids of a text: that of these whole tokens, then `rest`, which is the beginning of a token.

        The whole text is encoded again, as answers of the data are; where it holds a special token (which would be
        spelt in letters) or half characters, as few tokens as possible.
        """
        special = {token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special}
        starts = [*([] if special.intersection(whole) else [0]), *range(len(whole), 0, -1)]
        for start in starts:
            piece = b"".join(self._bytes_of(whole[start:])) + rest
            ids = continuation(self.tokenizer, piece.decode("utf-8", "replace"))
            if b"".join(self._bytes_of(ids)) == piece:
                return whole[:start] + ids
        return whole

    def _bytes_of(self, tokens: Sequence[int]) -> list[bytes]:
        return [self._bytes[token] if token < len(self._bytes) else b"" for token in tokens]


def first_marker(text: bytes | str, markers: Iterable[Any]) -> tuple[int, int] | None:
    """Span (beginning, end) of the marker that ends first, of several that end together the longest; None without any.

    >>> first_marker("5.\\n\\nHuman: Why?", ["Human:", "\\n\\nHuman:"])
    (2, 10)
    """
    starts = [(text.find(marker), len(marker)) for marker in markers]  # type: ignore[arg-type]
    ends = [(begin + size, -size) for begin, size in starts if begin >= 0]
    if not ends:
        return None
    end, size = min(ends)
    return end + size, end


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to the stop that ends first; all of it where there is none.

    >>> before_stop("It is 5.\\n\\nHuman: Why?", ["\\n\\nHuman:"])
    'It is 5.'
    """
    span = first_marker(text, stops)
    return text if span is None else text[: span[0]]


def automaton(markers: Sequence[bytes]) -> np.ndarray:
    """Transitions [state, byte] int32 of the automaton that searches for the markers; the last state is the end."""
    children: list[dict[int, int]] = [{}]
    complete = [False]
    for marker in markers:
        node = 0
        for byte in marker:
            if byte not in children[node]:
                children[node][byte] = len(children)
                children.append({})
                complete.append(False)
            node = children[node][byte]
        complete[node] = True
    count = len(children)
    transitions = np.zeros((count, 256), dtype=np.int64)
    fallback = [0] * count  # of a node: the longest other node whose text is a suffix of its own
    order = [0]
    for node in order:  # grows as it goes: breadth first, so that a node's fallback is known before its children
        if node:
            transitions[node] = transitions[fallback[node]]
        for byte, child in children[node].items():
            fallback[child] = int(transitions[fallback[node], byte]) if node else 0
            complete[child] = complete[child] or complete[fallback[child]]
            transitions[node, byte] = child
            order.append(child)
    incomplete = [node for node in range(count) if not complete[node]]
    number = np.full(count, len(incomplete))  # all complete nodes become the one end state
    number[incomplete] = range(len(incomplete))
    return np.vstack([number[transitions[incomplete]], np.full((1, 256), len(incomplete))]).astype(np.int32)


def _table(transitions: np.ndarray, tokens: Sequence[bytes]) -> np.ndarray:
    """Transitions [state, token] from those by byte; all tokens at once, byte by byte."""
    lengths = np.array([len(token) for token in tokens], dtype=np.intp)
    written, starts = np.frombuffer(b"".join(tokens), dtype=np.uint8), np.cumsum(lengths) - lengths
    order = np.argsort(-lengths, kind="stable")  # the longest first: a prefix of it has a byte at each place
    states = len(transitions)
    table = np.repeat(np.arange(states, dtype=np.int32)[:, None], len(tokens), axis=1)
    for place in range(int(lengths.max(initial=0))):
        longer = order[: int((lengths > place).sum())]
        table[:, longer] = transitions[table[:, longer], written[starts[longer] + place]]
    return table


def _can_end(table: np.ndarray) -> bool:
    """Whether any sequence of tokens leads from the start to the end state."""
    reached, new = {0}, {0}
    while new:
        new = {int(state) for state in np.unique(table[sorted(new)])} - reached
        reached |= new
    return len(table) - 1 in reached


def token_bytes(tokenizer: Any) -> list[bytes]:
    """Bytes that each token adds in the middle of a text, by id; b"" for ids without text.

    Read off the tokenizer's own decoder: byte-level (GPT-2, Llama-3, Qwen), SentencePiece with byte fallback, or none
    (tokens joined by spaces); with any other, each token is decoded on its own.
    """
    size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))  # some vocabularies have gaps
    if tokenizer in _BYTES and _BYTES[tokenizer][0] == size:
        return _BYTES[tokenizer][1]
    steps = _decoder_steps(tokenizer)
    texts = tokenizer.convert_ids_to_tokens(list(range(size)))
    if steps is None:
        result = [_decoded_alone(tokenizer, token) for token in range(size)]
    else:
        result = [b"" if text is None else _decoded(text, steps) for text in texts]
    _BYTES[tokenizer] = size, result
    return result


def _decoder_steps(tokenizer: Any) -> list[tuple[str, ...]] | None:
    """Steps of the tokenizer's decoder for a token, in order; None where one is unknown."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "decoder"):
        return None
    if backend.decoder is None:
        return [("join",)]
    described = json.loads(backend.decoder.__getstate__())
    steps: list[tuple[str, ...]] = []
    for step in described["decoders"] if described["type"] == "Sequence" else [described]:
        match step:
            case {"type": "ByteLevel" | "ByteFallback" as kind}:
                steps.append((kind,))
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                steps.append(("replace", old, new))
            case {"type": "Metaspace", "replacement": old}:
                steps.append(("replace", old, " "))
            case {"type": "Fuse" | "Strip"}:  # these act on a whole text, not in the middle of it
                pass
            case _:
                return None
    return steps


_BYTE_OF = {
    character: number
    for number, character in zip(
        [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173],
        [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)]), *(chr(256 + place) for place in range(68))],
        strict=True,
    )
}  # GPT-2's table: printable bytes stand for themselves, the others for characters from 256 on


def _decoded(token: str, steps: Sequence[tuple[str, ...]]) -> bytes:
    for step in steps:
        if step[0] == "join":
            token = f" {token}"
        elif step[0] == "replace":
            token = token.replace(step[1], step[2])
        elif step[0] == "ByteLevel" and all(character in _BYTE_OF for character in token):
            return bytes(_BYTE_OF[character] for character in token)
        elif step[0] == "ByteFallback" and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
    return token.encode()


def _decoded_alone(tokenizer: Any, token: int) -> bytes:
    """Text that a token adds, by decoding it after another one."""
    anchor = tokenizer.encode("a", add_special_tokens=False)[:1]
    before, after = tokenizer.decode(anchor), tokenizer.decode([*anchor, token])
    return after.removeprefix(before).encode()
