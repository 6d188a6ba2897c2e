"""Diagnostics of a run: warnings about its metrics, each with what to change. Rules and thresholds are our own.

Every rule is a pure function of the lines so far, so that a run which was stopped warns as one that was not.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

Line = dict[str, float]  # of metrics.jsonl, one per update
REPEAT_AFTER = 20  # updates before the same warning is repeated
OPENING_TOKENS = 32  # tokens at the beginning, equal in responses that count as the same
KL_PER_TOKEN = 0.5  # nats; runs whose responses stay readable are at 0.01 to 0.15
VALUE_LOSS = 1.0  # of normalised rewards: an error of 1.4 standard deviations on average
VALUE_LOSS_HUGE = 25.0  # an error of seven standard deviations on average
VALUE_LOSS_JUMP = 10.0  # times the median of the updates before
ENTROPY_SHARE = 0.1  # share of the entropy of the first updates
ALIKE, REPEATED = 0.5, 0.5  # shares: of responses like another one, of 4-grams that repeat an earlier one
EQUAL = 1e-6  # standard deviation of rewards that are the same up to rounding
RISE = 0.01  # of a mean reward, in standard deviations: less is rounding
LENGTH_CORRELATION = 0.8  # of reward and length
LENGTH_GROWTH = 1.5  # times the length of the first updates
FUNCTION_SHARE = 0.05  # of an update's time
FIRST_UPDATES, LAST_UPDATES = 3, 5  # updates


def warnings(lines: Sequence[Line]) -> list[str]:
    """Messages after the last of these updates; a rule is silent for REPEAT_AFTER updates after its last message."""
    return [message for rule in RULES if (message := message_of(rule, lines)) is not None]


def message_of(rule: "Rule", lines: Sequence[Line]) -> str | None:
    """The rule's message after the last line; None where it does not hold or gave one within REPEAT_AFTER updates."""
    last = -REPEAT_AFTER
    for count in range(max(1, len(lines) - 10 * REPEAT_AFTER), len(lines) + 1):
        if count - last >= REPEAT_AFTER and (message := rule(lines[:count])) is not None:
            if count == len(lines):
                return message
            last = count
    return None


def kl_explodes(lines: Sequence[Line]) -> str | None:
    """The policy is far from the base, on average over the last three updates."""
    recent = [line["kl"] / max(line["tokens"], 1.0) for line in lines[-FIRST_UPDATES:]]
    if len(recent) < FIRST_UPDATES or fmean(recent) <= KL_PER_TOKEN:
        return None
    return (
        f"KL to the base is {fmean(recent):.2f} nats per token: the policy moves away from what the base knows; raise "
        "coarse.kl_coef, set coarse.kl_target, or lower coarse.lr"
    )


def value_loss_explodes(lines: Sequence[Line]) -> str | None:
    """The critic's loss is large, and far larger than it was."""
    before = [line["value_loss"] for line in lines[-11:-1]]
    now = lines[-1]["value_loss"]
    if len(before) < FIRST_UPDATES:
        return None
    if now > VALUE_LOSS_HUGE and median(before) > VALUE_LOSS_HUGE:
        return f"the critic's loss is {now:.2g}, in squared standard deviations of the reward: lower coarse.critic_lr"
    if now <= max(VALUE_LOSS, VALUE_LOSS_JUMP * median(before)):
        return None
    return f"the critic's loss jumped from {median(before):.2g} to {now:.2g}: lower coarse.critic_lr"


def entropy_collapses(lines: Sequence[Line]) -> str | None:
    """Entropy is near zero, and responses are alike or repeat themselves."""
    # without the critic's warm-up
    trained = [line for line in lines if line["entropy"] > 0 or line.get("policy_grad_norm", 0) > 0]
    if len(trained) <= FIRST_UPDATES:
        return None
    first, now = fmean(line["entropy"] for line in trained[:FIRST_UPDATES]), trained[-1]
    if now["entropy"] >= ENTROPY_SHARE * first or max(now["same"] / ALIKE, now["repeated_4gram"] / REPEATED) < 0.5:
        return None
    return (
        f"entropy fell from {first:.2g} to {now['entropy']:.2g} nats per token, and responses repeat: raise "
        "coarse.kl_coef or lower coarse.lr"
    )


