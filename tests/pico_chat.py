"""The chat of pico models with a residue of random weights; only the run's files are not read from a trained run."""

import pytest
import torch

from lite_c2f.backbone.load import load_model, load_tokenizer
from lite_c2f.backbone.roles import Roles
from lite_c2f.chat import Chat, engine, loaded
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Lora
from lite_c2f.runs.model_pair import ModelPair

SETTINGS = ("data.max_prompt_tokens=16", "coarse.length.max=32", "coarse.length.start=8", "evaluation.max_tokens=32")


class Reward:
    """Rewards of known size in place of a reward model's: the number of tokens. answers: (turns, answer)."""

    def __init__(self, tokenizer):
        self.tokenizer, self.answers = tokenizer, []

    def __call__(self, turns, answers):
        if not answers:
            raise ValueError("a reward model cannot score nothing")
        self.answers += zip(turns, answers, strict=True)
        return [float(len(answer.text_tokens)) for answer in answers]


def ask_servers(chat, servers):
    """Give a chat other servers than it was made with."""
    chat.servers = chat._loaded.result().servers = servers


def pico_chat(pico, run, *, std=None):
    """pico: folders of the models. run: an empty folder. std: of the residue's weights; None: as training begins.

    No answer ends by itself, which a random model does anywhere: each ends at its limit, or by a stop text.
    """
    (run / "fine").mkdir()
    (run / "fine" / "merge.json").write_text('{"ratio": 0.75}')
    (run / "run.json").write_text("{}")
    folders = [f"model.{name}={pico[name]}" for name in ("base", "instruct")]
    config = load_config({}, [*SETTINGS, "fine.max_tokens=32", "data.max_answer_tokens=16", *folders])
    models = ModelPair(str(pico["base"]), str(pico["instruct"]))
    torch.manual_seed(0)
    roles = Roles(load_model(models.base, config), Lora(r=4, alpha=8), ("policy",))
    if std is not None:
        with torch.no_grad():
            for parameter in roles.adapter_parameters("policy"):
                parameter.normal_(std=std)
    reward = Reward(load_tokenizer(models.base))
    with pytest.MonkeyPatch.context() as patch:
        for module in (engine, loaded):
            patch.setattr(module, "open_run", lambda run: (config, models))
        patch.setattr(loaded, "load_coarse", lambda config, models, run: (roles, reward))
        chat = Chat(run)
    chat.actors._eos_ids = [[] for _ in chat.actors._eos_ids]
    return chat
