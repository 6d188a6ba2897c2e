"""Residues beside a run's own that panes may have: chosen from what is offered, loaded when first asked for, kept."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.backbone.device import free_bytes
from lite_c2f.backbone.multi_model import MultiModel, Residues
from lite_c2f.backbone.residue_file import ResidueFile, count_weights, decoder_prefix, read_residue
from lite_c2f.chat.history import one_line
from lite_c2f.chat.offers import Offer, find_offers
from lite_c2f.chat.other_actors import MAX_LOADED, other_actor_in, title_of_other
from lite_c2f.chat.panes import ALL_PANES, Listed, Pane
from lite_c2f.config.settings import Config
from lite_c2f.errors import C2FError, ModelError, RunError

MEBIBYTE = 2**20


class LoadedPanes(NamedTuple):
    """Panes with the ratios that their residues were merged at, and by pane's key what was loaded and what failed."""

    panes: list[Pane]
    residues: dict[str, Residues | None]  # None: the run's own
    failures: dict[str, tuple[str, str]]  # finish and message


class OtherResidues:
    """The residues that panes may have beside the run's own; safe in several threads.

    roles_model: the PEFT model whose adapters the residues are like.
    """

    def __init__(self, run: Path, config: Config, roles_model: Any, multi_model: MultiModel) -> None:
        self.run, self.config, self.multi_model = run.resolve(), config, multi_model
        self._decoder = decoder_prefix(roles_model)
        self._lock = threading.Lock()  # of what is loaded, and while something is
        self._loaded = OrderedDict[tuple[ResidueFile, int, int], Residues]()  # by file, its time and its size

    def offers(self) -> Mapping[str, Offer]:
        """What can be loaded now, by name."""
        return {offer.name: offer for offer in find_offers(self.run, self.config)}

    def listed(self) -> list[Listed]:
        """The offers as a visitor chooses from them; a file that is gone meanwhile is left out."""
        result = []
        for offer in self.offers().values():
            with contextlib.suppress(C2FError, OSError):
                notes = [part for part in (offer.note, self._memory(offer)) if part]
                result.append(Listed(offer.name, f"{_title(offer.name)} ({', '.join(notes)})"))
        return result

    def load_for(self, panes: Sequence[Pane]) -> LoadedPanes:
        """Load what the panes need beside the run's own; of those that have no source here, nothing is asked."""
        here = [pane for pane in panes if pane.source and pane.actor in ALL_PANES]
        result, offers = LoadedPanes([], {}, {}), self.offers() if here else {}
        for pane in panes:
            if pane in here:
                try:
                    offer = _known(offers, pane.source)
                    result.residues[pane.key] = self.load(offer)
                    pane = pane._replace(ratio=offer.ratio)
                except Exception as error:  # of any kind, such as no memory: the other panes answer
                    result.failures[pane.key] = ("error", one_line(error))
            result.panes.append(pane)
        return result

    def load(self, offer: Offer) -> Residues | None:
        """The residue of an offer, loaded where it is not yet; None: the run's own.

        Raises C2FError for a file that is gone, damaged or of another lineage, and where memory does not suffice.
        """
        if offer.residue is None:
            return None
        with self._lock:
            key = _key_of(offer.residue)
            if key not in self._loaded:
                self._check_memory(offer)
                residue = read_residue(offer.residue, self._decoder)
                try:
                    self._loaded[key] = self.multi_model.ready(residue)
                except ValueError as error:
                    raise ModelError.because(
                        f"'{_title(offer.name)}': {error}", "a residue of the same lineage", "choose another"
                    ) from None
            self._loaded.move_to_end(key)
            while len(self._loaded) > MAX_LOADED:  # rows that still use it keep it alive
                self._loaded.popitem(last=False)
            return self._loaded[key]

    def _bytes(self, residue: ResidueFile) -> int:
        return _weights(*_key_of(residue)[:2]) * self.multi_model.dtype.itemsize

    def _memory(self, offer: Offer) -> str:
        """The memory that it adds, in words."""
        if offer.residue is None:
            return "the one in the Coarse pane"
        if _key_of(offer.residue) in self._loaded:
            return "loaded"
        size = self._bytes(offer.residue) / MEBIBYTE
        return f"adds {size:.0f} MiB" if size >= 9.5 else f"adds {max(size, 0.1):.1f} MiB"

    def _check_memory(self, offer: Offer) -> None:
        free = free_bytes(self.multi_model.device)
        if offer.residue is None or free is None:
            return
        needed = self._bytes(offer.residue)
        if needed > free:
            got = f"'{_title(offer.name)}' needs {needed / MEBIBYTE:.0f} MiB, {free / MEBIBYTE:.0f} are free"
            raise ModelError.because(got, "as much free memory", "end other programs on the device")


def _known(offers: Mapping[str, Offer], name: str) -> Offer:
    """The offer of that name. Raises RunError where there is none."""
    if name not in offers:
        got = f"'{_title(name)}' is not there (any more)"
        raise RunError.because(got, "an actor that is listed", "choose another, or remove the pane")
    return offers[name]


@lru_cache(1024)  # a page lists all files when it is opened
def _weights(residue: ResidueFile, changed: int) -> int:
    """changed: when the file was; a later one is read anew."""
    return count_weights(residue)


def _key_of(residue: ResidueFile) -> tuple[ResidueFile, int, int]:
    """What names the loaded residue of a file: another one once the file is replaced."""
    try:
        status = residue.file.stat()
    except OSError:
        raise ModelError.because(f"'{residue.place}' is gone", "the file of an adapter", "choose another") from None
    return residue, status.st_mtime_ns, status.st_size


def _title(name: str) -> str:
    other = other_actor_in(name)
    return title_of_other(other) if other else name
