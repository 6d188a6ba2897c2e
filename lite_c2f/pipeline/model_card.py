"""Model card of what `push` uploads: metadata and text from a run's own records, without paths of this machine."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

from lite_c2f.actors.names import BASE, COARSE, FINE, INSTRUCT
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config
from lite_c2f.fine.report import card_metadata, hub_name
from lite_c2f.runs.manifest import read_manifest
from lite_c2f.storage.files import read_json

ADAPTER, GGUF = "adapter", "gguf"  # with FINE: what can be uploaded
LICENCE_KEYS = ("license", "license_name", "license_link")
COMMON_TAGS = ["lite_c2f", "mistral-c2f", "rlhf"]
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".zst", ".txt")
FIGURES = {  # key in summary.json: its name in the card
    "reward": "Mean reward (z-score)",
    "tokens": "Mean length of a response (tokens)",
    "repeated_4gram": "Share of repeated 4-grams",
    "eos": "Share of responses that end",
    "accuracy": "Share of right answers",
    "analytic": "Share of answers that reason",
}
OWN_DESIGN = (
    "The outline follows Mistral-C2F (arXiv 2406.08657), which publishes neither coefficients nor code. The "
    "coefficients of the growing length limit, its schedule, the definition of the residue, the choice of its ratio "
    "and the scoring of truncated responses are lite_c2f's own design. This is no model of that paper's authors."
)


class RunRecords(NamedTuple):
    """What a card is written from."""

    config: Config
    manifest: dict[str, Any]  # run.json
    summary: dict[str, Any]  # summary.json; {} where the run has none yet
    merged: dict[str, Any]  # fine/merge.json; {} without a fine stage
    updates: int | None  # of the coarse stage
    settings: dict[str, Any]  # of the comparison

    def model(self, name: str) -> str:
        """Public name of the base or instruct model: that of the hub, or the last part of a local path."""
        return self.hub_model(name) or public_name(getattr(self.config.model, name))

    def hub_model(self, name: str) -> str | None:
        """Hub name of the base or instruct model; None for a local one."""
        return hub_name(getattr(self.config.model, name)) or hub_name(self.manifest["models"][name])


def read_records(run: Path) -> RunRecords:
    """Records of a run. Raises RunError for run.json, ConfigError for config.yaml if they are damaged."""

    def optional(name: str) -> dict[str, Any]:
        return read_json(run / name) if (run / name).is_file() else {}

    config = load_config(run / "config.yaml")
    coarse = optional("coarse/metrics.json")
    return RunRecords(
        config,
        read_manifest(run),
        optional("summary.json"),
        optional("fine/merge.json"),
        coarse.get("updates", coarse.get("steps")),
        optional("evaluation/settings.json").get("settings") or config.evaluation.model_dump(mode="json"),
    )


def public_name(place: str) -> str:
    """A name without a place on this machine: the hub name, or the last part of a path.

    >>> public_name("/home/me/models/small")
    'small'
    """
    last = re.split(r"[\\/]", place.rstrip("\\/"))[-1]
    return hub_name(place) or (last if last not in ("", ".", "..", "~") else "local folder")


def data_sources(config: Config) -> dict[str, str | None]:
    """{public name: hub name, or None for local files and generated data} of pairs and prompts, without repeats."""
    sources: dict[str, str | None] = {}
    for source in (*config.data.preferences, *config.data.prompts):
        local = source.path.lower().endswith(DATA_SUFFIXES) or Path(source.path).is_absolute()
        hub = None if local else hub_name(source.path)
        sources[hub or public_name(source.path)] = hub
    return sources


def licence_in(folder: str) -> dict[str, str]:
    """Licence from the model card in a folder; {} if it states none."""
    return licence_of(card_metadata(Path(folder) / "README.md"))


def licence_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Licence in the metadata of a card; {} if it states none, or several, which the hub refuses."""
    if not isinstance(metadata.get("license"), str):
        return {}
    return {key: metadata[key] for key in LICENCE_KEYS if metadata.get(key) and isinstance(metadata[key], str)}


