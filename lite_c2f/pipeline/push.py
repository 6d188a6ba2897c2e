"""Upload of a run's Coarse adapter, Fine Actor or GGUF adapter to the Hugging Face hub, in one commit."""

import contextlib
import fnmatch
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from lite_c2f.actors.names import BASE, FINE, INSTRUCT
from lite_c2f.errors import ConfigError, RunError
from lite_c2f.fine.gguf_adapter import export_run
from lite_c2f.fine.gguf_companions import MODELFILE
from lite_c2f.fine.report import CARD, REPORT
from lite_c2f.pipeline.model_card import (
    ADAPTER,
    GGUF,
    RunRecords,
    licence_in,
    licence_of,
    model_card,
    public_name,
    read_records,
)
from lite_c2f.runs.published import check_run_folder, coarse_adapter, is_published
from lite_c2f.storage.files import read_json

STAGES_OF = {ADAPTER: ("coarse",), FINE: ("fine",), GGUF: ("coarse", "fine")}
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = (  # patterns of what belongs to a model folder; anything else in it stays here
    *("config.json", "generation_config.json", "*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json"),
    *("additional_chat_templates/*.jinja", "LICENSE*", "NOTICE*"),
)
SETTINGS_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "adapter_config.json", REPORT)
ABSOLUTE = re.compile(r"(?:/|~/|\\\\|[A-Za-z]:[\\/]).*[\\/].+")
KIND_OF = {"adapter_config.json": ADAPTER, "config.json": FINE, "residue.gguf": GGUF}  # files that a repo of each has
SAME_COMMAND = "run the same command again: what has arrived is not sent twice"


class Upload(NamedTuple):
    """What is to be uploaded."""

    files: dict[str, Path | bytes]  # by name in the repo; README.md is the card
    left_out: list[str]  # names in the model folder that are no part of a model

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


@contextlib.contextmanager
def prepared(
    run: str | Path, repo: str, what: str = ADAPTER, *, licence: str | None = None, api: HfApi | None = None
) -> Iterator[Upload]:
    """In the block, the files to upload: weights as they are, settings without local paths, and a new model card.

    repo: OWNER/NAME; what: `adapter`, `fine` or `gguf`; licence: for the card, by default that of the base or instruct
    model's own card, looked up on the hub with `api` (None: only in its folder). A GGUF file lasts as long as the
    block. Raises ConfigError for a name, RunError where the run lacks the stage, and as `export_run` does.
    """
    run = Path(run)
    check_repo_name(repo)
    check_run_folder(run)
    for stage in STAGES_OF[what]:
        if not is_published(run, stage):
            got = f"'{run}' has no {stage} stage, which `--what {what}` uploads"
            raise RunError.because(got, "a published one", f"train it: lite-c2f train {run} --stage {stage}")
    records = read_records(run)
    if what != ADAPTER:
        read_json(run / "fine" / REPORT)  # with the ratio, which the card names
    places = private_places(run, records)
    with tempfile.TemporaryDirectory() as folder:
        files, left_out = _files_of(run, records, what, Path(folder), places)
        if not any(name.endswith((".safetensors", ".gguf")) for name in files):
            got = f"'{run}' has no weights in what `--what {what}` uploads"
            raise RunError.because(got, "a .safetensors file", "restore it, or train that stage again")
        known = _licence(records, what, licence, api)
        card = model_card(records, what, repo, known, licence_of_model=licence is None)
        yield Upload({CARD: _public(card, places).encode(), **files}, left_out)


def push_run(upload: Upload, repo: str, what: str, *, private: bool, api: HfApi, weights_of: str) -> str:
    """Upload in one commit; returns its URL. Until that commit nothing is visible but an empty repo.

    Weight files of an earlier upload that are not part of this one are removed in the same commit. weights_of: the run,
    for the commit's message. Raises RunError for a repo of another kind, a token, the network.
    """
    with hub_errors(repo, api.endpoint):
        if (api.token or get_token()) is None:
            raise RunError.because("no token of the hub", "one that may write", LOG_IN)
        address = api.create_repo(repo, private=private or None, repo_type="model", exist_ok=True)
        if address.repo_type not in (None, "model"):
            got = f"'{repo}' is a {address.repo_type} repo"
            raise RunError.because(got, "a model repo", "choose another name")
        info = api.model_info(repo)
        there = [file.rfilename for file in info.siblings or []]
        if private and info.private is False:
            got = f"'{repo}' exists and is public"
            raise RunError.because(got, "a private repo", "make it private in its settings, or choose another name")
        if others := {KIND_OF[name] for name in there if name in KIND_OF} - {what}:
            got = f"'{repo}' holds what `--what {sorted(others)[0]}` uploads"
            raise RunError.because(got, "a repo of its own for each", "choose another name")
        stale = [name for name in there if name.endswith((".safetensors", ".index.json")) and name not in upload.files]
        done = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, content) for name, content in upload.files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=f"Upload {what} of {weights_of} with lite-c2f",
            repo_type="model",
        )
    return str(done.commit_url)


LOG_IN = "run `hf auth login`, set HF_TOKEN, or name a --token-file"


