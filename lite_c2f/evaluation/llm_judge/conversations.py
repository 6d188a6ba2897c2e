"""Conversations: the actors of a run answer questions turn by turn."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lite_c2f.backbone.context import context_length
from lite_c2f.backbone.pair import read_config
from lite_c2f.config.settings import Config, resolved
from lite_c2f.data.records import Turn
from lite_c2f.evaluation.llm_judge.questions import Question
from lite_c2f.evaluation.responder import Responder, responder
from lite_c2f.runs.fingerprints import fingerprints_of_models
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runtime.batch_size import BatchSize, free
from lite_c2f.storage.files import hash_of
from lite_c2f.storage.results import ResultCache

Answers = dict[str, list[list[str]]]  # by actor: for each question, an answer to each turn


def answer_all(
    config: Config,
    models: ModelPair,
    run: Path,
    actors: Sequence[str],
    questions: Sequence[Question],
    file: Path,
    progress: Callable[[int], None],
) -> Answers:
    """Every actor's answers to every turn of every question; each actor is loaded once.

    file: stores the answers of finished actors, until the caller removes it. progress: called with their number.
    Prompts may fill the context except for the answer.
    """
    longest_config = with_longest_prompts(config, models)
    files = [run / stage / "adapter" / "adapter_model.safetensors" for stage in ("reward", "coarse")]
    hashes = [hash_of(file) for file in (*files, run / "fine" / "merge.json")]
    identity = {"files": hashes, "models": fingerprints_of_models(models)}
    texts = [[question.number, *question.turns] for question in questions]
    cache = ResultCache(file, identity | longest_config.identity(("model", "data", "evaluation")) | {"asked": texts})
    answers: Answers = {}
    for done, actor in enumerate(actors):
        progress(done)
        cached = cache.get(actor)
        if cached is None:
            batch = BatchSize("evaluation.batch", resolved(longest_config.evaluation.batch))
            cached = answer_turns(responder(longest_config, models, run, actor, batch), questions)
            cache.put(actor, cached)
            free()
        answers[actor] = cached
    return answers


def answer_turns(respond: Responder, questions: Sequence[Question]) -> list[list[str]]:
    """Answers to all first turns, then to all second turns, and so on."""
    answers: list[list[str]] = [[] for _ in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        indices = [index for index, question in enumerate(questions) if turn < len(question.turns)]
        conversations = [conversation_before(questions[index], answers[index]) for index in indices]
        for index, answer in zip(indices, respond(conversations), strict=True):
            answers[index].append(answer.text)
    return answers


def conversation_before(question: Question, answers: Sequence[str]) -> tuple[Turn, ...]:
    """The conversation up to the next question."""
    turns: list[Turn] = []
    for text, answer in zip(question.turns, answers, strict=False):
        turns += [Turn("human", text), Turn("assistant", answer)]
    return (*turns, Turn("human", question.turns[len(answers)]))


def with_longest_prompts(config: Config, models: ModelPair) -> Config:
    """The configuration with the longest prompts that leave room for an answer in the context."""
    contexts = [context_length(read_config(Path(folder))) or 4096 for folder in models]
    longest = min(contexts) - config.evaluation.max_tokens
    return config.model_copy(update={"data": config.data.model_copy(update={"max_prompt_tokens": longest})})
