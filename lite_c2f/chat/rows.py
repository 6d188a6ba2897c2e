"""The batch in which answers are written: every answer of every visitor is a row, sorted by the model that says it.

A step is one more token for every row, in one forward pass of all models. Rows come and go between two steps. What goes
wrong in a pass is looked for by halves, and ends the rows that it is due to and no others.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lite_c2f.backbone.together import Together
from lite_c2f.batches import free, groups, is_out_of_memory
from lite_c2f.chat.prompts import one_line
from lite_c2f.data.encode import pad_right
from lite_c2f.errors import ModelError
from lite_c2f.memory.sizes import PROMPT_TOKENS
from lite_c2f.sampling.cache import SlotCache
from lite_c2f.sampling.draw import Sampling, draw, penalize, uniforms

BUCKET = 64  # columns of keys by which a pass grows
GROW = 256  # tokens by which the slots grow


class Row:
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
        stop_ids: Sequence[Sequence[int]] = (),
        ends: Callable[[Sequence[int]], bool] | None = None,
    ) -> None:
        """model, share: as for `Together`. ends: whether these last tokens hold a stop sequence, however spelt."""
        self.model, self.share, self.prompt = model, share, list(prompt)
        self.sampling, self.penalty = sampling, penalty
        self.eos_ids, self.stop_ids, self.ends = eos_ids, stop_ids, ends
        self.numbers = uniforms(sampling.seed, 0, sampling.limit).tolist()
        self.tokens: list[int] = []  # the ending included
        self.ending = 0  # how many of the last tokens are the ending
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
        return self.tokens[: len(self.tokens) - self.ending]

    def end(self, finish: str, message: str = "") -> None:
        """No token follows."""
        self.numbers = []  # a finished row may be looked at for long
        self.message, self.finish = message, finish  # last: who reads it in another thread finds the rest in place

    def take(self, token: int, now: float) -> None:
        """One more token, and whether it is the last."""
        self.tokens.append(token)
        self.first, self.last = self.first or now, now
        if token in self.eos_ids:
            self.ending, finish = 1, "eos"
        elif stop := next((stop for stop in self.stop_ids if self.tokens[-len(stop) :] == list(stop)), None):
            self.ending, finish = len(stop), "stop"
        elif self.ends is not None and self.ends(self.tokens):
            finish = "stop"
        else:
            finish = "limit" if len(self.tokens) >= self.sampling.limit else ""
        if finish:
            self.end(finish)


class Rows:
    """The rows in flight."""

    def __init__(self, together: Together, pad_id: int) -> None:
        self.together, self.pad_id = together, pad_id
        self.rows: list[Row] = []  # row i is in slot i
        self.cache: SlotCache | None = None

    @torch.inference_mode()
    def start(self, new: Sequence[Row]) -> None:
        """Read these prompts and say the first token of each."""
        before = {id(row): slot for slot, row in enumerate(self.rows)}
        self._settle(sorted([*self.rows, *new], key=lambda row: row.model), before)
        slots = {id(row): slot for slot, row in enumerate(self.rows)}
        lengths = [len(row.prompt) for row in new]
        for group in groups(sorted(range(len(new)), key=lambda index: lengths[index]), lengths, PROMPT_TOKENS):
            chosen = sorted((new[index] for index in group), key=lambda row: row.model)
            _by_halves(chosen, lambda part: self._read(part, [slots[id(row)] for row in part]))

    @torch.inference_mode()
    def step(self) -> None:
        """One more token of every row that goes on."""
        self.leave_out()
        if self.rows:
            _by_halves(self.rows, self._say)

    def leave_out(self) -> None:
        """Give up the rows that have ended; without rows the memory goes too."""
        going = [row for row in self.rows if row.finish is None]
        if len(going) < len(self.rows):
            self._settle(going, {id(row): slot for slot, row in enumerate(self.rows)})

    def _settle(self, rows: list[Row], before: dict[int, int]) -> None:
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
            with torch.inference_mode():
                self.cache.arrange(torch.tensor(slots, device=self.together.device), width)
        self.rows = rows

    @property
    def _size(self) -> tuple[int, int]:
        """(slots, tokens of each)."""
        assert self.cache is not None
        keys = self.cache.slot_layers[0].keys
        return keys.shape[0], keys.shape[2]

    def _grow(self, slots: int, length: int) -> None:
        together, old = self.together, self.cache
        if old is not None:
            slots, length = max(slots, self._size[0]), max(length, self._size[1])
        length = -(-length // GROW) * GROW
        with torch.inference_mode():
            self.cache = SlotCache(together.config, slots, length, together.dtype, together.device)
            if old is not None:
                self.cache.copy_from(old)

    def _read(self, rows: Sequence[Row], slots: Sequence[int]) -> None:
        assert self.cache is not None
        device = self.together.device
        tokens, real = pad_right([row.prompt for row in rows], self.pad_id)
        self.cache.read_prompts(torch.tensor(slots, device=device))
        hidden = self._hidden(rows, tokens.to(device))
        last = (real.sum(1) - 1).to(device)
        self._take(rows, hidden[torch.arange(len(rows), device=device), last])

    def _say(self, rows: Sequence[Row]) -> None:
        assert self.cache is not None
        device = self.together.device
        first = next(slot for slot, row in enumerate(self.rows) if row is rows[0])
        deepest = max(row.position for row in rows)
        width = min(self._size[1], -(-(deepest + 1) // BUCKET) * BUCKET)
        said = torch.tensor([[row.tokens[-1], row.position] for row in rows], device=device)
        mask = self.cache.say(said[:, 1], width, slice(first, first + len(rows)))
        hidden = self._hidden(rows, said[:, :1], mask=mask, positions=said[:, 1:])
        self._take(rows, hidden[:, -1])

    def _hidden(self, rows: Sequence[Row], tokens: Tensor, **given: Any) -> Tensor:
        models, shares = [row.model for row in rows], [row.share for row in rows]
        return self.together.hidden(tokens, models, shares, self.cache, **given)

    def _take(self, rows: Sequence[Row], hidden: Tensor) -> None:
        """Draw a token for each row from its last hidden state, (n, H)."""
        logits = self.together.logits(hidden)
        fine = torch.isfinite(logits).all(1)
        for index, row in enumerate(rows):
            if row.penalty != 1.0:
                seen = torch.tensor(sorted({*row.prompt, *row.tokens}), device=logits.device)
                logits[index] = penalize(logits[index], seen, row.penalty)
        numbers = logits.new_tensor([row.numbers[len(row.tokens)] for row in rows])
        drawn = torch.empty(len(rows), dtype=torch.long, device=logits.device)
        kinds: dict[Sampling, list[int]] = {}
        for index, row in enumerate(rows):
            kinds.setdefault(row.sampling._replace(seed=0, limit=0), []).append(index)
        for sampling, chosen in kinds.items():
            where = torch.tensor(chosen, device=logits.device) if len(kinds) > 1 else slice(None)
            drawn[where] = draw(logits[where], numbers[where], sampling)[0]
        tokens, whole = torch.stack([drawn, fine.long()]).tolist()  # the one place that waits for the device
        now = time.perf_counter()
        for row, token, good in zip(rows, tokens, whole, strict=True):
            if good:
                row.take(token, now)
            else:
                got = f"logits at token {len(row.tokens)} are not finite"
                error = ModelError.because(got, "finite logits", "lower the ratio, or train it again")
                row.end("error", str(error))


def _by_halves(rows: Sequence[Row], work: Callable[[Sequence[Row]], None]) -> None:
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
