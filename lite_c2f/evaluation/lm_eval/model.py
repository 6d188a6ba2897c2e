"""The actors of a run as models of lm-evaluation-harness. Import it only after tasks.need_harness."""

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
from lite_c2f.evaluation.lm_eval.tasks import SEED, TaskOptions, reason
from lite_c2f.runs.models import ModelPair
from lite_c2f.runtime.batch_size import is_out_of_memory, retry_smaller
from lite_c2f.sampling.stops import before_stop

LONGEST = 4096  # tokens of a prompt and its answer: Mistral's window, which is not used above it


class ActorLM(huggingface.HFLM):
    """lm-eval's Hugging Face model around one that is in memory; log-probabilities in float32.

    stops: texts that end an answer beside the task's own. form: the form of conversations that the actor was trained
    in; None for plain text. first: ids before a rendered conversation. `truncated` counts requests that lost their
    beginning.

    In conversations lm-eval would leave a task's description out where a template refuses system turns, put choices
    behind the prompt without the space that answers have, and let the tokenizer add a BOS of its own. Here every actor
    reads the description before the first question, and answers follow prompts in the form it was trained in.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        eos_ids: Sequence[int],
        stops: Sequence[str] = (),
        form: ChatTemplate | None = None,
        first: Sequence[int] = (),
    ) -> None:
        # Of the folder's own only the end tokens: a limit or a temperature in it would win over the task's.
        model.generation_config = GenerationConfig(eos_token_id=list(eos_ids), pad_token_id=padding_id(tokenizer))
        longest = min(context_length(model.config) or LONGEST, LONGEST)
        super().__init__(model, "causal", tokenizer=tokenizer, max_length=longest, softmax_dtype="float32")
        self.stops, self.truncated, self.form, self.first = list(stops), 0, form, list(first)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> list[tuple[float, bool]]:
        longest = self.max_length + 1
        self.truncated += sum(len(context) + len(following) > longest for _, context, following in requests)
        return super()._loglikelihood_tokens(requests, *args, **options)

    def tok_batch_encode(self, strings: list[str], *args: Any, **options: Any) -> Any:
        room = options.get("left_truncate_len")
        if room:
            self.truncated += sum(len(self.tok_encode(text)) > room for text in strings)
        if self.form is None:
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
        assert self.form is not None
        turns = as_turns(chat_history)
        if add_generation_prompt:
            return self.form.render(turns)
        return self._answering(self.form.render(turns[:-1])) + self.form.mark(turns[-1].text)

    def _answering(self, context: str) -> str:
        """A rendered conversation up to the answer's own text, its space included."""
        assert self.form is not None
        between = self.form.before_answers
        return context if between is None else context.removesuffix(self.form.opening) + between

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if self.form is None:
            return super()._encode_pair(context, continuation)
        if context.endswith(self.form.opening):  # otherwise the answer has begun
            answering = self._answering(context)
            context, continuation = answering.rstrip(" "), self._spaced(continuation)
        return self.tok_encode(context), self.form.continuation(context, continuation)

    def _spaced(self, answer: str) -> str:
        """An answer with the space that the form has before answers, whatever the task has there."""
        between = (self.form.before_answers if self.form else "") or ""
        return between[len(between.rstrip(" ")) :] + (answer.lstrip(" ") or answer)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **options: Any
    ) -> list[int]:
        if self.form is None:
            return super().tok_encode(string, add_special_tokens, left_truncate_len, **options)
        if add_special_tokens is False:  # an answer without a question
            return self.form.encode(self.form.mark(self._spaced(string)))
        return [*self.first, *self.form.encode(string)][-(left_truncate_len or 0) :]


class LoadedActor(NamedTuple):
    """A model in memory that can be one or several actors."""

    model: ActorLM
    acting_as: Callable[[str], contextlib.AbstractContextManager[Any]]  # inside the block it is this actor


def load(source: str, config: Config, models: ModelPair, run: Path, actors: Sequence[str], chat: bool) -> LoadedActor:
    """The model behind these actors: `base`, `instruct` (with the residue where an actor needs it), `fine`.

    chat: prompts come as conversations; base and Coarse Actor get the form they were trained in, which has no chat
    template of its own, and its stop sequences.
    """
    template, variables = config.model.prompt_template, config.model.chat_template_kwargs
    if source == "base":
        roles, judge = load_coarse(config, models, run)
        tokenizer, model = judge.tokenizer, roles.model.get_base_model()
        first = leading_ids(tokenizer) if template != CHAT else []
        eos = end_tokens(model, tokenizer, turn_end(tokenizer, template, variables))
        if chat and template != CHAT:
            tokenizer.chat_template = as_jinja(template)
        form = chat_template(tokenizer, variables) if chat else None
        harness_lm = ActorLM(model, tokenizer, eos, config.model.stop if chat else (), form, first)
        return LoadedActor(harness_lm, lambda actor: roles.sampling("policy" if actor == "coarse" else "reference"))
    merged = source == "fine"
    adapter = run / "coarse" / "adapter" if any(ratio_of(actor) for actor in actors) else None
    actor_model = InstructModel(config, str(run / "fine" / "model") if merged else models.instruct, adapter)
    model = actor_model.model if adapter is None else actor_model.model.get_base_model()
    form = chat_template(actor_model.tokenizer, variables) if chat else None
    harness_lm = ActorLM(model, actor_model.tokenizer, actor_model.eos_ids, form=form)
    return LoadedActor(harness_lm, functools.partial(at_ratio, actor_model))


@contextlib.contextmanager
def at_ratio(model: InstructModel, actor: str) -> Iterator[None]:
    """Inside the block the instruct model has the residue at this actor's ratio."""
    with model.ratio(ratio_of(actor)), torch.no_grad(), sampling_copies(model.model):
        yield


def run_task(loaded: LoadedActor, actor: str, name: str, task: Any, options: TaskOptions) -> dict[str, Any]:
    """Run one task with one actor: its figures, and those of every document.

    {"figures": {"acc,none": value, "acc_stderr,none": ...}, "documents": {"acc,none": [a number per document]}, "n",
    "truncated"}. Out of memory, the whole task is done again with half of the requests at once.
    """

    def attempt(rows: int) -> dict[str, Any]:
        loaded.model.batch_size_per_gpu, loaded.model.truncated = rows, 0
        try:
            with loaded.acting_as(actor):
                return run_harness(loaded.model, name, task, options)
        except (C2FError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a task's own functions make of an answer
            if is_out_of_memory(error):
                raise
            got = f"task '{name}' failed on an answer of '{actor}' ({reason(error)})"
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
        "figures": {key: finite(value) for key, value in row.items() if "," in key},
        "documents": {key: [*map(float, values)] for key, values in documents.items() if all(map(is_number, values))},
        "n": row["sample_len"],
        "truncated": loaded.model.truncated,
    }


def run_harness(model: ActorLM, name: str, task: Any, options: TaskOptions) -> Any:
    """lm-eval's results for a task. Everything random is seeded anew: every actor sees the same prompts."""
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
    """Is it one finite number? Some metrics have pairs or lists for a document."""
    return isinstance(value, bool | int | float | np.number) and math.isfinite(value)


def finite(value: Any) -> float | None:
    """The number, or None: lm-eval has N/A where there is no standard error."""
    return float(value) if is_number(value) else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside the block lm-eval shows no progress bars and prints nothing: there is one bar, and stdout is ours."""
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
