"""The batch in which answers are written: every answer of every visitor is a row, sorted by the model that says it.

A step is one more token for every row, in one forward pass of all models. Rows come and go between two steps. What goes
wrong in a pass is looked for by halves, and ends the rows that it is due to and no others.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lite_c2f.backbone.multi_model import MultiModel
from lite_c2f.chat.prompts import one_line
from lite_c2f.data.encode import pad_right
from lite_c2f.errors import ModelError
from lite_c2f.memory.sizes import PROMPT_TOKENS
from lite_c2f.runtime.batch_size import free, groups_by_length, is_out_of_memory
from lite_c2f.sampling.cache import SlotCache
from lite_c2f.sampling.draw import Sampling, draw, penalize, uniforms
from lite_c2f.sampling.stops import Stops

BUCKET = 64  # columns of keys by which a pass grows
GROW = 256  # tokens by which the slots grow


class AnswerRow:
    """One answer: what it is drawn from, and what has been said."""

    def __init__(
        self,
        model: int,
        share: float,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        penalty: float = 1.0,
        eos_ids: Sequence[int],
        stops: Stops | None = None,
    ) -> None:
        """model, share: as for `MultiModel`."""
        self.model, self.share, self.prompt = model, share, list(prompt)
        self.sampling, self.penalty = sampling, penalty
        self.eos_ids, self.stops = eos_ids, stops
        self.state = 0  # of `stops`
        self.numbers = uniforms(sampling.seed, 0, sampling.limit).tolist()
        self.tokens: list[int] = []  # the ending included
        self.text: list[int] | None = None  # tokens without the ending, once it has one
        self.first = self.last = 0.0  # time.perf_counter() of its tokens
        self.message = ""
        self.finish: str | None = None

    @property
    def length(self) -> int:
        """Most tokens it may come to, the prompt included."""
        return len(self.prompt) + self.sampling.limit

    @property
    def position(self) -> int:
        """Of the last token said."""
        return len(self.prompt) + len(self.tokens) - 1

    @property
    def text_tokens(self) -> list[int]:
        """What it said, without the ending."""
        return self.tokens if self.text is None else self.text

    def end(self, finish: str, message: str = "") -> None:
        """No token follows."""
        self.numbers = []  # a finished row may be looked at for long
        self.message, self.finish = message, finish  # last: who reads it in another thread finds the rest in place

    def take(self, token: int, now: float) -> None:
        """One more token, and whether it is the last."""
        self.tokens.append(token)
        self.first, self.last = self.first or now, now
        finish = "limit" if len(self.tokens) >= self.sampling.limit else ""
        if self.stops is not None:
            self.state = self.stops.follow(self.state, token)
        if token in self.eos_ids:
            self.text, finish = self.tokens[:-1], "eos"
        elif self.stops is not None and self.state == self.stops.end:
            self.text, finish = self.stops.cut(self.tokens).text, "stop"
        if finish:
            self.end(finish)


class AnswerRows:
    """The rows in flight."""

    def __init__(self, together: MultiModel, pad_id: int) -> None:
        self.together, self.pad_id = together, pad_id
        self.rows: list[AnswerRow] = []  # row i is in slot i
        self.cache: SlotCache | None = None

    @torch.inference_mode()
    def start(self, new: Sequence[AnswerRow]) -> None:
        """Read these prompts and say the first token of each.

        Raises what goes wrong in making room for them; where that damaged the rows under way, they have ended.
        """
        self._leave_out()
        before = {id(row): slot for slot, row in enumerate(self.rows)}
        self._settle(sorted([*self.rows, *new], key=lambda row: row.model), before)
        slots = {id(row): slot for slot, row in enumerate(self.rows)}
        lengths = [len(row.prompt) for row in new]
        for group in groups_by_length(
            sorted(range(len(new)), key=lambda index: lengths[index]), lengths, PROMPT_TOKENS
        ):
            chosen = sorted((new[index] for index in group), key=lambda row: row.model)
            _by_halves(chosen, lambda part: self._read(part, [slots[id(row)] for row in part]))

    @torch.inference_mode()
    def step(self) -> None:
        """One more token of every row that goes on."""
        self._leave_out()
        if self.rows:
            _by_halves(self.rows, self._say)

    def _leave_out(self) -> None:
        """Give up the rows that have ended; without rows the memory goes too."""
        going = [row for row in self.rows if row.finish is None]
        if len(going) < len(self.rows):
            self._settle(going, {id(row): slot for slot, row in enumerate(self.rows)})

    def _settle(self, rows: list[AnswerRow], before: dict[int, int]) -> None:
        """Be these rows, in this order. before: the slots of those that have one."""
        if not rows:
            self.rows, self.cache = [], None
            return
        most = max(row.length for row in rows)
        if self.cache is None or self._size[0] < len(rows) or self._size[1] < most:
            self._grow(len(rows), most)
        assert self.cache is not None
        slots = [before.get(id(row), slot) for slot, row in enumerate(rows)]
        if before and slots != list(range(len(rows))):
            width = max((row.position for row in rows if id(row) in before), default=0)
            try:
                self.cache.arrange(torch.tensor(slots, device=self.together.device), width)
            except Exception as error:  # some layers are arranged anew and others are not
                for row in self.rows:
                    if row.finish is None:
                        row.end("error", one_line(error))
                self.rows, self.cache = [], None
                raise
        self.rows = rows

    @property
    def _size(self) -> tuple[int, int]:
        """(slots, tokens of each), of the layer that grows last: memory may have ended before it."""
        assert self.cache is not None
        keys = self.cache.slot_layers[-1].keys
        return keys.shape[0], keys.shape[2]

    def _grow(self, slots: int, length: int) -> None:
        together, length = self.together, -(-length // GROW) * GROW
        if self.cache is None:
            self.cache = SlotCache(together.config, slots, length, together.dtype, together.device)
        else:
            self.cache.grow(slots, length)

    def _read(self, rows: Sequence[AnswerRow], slots: Sequence[int]) -> None:
        assert self.cache is not None
        device = self.together.device
        draws = self._draws(rows)
        tokens, real = pad_right([row.prompt for row in rows], self.pad_id)
        last = (real.sum(1) - 1).to(device)
        self.cache.prefill(torch.tensor(slots, device=device))
        hidden = self._hidden(rows, tokens.to(device))
        self._take(rows, hidden[torch.arange(len(rows), device=device), last], draws)

    def _say(self, rows: Sequence[AnswerRow]) -> None:
        assert self.cache is not None
        device, draws = self.together.device, self._draws(rows)
        first = next(slot for slot, row in enumerate(self.rows) if row is rows[0])
        deepest = max(row.position for row in rows)
        width = min(self._size[1], -(-(deepest + 1) // BUCKET) * BUCKET)
        said = torch.tensor([[row.tokens[-1], row.position] for row in rows], device=device)
        mask = self.cache.decode(said[:, 1], width, slice(first, first + len(rows)))
        hidden = self._hidden(rows, said[:, :1], mask=mask, positions=said[:, 1:])
        self._take(rows, hidden[:, -1], draws)

    def _hidden(self, rows: Sequence[AnswerRow], tokens: Tensor, **given: Any) -> Tensor:
        models, shares = [row.model for row in rows], [row.share for row in rows]
        return self.together.hidden(tokens, models, shares, self.cache, **given)

    def _draws(self, rows: Sequence[AnswerRow]) -> "_Draws":
        """What these rows' next tokens are drawn from; made before the pass, since each copy waits for the device."""
        device = self.together.device
        numbers = torch.tensor([row.numbers[len(row.tokens)] for row in rows], dtype=torch.float32, device=device)
        kinds: dict[Sampling, list[int]] = {}
        for index, row in enumerate(rows):
            kinds.setdefault(row.sampling._replace(seed=0, limit=0), []).append(index)
        alike = len(kinds) == 1
        return _Draws(
            numbers,
            [(kind, slice(None) if alike else torch.tensor(chosen, device=device)) for kind, chosen in kinds.items()],
            {
                index: torch.tensor(sorted({*row.prompt, *row.tokens}), device=device)
                for index, row in enumerate(rows)
                if row.penalty != 1.0
            },
        )

    def _take(self, rows: Sequence[AnswerRow], hidden: Tensor, draws: "_Draws") -> None:
        """Draw a token for each row from its last hidden state, (n, H)."""
        logits = self.together.logits(hidden)
        fine = torch.isfinite(logits).all(1)
        for index, seen in draws.seen.items():
            logits[index] = penalize(logits[index], seen, rows[index].penalty)
        drawn = torch.empty(len(rows), dtype=torch.long, device=logits.device)
        for sampling, where in draws.kinds:
            drawn[where] = draw(logits[where], draws.numbers[where], sampling)[0]
        tokens, whole = torch.stack([drawn, fine.long()]).tolist()  # waits for the device
        now = time.perf_counter()
        for row, token, good in zip(rows, tokens, whole, strict=True):
            if good:
                try:
                    row.take(token, now)
                except Exception as error:  # here, or `_by_halves` would say the others' token again
                    row.end("error", one_line(error))
            else:
                got = f"logits at token {len(row.tokens)} are not finite"
                told = ModelError.because(got, "finite logits", "lower the ratio, or train it again")
                row.end("error", str(told))


class _Draws(NamedTuple):
    """Of some rows: what their next tokens are drawn from."""

    numbers: Tensor  # (n,) float32, uniform
    kinds: list[tuple[Sampling, Tensor | slice]]  # the ways of drawing, and which rows draw so
    seen: dict[int, Tensor]  # by row: the tokens that its penalty is on


def _by_halves(rows: Sequence[AnswerRow], work: Callable[[Sequence[AnswerRow]], None]) -> None:
    """Do the work for all rows at once; if that fails, for each half, down to the row it fails for."""
    try:
        work(rows)
        return
    except Exception as error:  # of any kind: it ends this row, and is told to who waits for it
        if len(rows) == 1:
            rows[0].end("error", one_line(error))
        full = is_out_of_memory(error)
    if full:  # outside the handler: the error's traceback held the tensors of every frame it passed through
        free()
    if len(rows) > 1:
        middle = len(rows) // 2
        _by_halves(rows[:middle], work)
        _by_halves(rows[middle:], work)
