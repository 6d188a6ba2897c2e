"""Batches of the answering thread: that of the run's actors, and that of a folder's model while it answers."""

import contextlib
from collections.abc import Iterator, Sequence

import torch

from lite_c2f.backbone.multi_model import MultiModel
from lite_c2f.backbone.padding import padding_id
from lite_c2f.chat.folder_model import FolderModel
from lite_c2f.chat.rows import AnswerRow, AnswerRows
from lite_c2f.errors import C2FError, RunError

SMALL_MODEL_WEIGHTS = 4_000_000  # up to this size a model's matrix products are too small to gain from several threads


class Batches:
    """The unfinished rows of all models. run: the batch of the run's actors."""

    def __init__(self, run: AnswerRows) -> None:
        self._run = run
        self._folder: AnswerRows | None = None
        self._model: FolderModel | None = None  # of `_folder`

    @property
    def unfinished(self) -> int:
        """Rows that have not ended."""
        return _unfinished(self._run) + (_unfinished(self._folder) if self._folder else 0)

    def check_room(self, model: FolderModel, more: int) -> None:
        """Raise C2FError where one more row of a folder's model has no room; more: rows about to be started."""
        _weights_of(model)
        rows = more + (_unfinished(self._folder) if self._folder and self._model is model else 0)
        if rows >= model.max_rows:
            raise C2FError.because(f"{rows} answers of that model", "fewer at once", "ask again in a moment")

    def start(self, rows: Sequence[AnswerRow], others: Sequence[AnswerRow], model: FolderModel | None) -> None:
        """Start rows of the run's actors, and others of a folder's model. Raises as `AnswerRows.start` does."""
        if others and model is not None:
            if self._folder is None or self._model is not model:
                self.release(idle=False)
                self._folder = AnswerRows(_weights_of(model), padding_id(model.tokenizer))
                self._model, model.in_batch = model, True
            self._folder.start(others)
        self._run.start(rows)

    def step(self) -> None:
        """Add one token to every unfinished row."""
        self._run.step()
        if self._folder is not None:
            self._folder.step()

    def release(self, *, idle: bool = True) -> None:
        """Let go of the folder's model; idle: only where none of its rows is unfinished."""
        if self._model is not None and not (idle and self._folder is not None and _unfinished(self._folder)):
            self._folder, self._model.in_batch, self._model = None, False, None


def _weights_of(model: FolderModel) -> MultiModel:
    """Raises RunError where another model was loaded between the question and its turn."""
    if model.multi_model is None:
        raise RunError.because("another model of the folder took its place", "it in memory", "ask again")
    return model.multi_model


def _unfinished(rows: AnswerRows) -> int:
    return sum(row.finish is None for row in rows.rows)


@contextlib.contextmanager
def single_thread_if_small(models: Sequence[MultiModel | None], torch_threads: int) -> Iterator[None]:
    """One PyTorch thread for small models on a CPU: with two, three rows of the toy pair took twice as long.

    torch_threads: their number outside the block.
    """
    used = [multi_model for multi_model in models if multi_model is not None]
    weights = max(sum(weight.numel() for weight in each.models[0].parameters()) for each in used)
    if used[0].device.type != "cpu" or weights > SMALL_MODEL_WEIGHTS:
        yield
        return
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(torch_threads)
