"""Tasks of lm-evaluation-harness, by name or as YAML files, loaded and checked before any model is."""

import difflib
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
import yaml

from lite_c2f.errors import C2FError, ConfigError, DataError
from lite_c2f.runtime.batch_size import BatchSize

GENERAL_11 = (  # eleven usual tasks; which ones the paper's authors used is not public
    "mmlu",
    "arc_challenge",
    "hellaswag",
    "winogrande",
    "piqa",
    "boolq",
    "openbookqa",
    "truthfulqa_mc2",
    "gsm8k",
    "bbh",
    "agieval_en",
)
PRESETS = {"general-11": GENERAL_11}
SEED = 1234  # lm-eval's own, for the same few-shot examples as in published figures


class TaskRequest(NamedTuple):
    """The tasks of a benchmark, loaded."""

    tasks: dict[str, Any]  # single tasks by name
    groups: dict[str, Any]  # groups of them
    shown: list[str]  # tasks and groups in the order of the request; a tag or a folder is shown as its tasks


class TaskOptions(NamedTuple):
    """Options that tasks are run with."""

    hashes: dict[str, str]  # by task: of everything its figures depend on, apart from the actor
    limit: int | None  # documents of a task
    chat: bool  # prompts are conversations
    batch: BatchSize  # requests at once

    def label(self, actor: str, task: str) -> str:
        """The name of a result in the cache."""
        return f"{actor} {task} {self.hashes[task]}"


def harness_version() -> str:
    """The version of lm-eval. Raises ConfigError when it is not installed."""
    try:
        import lm_eval
    except ImportError:
        remedy = 'pip install "lite_c2f[eval]"'
        raise ConfigError.because("--tasks: lm-eval is not installed", "lm-evaluation-harness", remedy) from None
    return str(lm_eval.__version__)


def load_tasks(
    names: Sequence[str], fewshot: int | None = None, progress: Callable[[int, int], None] | None = None
) -> TaskRequest:
    """Load presets, tasks, groups, tags, YAML files and folders of them, and build a first request of each task.

    fewshot: examples in a prompt instead of each task's own number; a task with 0 keeps it, as in lm-eval.
    progress: called with the numbers of loaded names and of all. A YAML file may name Python functions in its folder,
    which are run: use files you trust. Raises ConfigError or DataError naming the task that does not exist or
    cannot be loaded.
    """
    specs = list(dict.fromkeys(spec for name in names for spec in expand_name(name.strip())))
    if not specs:
        raise ConfigError.because("--tasks is empty", "names of tasks, or a preset", "try --tasks general-11")
    groups = {spec: Path(spec) for spec in specs if is_file(spec) and "group" in read_task(Path(spec))}
    manager = task_manager(specs, list(groups.values()))
    for spec in specs:  # before any data are downloaded
        if not is_file(spec) and spec not in manager.task_index:
            near = difflib.get_close_matches(spec, [*PRESETS, *manager.task_index], 3)
            do = f"did you mean {', '.join(near)}?" if near else "correct --tasks"
            raise ConfigError.because(f"no task '{spec}'", "a task, group or tag of lm-eval, or a YAML file", do)
    request = TaskRequest({}, {}, [])
    for done, spec in enumerate(specs):
        if progress:
            progress(done, len(specs))
        load_task(request, str(read_task(groups[spec])["group"]) if spec in groups else spec, manager, fewshot)
    return request


def expand_name(name: str) -> list[str]:
    """The tasks of a preset, the YAML files of a folder, or the name itself."""
    if name in PRESETS:
        return list(PRESETS[name])
    if not is_file(name):
        return [name] if name else []  # an extra comma
    path = Path(name).expanduser()
    if path.is_dir():
        files = [str(file) for file in sorted(path.glob("*.yaml")) if "task" in read_task(file)]
        if not files:
            raise ConfigError.because(f"'{name}' holds no task", "YAML files of tasks", "check --tasks")
        return files
    if not path.is_file():
        raise ConfigError.because(f"--tasks '{name}': no such file", "a YAML file of a task", "check the path")
    if not {"task", "group"} & read_task(path).keys():
        raise ConfigError.because(f"'{name}' is no task", "a YAML file with `task:`", "see lm-eval's task guide")
    return [str(path)]


def is_file(spec: str) -> bool:
    """Whether it is the path of a file or folder: names of tasks have neither a slash nor a suffix."""
    return spec.endswith((".yaml", ".yml")) or "/" in spec


