"""Responder: one actor of a finished run, loaded, as a function from conversations to answers."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lite_c2f.actors.answers import Answer
from lite_c2f.actors.models import InstructModel, RewardModel, Turns, answer_base, load_coarse
from lite_c2f.actors.names import BASE, COARSE, INSTRUCT
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.settings import Config
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.sampling import Sampling

Responder = Callable[[Sequence[Turns]], list[Answer]]


def responder(
    config: Config,
    models: ModelPair,
    run: Path,
    actor: str,
    batch: BatchSize,
    coarse: tuple[Roles, RewardModel] | None = None,
) -> Responder:
    """Load an actor, to answer with the settings of `evaluation`. It stays in memory as long as the function.

    coarse: what `load_coarse` returned, if it is loaded already; base and Coarse Actor share it.
    """
    settings = config.evaluation
    sampling = Sampling(settings.max_tokens, settings.temperature, seed=config.run.seed)
    if actor in (BASE, COARSE):
        roles, judge = coarse or load_coarse(config, models, run)
        role = "policy" if actor == COARSE else "reference"
        return lambda turns: answer_base(roles, role, judge.tokenizer, config, turns, sampling, batch)
    model = InstructModel(config, models.instruct if actor == INSTRUCT else str(run / "fine" / "model"))
    return lambda turns: model.answer(turns, sampling, batch)
