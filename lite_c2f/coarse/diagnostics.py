"""Diagnostics of a run: warnings about its metrics, each with what to change. Rules and thresholds are our own.

Every rule is a pure function of the lines so far, so that a run which was stopped warns as one that was not.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

Line = dict[str, float]  # of metrics.jsonl, one per update
QUIET = 20  # updates before the same warning comes again
OPENING = 32  # tokens: responses that begin alike so far are the same
KL_PER_TOKEN = 0.5  # nats; rewarded runs that stay readable are at 0.01 to 0.15
VALUE_LOSS = 1.0  # of normalised rewards: wrong by 1.4 standard deviations on average
VALUE_HUGE = 25.0  # wrong by seven standard deviations on average
VALUE_JUMP = 10.0  # times the median of the updates before
ENTROPY_LEFT = 0.1  # share of the entropy of the first updates
SAME, LOOPING = 0.5, 0.5  # shares: of responses like another one, of 4-grams that were there before
LENGTH_PAYS, GROWN = 0.8, 1.5  # correlation of reward and length, and how much longer responses have become
AT_FIRST, LATELY = 3, 5  # updates


def warnings(lines: Sequence[Line]) -> list[str]:
    """Messages after the last of these updates: of rules that hold and gave none within the last QUIET updates."""
    return [message for rule in RULES if (message := message_of(rule, lines)) is not None]


def message_of(rule: "Rule", lines: Sequence[Line]) -> str | None:
    """The message of a rule after the last line; None where it does not hold or gave one within QUIET updates."""
    last = -QUIET
    for count in range(max(1, len(lines) - 10 * QUIET), len(lines) + 1):
        if count - last >= QUIET and (message := rule(lines[:count])) is not None:
            if count == len(lines):
                return message
            last = count
    return None


def kl_explodes(lines: Sequence[Line]) -> str | None:
    """The policy is far from the base, on average over the last three updates."""
    recent = [line["kl"] / max(line["tokens"], 1.0) for line in lines[-AT_FIRST:]]
    if len(recent) < AT_FIRST or fmean(recent) <= KL_PER_TOKEN:
        return None
    return (
        f"KL to the base is {fmean(recent):.2f} nats per token: the policy moves away from what the base knows; raise "
        "coarse.kl_coef, set coarse.kl_target, or lower coarse.lr"
    )


def value_explodes(lines: Sequence[Line]) -> str | None:
    """The critic's loss is large, and far larger than it was."""
    before = [line["value_loss"] for line in lines[-11:-1]]
    now = lines[-1]["value_loss"]
    if len(before) < AT_FIRST:
        return None
    if now > VALUE_HUGE and median(before) > VALUE_HUGE:
        return f"the critic's loss is {now:.2g}, in squared standard deviations of the reward: lower coarse.critic_lr"
    if now <= max(VALUE_LOSS, VALUE_JUMP * median(before)):
        return None
    return f"the critic's loss jumped from {median(before):.2g} to {now:.2g}: lower coarse.critic_lr"


def entropy_collapses(lines: Sequence[Line]) -> str | None:
    """Entropy is nearly gone, and responses are alike or repeat themselves."""
    trained = [line for line in lines if line["entropy"] > 0 or line.get("policy_grad_norm", 0) > 0]  # not a warm-up
    if len(trained) <= AT_FIRST:
        return None
    first, now = fmean(line["entropy"] for line in trained[:AT_FIRST]), trained[-1]
    if now["entropy"] >= ENTROPY_LEFT * first or max(now["same"] / SAME, now["repeated_4gram"] / LOOPING) < 0.5:
        return None
    return (
        f"entropy fell from {first:.2g} to {now['entropy']:.2g} nats per token, and responses repeat: raise "
        "coarse.kl_coef or lower coarse.lr"
    )


def samples_the_same(lines: Sequence[Line]) -> str | None:
    """The reward rises while every prompt gets the same answer."""
    first, now = lines[0], lines[-1]
    if now["reward"] <= first["reward"] or now["same"] < max(SAME, first["same"] + 0.3):
        return None
    return (
        f"the reward rose to {now['reward']:+.2f} while {now['same']:.0%} of the responses begin like another one: the "
        "policy found an answer that the reward model likes for everything; read coarse/samples.jsonl, raise "
        "coarse.kl_coef, and train the reward model on more kinds of bad answers"
    )


def length_pays(lines: Sequence[Line]) -> str | None:
    """Longer responses are rewarded for being longer, and have become so."""
    if len(lines) < LATELY + AT_FIRST:
        return None
    correlation = fmean(line["reward_length_correlation"] for line in lines[-LATELY:])
    grown = fmean(line["tokens"] for line in lines[-LATELY:]) / max(fmean(x["tokens"] for x in lines[:AT_FIRST]), 1.0)
    risen = fmean(line["reward"] for line in lines[-LATELY:]) > fmean(line["reward"] for line in lines[:AT_FIRST])
    if correlation <= LENGTH_PAYS or grown < GROWN or not risen:
        return None
    return (
        f"reward and length correlate at {correlation:.2f}, and responses are {grown:.1f} times as long: the reward "
        "may be for length itself; read coarse/samples.jsonl, lower coarse.length.max, or raise data.truncated"
    )


Rule = Callable[[Sequence[Line]], str | None]
RULES: tuple[Rule, ...] = (
    kl_explodes,
    value_explodes,
    entropy_collapses,
    samples_the_same,
    length_pays,
)


def correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one side does not vary.

    >>> correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    1.0
    """
    a, b = fmean(left), fmean(right)
    across = sum((x - a) * (y - b) for x, y in zip(left, right, strict=True))
    norm = math.sqrt(sum((x - a) ** 2 for x in left) * sum((y - b) ** 2 for y in right))
    return max(-1.0, min(1.0, across / norm)) if norm > 1e-12 else 0.0


def share_alike(responses: Sequence[Sequence[int]]) -> float:
    """Share of responses whose first tokens are those of another one.

    >>> share_alike([[1, 2], [1, 2], [3]])
    0.6666666666666666
    """
    openings = [tuple(response[:OPENING]) for response in responses]
    return sum(openings.count(opening) > 1 for opening in openings) / max(len(openings), 1)
