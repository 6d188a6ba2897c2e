"""Token ids of preference pairs, with extra pairs of an answer over itself cut off."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from lite_c2f.config.settings import Config
from lite_c2f.data.encode import answer_end, encode_answer, encode_prompt
from lite_c2f.data.records import Pair


class EncodedPairs(NamedTuple):
    """Pairs as token ids, with counts of what encoding changed."""

    rows: list[dict[str, list[int]]]  # {"chosen_ids", "rejected_ids"}
    report: dict[str, int]  # pairs, turns_dropped, prompts_truncated, answers_cut, cut_off_pairs_added
    sources: list[str]  # of each row
    by_source: dict[str, int]  # pairs of each source, without those added
    prompt_tokens: list[int]  # of each row: both sides begin with so many of the prompt


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, config: Config, truncated: float
) -> EncodedPairs:
    """Token ids of both sides, plus a share `truncated` of extra pairs: a chosen answer over itself cut off."""
    rng = random.Random(config.run.seed)
    rows: list[dict[str, list[int]]] = []
    sources: list[str] = []
    prompt_tokens: list[int] = []
    by_source = dict.fromkeys(sorted({pair.source for pair in pairs}), 0)
    report = {"pairs": 0, "turns_dropped": 0, "prompts_truncated": 0, "answers_cut": 0, "cut_off_pairs_added": 0}
    template, variables = config.model.prompt_template, config.model.chat_template_kwargs
    end = answer_end(tokenizer, template, variables)

    def encoded(text: str, ended: bool) -> list[int]:
        longest = config.data.max_answer_tokens
        return encode_answer(
            tokenizer, text, ended=ended, max_tokens=longest, template=template, template_kwargs=variables
        )

    for pair in pairs:
        prompt, dropped = encode_prompt(tokenizer, pair.turns, config.data.max_prompt_tokens, template, variables)
        chosen, rejected = encoded(pair.chosen, pair.chosen_ended), encoded(pair.rejected, pair.rejected_ended)
        if chosen == rejected:  # sides that differ only beyond the cut
            report["sides_equal_after_cut"] = report.get("sides_equal_after_cut", 0) + 1
            continue
        rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
        sources.append(pair.source)
        prompt_tokens.append(len(prompt))
        by_source[pair.source] += 1
        report["turns_dropped"] += dropped
        report["prompts_truncated"] += dropped > 0 or len(prompt) == config.data.max_prompt_tokens
        report["answers_cut"] += (pair.chosen_ended and chosen[-1] != end) + (
            pair.rejected_ended and rejected[-1] != end
        )
        if rng.random() < truncated and len(chosen) > 4 and chosen[-1] == end:
            cut = chosen[: rng.randint(2, len(chosen) - 2)]
            rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + cut})
            sources.append(pair.source)
            prompt_tokens.append(len(prompt))
            report["cut_off_pairs_added"] += 1
    report["pairs"] = len(rows) - report["cut_off_pairs_added"]
    return EncodedPairs(rows, report, sources, by_source, prompt_tokens)