def responses_alike(lines: Sequence[Line]) -> str | None:
    """The reward rises while every prompt gets the same answer."""
    first, now = lines[0], lines[-1]
    if now["reward"] <= first["reward"] + RISE or now["same"] < max(ALIKE, first["same"] + 0.3):
        return None
    return (
        f"the reward rose to {now['reward']:+.2f} while {now['same']:.0%} of the responses begin like another one: the "
        "policy found an answer that is paid for everything; read coarse/samples.jsonl, raise coarse.kl_coef, and "
        "train the reward model on more kinds of bad answers, or correct the reward function"
    )


def reward_follows_length(lines: Sequence[Line]) -> str | None:
    """Reward correlates with length, and responses have become longer."""
    if len(lines) < LAST_UPDATES + FIRST_UPDATES:
        return None
    first, last = lines[:FIRST_UPDATES], lines[-LAST_UPDATES:]
    correlation = fmean(line["reward_length_correlation"] for line in last)
    grown = fmean(line["tokens"] for line in last) / max(fmean(line["tokens"] for line in first), 1.0)
    risen = fmean(line["reward"] for line in last) > fmean(line["reward"] for line in first)
    if correlation <= LENGTH_CORRELATION or grown < LENGTH_GROWTH or not risen:
        return None
    return (
        f"reward and length correlate at {correlation:.2f}, and responses are {grown:.1f} times as long: the reward "
        "may be for length itself; read coarse/samples.jsonl, lower coarse.length.max, or raise data.truncated"
    )


def functions_are_slow(lines: Sequence[Line]) -> str | None:
    """Reward functions take more than their share of the last updates."""
    last = [line for line in lines[-FIRST_UPDATES:] if "function_seconds" in line]
    recent = [line["function_seconds"] / line["seconds"] for line in last]
    if len(recent) < FIRST_UPDATES or fmean(recent) <= FUNCTION_SHARE:
        return None
    return (
        f"reward functions take {fmean(recent):.0%} of an update ({lines[-1]['function_seconds']:.1f} s in the last): "
        "make them faster, or set `workers` of their sources"
    )


def rewards_without_scores(lines: Sequence[Line]) -> str | None:
    """A source of reward gave no score for any response of the last updates."""
    recent = lines[-FIRST_UPDATES:]
    shares = [name for name in lines[-1] if name.startswith("applies/")]
    names = [name.removeprefix("applies/") for name in shares if all(line.get(name) == 0 for line in recent)]
    if len(recent) < FIRST_UPDATES or not names:
        return None
    return (
        f"reward {', '.join(names)} gave no score for any response of the last {FIRST_UPDATES} updates and counts "
        "nothing: correct the function, or `rewards` in data.prompts"
    )


def rewards_do_not_differ(lines: Sequence[Line]) -> str | None:
    """All responses of each of the last updates had the same reward."""
    recent = lines[-FIRST_UPDATES:]
    if len(recent) < FIRST_UPDATES or rewards_without_scores(lines) is not None:
        return None
    if any(line.get("reward_std", 1.0) > EQUAL for line in recent):
        return None
    return (
        f"all responses of each of the last {FIRST_UPDATES} updates have the same reward ({lines[-1]['reward']:+.2f}): "
        "the policy has nothing to learn from; take easier prompts or a base that gets some of them right, raise "
        "coarse.rollouts, or add a source of reward that pays for a part of the way"
    )


Rule = Callable[[Sequence[Line]], str | None]
RULES: tuple[Rule, ...] = (
    kl_explodes,
    value_loss_explodes,
    entropy_collapses,
    responses_alike,
    reward_follows_length,
    functions_are_slow,
    rewards_without_scores,
    rewards_do_not_differ,
)


def correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one side does not vary.

    >>> correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    1.0
    """
    a, b = fmean(left), fmean(right)
    covariance = sum((x - a) * (y - b) for x, y in zip(left, right, strict=True))
    norm = math.sqrt(sum((x - a) ** 2 for x in left) * sum((y - b) ** 2 for y in right))
    return max(-1.0, min(1.0, covariance / norm)) if norm > 1e-12 else 0.0


def share_alike(responses: Sequence[Sequence[int]]) -> float:
    """Share of responses whose first tokens are those of another one.

    >>> share_alike([[1, 2], [1, 2], [3]])
    0.6666666666666666
    """
    openings = [tuple(response[:OPENING_TOKENS]) for response in responses]
    return sum(openings.count(opening) > 1 for opening in openings) / max(len(openings), 1)
