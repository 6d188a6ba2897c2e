"""Reward models on every usual kind of tokenizer: training, `measure`, `score` and stock classes read the same token."""

import json
from typing import NamedTuple

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from tokenizer_kinds import KINDS, made
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lite_c2f.backbone.adapters import load_into
from lite_c2f.backbone.load import load_model, load_tokenizer
from lite_c2f.backbone.padding import padding_id
from lite_c2f.backbone.roles import Roles
from lite_c2f.config import Config, load_config
from lite_c2f.data.records import Pair, Turn
from lite_c2f.inputs import Corpus, ModelPair
from lite_c2f.reward.score import score
from lite_c2f.reward.train import encode_pairs, train_reward

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, about pin_memory and the CPU
SETTINGS = ["data.truncated=0", "lora.r=4", "reward.batch=4", "reward.micro_batch=4", "reward.epochs=1",
            "reward.lr=1.0e-12", "reward.center=0", "model.quantization=none"]  # fmt: skip
# The model does not move, so what its one step of training saw can be compared with what it was published as. In the
# first two pairs both sides are one text, cut off and ended.
PAIRS = [
    Pair((Turn("human", "How many?"),), "It is 5.", "It is 5.", True, False),
    Pair((Turn("human", "Why?"),), "Because 3 + 4 = 7.", "Because 3 + 4 = 7.", False, True),
    Pair((Turn("human", "And then?"),), "Good (very good).", "Ok...", True, True),
    Pair((Turn("human", "Naïve?"),), "First. Second!", "Let us", True, False),
]


class Trained(NamedTuple):
    """A reward model that was published, and the rows it read, chosen sides first."""

    run: object
    folder: str  # of its base
    rows: list[list[int]]
    metrics: dict
    config: Config


def trained(kind, folder, pad) -> Trained:
    """pad: `pad_token_id` of the base's config.json, given its tokenizer."""
    torch.manual_seed(0)
    tokenizer = made(kind)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, pad_token_id=pad(tokenizer)))
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    config = load_config({}, SETTINGS)
    models = ModelPair(str(folder / "base"), "unused")
    metrics = train_reward(config, models, Corpus(PAIRS, PAIRS, [], [], {}), folder / "run")
    rows = encode_pairs(PAIRS, load_tokenizer(models.base), config, 0.0).rows
    sides = [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]
    return Trained(folder / "run", models.base, sides, metrics, config)


def stock(trained, **given):
    folder = str(trained.run / "reward" / "adapter")
    return AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1, **given).eval()


@torch.no_grad()
def one_by_one(trained):
    """Each row alone and without padding, by stock classes, which then read its last token."""
    model = stock(trained)
    model.config.pad_token_id = None
    return torch.cat([model(input_ids=torch.tensor([row])).logits.flatten() for row in trained.rows])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_is_scored_at_its_last_token(kind, tmp_path):
    found = trained(kind, tmp_path, lambda tokenizer: tokenizer.pad_token_id)
    expected = one_by_one(found)
    chosen, rejected = expected.chunk(2)
    ended, cut = (chosen[0], chosen[2]), (rejected[0], rejected[1])
    assert abs(ended[0] - cut[0]) > 1e-3  # one text, ended and cut off
    # in training
    line = json.loads((found.run / "metrics.jsonl").read_text().splitlines()[0])
    assert line["margin"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-5)
    loss = torch.log1p(torch.exp(rejected.double() - chosen.double())).mean()
    assert line["loss"] == pytest.approx(float(loss), abs=1e-5)
    # on held-out pairs
    assert found.metrics["mean"] == pytest.approx(float(expected.mean()), abs=1e-5)
    assert found.metrics["margin"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-4)  # rounded to that
    # in PPO and the comparison
    tokenizer = load_tokenizer(found.folder)
    roles = Roles(load_model(found.folder, found.config), found.config.lora, ("reward",))
    roles.add_head("reward", load_into(roles, "reward", found.run / "reward" / "adapter"))
    scores = score(roles, found.rows, pad_id=padding_id(tokenizer), batch=8)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    ("kind", "pad"),
    [
        ("neox", lambda tokenizer: tokenizer.eos_token_id),
        ("neox", lambda tokenizer: None),
        ("qwen", lambda tokenizer: None),
        ("llama3", lambda tokenizer: None),
        ("sentencepiece", lambda tokenizer: tokenizer.eos_token_id),
    ],
)
def test_the_published_adapter_gives_our_scores_with_stock_classes(kind, pad, side, tmp_path):
    """As README says, in one batch, where config.json has EOS as padding, and where it has none."""
    found = trained(kind, tmp_path, pad)
    expected = one_by_one(found)
    tokenizer = AutoTokenizer.from_pretrained(str(found.run / "reward" / "adapter"), padding_side=side)
    model = stock(found, pad_token_id=tokenizer.pad_token_id)
    batch = tokenizer.pad({"input_ids": found.rows}, return_tensors="pt")
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        scores = model(**batch).logits.flatten()
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