def read_task(file: Path) -> dict[str, Any]:
    """A YAML file without the files it includes. Raises ConfigError when it is broken."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(file, resolve_func=False, recursive=False))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        error_line = " ".join(str(error).split())[:160]
        raise ConfigError.because(f"'{file}': {error_line}", "a YAML file of a task", "correct it") from None


def task_manager(specs: Sequence[str], groups: Sequence[Path]) -> Any:
    """lm-eval's index of tasks, with its own tasks only if a name or a group needs them.

    groups: files of groups. lm-eval finds these by name alone, in an index with the folder they are in.
    """
    from lm_eval.tasks import TaskManager

    if not groups:
        return task_index(whole=not all(map(is_file, specs)))
    folders: list[Any] = [file.parent for file in groups]
    local = TaskManager(include_path=folders, include_defaults=False)
    known = local.task_index
    members = [member for entry in known.values() if entry.kind.name == "GROUP" for member in (entry.cfg or {})["task"]]
    if all(map(is_file, specs)) and all(isinstance(member, str) and member in known for member in members):
        return local
    return TaskManager(include_path=folders)


@functools.cache
def task_index(*, whole: bool) -> Any:
    """lm-eval's index; unless `whole`, without its own 14,000 files, which take seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=whole)


def load_task(request: TaskRequest, spec: str, manager: Any, fewshot: int | None) -> None:
    """Load one name into `request`. Raises DataError or ConfigError naming it."""
    try:
        loaded = manager.load([spec])
    except Exception as error:  # any error of YAML, datasets or a task's own functions
        raise loading_error(spec, error) from error
    for name, task in loaded["tasks"].items():
        other = request.tasks.get(name)
        if other is not None and other.dump_config() != task.dump_config():
            raise ConfigError.because(f"two tasks are named '{name}'", "different names", "rename one")
        check_task(name, task, fewshot)
        request.tasks[name] = task
    request.groups.update(loaded["groups"])
    inside = {child for group in loaded["groups"].values() for child in group.child_names}
    roots = [group for name, group in loaded["groups"].items() if name not in inside]
    shown = [name for name in loaded["tasks"] if not roots]
    for group in roots:
        shown += [group.name] if group.has_aggregation else [task.task_name for task in group.get_all_tasks()]
    request.shown.extend(name for name in shown if name not in request.shown)


def check_task(name: str, task: Any, fewshot: int | None) -> None:
    """Set a task's few-shot examples, and build its first request. Raises C2FError if that fails."""
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        what = "runs code that a model wrote" if getattr(task, "UNSAFE_CODE", False) else "needs pictures or sound"
        raise ConfigError.because(f"task '{name}' {what}", "a task of text alone", "leave it out of --tasks")
    own_scores = task.get_config("process_results") is not None  # the task's own function, with metrics of any name
    for metric, known in getattr(task, "_metric_fn_list", {}).items():
        if known is None and not own_scores:
            got = f"task '{name}' has the metric '{metric}'"
            raise ConfigError.because(got, "one that lm-eval knows", "correct its metric_list")
    own = task.get_config("num_fewshot")
    task.set_config("num_fewshot", own or 0 if fewshot is None or own == 0 else fewshot)
    try:
        if not len(task.eval_docs):
            raise DataError.because(f"task '{name}' has no documents", "at least one", "check its data")
        task.set_fewshot_seed(seed=SEED)
        task.build_all_requests(limit=1, rank=0, world_size=1)
    except C2FError:
        raise
    except Exception as error:
        raise loading_error(name, error) from error


def loading_error(name: str, error: Exception) -> DataError:
    """The error for a task that cannot be loaded."""
    do = "check its data; what is not on the disk comes from the hub, which may be out of reach"
    return DataError.because(f"task '{name}' cannot be loaded ({error_line(error)})", "a task with its data", do)


def error_line(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def check_answers_fit(tasks: dict[str, Any], context: int) -> None:
    """Raise ConfigError for a task whose answers may be as long as a model's context."""
    from lm_eval.models.utils import normalize_gen_kwargs

    for name, task in tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            continue
        longest = int(normalize_gen_kwargs(dict(task.config.generation_kwargs or {}), 256)["max_gen_toks"])
        if longest >= context:
            got = f"task '{name}' generates up to {longest} tokens"
            raise ConfigError.because(got, f"fewer than the context of {context}", "lower its max_gen_toks")


def task_hash(task: Any, limit: int | None, chat_template: bool, environment: str) -> str:
    """A hash of everything a task's figures depend on, apart from the actor: settings, documents, examples, code.

    limit: documents that are used. environment: lm-eval's version, and how models are loaded.
    """
    config = task.dump_config()
    source = Path(str((config.get("metadata") or {}).pop("config_source", "")))
    text = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(config, sort_keys=True, default=str))
    digest = xxhash.xxh3_128(f"{text} {limit} {chat_template} {environment} {SEED}".encode())
    for doc in itertools.islice(task.eval_docs, limit):
        digest.update(json.dumps(doc, sort_keys=True, default=str).encode())
    if task.get_config("num_fewshot"):
        examples: Iterable[Any] = task.fewshot_docs() or ()
        for doc in examples:
            digest.update(json.dumps(doc, sort_keys=True, default=str).encode())
    if source.is_file() and "lm_eval" not in source.parts:  # the functions of a user's task are in its folder
        for file in sorted(source.parent.glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
