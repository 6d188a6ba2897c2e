"""What the columns of a report mean, and how they are titled. docs/evaluation.md has the same in a table."""

_EXACT = {
    "reward": "mean z-score of the reward that the policy was trained on",
    "tokens": "mean length of a response",
    "repeated_4gram": "share of 4-grams of tokens that the same response had before",
    "eos": "share of responses that ended by themselves: by EOS, or on a base model by the next turn's marker",
    "accuracy": "share of right answers, where they can be checked",
    "analytic": "share of answers that write out their steps",
    "compression_ratio": "of all responses together; higher is more alike",
    "hit_limit": "share of responses that were cut off",
    "removable": "share of a right answer's words that can be removed before it becomes wrong",
    "after_answer": "share of a right answer's words that follow the answer",
    "verbose": "share of answers longer than twice what right ones need",
    "verbose_accuracy": "share of right answers among these",
    "concise_accuracy": "share of right answers among the others",
    "kl": "from the instruct model without residue, nats per token",
    "kl_to_base": "of the Coarse Actor from the base, nats per token",
    "kl_to_instruct": "of the Fine Actor from the instruct model, nats per token",
    "rate": "share of prompts on which the first has the higher reward; a tie counts one half",
    "low": "lower end of the rate's 95% interval (Wilson)",
    "high": "upper end of the rate's 95% interval (Wilson)",
    "se": "standard error of the rate",
    "controlled": "the rate at equal length, by a logistic fit",
    "length_effect": "what one standard deviation of difference in length adds to the log-odds of a win",
    "behind": "mean difference to the best reward, over the same prompts",
}
_TITLES = {
    "eos": "ended",
    "repeated_4gram": "repeated 4-grams",
    "low": "95% from",
    "high": "95% to",
    "kl": "KL",
    "kl_to_base": "KL to base",
    "kl_to_instruct": "KL to instruct",
}


def title_of(column: str) -> str:
    """How a figure is called on a page.

    >>> title_of("eos"), title_of("hit_limit")
    ('ended', 'hit limit')
    """
    return _TITLES.get(column, column.replace("_", " "))


def meaning_of(column: str) -> str:
    """What a figure of the comparison is, in a few words; "" for one that is not known here.

    >>> meaning_of("reward_se")
    'standard error of reward'
    """
    if column in _EXACT:
        return _EXACT[column]
    if column.startswith("distinct_"):
        return f"distinct {column.removeprefix('distinct_')}-grams over all of them; lower with more prompts"
    return f"standard error of {title_of(column.removesuffix('_se'))}" if column.endswith("_se") else ""
