"""One model of any lineage beside the run's own: its prompts, the rows of its answers, how these end."""

from pathlib import Path
from typing import Any

from lite_c2f.actors.names import BASE, BASELINE
from lite_c2f.backbone.device import free_bytes
from lite_c2f.backbone.load import end_tokens, load_model, load_tokenizer
from lite_c2f.backbone.model_kind import check_kind
from lite_c2f.backbone.multi_model import MultiModel
from lite_c2f.chat.history import History
from lite_c2f.chat.loaded import CACHE_MEMORY_SHARE, cache_bytes_per_token, cached_stops, context_of
from lite_c2f.chat.panes import AnswerForm, ChatSettings, check_settings
from lite_c2f.chat.prompts import EncodedPrompt, encode_history
from lite_c2f.chat.rows import AnswerRow
from lite_c2f.config.settings import CHAT, Config
from lite_c2f.data.encode import encode_answer, turn_end
from lite_c2f.runtime.batch_size import free
from lite_c2f.sampling import Sampling


class FolderModel:
    """A model of a folder, loaded in the run's quantization, from safetensors alone and without code of its own.

    It is prompted by its chat template; without one as the run's base is, with the run's stop texts. Not thread-safe,
    but for `caller_tokenizer` under a lock of its own. Raises ModelError where it cannot be loaded.
    """

    def __init__(self, name: str, folder: Path, config: Config) -> None:
        check_kind(folder)
        self.name, self.config = name, config
        self.tokenizer, self.caller_tokenizer = load_tokenizer(str(folder)), load_tokenizer(str(folder))
        self.chats = bool(self.tokenizer.chat_template)
        self.template = CHAT if self.chats else config.model.prompt_template
        model = load_model(str(folder), config)
        turn = turn_end(self.tokenizer, self.template, config.model.chat_template_kwargs)
        self.eos_ids = end_tokens(model, self.tokenizer, turn)
        self.context = context_of([model], str(folder))
        self.multi_model: MultiModel | None = MultiModel([model], {})  # None: it was dropped for another one
        self.in_batch = False  # set by the answering thread, while it has the weights
        self._stops = cached_stops(self.tokenizer, self.tokenizer)
        free()  # memory that only loading needed
        available = free_bytes(self.multi_model.device)
        row_bytes = cache_bytes_per_token(self.multi_model) * self.context
        self.max_rows = 4 if available is None else max(1, int(CACHE_MEMORY_SHARE * available // row_bytes))

    def stop_texts(self, form: AnswerForm) -> tuple[str, ...]:
        """Texts that end its answers: those of the form and, without a chat template, those of the run."""
        own = () if form.raw or self.chats else tuple(self.config.model.stop)
        return (*own, *(text for text in form.stop if text not in own))

    def encoded(
        self, tokenizer: Any, history: History, settings: ChatSettings, form: AnswerForm = AnswerForm()
    ) -> EncodedPrompt:
        """The prompt that it reads. tokenizer: one of its own. Raises ConfigError where an answer leaves no room."""
        check_settings(settings, self.context)
        limit = self.context - settings.max_tokens
        actor = BASELINE if self.chats else BASE
        return encode_history(actor, tokenizer, self.config, history, settings.system, limit, raw=form.raw)

    def row(self, history: History, settings: ChatSettings, form: AnswerForm) -> tuple[AnswerRow, EncodedPrompt]:
        """The row of an answer not yet started, and its prompt, as `LoadedActors.row` makes them of the run's."""
        prompt = self.encoded(self.tokenizer, history, settings, form)
        variables = self.config.model.chat_template_kwargs
        begun = (
            encode_answer(self.tokenizer, form.begun, ended=False, template=self.template, template_kwargs=variables)
            if form.begun
            else []
        )
        row = AnswerRow(
            0,
            0.0,
            prompt.ids,
            Sampling(settings.max_tokens, settings.temperature, settings.top_k, settings.top_p, settings.seed),
            penalty=settings.repetition_penalty,
            eos_ids=self.eos_ids,
            stops=self._stops(not self.chats, self.stop_texts(form)),
            alternatives=form.logprobs,
            begun=begun,
            drawn=form.drawn,
        )
        return row, prompt

    def text_of(self, row: AnswerRow) -> str:
        """The text of a finished row, for the answering thread."""
        return str(self.tokenizer.decode(row.text_tokens, skip_special_tokens=True)).strip()
