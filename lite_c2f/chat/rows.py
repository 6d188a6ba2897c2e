"""Rows of the chat's batch: one per answer, generated together in one forward pass of all models per token.

The permutation: `AnswerRows.rows[i]` occupies slot i of the key-value cache, and rows are sorted by model, as
`MultiModel` needs them. Rows come and go between two steps, so `_arrange` permutes the slots when the list changes.

The invariant, which every method of `AnswerRows` keeps: slot i holds the keys and values of all tokens of row i but the
last one generated, which the next step computes; `rows` is sorted by model; and every slot is long enough for its row's
longest answer. Where a method cannot keep it for a row, that row ends with finish "error", and the others' answers are
the same as without it.

A failing pass is repeated on halves of its rows until only the rows that cause the failure have ended.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lite_c2f.backbone.multi_model import MultiModel, Residues
from lite_c2f.chat.history import one_line
from lite_c2f.chat.panes import TokenLogprobs
from lite_c2f.data.encode import pad_right
from lite_c2f.errors import ModelError
from lite_c2f.memory.sizes import PROMPT_TOKENS
from lite_c2f.runtime.batch_size import free, groups_by_length, is_out_of_memory
from lite_c2f.sampling.cache import SlotCache
from lite_c2f.sampling.draw import Sampling, draw, penalize, uniforms
from lite_c2f.sampling.stops import Stops

KEY_STEP = 64  # a pass reads its keys up to a multiple of this
SLOT_STEP = 256  # slots are a multiple of this many tokens long


class AnswerRow:
    """One answer: the prompt, how tokens are drawn, and those generated so far."""

    def __init__(
        self,
        model: int,
        ratio: float,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        residue: Residues | None = None,
        penalty: float = 1.0,
        eos_ids: Sequence[int],
        stops: Stops | None = None,
        alternatives: int | None = None,
        begun: Sequence[int] = (),
        drawn: int = 0,
    ) -> None:
        """model: its number in `MultiModel`; ratio: of the residue; residue: another than the models' own one;
        alternatives: tokens in `TokenLogprobs.top`.

        begun: tokens of an answer that is continued; drawn: how many were drawn for it, of which the limit and the
        random numbers know. With the tokens that were drawn, the row goes on as one long answer under the same seed, up
        to rounding: the begun tokens are read in one pass, as a prompt is, not one by one.
        """
        self.model, self.ratio, self.residue, self.prompt = model, ratio, residue, list(prompt)
        self.sampling, self.penalty = sampling, penalty
        self.eos_ids, self.stops = eos_ids, stops
        self.stop_state = 0  # of `stops`
        self.uniforms = uniforms(sampling.seed, 0, sampling.limit).tolist()
        self.alternatives = alternatives
        self.logprobs: list[TokenLogprobs] = []  # of `tokens`, unless alternatives is None
        self.tokens: list[int] = list(begun)  # the ending included
        self.begun, self._not_kept = len(begun), drawn - len(begun)
        for token in begun if stops is not None else ():
            self.stop_state = stops.follow(self.stop_state, token)  # type: ignore[union-attr]
        self.text: list[int] | None = None  # tokens without the ending, once it has one
        self.first_token_at = self.last_token_at = 0.0  # time.perf_counter()
        self.message = ""
        self.finish: str | None = None

    @property
    def max_length(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self.prompt) + self.sampling.limit - self._not_kept

    @property
    def drawn(self) -> int:
        """Tokens that were drawn for the answer so far. `tokens` are others where a text was encoded again."""
        return len(self.tokens) + self._not_kept

    @property
    def position(self) -> int:
        """Position of the last token."""
        return len(self.prompt) + len(self.tokens) - 1

    @property
    def text_tokens(self) -> list[int]:
        """Tokens without the ending."""
        return self.tokens if self.text is None else self.text

    def end(self, finish: str, message: str = "") -> None:
        """Finish the row; no token follows."""
        self.uniforms, self.residue = [], None  # callers may keep a finished row for long
        self.message, self.finish = message, finish  # finish last: other threads read it first

    def append(self, token: int, now: float) -> None:
        """Add a token, and finish the row where it is the last."""
        self.tokens.append(token)
        self.first_token_at, self.last_token_at = self.first_token_at or now, now
        finish = "limit" if self.drawn >= self.sampling.limit else ""
        if self.stops is not None:
            self.stop_state = self.stops.follow(self.stop_state, token)
        if token in self.eos_ids:
            self.text, finish = self.tokens[:-1], "eos"
        elif self.stops is not None and self.stop_state == self.stops.end:
            self.text, finish = self.stops.cut(self.tokens).text, "stop"
        if finish:
            self.end(finish)


class AnswerRows:
    """The unfinished rows and their key-value cache; the module's docstring has the invariant."""

    def __init__(self, multi_model: MultiModel, pad_id: int) -> None:
        self.multi_model, self.pad_id = multi_model, pad_id
        self.rows: list[AnswerRow] = []  # row i is in slot i
        self.cache: SlotCache | None = None

    @torch.inference_mode()
    def start(self, new: Sequence[AnswerRow]) -> None:
        """Prefill these rows' prompts, and answers that are begun, and draw the next token of each.

        Raises what making room for them raises; where that damaged the other rows, they have ended with "error".
        """
        self._remove_finished()
        self._arrange(sorted([*self.rows, *new], key=lambda row: row.model))
        slots = {id(row): slot for slot, row in enumerate(self.rows)}
        lengths = [len(row.prompt) + row.begun for row in new]
        for group in groups_by_length(
            sorted(range(len(new)), key=lambda index: lengths[index]), lengths, PROMPT_TOKENS
        ):
            rows = sorted((new[index] for index in group), key=lambda row: row.model)
            _by_halves(rows, lambda part: self._prefill(part, [slots[id(row)] for row in part]))

    @torch.inference_mode()
    def step(self) -> None:
        """Add one token to every unfinished row."""
        self._remove_finished()
        if self.rows:
            _by_halves(self.rows, self._decode)

    def _remove_finished(self) -> None:
        unfinished = [row for row in self.rows if row.finish is None]
        if len(unfinished) < len(self.rows):
            self._arrange(unfinished)

    def _arrange(self, rows: list[AnswerRow]) -> None:
        """Make these the rows, in this order: grow the cache where they need it and permute its slots.

        Without rows the cache's memory is released.
        """
        if not rows:
            self.rows, self.cache = [], None
            return
        old_slots = {id(row): slot for slot, row in enumerate(self.rows)}
        length = max(row.max_length for row in rows)
        if self.cache is None or self._size[0] < len(rows) or self._size[1] < length:
            self._grow(len(rows), length)
        assert self.cache is not None
        permutation = [old_slots.get(id(row), slot) for slot, row in enumerate(rows)]
        if old_slots and permutation != list(range(len(rows))):
            width = max((row.position for row in rows if id(row) in old_slots), default=0)
            try:
                self.cache.arrange(torch.tensor(permutation, device=self.multi_model.device), width)
            except Exception as error:  # some layers are permuted and others are not
                for row in self.rows:
                    if row.finish is None:
                        row.end("error", one_line(error))
                self.rows, self.cache = [], None
                raise
        self.rows = rows

    @property
    def _size(self) -> tuple[int, int]:
        """(slots, tokens per slot) of the layer that grows last: memory may have run out before it."""
        assert self.cache is not None
        keys = self.cache.slot_layers[-1].keys
        return keys.shape[0], keys.shape[2]

    def _grow(self, slots: int, length: int) -> None:
        model, length = self.multi_model, -(-length // SLOT_STEP) * SLOT_STEP
        if self.cache is None:
            self.cache = SlotCache(model.config, slots, length, model.dtype, model.device)
        else:
            self.cache.grow(slots, length)

    def _prefill(self, rows: Sequence[AnswerRow], slots: Sequence[int]) -> None:
        assert self.cache is not None
        device = self.multi_model.device
        draws = self._draws(rows)
        tokens, real = pad_right([row.prompt + row.tokens for row in rows], self.pad_id)
        last = (real.sum(1) - 1).to(device)
        self.cache.prefill(torch.tensor(slots, device=device))
        hidden = self._hidden(rows, tokens.to(device))
        self._append(rows, hidden[torch.arange(len(rows), device=device), last], draws)

    def _decode(self, rows: Sequence[AnswerRow]) -> None:
        """One token of neighbouring rows."""
        assert self.cache is not None
        device, draws = self.multi_model.device, self._draws(rows)
        first = next(slot for slot, row in enumerate(self.rows) if row is rows[0])
        keys = max(row.position for row in rows) + 1
        width = min(self._size[1], -(-keys // KEY_STEP) * KEY_STEP)
        inputs = torch.tensor([[row.tokens[-1], row.position] for row in rows], device=device)
        mask = self.cache.decode(inputs[:, 1], width, slice(first, first + len(rows)))
        hidden = self._hidden(rows, inputs[:, :1], mask=mask, positions=inputs[:, 1:])
        self._append(rows, hidden[:, -1], draws)

    def _hidden(self, rows: Sequence[AnswerRow], tokens: Tensor, **options: Any) -> Tensor:
        models, ratios, residues = ([getattr(row, name) for row in rows] for name in ("model", "ratio", "residue"))
        return self.multi_model.hidden(tokens, models, ratios, self.cache, residues=residues, **options)

    def _draws(self, rows: Sequence[AnswerRow]) -> "_Draws":
        """How these rows' next tokens are drawn; made before the pass, since each copy waits for the device."""
        device = self.multi_model.device
        numbers = torch.tensor([row.uniforms[row.drawn] for row in rows], dtype=torch.float32, device=device)
        by_sampling: dict[Sampling, list[int]] = {}
        for index, row in enumerate(rows):
            by_sampling.setdefault(row.sampling._replace(seed=0, limit=0), []).append(index)
        same = len(by_sampling) == 1
        return _Draws(
            numbers,
            [
                (sampling, slice(None) if same else torch.tensor(indices, device=device))
                for sampling, indices in by_sampling.items()
            ],
            {
                index: torch.tensor(sorted({*row.prompt, *row.tokens}), device=device)
                for index, row in enumerate(rows)
                if row.penalty != 1.0
            },
        )

    def _append(self, rows: Sequence[AnswerRow], hidden: Tensor, draws: "_Draws") -> None:
        """Draw a token for each row from its last hidden state, (n, H)."""
        logits = self.multi_model.logits(hidden)
        finite = torch.isfinite(logits).all(1)
        listed = [index for index, row in enumerate(rows) if row.alternatives is not None]
        model_logprobs = logits[listed].log_softmax(-1) if listed else None
        for index, penalized in draws.penalized.items():
            logits[index] = penalize(logits[index], penalized, rows[index].penalty)
        drawn = torch.empty(len(rows), dtype=torch.long, device=logits.device)
        for sampling, indices in draws.by_sampling:
            drawn[indices] = draw(logits[indices], draws.uniforms[indices], sampling)[0]
        tokens, usable = torch.stack([drawn, finite.long()]).tolist()  # waits for the device
        if model_logprobs is not None:
            _add_logprobs([rows[index] for index in listed], model_logprobs, [tokens[index] for index in listed])
        now = time.perf_counter()
        for row, token, is_finite in zip(rows, tokens, usable, strict=True):
            if is_finite:
                try:
                    row.append(token, now)
                except Exception as error:  # caught here: `_by_halves` would generate the others' token again
                    row.end("error", one_line(error))
            else:
                got = f"logits at token {len(row.tokens)} are not finite"
                message = ModelError.because(got, "finite logits", "lower the ratio, or train it again")
                row.end("error", str(message))
                assert self.cache is not None
                self.cache.clear(next(slot for slot, other in enumerate(self.rows) if other is row))


def _add_logprobs(rows: Sequence[AnswerRow], logprobs: Tensor, tokens: Sequence[int]) -> None:
    """Add the entry of each row's new token. logprobs: (n, V)."""
    best = logprobs.topk(max(row.alternatives or 0 for row in rows))
    drawn = logprobs.gather(1, torch.tensor(tokens, device=logprobs.device)[:, None]).squeeze(1).tolist()
    for row, token, value, ids, values in zip(
        rows, tokens, drawn, best.indices.tolist(), best.values.tolist(), strict=True
    ):
        top = list(zip(ids, values, strict=True))[: row.alternatives]
        row.logprobs.append(TokenLogprobs(token, value, top))


class _Draws(NamedTuple):
    """How the next tokens of n rows are drawn."""

    uniforms: Tensor  # (n,) float32, in [0, 1)
    by_sampling: list[tuple[Sampling, Tensor | slice]]  # each setting, and the rows that have it
    penalized: dict[int, Tensor]  # by row: the token ids under its repetition penalty


def _by_halves(rows: Sequence[AnswerRow], work: Callable[[Sequence[AnswerRow]], None]) -> None:
    """Do the work for all rows at once; where that fails, for each half, and end the single rows it fails for."""
    try:
        work(rows)
        return
    except Exception as error:  # of any kind: a caller waits for this row and reads the message
        if len(rows) == 1:
            rows[0].end("error", one_line(error))
        out_of_memory = is_out_of_memory(error)
    if out_of_memory:  # outside the handler: the error's traceback held the tensors of every frame it passed through
        free()
    if len(rows) > 1:
        middle = len(rows) // 2
        _by_halves(rows[:middle], work)
        _by_halves(rows[middle:], work)