@contextlib.contextmanager
def hub_errors(repo: str, endpoint: str) -> Iterator[None]:
    """In the block, errors of the hub and of the network become RunErrors in one line."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = f": {_brief(error.server_message)}" if error.server_message else ""
        raise RunError.because(
            *{
                401: (f"the hub does not accept the token{said}", "one that may write", LOG_IN),
                403: (
                    f"the token may not write to '{repo}'{said}",
                    "write access",
                    f"make a token that may write ({endpoint}/settings/tokens), or name an owner that it is for",
                ),
                404: (f"the hub has no model '{repo}' for this token", "one that it may see", "check the name"),
            }.get(status, (f"the hub answered {status}{said}", "an upload", SAME_COMMAND))
        ) from None
    except OfflineModeIsEnabled:
        raise RunError.because("HF_HUB_OFFLINE is set", "access to the hub", "unset it") from None
    except (HTTPError, ConnectionError, TimeoutError, RuntimeError) as error:  # RuntimeError: of a thread that uploads
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            with hub_errors(repo, endpoint):
                raise cause from None
        got = f"the upload to {endpoint} broke off ({type(cause).__name__}: {_brief(cause)})"
        raise RunError.because(got, "a connection; nothing is visible yet", SAME_COMMAND) from None
    except ValueError as error:
        raise RunError.because(f"the hub refused '{repo}': {_brief(error)}", "an upload", "change that") from None


def hub_api(token_file: Path | None = None) -> HfApi:
    """Client of the hub (HF_ENDPOINT) with the token of a file, or the one that huggingface_hub finds.

    Raises ConfigError for a file that cannot be read or is empty.
    """
    if token_file is None:
        return HfApi()
    try:
        token = token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        token = ""
    if not re.fullmatch(r"[!-~]+", token):
        got = f"--token-file '{token_file}' has no token"
        raise ConfigError.because(got, "a file with a token of the hub alone", "check it")
    return HfApi(token=token)


def check_repo_name(repo: str) -> None:
    """Raise ConfigError unless this is OWNER/NAME of a model."""
    expected, remedy = "OWNER/NAME of a model, such as me/mistral-coarse", "correct --to"
    if repo.startswith(("datasets/", "spaces/")):
        raise ConfigError.because(f"--to {repo!r} is a {repo.split('s/')[0]} repo", expected, remedy)
    if repo.count("/") != 1:
        raise ConfigError.because(f"--to {repo!r} has {repo.count('/')} slashes", expected, remedy)
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError.because(f"--to {repo!r}: {_brief(error)}".rstrip("."), expected, remedy) from None


def private_places(run: Path, records: RunRecords) -> dict[str, str]:
    """{absolute path: what to write in its place}, longest first: of the run, its models and data, and the home."""
    config, home = records.config, Path.home()
    named = [
        *(str(getattr(config.model, name)) for name in (BASE, INSTRUCT)),
        *records.manifest["models"].values(),
        *(source.path for source in (*config.data.preferences, *config.data.prompts)),
        *(str(source.adapter or source.function or "") for source in config.coarse.judges),
        *(config.run.dir, str(run.resolve()), str(run.absolute())),
    ]
    places = {name: public_name(name) for name in named if ABSOLUTE.fullmatch(name)}
    if len(home.parts) > 2:  # one part, such as /data, names nobody, and may be within a hub name
        places[str(home)] = "~"
    return dict(sorted(places.items(), key=lambda place: -len(place[0])))


def without_places(value: Any, places: Mapping[str, str]) -> Any:
    """JSON in which absolute paths are names: those that are a whole text, and known ones within a text."""
    if isinstance(value, dict):
        return {key: without_places(part, places) for key, part in value.items()}
    if isinstance(value, list):
        return [without_places(part, places) for part in value]
    return _public(value, places) if isinstance(value, str) else value


def _public(text: str, places: Mapping[str, str]) -> str:
    if text not in places and ABSOLUTE.fullmatch(text):
        return public_name(text)
    for place, name in places.items():
        text = text.replace(place, name)
    return text


def _files_of(
    run: Path, records: RunRecords, what: str, folder: Path, places: Mapping[str, str]
) -> tuple[dict[str, Path | bytes], list[str]]:
    """(files by name in the repo without the card, names that are left out). folder: an empty one for a GGUF file."""
    if what == GGUF:
        written = export_run(run, folder / "residue.gguf").file
        modelfile = _public(written.with_name(MODELFILE).read_text("utf-8"), places)
        return {written.name: written, MODELFILE: modelfile.encode()}, []
    source = coarse_adapter(run, records.config.coarse.use) if what == ADAPTER else run / "fine" / "model"
    there = {str(path.relative_to(source).as_posix()): path for path in sorted(source.rglob("*")) if path.is_file()}
    patterns = ADAPTER_FILES if what == ADAPTER else MODEL_FILES
    chosen = {name: path for name, path in there.items() if any(_fits(name, p) for p in patterns)}
    if what == FINE and (run / "fine" / REPORT).is_file():
        chosen[REPORT] = run / "fine" / REPORT
    files = {name: _settings(path, places) if name in SETTINGS_FILES else path for name, path in chosen.items()}
    return files, [name for name in there if name not in files and name != CARD]


def _fits(name: str, pattern: str) -> bool:
    """Whether a name in a folder has this pattern, in which * stands for no slash."""
    return fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")


def _settings(file: Path, places: Mapping[str, str]) -> Path | bytes:
    """A JSON file without local paths; the file itself where it has none."""
    content = read_json(file)
    public = without_places(content, places)
    return file if public == content else (json.dumps(public, indent=2) + "\n").encode()


def _licence(records: RunRecords, what: str, given: str | None, api: HfApi | None) -> dict[str, str]:
    """Licence for the card; {} if none is known."""
    if given is not None:
        return {"license": given}
    name = BASE if what == ADAPTER else INSTRUCT
    if known := licence_in(records.manifest["models"][name]):
        return known
    hub = records.hub_model(name)
    if hub is None or api is None or constants.HF_HUB_OFFLINE:
        return {}
    with contextlib.suppress(HTTPError, OSError, ValueError):  # the card says then that it is not stated
        card = api.model_info(hub).card_data
        return {} if card is None else licence_of(card.to_dict())
    return {}


def _brief(error: object) -> str:
    return " ".join(str(error).split())[:160]