def model_card(
    records: RunRecords, what: str, repo: str, licence: Mapping[str, str], *, licence_of_model: bool = True
) -> str:
    """README.md of an upload: metadata in YAML, then what it is, how it was made and measured.

    what: `adapter`, `fine` or `gguf`; repo: OWNER/NAME; licence: values of LICENCE_KEYS, {} if not known.
    licence_of_model: whether it is that of the base or instruct model, and not another one that the user states.
    """
    actor = COARSE if what == ADAPTER else FINE
    figures = records.summary.get("actors", {})
    datasets = [hub for hub in data_sources(records.config).values() if hub]
    models = {ADAPTER: [BASE], FINE: [INSTRUCT, BASE], GGUF: [INSTRUCT]}[what]
    hub_models = [hub for name in models if (hub := records.hub_model(name))]
    results = _eval_results(records, figures[actor]) if actor in figures and what != GGUF else None
    metadata = ModelCardData(
        base_model=hub_models or None,
        base_model_relation=("merge" if what == FINE else "adapter") if hub_models else None,
        datasets=datasets or None,
        library_name={ADAPTER: "peft", FINE: "transformers", GGUF: "gguf"}[what],
        pipeline_tag="text-generation",
        tags=[*COMMON_TAGS, *({ADAPTER: ["lora"], FINE: ["merge"], GGUF: ["lora", "gguf"]}[what])],
        model_name=repo.partition("/")[2] if results else None,
        eval_results=results,
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {repo.partition('/')[2]}",
        _what_it_is(records, what),
        "## How it was made",
        _method(records, what),
        OWN_DESIGN,
        "## Evaluation",
        _evaluation(records, what, figures),
        "## Licence",
        _licence(records, models, licence, licence_of_model),
    ]
    return "\n\n".join(parts) + "\n"


def _eval_results(records: RunRecords, figures: Mapping[str, float]) -> list[EvalResult]:
    """One result per known figure of the actor."""
    sources = data_sources(records.config)
    hub = [name for name in sources.values() if name]
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Answers to held-out prompts",
            dataset_type=hub[0] if len(hub) == len(sources) == 1 else "local",
            dataset_name=f"held-out prompts of {', '.join(sources)}",
            metric_type=key,
            metric_name=f"{name}, {_judge(records)}" if key == "reward" else name,
            metric_value=figures[key],
        )
        for key, name in FIGURES.items()
        if key in figures
    ]


def _what_it_is(records: RunRecords, what: str) -> str:
    base, instruct = records.model(BASE), records.model(INSTRUCT)
    if what == ADAPTER:
        template = json.dumps(records.config.model.prompt_template)
        return (
            f"A Coarse Actor: a LoRA adapter that {_algorithm(records)} trained on the base model {base}, without "
            f"supervised fine-tuning before it. It loads with PEFT on that model. Prompts had the form `{template}`."
        )
    ratio = _ratio(records.merged)
    residue = f"the residue, the weight change that a LoRA adapter learned on {base}"
    if what == FINE:
        return (
            f"A Fine Actor: the instruct model {instruct} plus {ratio} times {residue}. It loads with Transformers; "
            "the chat template is the instruct model's. Figures of the merge are in `merge.json`."
        )
    return (
        f"A LoRA adapter in GGUF for llama.cpp and Ollama, of {residue}. It acts on any quantisation of {instruct}, "
        f"and on no other model. The scale is the ratio; the run chose {ratio}: "
        "`llama-server -m ./MODEL.gguf --lora-scaled residue.gguf:"
        f"{records.merged['ratio']:g}`. Ollama has no scale and adds the whole residue (`Modelfile`)."
    )


def _ratio(merged: Mapping[str, Any]) -> str:
    single = f"{merged['ratio']:g}"
    return f"{single} (other ratios for some layers: `merge.json`)" if merged.get("layer_ratios") else single


def _algorithm(records: RunRecords) -> str:
    return "DPO" if records.config.coarse.algorithm == "dpo" else "PPO with Continuous Maximization"


