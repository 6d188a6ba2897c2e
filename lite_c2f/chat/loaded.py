"""The actors of a run: their models, what each reads and says, and what the reward model thinks of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lite_c2f.actors.answers import Answer
from lite_c2f.actors.models import load_coarse
from lite_c2f.backbone.context import context_length, sliding_window
from lite_c2f.backbone.load import end_tokens, load_model, load_tokenizer, window_of
from lite_c2f.backbone.multi_model import MultiModel, residue_of
from lite_c2f.chat.panes import ALL_PANES, ON_BASE, ChatSettings, Pane
from lite_c2f.chat.prompts import History, ReadPrompt, read_by, with_system
from lite_c2f.chat.rows import AnswerRow
from lite_c2f.config.settings import CHAT
from lite_c2f.data.encode import turn_end
from lite_c2f.errors import RunError
from lite_c2f.memory.sizes import GIBIBYTE
from lite_c2f.runs.manifest import open_run
from lite_c2f.runs.models import TOY
from lite_c2f.runtime.batch_size import free
from lite_c2f.sampling import Sampling, Stops
from lite_c2f.sampling.cache import key_value_shape
from lite_c2f.storage.files import read_json

LONGEST_CHAT = 4096  # tokens of a conversation and its answer
SHARE_OF_MEMORY = 0.5  # of what is free once the models are loaded, for keys and values
BASE, INSTRUCT, MERGED = range(3)  # models of `MultiModel`


class LoadedActors:
    """Everything that is loaded of a run. Of one thread at a time, but for `text` of another tokenizer.

    merged: also load RUN/fine/model, for the Fine Actor at the ratio that was merged. A merge with ratios by layer is
    no single ratio of the residue: then that model is always loaded.
    """

    def __init__(self, run: Path, merged: bool) -> None:
        self.config, models = open_run(run)
        self.ratio, single = merged_ratio(run / "fine" / "merge.json")
        self.merged = merged or not single
        self.roles, self.judge = load_coarse(self.config, models, run)
        self.tokenizer, self.instruct_tokenizer = self.judge.tokenizer, load_tokenizer(models.instruct)
        # Tokenizers are of one thread at a time: those above are the answering thread's, these the askers'.
        self.readers = {
            actor: load_tokenizer(models.base if actor in ON_BASE else models.instruct) for actor in ALL_PANES
        }
        folders = [models.instruct, *([str(run / "fine" / "model")] if self.merged else [])]
        loaded = [self.roles.model, *(load_model(folder, self.config) for folder in folders)]
        self.together = MultiModel(loaded, residue_of(self.roles.model, "policy"))
        template, variables = self.config.model.prompt_template, self.config.model.chat_template_kwargs
        self._eos = [end_tokens(loaded[0], self.tokenizer, turn_end(self.tokenizer, template, variables))]
        turn = turn_end(self.instruct_tokenizer, CHAT, variables)
        self._eos += [end_tokens(model, self.instruct_tokenizer, turn) for model in loaded[1:]]
        self._stops = Stops(self.tokenizer, self.config.model.stop)
        self.context = context_of(loaded, models.base)
        free()  # what loading left is free too
        row = _bytes_a_token(self.together) * self.context
        self.room = int(SHARE_OF_MEMORY * _free_bytes(self.together.device) // row)  # rows at full length

    def prompt_room(self, max_tokens: int) -> int:
        """Most tokens of a prompt, earlier turns included."""
        if self.config.model.base == TOY:  # its text never ran longer than this
            return self.config.data.max_prompt_tokens
        return self.context - max_tokens

    def row(self, pane: Pane, history: History, settings: ChatSettings) -> tuple[AnswerRow, ReadPrompt]:
        """An answer that is not begun, and what it reads."""
        ratio, on_base = self.ratio_of(pane, settings), pane.actor in ON_BASE
        read = read_by(
            pane.actor,
            self.tokenizer if on_base else self.instruct_tokenizer,
            self.config,
            history,
            settings.system,
            self.prompt_room(settings.max_tokens),
        )
        if on_base:
            model, share = BASE, 1.0 if pane.actor == "coarse" else 0.0
        elif pane.actor == "fine" and self.merged and ratio == self.ratio:
            model, share = MERGED, 0.0
        else:
            model, share = INSTRUCT, ratio if pane.actor == "fine" else 0.0
        row = AnswerRow(
            model,
            share,
            read.ids,
            Sampling(settings.max_tokens, settings.temperature, settings.top_k, settings.top_p, settings.seed),
            penalty=settings.repetition_penalty,
            eos_ids=self._eos[model],
            stops=self._stops if on_base else None,
        )
        return row, read

    def ratio_of(self, pane: Pane, settings: ChatSettings) -> float:
        """The Fine Actor's ratio in a pane."""
        ratios = (pane.ratio, settings.ratio, self.ratio)
        return next(ratio for ratio in ratios if ratio is not None)

    def rewards(
        self, histories: Mapping[str, History], rows: Mapping[str, AnswerRow], settings: ChatSettings
    ) -> dict[str, float]:
        """What the reward model thinks of finished answers, in its spreads."""
        turns = [tuple(with_system(histories[key], settings.system)) for key in rows]
        answers = [
            Answer("", len(row.tokens), row.finish or "limit", row.text_tokens, row.model != BASE)
            for row in rows.values()
        ]
        return dict(zip(rows, self.judge(turns, answers), strict=True))


def context_of(models: Sequence[Any], base: str) -> int:
    """Tokens of a conversation and its answer that models of one lineage were made for. base: folder of the first."""
    bounds = [context_length(model.config) for model in models]
    config = models[0].config
    if sliding_window(config) is None:  # loaded without it: beyond it, another model than trained
        bounds.append(window_of(base))
    return min(LONGEST_CHAT, *(bound for bound in bounds if bound))


def merged_ratio(file: Path) -> tuple[float, bool]:
    """The ratio of a merge, and whether it is the same for all weights. Raises RunError for a file without one."""
    try:
        report = read_json(file)
        return float(report["ratio"]), not report.get("layer_ratios")
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RunError.because(
            f"'{file}' has no ratio", "the report of a merge", "train the fine stage again"
        ) from None


def _bytes_a_token(together: MultiModel) -> int:
    """Keys and values of one token in all layers."""
    config = together.config
    heads, width = key_value_shape(config)
    return 2 * config.num_hidden_layers * heads * width * together.dtype.itemsize


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return 4 * GIBIBYTE
