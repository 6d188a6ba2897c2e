"""Models in a folder given at the start that can answer in a pane: listed with their memory, loaded one at a time."""

import contextlib
import gc
import threading
import time
import weakref
from functools import lru_cache
from pathlib import Path

import psutil

from lite_c2f.backbone.device import free_bytes
from lite_c2f.backbone.machine import compute_on, pick_device
from lite_c2f.chat.context import MAX_CONTEXT
from lite_c2f.chat.folder_model import FolderModel
from lite_c2f.chat.folder_names import FOLDER, checked_folder, folder_model_in, name_of_folder
from lite_c2f.chat.history import one_line
from lite_c2f.chat.other_residues import MEBIBYTE
from lite_c2f.chat.panes import Listed, Pane
from lite_c2f.chat.stream import PendingQuestion
from lite_c2f.config.settings import Config
from lite_c2f.errors import C2FError, ConfigError, ModelError, RunError
from lite_c2f.memory.sizes import GIBIBYTE, Bytes, model_shape
from lite_c2f.runtime.batch_size import free

MAX_LISTED = 50
BATCH_SECONDS = 2.0  # for the answering thread to let go of a model whose answers have ended


class FolderModels:
    """The models of a folder; safe in several threads. None of them is loaded before it is asked.

    folder: its direct subfolders with config.json and *.safetensors are offered, links too; None: nothing is.
    Raises ConfigError for what is no folder.
    """

    def __init__(self, folder: str | Path | None, config: Config) -> None:
        self.folder, self.config = checked_folder(folder), config
        self.loaded: FolderModel | None = None
        # Of `loaded`, and while a model is loaded or counted: Transformers sets the process's default type then.
        self._lock = threading.Lock()
        self._questions: weakref.WeakSet[PendingQuestion] = weakref.WeakSet()

    def listed(self, *, fresh: bool = True) -> list[Listed]:
        """The models as a visitor chooses from them.

        fresh: with their memory, which takes time for some kinds; while one is loaded, without.
        """
        available = _size(self._available())
        result = []
        for name, folder in self._folders().items():
            memory = "loaded" if self._is_loaded(name) else ""
            if fresh and not memory and self._lock.acquire(blocking=False):
                try:
                    memory = f"needs about {_size(self._needs(folder))}, {available} free"
                except (C2FError, OSError):
                    pass
                finally:
                    self._lock.release()
            result.append(Listed(name, f"{folder.name} ({memory or 'a model folder'})"))
        return result

    def load_for(self, question: PendingQuestion) -> dict[str, tuple[str, str]]:
        """Load what a question needs, and keep it until that has ended; finish and message of failures, by pane."""
        models, failures = question.folder_models, dict[str, tuple[str, str]]()
        for pane in question.panes:
            if pane.actor == FOLDER:
                try:
                    if any(model.name != pane.source for model in models.values()):
                        raise ConfigError.because("two models of the folder", "one at a time", "leave one out")
                    self._load(pane, question)
                except Exception as error:  # of any kind, such as no memory: the other panes answer
                    failures[pane.key] = ("error", one_line(error))
        return failures

    def _load(self, pane: Pane, question: PendingQuestion) -> None:
        """Raises RunError for what is not listed, ModelError for what has no room or cannot be loaded."""
        name = pane.source
        folder = self._folders().get(name)
        if folder is None:
            got = f"'{folder_model_in(name) or name}' is not in the folder of models (any more)"
            raise RunError.because(got, "a model that is listed", "choose another, or remove the pane")
        with self._lock:
            if self.loaded is None or not self._is_loaded(name):
                self._drop(folder.name)
                needed, available = self._needs(folder), self._available()
                if needed > available:
                    got = f"'{folder.name}' needs about {_size(needed)}, {_size(available)} are free"
                    raise ModelError.because(got, "as much free memory", "choose a smaller one, or end other programs")
                self.loaded = FolderModel(name, folder, self.config)
            question.folder_models[pane.key] = self.loaded
            self._questions.add(question)  # under the lock: who waits for it would take the model's place

    def _drop(self, wanted: str) -> None:
        """Forget the loaded model. Raises RunError while it answers: two at once might have no room."""
        if self.loaded is None:
            return
        until = time.monotonic() + BATCH_SECONDS
        while self._in_use(self.loaded):
            if time.monotonic() > until or any(self._asks(question) for question in self._questions):
                got = f"'{folder_model_in(self.loaded.name)}' is answering, and '{wanted}' would take its place"
                raise RunError.because(got, "one model of the folder at a time", "ask again when it has ended")
            time.sleep(0.01)
        self.loaded.multi_model, self.loaded = None, None
        gc.collect()  # models refer to themselves
        free()

    def _in_use(self, model: FolderModel) -> bool:
        return model.in_batch or any(self._asks(question) for question in self._questions)

    def _asks(self, question: PendingQuestion) -> bool:
        """Has a pane of the folder not ended in a question?"""
        return any(not question.has_ended(key) for key in question.folder_models)

    def _is_loaded(self, name: str) -> bool:
        return self.loaded is not None and self.loaded.name == name

    def _folders(self) -> dict[str, Path]:
        """The folders of models, by pane's name."""
        folders = list[Path]()
        with contextlib.suppress(OSError):
            folders = sorted(self.folder.iterdir()) if self.folder is not None else []
        named = {name_of_folder(folder.name): folder for folder in folders if _holds_model(folder)}
        return dict([entry for entry in named.items() if folder_model_in(entry[0])][:MAX_LISTED])

    def _needs(self, folder: Path) -> float:
        """Bytes of a model, and of the keys and values of one answer."""
        return _needed_bytes(folder, (folder / "config.json").stat().st_mtime_ns, self.config)

    def _available(self) -> float:
        """Bytes that are free on the run's device."""
        bytes_ = free_bytes(pick_device(self.config))
        return float(psutil.virtual_memory().available if bytes_ is None else bytes_)


def _size(number: float) -> str:
    """Bytes, as text."""
    return f"{number / GIBIBYTE:.1f} GiB" if number >= GIBIBYTE / 10 else f"{number / MEBIBYTE:.1f} MiB"


def _holds_model(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return False


def _needed_bytes(folder: Path, changed: int, config: Config) -> float:
    compute = compute_on(config, pick_device(config))
    return _bytes_as_loaded(folder, changed, compute.itemsize, config.model.quantization != "none", compute.on_gpu)


@lru_cache(4 * MAX_LISTED)
def _bytes_as_loaded(folder: Path, changed: int, itemsize: int, quantized: bool, on_gpu: bool) -> float:
    """changed: when config.json was; a later one is read anew."""
    shape, _ = model_shape(str(folder))
    sizes = Bytes(shape, 1, None, itemsize, quantized, False, on_gpu)
    return sizes.base + sizes.cache(min(shape.context, MAX_CONTEXT))
