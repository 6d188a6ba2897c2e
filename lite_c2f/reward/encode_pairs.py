"""Token ids of preference pairs, with extra pairs of an answer over itself cut off."""

import random
import sys
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from lite_c2f.config.settings import Config
from lite_c2f.data.encode import answer_end, encode_answer, encode_prompt
from lite_c2f.data.records import Pair

MIN_CUT = 2  # tokens that a truncated answer keeps at least, and loses at least


class EncodedPairs(NamedTuple):
    """Pairs as token ids, with counts of what encoding changed."""

    rows: list[dict[str, list[int]]]  # {"chosen_ids", "rejected_ids"}
    # pairs, turns_dropped, prompts_truncated, answers_cut, cut_off_pairs_added, sides_equal_after_cut (if any)
    report: dict[str, int]
    sources: list[str]  # of each row
    by_source: dict[str, int]  # pairs of each source, without those added
    prompt_tokens: list[int]  # of each row: both sides begin with so many of the prompt


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, config: Config, truncated: float
) -> EncodedPairs:
    """Token ids of both sides, plus synthetic pairs: a chosen answer over the same answer truncated.

    truncated: share of the pairs that get such a synthetic pair, 0 to 1.
    """
    rng = random.Random(config.run.seed)
    rows: list[dict[str, list[int]]] = []
    sources: list[str] = []
    prompt_tokens: list[int] = []
    by_source = dict.fromkeys(sorted({pair.source for pair in pairs}), 0)
    report = {"pairs": 0, "turns_dropped": 0, "prompts_truncated": 0, "answers_cut": 0, "cut_off_pairs_added": 0}
    template, template_kwargs = config.model.prompt_template, config.model.chat_template_kwargs
    end_id = answer_end(tokenizer, template, template_kwargs)

    def encoded(text: str, complete: bool) -> list[int]:
        max_tokens = config.data.max_answer_tokens
        return encode_answer(
            tokenizer, text, ended=complete, max_tokens=max_tokens, template=template, template_kwargs=template_kwargs
        )

    def whole_prompt(pair: Pair) -> list[int]:
        return encode_prompt(tokenizer, pair.turns, sys.maxsize, template, template_kwargs)[0]

    for pair in pairs:
        prompt, dropped = encode_prompt(tokenizer, pair.turns, config.data.max_prompt_tokens, template, template_kwargs)
        chosen, rejected = encoded(pair.chosen, pair.chosen_ended), encoded(pair.rejected, pair.rejected_ended)
        if chosen == rejected:  # sides that differ only beyond the cut
            report["sides_equal_after_cut"] = report.get("sides_equal_after_cut", 0) + 1
            continue
        rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected})
        sources.append(pair.source)
        prompt_tokens.append(len(prompt))
        by_source[pair.source] += 1
        report["turns_dropped"] += dropped
        report["prompts_truncated"] += dropped > 0 or prompt != whole_prompt(pair)
        report["answers_cut"] += (pair.chosen_ended and chosen[-1] != end_id) + (
            pair.rejected_ended and rejected[-1] != end_id
        )
        if rng.random() < truncated and len(chosen) > 2 * MIN_CUT and chosen[-1] == end_id:
            cut = chosen[: rng.randint(MIN_CUT, len(chosen) - MIN_CUT)]
            rows.append({"chosen_ids": prompt + chosen, "rejected_ids": prompt + cut})
            sources.append(pair.source)
            prompt_tokens.append(len(prompt))
            report["cut_off_pairs_added"] += 1
    report["pairs"] = len(rows) - report["cut_off_pairs_added"]
    return EncodedPairs(rows, report, sources, by_source, prompt_tokens)
