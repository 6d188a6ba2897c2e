"""The actors of a run as models of lm-evaluation-harness. Import it only after `tasks.harness_version`."""

import contextlib
import functools
import io
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval.api import model as harness_model
from lm_eval.api import task as harness_task
from lm_eval.evaluator import evaluate
from lm_eval.models import huggingface
from transformers import GenerationConfig

from lite_c2f.actors.models import InstructModel, load_coarse
from lite_c2f.backbone.context import context_length
from lite_c2f.backbone.copies import sampling_copies
from lite_c2f.backbone.load import end_tokens
from lite_c2f.backbone.padding import padding_id
from lite_c2f.config.settings import CHAT, Config
from lite_c2f.data.chat_template import ChatTemplate, chat_template
from lite_c2f.data.encode import leading_ids, pad_left, turn_end
from lite_c2f.errors import C2FError, DataError
from lite_c2f.evaluation.actor_names import ratio_of
from lite_c2f.evaluation.lm_eval.conversations import as_jinja, as_turns
from lite_c2f.evaluation.lm_eval.tasks import SEED, TaskOptions, error_line
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.published import coarse_adapter
from lite_c2f.runtime.batch_size import is_out_of_memory, retry_smaller
from lite_c2f.sampling.stops import before_stop

MAX_CONTEXT = 4096  # tokens of a prompt and its answer: Mistral's attention window


class ActorLM(huggingface.HFLM):
    """lm-eval's Hugging Face model around one that is in memory; log-probabilities in float32.

    stops: texts that end an answer besides the task's own. template: the chat template that the actor was trained with;
    None for plain text. first: ids before a rendered conversation. `truncated` counts requests that were cut at their
    start.

    lm-eval itself would drop a task's description if a chat template refuses system turns, append choices to the prompt
    without the space before answers, and let the tokenizer add a BOS. Here the description precedes the first question,
    and answers follow prompts as in the actor's training.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        eos_ids: Sequence[int],
        stops: Sequence[str] = (),
        template: ChatTemplate | None = None,
        first: Sequence[int] = (),
    ) -> None:
        # Only the end tokens of the folder's own: its length limit or temperature would override the task's.
        model.generation_config = GenerationConfig(eos_token_id=list(eos_ids), pad_token_id=padding_id(tokenizer))
        longest = min(context_length(model.config) or MAX_CONTEXT, MAX_CONTEXT)
        super().__init__(model, "causal", tokenizer=tokenizer, max_length=longest, softmax_dtype="float32")
        self.stops, self.truncated, self.template, self.first = list(stops), 0, template, list(first)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> list[tuple[float, bool]]:
        longest = self.max_length + 1
        self.truncated += sum(len(context) + len(following) > longest for _, context, following in requests)
        return super()._loglikelihood_tokens(requests, *args, **options)

    def tok_batch_encode(self, strings: list[str], *args: Any, **options: Any) -> Any:
        room = options.get("left_truncate_len")
        if room:
            self.truncated += sum(len(self.tok_encode(text)) > room for text in strings)
        if self.template is None:
            return super().tok_batch_encode(strings, *args, **options)
        rows = [self.tok_encode(text, left_truncate_len=room) for text in strings]
        tokens, mask = pad_left(rows, padding_id(self.tokenizer))
        return tokens, mask.long()

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        return super()._model_generate(context, max_length, [*stop, *self.stops], **options)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        texts = super().generate_until(requests, disable_tqdm)
        return [before_stop(text, self.stops) for text in texts]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation up to its answer, or up to the end of a task's own prefix of the answer."""
        assert self.template is not None
        turns = as_turns(chat_history)
        if add_generation_prompt:
            return self.template.render(turns)
        return self._answering(self.template.render(turns[:-1])) + self.template.mark(turns[-1].text)

    def _answering(self, context: str) -> str:
        """A rendered conversation up to the answer's own text, its space included."""
        assert self.template is not None
        between = self.template.before_answers
        return context if between is None else context.removesuffix(self.template.opening) + between

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self.template is None:
            return super()._encode_pair(context, continuation)
        if context.endswith(self.template.opening):  # else the context includes the start of an answer
            answering = self._answering(context)
            context, continuation = answering.rstrip(" "), self._spaced(continuation)
        return self.tok_encode(context), self.template.continuation(context, continuation)

    def _spaced(self, answer: str) -> str:
        """An answer with the space that the chat template has before answers, whatever the task has."""
        between = (self.template.before_answers if self.template else "") or ""
        return between[len(between.rstrip(" ")) :] + (answer.lstrip(" ") or answer)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **options: Any
    ) -> list[int]:
        if self.template is None:
            return super().tok_encode(string, add_special_tokens, left_truncate_len, **options)
        if add_special_tokens is False:  # an answer without a question
            return self.template.encode(self.template.mark(self._spaced(string)))
        return [*self.first, *self.template.encode(string)][-(left_truncate_len or 0) :]


class LoadedActor(NamedTuple):
    """A model in memory that can be one or several actors."""

    model: ActorLM
    acting_as: Callable[[str], contextlib.AbstractContextManager[Any]]  # in the block, the model is this actor


