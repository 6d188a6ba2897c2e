"""Checks of the sources of reward, before anything is trained."""

from pathlib import Path

from lite_c2f.backbone.adapters import check_adapter
from lite_c2f.config.rewards import Watched
from lite_c2f.config.settings import Config
from lite_c2f.data.sources import name_of
from lite_c2f.errors import ConfigError, ModelError
from lite_c2f.reward.calls import load_function
from lite_c2f.reward.files import own_normalizer
from lite_c2f.runs.fingerprints import fingerprints_of
from lite_c2f.runs.model_pair import ModelPair, adapter_base
from lite_c2f.storage.files import read_json


def check_judges(config: Config, models: ModelPair | None = None) -> None:
    """Raise RewardError, ModelError or ConfigError, before anything is trained, for a source that cannot be used.

    models: the folders of the run's models, to compare with the base that an adapter names; None: not known yet.
    """
    applies: dict[str, tuple[str, ...] | None] = {}
    for prompts in config.data.prompts:
        if applies.setdefault(name_of(prompts), prompts.rewards) != prompts.rewards:
            got = f"data.prompts: '{name_of(prompts)}' stands there twice, with different `rewards`"
            raise ConfigError.because(
                got, "the same at each place", "put the rows of one of them into a file of its own"
            )
    for source in config.coarse.judges:
        if source.function is not None:
            load_function(source.function)
        elif source.adapter is not None:
            _check_reward_adapter(source, config, models)


def _check_reward_adapter(source: Watched, config: Config, models: ModelPair | None) -> None:
    folder = Path(str(source.adapter))
    about = f"reward '{source.name}': adapter '{folder}'"
    check_adapter(folder)
    own_normalizer(source)
    saved = read_json(folder / "adapter_config.json")
    lora = config.lora
    wanted = {"r": lora.r, "lora_alpha": lora.alpha, "use_rslora": lora.rslora}
    for key, value in wanted.items():
        if saved.get(key, False) != value:
            got = f"{about} was made with {key}={saved.get(key)!r}"
            raise ModelError.because(got, f"the run's {value!r}", "use the lora settings it was made with")
    if models is None or (named := str(saved.get("base_model_name_or_path"))) == adapter_base(config, models):
        return
    if Path(named).is_dir() and _weights(named) == _weights(models.base):
        return
    raise ModelError.because(
        f"{about} was trained on '{named}'",
        f"this run's base '{adapter_base(config, models)}'",
        "train it on that base; if it is the same model elsewhere, correct base_model_name_or_path in its "
        "adapter_config.json",
    )


def _weights(folder: str) -> dict[str, str]:
    return {name: value for name, value in fingerprints_of("base", folder).items() if name.endswith(".safetensors")}
