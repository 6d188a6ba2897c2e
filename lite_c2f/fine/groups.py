"""Search of ratios by group of layers (attention and MLP; early, middle, late), confirmed on unseen prompts."""

from collections.abc import Callable, Sequence
from typing import Any

from lite_c2f.actors.answers import paired_difference
from lite_c2f.errors import ConfigError
from lite_c2f.fine.ratios import layer_of
from lite_c2f.fine.sweep import RatioTrial, RatioTrials

THIRDS = ("early", "middle", "late")
FACTORS = (0.5, 1.5)  # tried multiples of a group's ratio
MIN_STANDARD_ERRORS = 2.0  # with one, one or two of a dozen ineffective changes would seem better
LEAST_PROMPTS, LEAST_BUDGET = 8, 4
RULE = (
    "starting from the single ratio, each group's ratio is tried at half and at one and a half of it; a change is kept "
    "when responses still end (min_eos) and the mean reward rises by more than two standard errors of the paired "
    "difference. The result is then compared with the single ratio on prompts that the search has not seen: it is "
    "better when the mean paired difference is above two standard errors there too"
)


def group_of(weight: str, layers: int) -> str | None:
    """The group of a weight in a model of `layers` layers; None for those outside the layers.

    >>> group_of("model.layers.0.self_attn.q_proj.weight", 32)
    'attention, early'
    """
    layer = layer_of(weight)
    if layer is None:
        return None
    part = "attention" if "attn" in weight or "attention" in weight else "MLP"
    return f"{part}, {THIRDS[min(3 * layer // max(layers, 1), 2)]}"


def search(
    trials: RatioTrials,
    single: float,
    budget: int,
    min_eos: float,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Search ratios by group from a single ratio, in at most `budget` trials; our own. Returns all that was tried.

    Half of the prompts of `trials` are for the search, the others for the comparison at its end (two trials within the
    budget, as is the first trial of the single ratio).
    """
    half = len(trials.prompts) // 2
    if half < LEAST_PROMPTS:
        got = f"fine.prompts={len(trials.prompts)} (or fewer held out)"
        raise ConfigError.because(
            got, f"{2 * LEAST_PROMPTS} for a search by group", "raise fine.prompts or data.held_out"
        )
    if budget < LEAST_BUDGET:
        got = f"a budget of {budget} trials"
        raise ConfigError.because(got, f"at least {LEAST_BUDGET}", "15 tries every group of a model")
    search_prompts, confirmation_prompts = trials.prompts[:half], trials.prompts[half:]
    layers = 1 + max((layer_of(name) or 0 for name in trials.instruct.weights), default=0)
    groups = {name: group_of(name, layers) for name in trials.instruct.weights}
    names = list(dict.fromkeys(group for group in groups.values() if group is not None))
    current = dict.fromkeys(names, single)
    done = 0
    tried: list[dict[str, Any]] = []

    def by_weight(ratios: dict[str, float]) -> dict[str, float]:
        return {weight: ratios[group] if group is not None else single for weight, group in groups.items()}

    def measure(ratios: dict[str, float], prompts: Sequence[Any]) -> RatioTrial:
        nonlocal done
        trial = trials.measure(by_weight(ratios), prompts)
        done += 1
        if progress:
            progress(done, budget, trial.figures)
        return trial

    best = measure(current, search_prompts)
    tried.append({"change": f"all at {single:g}", "ratios": dict(current), **best.figures, "kept": True})
    candidates = [(group, factor) for group in names for factor in FACTORS]
    for group, factor in candidates[: max(0, budget - 3)]:
        if current[group] != single:
            continue  # its first factor was accepted, so the other is skipped
        ratios = current | {group: round(single * factor, 6)}
        trial = measure(ratios, search_prompts)
        gain, error = paired_difference(trial.rewards, best.rewards)
        better = trial.figures["eos"] >= min_eos and gain > MIN_STANDARD_ERRORS * error
        change = f"{group} at {ratios[group]:g}"
        tried.append(
            {"change": change, "ratios": ratios, **trial.figures, "gain": gain, "gain_se": error, "kept": better}
        )
        if better:
            current, best = ratios, trial
    result: dict[str, Any] = {
        "rule": RULE,
        "budget": budget,
        "single": single,
        "chosen": current,
        "trials": tried,
        "better": False,
    }
    if any(ratio != single for ratio in current.values()):
        single_trial = measure(dict.fromkeys(names, single), confirmation_prompts)
        group_trial = measure(current, confirmation_prompts)
        gain, error = paired_difference(group_trial.rewards, single_trial.rewards)
        ended = group_trial.figures["eos"] >= min_eos
        figures = {"single": single_trial.figures, "groups": group_trial.figures}
        result["confirmation"] = {**figures, "gain": gain, "gain_se": error}
        result["better"] = bool(ended and gain > MIN_STANDARD_ERRORS * error)
    result["untried"] = max(0, len(candidates) - max(0, budget - 3))
    result["verdict"] = verdict(result)
    result["layer_ratios"] = [[weight, ratio] for weight, ratio in by_weight(current).items()]
    return result


def verdict(result: dict[str, Any]) -> str:
    """A sentence on whether ratios by group are better than the single one."""
    if "confirmation" not in result:
        untried = f" ({result['untried']} changes were beyond the budget)" if result.get("untried") else ""
        return (
            f"no group's ratio that was tried was worth changing: keep the single ratio {result['single']:g}{untried}"
        )
    confirmed = result["confirmation"]
    gain = f"{confirmed['gain']:+.3f} (standard error {confirmed['gain_se']:.3f}) in reward on unseen prompts"
    if result["better"]:
        return f"ratios by group beat the single ratio {result['single']:g}: {gain}"
    return f"ratios by group do not measurably beat the single ratio {result['single']:g}: {gain}; keep the single one"