def load_actor(
    source: str, config: Config, models: ModelPair, run: Path, actors: Sequence[str], chat: bool
) -> LoadedActor:
    """Load the model of these actors: `base`, `instruct` (with the residue if an actor needs it), `fine`.

    chat: prompts are conversations; base and Coarse Actor get their prompt template as a chat template, and its stop
    sequences.
    """
    prompt_template, template_kwargs = config.model.prompt_template, config.model.chat_template_kwargs
    if source == "base":
        roles, judge = load_coarse(config, models, run)
        tokenizer, model = judge.tokenizer, roles.model.get_base_model()
        first = leading_ids(tokenizer) if prompt_template != CHAT else []
        eos = end_tokens(model, tokenizer, turn_end(tokenizer, prompt_template, template_kwargs))
        if chat and prompt_template != CHAT:
            tokenizer.chat_template = as_jinja(prompt_template)
        chat_form = chat_template(tokenizer, template_kwargs) if chat else None
        harness_lm = ActorLM(model, tokenizer, eos, config.model.stop if chat else (), chat_form, first)
        return LoadedActor(harness_lm, lambda actor: roles.sampling("policy" if actor == "coarse" else "reference"))
    merged = source == "fine"
    adapter = coarse_adapter(run, config.coarse.use) if any(ratio_of(actor) for actor in actors) else None
    actor_model = InstructModel(config, str(run / "fine" / "model") if merged else models.instruct, adapter)
    model = actor_model.model if adapter is None else actor_model.model.get_base_model()
    chat_form = chat_template(actor_model.tokenizer, template_kwargs) if chat else None
    harness_lm = ActorLM(model, actor_model.tokenizer, actor_model.eos_ids, template=chat_form)
    return LoadedActor(harness_lm, functools.partial(at_ratio, actor_model))


@contextlib.contextmanager
def at_ratio(model: InstructModel, actor: str) -> Iterator[None]:
    """In the block, the instruct model has the residue at this actor's ratio."""
    with model.ratio(ratio_of(actor)), torch.no_grad(), sampling_copies(model.model):
        yield


def run_task(loaded: LoadedActor, actor: str, name: str, task: Any, options: TaskOptions) -> dict[str, Any]:
    """Run one task with one actor: its figures, and those of every document.

    {"figures": {"acc,none": value, "acc_stderr,none": ...}, "documents": {"acc,none": [a number per document]}, "n",
    "truncated"}. If memory runs out, the whole task is repeated with half the batch.
    """

    def attempt(rows: int) -> dict[str, Any]:
        loaded.model.batch_size_per_gpu, loaded.model.truncated = rows, 0
        try:
            with loaded.acting_as(actor):
                return run_harness(loaded.model, name, task, options)
        except (C2FError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # any error of a task's own functions
            if is_out_of_memory(error):
                raise
            got = f"task '{name}' failed on an answer of '{actor}' ({error_line(error)})"
            raise DataError.because(got, "a task that takes any answer", "correct it, or leave it out") from error

    result = retry_smaller(options.batch, attempt)
    row = result["results"][name]
    if not any("," in key and is_number(value) for key, value in row.items()):
        raise DataError.because(f"task '{name}' gave no figure", "a metric of lm-eval", "correct its metric_list")
    documents: dict[str, list[Any]] = {}
    for sample in sorted(result["samples"][name], key=lambda sample: sample["doc_id"]):
        for metric in sample["metrics"]:
            documents.setdefault(f"{metric},{sample['filter']}", []).append(sample[metric])
    return {
        "figures": {key: finite_or_none(value) for key, value in row.items() if "," in key},
        "documents": {key: [*map(float, values)] for key, values in documents.items() if all(map(is_number, values))},
        "n": row["sample_len"],
        "truncated": loaded.model.truncated,
    }


def run_harness(model: ActorLM, name: str, task: Any, options: TaskOptions) -> Any:
    """lm-eval's results for a task. All generators are seeded, so that every actor gets the same prompts."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    task.set_fewshot_seed(seed=SEED)
    return evaluate(
        model,
        {"tasks": {name: task}},
        limit=options.limit,
        bootstrap_iters=1000,
        apply_chat_template=options.chat,
        fewshot_as_multiturn=options.chat,
    )


def is_number(value: Any) -> bool:
    """Whether it is one finite number; some metrics have pairs or lists per document."""
    return isinstance(value, bool | int | float | np.number) and math.isfinite(value)


def finite_or_none(value: Any) -> float | None:
    """The number, or None for lm-eval's N/A."""
    return float(value) if is_number(value) else None


@contextlib.contextmanager
def silence_harness() -> Iterator[None]:
    """In the block, lm-eval shows no progress bars and prints nothing to stdout."""
    modules: tuple[Any, ...] = (harness_task, harness_model, huggingface)
    bars = [module.tqdm for module in modules]

    def hidden(*args: Any, **options: Any) -> Any:
        return bars[0](*args, **{**options, "disable": True})

    try:
        for module in modules:
            module.tqdm = hidden
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for module, bar in zip(modules, bars, strict=True):
            module.tqdm = bar
