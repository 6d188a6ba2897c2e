"""Locations of a run's models: a folder that is missing, and another folder with the same files."""

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lite_c2f.config.settings import Config
from lite_c2f.config.settings_diff import in_recorded_format
from lite_c2f.errors import RunError
from lite_c2f.gguf import is_packed
from lite_c2f.runs.fingerprints import fingerprints_of
from lite_c2f.runs.model_pair import TOY, ModelPair, adapter_base
from lite_c2f.storage.files import read_json, write_text

ADAPTERS = ("reward/adapter", "coarse/adapter", "coarse/critic", "coarse/best/adapter")


def check_model_folders(run: Path, config: Config, folders: Mapping[str, str], settings: Sequence[str] = ()) -> None:
    """Raise RunError with the command that records the new location, when a model's folder no longer exists.

    folders: by name (`base`, `instruct`); settings: further overrides for that command.
    """
    missing = {name: folder for name, folder in folders.items() if not Path(folder).is_dir()}
    if not missing:
        return
    moved = [name for name in missing if Path(getattr(config.model, name)).is_absolute()]
    new = {name: "NEW" if len(moved) == 1 else f"NEW_{name.upper()}" for name in moved}
    words = ["lite-c2f", "train", shlex.quote(str(run)), *settings]
    command = " ".join([*words, *(f"model.{name}={new[name]}" for name in moved)])
    if moved:
        remedy = f"name the new folder: `{command}`"
    else:
        verb, pronoun = (
            "make" if config.model.base == TOY or is_packed(config.model.base) else "fetch",
            "it" if len(missing) == 1 else "them",
        )
        remedy = f"{verb} {pronoun} again: `{command}`"
    what = " and ".join(f"{name} model '{folder}'" for name, folder in missing.items())
    got, expected = ("is gone", "the folder") if len(missing) == 1 else ("are gone", "the folders")
    raise RunError.because(f"{what} of '{run}' {got}", f"{expected} it was made with", remedy)


def check_places(
    run: Path, config: Config, recorded: Config | None, before: Mapping[str, str], models: ModelPair | None = None
) -> dict[str, str]:
    """{name (`base`, `instruct`): message} for each model whose location differs from the recorded one.

    recorded, before: the run's configuration and fingerprints as recorded. A run that has not begun has neither and
    accepts any model; if only the configuration is lost, the models' files must be the same. models: folders; None if
    hub names are not resolved yet, which are then not checked. Raises RunError naming the first file that differs, or
    the command to use if a recorded folder is missing.
    """
    if recorded is None:
        return _check_files(run, config, before, models)
    places = {name: (_location(recorded, name), _location(config, name)) for name in ModelPair._fields}
    moved = [f"model.{name}={shlex.quote(new[0])}" for name, (old, new) in places.items() if new != old]
    unchanged = {name: new[0] for name, (old, new) in places.items() if new == old and Path(new[0]).is_absolute()}
    check_model_folders(run, config, unchanged, moved)
    sentences = {}
    for name, folder in _folders(config, models).items():
        old, new = places[name]
        if new != old:
            _check_same_files(run, name, old[0], new[0], before, fingerprints_of(name, folder))
            sentences[name] = f"model.{name}: '{new[0]}' holds the same files as '{old[0]}' did, and takes its place"
    return sentences


def without_moved(fingerprints: Mapping[str, str], moved: Collection[str]) -> dict[str, str]:
    """Fingerprints without those of moved models, whose files were compared already."""
    return {
        key: value for key, value in fingerprints.items() if not key.startswith(tuple(f"model.{n}: " for n in moved))
    }


def record_base(run: Path, before: str, config: Config, models: ModelPair) -> None:
    """Write the base model's new location into the run's adapters, from where PEFT and Transformers load it.

    before: the old folder. An adapter that names a hub model is not changed, nor are weights.
    """
    place = adapter_base(config, models)
    for folder in ADAPTERS:
        file = run / folder / "adapter_config.json"
        if place == before or not file.is_file():
            continue
        settings = read_json(file)
        if isinstance(settings, dict) and settings.get("base_model_name_or_path") == before:
            settings |= {"base_model_name_or_path": place, "revision": config.model.base_revision}
            write_text(file, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _check_files(run: Path, config: Config, before: Mapping[str, str], models: ModelPair | None) -> dict[str, str]:
    """Raise RunError unless the models have the recorded files; their former location is not known."""
    for name, folder in _folders(config, models).items():
        if any(key.startswith(f"model.{name}: ") for key in before):
            _check_same_files(run, name, None, _location(config, name)[0], before, fingerprints_of(name, folder))
    return {}


def _folders(config: Config, models: ModelPair | None) -> dict[str, str]:
    """The models' folders by name; without those of unresolved hub names."""
    if models:
        return models._asdict()
    places = {name: _location(config, name)[0] for name in ModelPair._fields}
    return {name: place for name, place in places.items() if place != TOY and Path(place).is_dir()}


def _check_same_files(
    run: Path, name: str, old: str | None, new: str, before: Mapping[str, str], files: Mapping[str, str]
) -> None:
    known = {key: value for key, value in before.items() if key.startswith(f"model.{name}: ")}
    if not known:
        got = f"'{run}' was made with model.{name}={old!r}, now {new!r}, and has no record of its files"
        raise RunError.because(got, "the same value", "set it back, or use another --run-dir")
    files = in_recorded_format(known, files)
    for key in sorted(known.keys() | files.keys()):
        file = key.partition(": ")[2]
        # Not part of a run's download, and not read.
        inert = file.startswith("consolidated") or (file.endswith(".txt") and f"model.{name}: tokenizer.json" in known)
        if known.get(key) != files.get(key) and not (inert and not (key in known and key in files)):
            former = "" if old is None else f" (which was '{old}')"
            got = f"model.{name}: '{new}' is not the model of '{run}'{former}: {file} was "
            got += f"{known.get(key, 'not there')}, is {files.get(key, 'not there')}"
            raise RunError.because(got, "a folder with the same files", "name that folder, or use another --run-dir")


def _location(config: Config, name: str) -> tuple[str, str | None]:
    return getattr(config.model, name), getattr(config.model, f"{name}_revision")
