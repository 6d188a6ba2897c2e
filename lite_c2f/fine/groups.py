"""Search of ratios by group of layers (attention and MLP; early, middle, late), confirmed on unseen prompts."""

from collections.abc import Callable, Sequence
from typing import Any

from lite_c2f.actors.answers import paired_difference
from lite_c2f.errors import ConfigError
from lite_c2f.fine.ratios import layer_of
from lite_c2f.fine.sweep import RatioTrial, RatioTrials

THIRDS = ("early", "middle", "late")
GROUP_MULTIPLIERS = (0.5, 1.5)  # of the global ratio, tried for each group
MIN_STANDARD_ERRORS = 2.0  # at one, one or two of twelve useless changes would pass by chance
MIN_PROMPTS_PER_HALF, MIN_BUDGET = 8, 4
RESERVED_TRIALS = 3  # of the budget: the global ratio on both halves of the prompts, the ratios by group on the second
RULE = (
    "starting from the single ratio, each group's ratio is tried at half and at one and a half of it; a change is kept "
    "when responses still end (min_eos) and the mean reward rises by more than two standard errors of the paired "
    "difference. The result is then compared with the single ratio on prompts that the search has not seen: it is "
    "better when responses end (min_eos) and the mean paired difference is above two standard errors there too"
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


def search_group_ratios(
    trials: RatioTrials,
    global_ratio: float,
    budget: int,
    min_eos: float,
    progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Search ratios by group from a global ratio, in at most `budget` trials; our own. Returns all that was tried.

    Half of the prompts of `trials` are for the search, the others for the confirmation at its end. RESERVED_TRIALS of
    the budget are the start and the confirmation. min_eos: least share of responses that must end, 0 to 1.
    """
    half = len(trials.prompts) // 2
    if half < MIN_PROMPTS_PER_HALF:
        problem = f"{len(trials.prompts)} held-out prompts for a search of ratios by group"
        expected = f"at least {2 * MIN_PROMPTS_PER_HALF} prompts"
        raise ConfigError.because(problem, expected, "raise fine.prompts or data.held_out")
    if budget < MIN_BUDGET:
        problem = f"a budget of {budget} trials"
        remedy = "15 covers all: 6 groups x 2 multipliers + 3"
        raise ConfigError.because(problem, f"at least {MIN_BUDGET}", remedy)
    search_prompts, confirmation_prompts = trials.prompts[:half], trials.prompts[half:]
    layers = 1 + max((layer_of(name) or 0 for name in trials.instruct.weights), default=0)
    groups = {name: group_of(name, layers) for name in trials.instruct.weights}
    names = list(dict.fromkeys(group for group in groups.values() if group is not None))
    current = dict.fromkeys(names, global_ratio)
    done = 0
    tried: list[dict[str, Any]] = []

    def ratio_per_weight(ratios: dict[str, float]) -> dict[str, float]:
        return {weight: ratios[group] if group is not None else global_ratio for weight, group in groups.items()}

    def measure(ratios: dict[str, float], prompts: Sequence[Any]) -> RatioTrial:
        nonlocal done
        trial = trials.measure(ratio_per_weight(ratios), prompts)
        done += 1
        if progress:
            progress(done, budget, trial.figures)
        return trial

    best = measure(current, search_prompts)
    tried.append({"change": f"all at {global_ratio:g}", "ratios": dict(current), **best.figures, "kept": True})
    candidates = [(group, multiplier) for group in names for multiplier in GROUP_MULTIPLIERS]
    for group, multiplier in candidates[: max(0, budget - RESERVED_TRIALS)]:
        if current[group] != global_ratio:
            continue  # its first multiplier was accepted, so the other is skipped
        ratios = current | {group: round(global_ratio * multiplier, 6)}
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
        "single": global_ratio,
        "min_eos": min_eos,
        "chosen": current,
        "trials": tried,
        "better": False,
    }
    if any(ratio != global_ratio for ratio in current.values()):
        global_trial = measure(dict.fromkeys(names, global_ratio), confirmation_prompts)
        group_trial = measure(current, confirmation_prompts)
        gain, error = paired_difference(group_trial.rewards, global_trial.rewards)
        metrics = {"single": global_trial.figures, "groups": group_trial.figures}
        result["confirmation"] = {**metrics, "gain": gain, "gain_se": error}
        result["better"] = bool(group_trial.figures["eos"] >= min_eos and gain > MIN_STANDARD_ERRORS * error)
    result["untried"] = max(0, len(candidates) - max(0, budget - RESERVED_TRIALS))
    result["verdict"] = verdict(result)
    result["layer_ratios"] = [[weight, ratio] for weight, ratio in ratio_per_weight(current).items()]
    return result


def verdict(result: dict[str, Any]) -> str:
    """A sentence on whether ratios by group are better than the single one."""
    if "confirmation" not in result:
        beyond_budget = f" ({result['untried']} changes were beyond the budget)" if result.get("untried") else ""
        return (
            f"no group's ratio that was tried was worth changing: keep the single ratio {result['single']:g}"
            + beyond_budget
        )
    confirmed = result["confirmation"]
    gain = f"{confirmed['gain']:+.3f} (standard error {confirmed['gain_se']:.3f}) in reward on unseen prompts"
    if result["better"]:
        return f"ratios by group beat the single ratio {result['single']:g}: {gain}"
    ended = confirmed["groups"]["eos"]
    if ended < result["min_eos"]:
        return (
            f"with ratios by group only {ended:.0%} of responses end (min_eos {result['min_eos']:g}), "
            f"{gain}; keep the single ratio {result['single']:g}"
        )
    return f"ratios by group do not measurably beat the single ratio {result['single']:g}: {gain}; keep the single one"
