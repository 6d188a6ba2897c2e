"""Actors of a run answer questions turn by turn."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lite_c2f.actors.answers import Answer
from lite_c2f.actors.models import InstructModel, answer_base, load_coarse
from lite_c2f.backbone.context import context_length
from lite_c2f.backbone.pair import read_config
from lite_c2f.config.settings import Config, resolved
from lite_c2f.data.records import Turn
from lite_c2f.errors import ConfigError
from lite_c2f.evaluation.llm_judge.questions import Question
from lite_c2f.runs.fingerprints import fingerprints_of_models
from lite_c2f.runs.models import ModelPair
from lite_c2f.runtime.batch_size import BatchSize, free
from lite_c2f.sampling import Sampling
from lite_c2f.storage.files import hash_of
from lite_c2f.storage.results import ResultCache

ACTORS = ("fine", "coarse", "instruct", "base")
Speaker = Callable[[Sequence[tuple[Turn, ...]]], list[Answer]]
Said = dict[str, list[list[str]]]  # by actor: to each question, an answer to each turn


def answer_all(
    config: Config,
    models: ModelPair,
    run: Path,
    actors: Sequence[str],
    questions: Sequence[Question],
    kept: Path,
    tell: Callable[[int], None],
) -> Said:
    """Every actor's answers to every turn of every question; each actor is loaded once.

    kept: a file of actors that are done, until the caller removes it. Prompts may fill the context but for the answer.
    """
    room = with_room(config, models)
    files = [run / stage / "adapter" / "adapter_model.safetensors" for stage in ("reward", "coarse")]
    hashes = [hash_of(file) for file in (*files, run / "fine" / "merge.json")]
    identity = {"files": hashes, "models": fingerprints_of_models(models)}
    asked = [[question.number, *question.turns] for question in questions]
    before = ResultCache(kept, identity | room.identity(("model", "data", "evaluation")) | {"asked": asked})
    said: Said = {}
    for done, actor in enumerate(actors):
        tell(done)
        found = before.get(actor)
        if found is None:
            found = converse(speaker(room, models, run, actor), questions)
            before.put(actor, found)
            free()
        said[actor] = found
    return said


def converse(speak: Speaker, questions: Sequence[Question]) -> list[list[str]]:
    """All first turns, then all second ones with what was said before, and so on."""
    said: list[list[str]] = [[] for _ in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        open_ones = [index for index, question in enumerate(questions) if turn < len(question.turns)]
        conversations = [so_far(questions[index], said[index]) for index in open_ones]
        for index, answer in zip(open_ones, speak(conversations), strict=True):
            said[index].append(answer.text)
    return said


def so_far(question: Question, answers: Sequence[str]) -> tuple[Turn, ...]:
    """The conversation up to the next question."""
    turns: list[Turn] = []
    for asked, answer in zip(question.turns, answers, strict=False):
        turns += [Turn("human", asked), Turn("assistant", answer)]
    return (*turns, Turn("human", question.turns[len(answers)]))


def speaker(config: Config, models: ModelPair, run: Path, actor: str) -> Speaker:
    """What answers as this actor."""
    settings = config.evaluation
    sampling = Sampling(settings.max_tokens, settings.temperature, seed=config.run.seed)
    batch = BatchSize("evaluation.batch", resolved(settings.batch))
    if actor in ("coarse", "base"):
        roles, judge = load_coarse(config, models, run)
        role = "policy" if actor == "coarse" else "reference"
        return lambda turns: answer_base(roles, role, judge.tokenizer, config, turns, sampling, batch)
    model = InstructModel(config, models.instruct if actor == "instruct" else str(run / "fine" / "model"))
    return lambda turns: model.answer(turns, sampling, batch)


def with_room(config: Config, models: ModelPair) -> Config:
    """The configuration with prompts of up to what the context leaves beside an answer."""
    contexts = [context_length(read_config(Path(folder))) or 4096 for folder in models]
    most = min(contexts) - config.evaluation.max_tokens
    return config.model_copy(update={"data": config.data.model_copy(update={"max_prompt_tokens": most})})


def check_actors(names: Sequence[str]) -> list[str]:
    """Raise ConfigError unless these are different actors."""
    for name in names:
        if name not in ACTORS:
            raise ConfigError.because(f"actor '{name}'", "one of " + ", ".join(ACTORS), "correct --actors")
    if len(set(names)) < len(names) or not names:
        raise ConfigError.because(f"--actors {','.join(names)}", "different actors", "name each once")
    return list(names)
