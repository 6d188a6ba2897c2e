"""Slots of the sampler: the active rows, their responses on the device, and one decoding step for all slots at once.

A step never waits for the host, so that steps can follow each other and be replayed as a CUDA graph.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lite_c2f.backbone.forward import hidden_states
from lite_c2f.data.encode import pad_right
from lite_c2f.memory.sizes import PROMPT_TOKENS
from lite_c2f.runtime.batch_size import groups_by_length, is_out_of_memory
from lite_c2f.sampling.cache import SlotCache
from lite_c2f.sampling.draw import Sampling, draw, uniforms
from lite_c2f.sampling.stops import Stops

FINISHES = ("limit", "eos", "stop")
log = logging.getLogger(__name__)


class SlotRow(NamedTuple):
    """A finished response."""

    tokens: list[int]  # the ending included
    logprobs: list[float]
    finish: str
    text: list[int]  # without the ending
    ending: int  # how many of the last tokens are the ending, or hold something of it


class SlotJob(NamedTuple):
    """Prompts to answer, with the settings of their responses."""

    prompts: Sequence[Sequence[int]]
    limits: Sequence[int]  # most tokens of each response
    sampling: Sampling
    eos_ids: Sequence[int]
    stops: Stops | None
    pad_id: int
    row_ids: Sequence[int]  # select each row's random numbers


class ResponseBuffer:
    """Responses of the rows of a job, on the device. One extra row at the end takes the tokens of idle slots."""

    def __init__(self, job: SlotJob, rows: Sequence[int], device: torch.device) -> None:
        self.rows, self.stops = list(rows), job.stops  # buffer row -> row of the job
        count, longest = len(rows), max(job.limits[row] for row in rows)
        self.idle = count
        self.tokens = torch.full((count + 1, longest), job.pad_id, device=device)
        self.logprobs = torch.zeros((count + 1, longest), device=device)
        self.lengths = torch.zeros(count + 1, dtype=torch.long, device=device)
        self.finish = torch.full((count + 1,), -1, device=device)  # index into FINISHES; -1 is not finished
        self.non_finite = torch.full((count + 1,), -1, device=device)  # the step at which logits were not finite
        self.limits = torch.tensor([*(job.limits[row] for row in rows), 1], device=device)
        numbers = torch.zeros((count + 1, longest))
        for index, row in enumerate(rows):
            numbers[index, : job.limits[row]] = uniforms(job.sampling.seed, job.row_ids[row], job.limits[row])
        self.uniforms = numbers.to(device)

    def finished(self) -> dict[int, SlotRow]:
        """Responses that are complete, by row of the job."""
        columns = (self.tokens, self.logprobs, self.lengths, self.finish)
        return {
            row: self._row(tokens[:length], logprobs[:length], FINISHES[finish])
            for row, tokens, logprobs, length, finish in zip(
                self.rows, *(column[: self.idle].tolist() for column in columns), strict=True
            )
            if finish >= 0
        }

    def _row(self, tokens: list[int], logprobs: list[float], finish: str) -> SlotRow:
        text, ending = tokens, 0
        if finish == "eos":
            text, ending = tokens[:-1], 1
        elif finish == "stop" and self.stops is not None:
            text, ending = self.stops.cut(tokens)
        return SlotRow(tokens, logprobs, finish, text, ending)


class SlotSnapshot(NamedTuple):
    """State of the slots as read back to the host."""

    active: list[int]  # slots whose response is not finished
    deepest: int  # the largest position among them
    drawn: int  # tokens drawn since the last snapshot
    non_finite: tuple[int, int] | None  # (buffer row, step) of logits that were not finite


class Slots:
    """`size` active rows. decoder, head: the transformer and its language-model head; length: tokens of a slot."""

    def __init__(self, decoder: Any, head: Any, job: SlotJob, buffer: ResponseBuffer, size: int, length: int) -> None:
        self.decoder, self.head, self.job, self.buffer = decoder, head, job, buffer
        self.size, self.length = size, length
        self.device = buffer.tokens.device
        self.cache = SlotCache(decoder.config, size, length, head.weight.dtype, self.device)
        self.row = torch.full((size,), buffer.idle, device=self.device)
        self.token, self.position, self.step, self.state = (torch.zeros_like(self.row) for _ in range(4))
        self.active = torch.zeros(size, dtype=torch.bool, device=self.device)
        self.drawn = torch.zeros((), dtype=torch.long, device=self.device)
        self.eos = torch.tensor(list(job.eos_ids), device=self.device)
        # (states, V) int32; a slot's state is the part of a stop text that its response ends with
        stops = job.stops if job.stops is not None and job.stops.texts else None
        self.stops = None if stops is None else stops.on(self.device, head.weight.shape[0])
        # Key columns are rounded up to a multiple of this: on a GPU every width is recorded as a graph of its own.
        self.bucket = 256 if self.device.type == "cuda" else 32
        self.graphs = Graphs() if self.device.type == "cuda" else None

    def start(self, slots: Sequence[int], rows: Sequence[int]) -> None:
        """Prefill these slots with the prompts of these buffer rows, and draw the first token of each."""
        prompts = [self.job.prompts[self.buffer.rows[row]] for row in rows]
        by_length = sorted(range(len(rows)), key=lambda index: len(prompts[index]))
        for group in groups_by_length(by_length, [len(prompt) for prompt in prompts], PROMPT_TOKENS):
            tokens, real = pad_right([list(prompts[index]) for index in group], self.job.pad_id)
            selected = torch.tensor([slots[index] for index in group], device=self.device)
            last = (real.sum(1) - 1).to(self.device)
            self.cache.prefill(selected)
            hidden = self._forward(tokens.to(self.device), None, None)
            self.row[selected] = torch.tensor([rows[index] for index in group], device=self.device)
            self.position[selected], self.step[selected], self.state[selected], self.active[selected] = last, 0, 0, True
            self._append(selected, hidden[torch.arange(len(group), device=self.device), last])

    def advance(self, steps: int, deepest: int) -> None:
        """Decode `steps` tokens in every active slot, fewer where a response ends. deepest: of the last snapshot."""
        width = min(self.length, -(-(deepest + steps) // self.bucket) * self.bucket)
        for _ in range(steps):
            if self.graphs is not None:
                self.graphs.run((self.size, width), lambda: self._decode(width))
            else:
                self._decode(width)

    def snapshot(self) -> SlotSnapshot:
        """Read the state back to the host: the one call that waits for the device."""
        columns = torch.stack([self.active.long(), self.position, self.buffer.non_finite[self.row], self.row]).tolist()
        drawn = int(self.drawn)
        self.drawn.zero_()
        active = [slot for slot, is_active in enumerate(columns[0]) if is_active]
        non_finite = [
            (row, step)
            for row, step in zip(columns[3], columns[2], strict=True)
            if step >= 0 and row != self.buffer.idle
        ]
        return SlotSnapshot(
            active, max((columns[1][slot] for slot in active), default=0), drawn, min(non_finite, default=None)
        )

    def select(self, slots: Sequence[int]) -> None:
        """Continue with these slots only; the memory of the others is released."""
        chosen = torch.tensor(list(slots), device=self.device)
        self.size = len(slots)
        self.cache.select(chosen)
        for name in ("row", "token", "position", "step", "state", "active"):
            setattr(self, name, getattr(self, name)[chosen])
        if self.graphs is not None:
            self.graphs = Graphs()

    def _forward(self, tokens: Tensor, mask: Any, positions: Tensor | None) -> Tensor:
        return hidden_states(self.decoder, tokens, self.cache, mask=mask, positions=positions)

    def _decode(self, width: int) -> None:
        mask = self.cache.decode(self.position, width)
        hidden = self._forward(self.token[:, None], mask, self.position[:, None])
        self._append(slice(None), hidden[:, -1])

    def _append(self, selected: Any, hidden: Tensor) -> None:
        """Draw a token for the selected slots (indices, or all) from hidden states (n, H), and mark those that end."""
        buffer = self.buffer
        logits = self.head(hidden)
        row, active = self.row[selected], self.active[selected]
        step = self.step[selected].clamp(max=buffer.tokens.shape[1] - 1)
        drawn, logprob = draw(logits, buffer.uniforms[row, step], self.job.sampling)
        # not torch.where: it would copy a number to the GPU and wait for it
        target = row.masked_fill(~active, buffer.idle)
        buffer.tokens[target, step] = drawn
        buffer.logprobs[target, step] = logprob
        buffer.lengths[target] = step + 1
        # which responses end, and with which finish
        ending = (drawn[:, None] == self.eos).any(1).long()  # 1: EOS
        if self.stops is not None:
            state = self.stops[self.state[selected], drawn].long()
            self.state[selected] = state
            ending = ending.masked_fill((state == len(self.stops) - 1) & (ending == 0), 2)
        non_finite = ~torch.isfinite(logits).all(1)
        ended = (ending > 0) | (step + 1 >= buffer.limits[row]) | non_finite
        buffer.non_finite[target] = step.masked_fill(~non_finite, -1)
        buffer.finish[target] = ending.masked_fill(~ended | non_finite, -1)  # last: marks the row as complete
        # input of the next step; a slot that has ended stays at its position
        self.drawn += active.sum()
        unfinished = active & ~ended
        self.token[selected] = drawn
        self.position[selected] = self.position[selected] + unfinished.long()
        self.step[selected] = step + unfinished.long()
        self.active[selected] = unfinished


class Graphs:
    """CUDA graphs of steps, one per (slots, width); eager where the driver or a kernel cannot be recorded.

    A step of Mistral-7B is about 2,500 kernel launches: launched one by one, they are limited by the host.
    """

    refused = False  # once a step could not be recorded, no other is tried in this process

    def __init__(self) -> None:
        self.recorded: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self.pool: Any = None

    def run(self, key: tuple[int, int], work: Callable[[], None]) -> None:
        """Run the step: eagerly the first time (which warms up its kernels), then recorded, then replayed."""
        if key not in self.recorded:
            self.recorded[key] = None
            work()
            return
        graph = self.recorded[key]
        if graph is None and not Graphs.refused:
            graph = self.recorded[key] = self._record(work)
        if graph is None:
            work()
        else:
            graph.replay()

    def _record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                work()
        except RuntimeError as error:
            torch.cuda.set_stream(stream)
            if is_out_of_memory(error):
                raise
            if error.__context__ is not None and is_out_of_memory(error.__context__):  # ending the recording failed too
                raise torch.OutOfMemoryError(str(error.__context__)) from error
            Graphs.refused = True
            log.warning("sampling without CUDA graphs, slower: %s", " ".join(str(error).split())[:160])
            return None
        self.pool = self.pool or graph.pool()
        return graph
