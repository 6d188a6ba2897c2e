"""Where the models of a run are: a folder that is gone, and a folder with the same files, which is the same model."""

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lite_c2f.config.settings import Config
from lite_c2f.config.settings_diff import in_recorded_form
from lite_c2f.errors import RunError
from lite_c2f.runs.fingerprints import fingerprints_of
from lite_c2f.runs.models import TOY, ModelPair, adapter_base
from lite_c2f.storage.files import read_json, write_text

ADAPTERS = ("reward/adapter", "coarse/adapter", "coarse/critic", "coarse/best/adapter")


def refuse_gone(run: Path, config: Config, folders: Mapping[str, str], settings: Sequence[str] = ()) -> None:
    """Raise RunError with the command that records the new place, when a model's folder is no longer there.

    folders: by name, `base` and `instruct`; settings: what else that command needs.
    """
    gone = {name: folder for name, folder in folders.items() if not Path(folder).is_dir()}
    if not gone:
        return
    moved = [name for name in gone if Path(getattr(config.model, name)).is_absolute()]
    new = {name: "NEW" if len(moved) == 1 else f"NEW_{name.upper()}" for name in moved}
    words = ["lite-c2f", "train", shlex.quote(str(run)), *settings]
    command = " ".join([*words, *(f"model.{name}={new[name]}" for name in moved)])
    if moved:
        remedy = f"name the new place: `{command}`"
    else:
        verb, pronoun = "make" if config.model.base == TOY else "fetch", "it" if len(gone) == 1 else "them"
        remedy = f"{verb} {pronoun} again: `{command}`"
    what = " and ".join(f"{name} model '{folder}'" for name, folder in gone.items())
    got, expected = ("is gone", "the folder") if len(gone) == 1 else ("are gone", "the folders")
    raise RunError.because(f"{what} of '{run}' {got}", f"{expected} it was made with", remedy)


def check_places(
    run: Path, config: Config, made: Config | None, before: Mapping[str, str], models: ModelPair | None = None
) -> dict[str, str]:
    """A sentence for each model that is elsewhere than a run has written down, by name (`base`, `instruct`).

    made, before: configuration and fingerprints of the run as they were recorded. A run that has not begun has neither
    and may take any model; where the configuration alone is lost, the models' files must be the same. models: folders;
    None where hub names are not resolved yet, which are left out then. Raises RunError naming the first file that
    differs, or the command to use where a recorded folder is gone.
    """
    if made is None:
        return _check_files(run, config, before, models)
    places = {name: (_place(made, name), _place(config, name)) for name in ModelPair._fields}
    given = [f"model.{name}={shlex.quote(now[0])}" for name, (then, now) in places.items() if now != then]
    left = {name: now[0] for name, (then, now) in places.items() if now == then and Path(now[0]).is_absolute()}
    refuse_gone(run, config, left, given)
    sentences = {}
    for name, folder in _folders(config, models).items():
        then, now = places[name]
        if now != then:
            _refuse_other(run, name, then[0], now[0], before, fingerprints_of(name, folder))
            sentences[name] = f"model.{name}: '{now[0]}' holds the same files as '{then[0]}' did, and takes its place"
    return sentences


def unmoved(fingerprints: Mapping[str, str], moved: Collection[str]) -> dict[str, str]:
    """Fingerprints without those of models that are elsewhere: their files were compared already."""
    return {
        key: value for key, value in fingerprints.items() if not key.startswith(tuple(f"model.{n}: " for n in moved))
    }


def record_base(run: Path, before: str, config: Config, models: ModelPair) -> None:
    """Let a run's adapters name the base model where it is now, for PEFT and Transformers load it from there.

    before: the folder where it was. An adapter that names a hub model is left as it is. Weights are not touched.
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
    """Raise RunError unless the models have the files that are recorded; the place they had is not known."""
    for name, folder in _folders(config, models).items():
        if any(key.startswith(f"model.{name}: ") for key in before):
            _refuse_other(run, name, None, _place(config, name)[0], before, fingerprints_of(name, folder))
    return {}


def _folders(config: Config, models: ModelPair | None) -> dict[str, str]:
    """The models' folders by name; where hub names are not resolved, those that are folders."""
    if models:
        return models._asdict()
    places = {name: _place(config, name)[0] for name in ModelPair._fields}
    return {name: place for name, place in places.items() if place != TOY and Path(place).is_dir()}


def _refuse_other(
    run: Path, name: str, then: str | None, now: str, before: Mapping[str, str], files: Mapping[str, str]
) -> None:
    known = {key: value for key, value in before.items() if key.startswith(f"model.{name}: ")}
    if not known:
        got = f"'{run}' was made with model.{name}={then!r}, now {now!r}, and has no record of its files"
        raise RunError.because(got, "the same value", "set it back, or use another --run-dir")
    files = in_recorded_form(known, files)
    for key in sorted(known.keys() | files.keys()):
        file = key.partition(": ")[2]
        # A download for a run leaves these out, and nothing is read from them.
        inert = file.startswith("consolidated") or (file.endswith(".txt") and f"model.{name}: tokenizer.json" in known)
        if known.get(key) != files.get(key) and not (inert and not (key in known and key in files)):
            place = "" if then is None else f" (which was '{then}')"
            got = f"model.{name}: '{now}' is not the model of '{run}'{place}: {file} was "
            got += f"{known.get(key, 'not there')}, is {files.get(key, 'not there')}"
            raise RunError.because(got, "a folder with the same files", "name that folder, or use another --run-dir")


def _place(config: Config, name: str) -> tuple[str, str | None]:
    return getattr(config.model, name), getattr(config.model, f"{name}_revision")
