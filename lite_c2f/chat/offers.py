"""Residues on disk beside a run's own that can answer in a pane.

Listed are this run's best and last policy where it has both, its checkpoints, and the same of other runs in its folder
that began with the same base and instruct model and prompt the base in the same way, with the Fine Actor of those that
are finished. The list is made from what the folder holds, and a name is only looked up in it.
"""

import contextlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lite_c2f.actors.names import COARSE, FINE
from lite_c2f.backbone.residue_file import ResidueFile, published_residue
from lite_c2f.chat.other_actors import BEST, LAST, MERGED, OtherActor, is_run_name, name_of
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config
from lite_c2f.errors import C2FError
from lite_c2f.runs.manifest import inputs_of
from lite_c2f.runs.published import coarse_adapter, is_published, merged_ratio
from lite_c2f.storage.checkpoints import TENSORS, CheckpointStore, step_of
from lite_c2f.storage.files import read_json

MAX_RUNS = 20  # other runs that are listed: of those that fit, the ones that changed last


class Offer(NamedTuple):
    """An actor that can answer in a pane of its own."""

    name: str  # of its pane, as `other_actors.py` has them
    residue: ResidueFile | None  # None: the run's own, which is loaded
    ratio: float | None = None  # of the Fine Actor
    note: str = ""  # what is known of it beside its title


def find_offers(run: Path, config: Config) -> list[Offer]:
    """What can be loaded beside a run's own actors; parts of a run that cannot be read are left out."""
    result, own = list[Offer](), dict[str, str]()
    with contextlib.suppress(C2FError, OSError):
        result = _coarse_of(run, config, "")
        own = _models_of(run)
    left = MAX_RUNS if own else 0
    for other in _beside(run) if own else ():
        with contextlib.suppress(C2FError, OSError, ValueError):
            if not left or _models_of(other) != own:
                continue
            file = other / "config.yaml"
            theirs = _read_config(file, file.stat().st_mtime_ns)
            if _prompting(theirs) == _prompting(config):
                found = [*_coarse_of(other, theirs, other.name), *_fine_of(other, theirs)]
                result += found
                left -= bool(found)
    return result


@lru_cache(4 * MAX_RUNS)  # pydantic and YAML take tens of milliseconds
def _read_config(file: Path, changed: int) -> Config:
    """changed: when the file was; a later one is read anew."""
    return load_config(file)


def _beside(run: Path) -> list[Path]:
    """Other runs in the folder of a run, those first whose metrics or record changed last."""
    changed = dict[Path, float]()
    for record in run.parent.glob("*/run.json"):
        with contextlib.suppress(OSError):
            folder, metrics = record.parent, record.with_name("metrics.jsonl")
            if is_run_name(folder.name) and folder.name != run.name:
                changed[folder] = max(file.stat().st_mtime for file in (record, metrics) if file.is_file())
    return sorted(changed, key=lambda folder: (-changed[folder], folder.name))


def _models_of(run: Path) -> dict[str, str]:
    """Fingerprints of the files of a run's models; {} where it has none on record."""
    return {name: print_ for name, print_ in inputs_of(run).items() if name.startswith("model.")}


def _prompting(config: Config) -> tuple[Any, ...]:
    """How a run's base is asked and stopped: the page asks all actors as its own run does."""
    return config.model.prompt_template, config.model.chat_template_kwargs, config.model.stop


def _coarse_of(run: Path, config: Config, name: str) -> list[Offer]:
    """The policies of a run that are on disk. name: of another run; "" for the page's own."""
    result = []
    last, best = run / "coarse" / "adapter", run / "coarse" / "best" / "adapter"
    used = coarse_adapter(run, config.coarse.use)
    folders = {BEST: best, LAST: last} if name or best.is_dir() else {}
    for moment, folder in folders.items():
        if folder.is_dir() and is_published(run, COARSE):
            with contextlib.suppress(C2FError):
                residue = None if folder == used and not name else published_residue(folder)
                note = _step_of_best(best) if moment == BEST else ""
                result.append(Offer(name_of(OtherActor(COARSE, moment, name)), residue, note=note))
    for folder in reversed(CheckpointStore(run / "coarse" / "checkpoints").folders()):
        residue = ResidueFile(folder / TENSORS, "policy.", config.lora.alpha, config.lora.rslora)
        result.append(Offer(name_of(OtherActor(COARSE, f"step-{step_of(folder)}", name)), residue, note="checkpoint"))
    return result


def _fine_of(run: Path, config: Config) -> list[Offer]:
    """The Fine Actor of another run; none for a merge with ratios by layer, which are no ratio of the residue."""
    if not (is_published(run, FINE) and is_published(run, COARSE)):
        return []
    ratio, uniform = merged_ratio(run / "fine" / "merge.json")
    residue = published_residue(coarse_adapter(run, config.coarse.use))
    name = name_of(OtherActor(FINE, MERGED, run.name))
    return [Offer(name, residue, ratio, f"at its ratio {ratio:g}")] if uniform else []


def _step_of_best(adapter: Path) -> str:
    try:
        return f"after update {int(read_json(adapter.parent / 'best.json')['step'])}"
    except (C2FError, KeyError, TypeError, ValueError):
        return ""