def _method(records: RunRecords, what: str) -> str:
    config, versions = records.config, records.manifest.get("versions", {})
    coarse, lora, length = config.coarse, config.lora, config.coarse.length
    sources = ", ".join(name + ("" if hub else " (not on the hub)") for name, hub in data_sources(config).items())
    training = f"{_algorithm(records)}, {records.updates if records.updates is not None else coarse.updates} updates"
    if coarse.algorithm == "ppo":
        training += f" of {coarse.rollouts} responses; limit on their length: {length.mode}, {length.start} to at most "
        training += f"{length.max} tokens; reward: {_judge(records)}"
    rows = {
        "base model": records.model(BASE),
        "instruct model": records.model(INSTRUCT),
        "data": sources,
        "training of the base": training,
        "adapter": f"rank {lora.r}, alpha {lora.alpha:g}{', rsLoRA' if lora.rslora else ''}; base in "
        f"{'4-bit NF4' if config.model.quantization == 'nf4' else config.model.compute_dtype} while training",
        **({} if what == ADAPTER or not records.merged else {"ratio of the residue": _ratio(records.merged)}),
        "seed": str(config.run.seed),
        "made with": ", ".join(
            f"{name} {version}"
            for name, version in {"lite_c2f": records.manifest.get("lite_c2f"), **versions}.items()
            if name in ("lite_c2f", "torch", "transformers", "peft") and version
        ),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in rows.items())])


def _judge(records: RunRecords) -> str:
    """What the reward is."""
    own = "the run's own reward model"
    accuracy = records.summary.get("reward_model", {}).get("accuracy")
    ranked = "" if accuracy is None else f", which ranks {accuracy:.1%} of held-out pairs right"
    if records.config.coarse.usual_rewards:
        return own + ranked
    names = [
        own if source.model is not None else f"{'another adapter' if source.adapter else 'the function'} {source.name}"
        for source in records.config.coarse.rewards
    ]
    return f"the weighted sum of {', '.join(names)}"


def _evaluation(records: RunRecords, what: str, figures: Mapping[str, Mapping[str, float]]) -> str:
    if not figures:
        return "The actors of this run have not been compared."
    settings, sources = records.settings, ", ".join(data_sources(records.config))
    prompts = next((row["prompts"] for row in records.summary.get("wins", {}).values()), settings["prompts"])
    sampling = f"temperature {settings['temperature']:g}" if settings["temperature"] else "greedy sampling"
    keys = [key for key in FIGURES if any(key in row for row in figures.values())]
    rows = [
        f"| {actor} | {' | '.join(f'{row[key]:.3f}' if key in row else '' for key in keys)} |"
        for actor, row in figures.items()
    ]
    whose = {
        ADAPTER: "This adapter is *coarse*.",
        FINE: "This model is *fine*.",
        GGUF: f"*fine* is the merged, unquantised model at ratio {_ratio(records.merged)}; nothing was measured with "
        "this file in llama.cpp.",
    }[what]
    return (
        f"One response to each of {prompts} prompts of {sources} that were held out from training, {sampling}, at most "
        f"{settings['max_tokens']} tokens. The reward is {_judge(records)}, standardised; {_circular(records)}, so it "
        f"measures the training, and not the quality of answers as people see it. {whose}\n\n"
        + "\n".join([f"| actor | {' | '.join(FIGURES[key] for key in keys)} |", "|---" * (len(keys) + 1) + "|", *rows])
    )


def _circular(records: RunRecords) -> str:
    trained = "learned from the same pairs" if records.config.coarse.algorithm == "dpo" else "was trained on it"
    return f"the policy {trained}"


def _licence(records: RunRecords, models: Sequence[str], licence: Mapping[str, str], of_model: bool) -> str:
    names = " and ".join(dict.fromkeys(records.model(name) for name in models))
    if not licence:
        return f"Not stated here: that of {names} applies, and that of the data."
    name = licence.get("license_name") or licence["license"]
    return f"{name}, that of {records.model(models[0])}." if of_model else f"{name}. See also that of {names}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
