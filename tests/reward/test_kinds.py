"""Reward models on every usual kind of tokenizer: training, scoring and stock classes read the same token."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from tokenizer_kinds import KINDS, made, sentencepiece
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lite_c2f.backbone.adapters import load_into
from lite_c2f.backbone.load import load_model, load_tokenizer
from lite_c2f.backbone.padding import padding_id
from lite_c2f.backbone.roles import Roles
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config
from lite_c2f.data.records import Pair, Turn
from lite_c2f.reward.encode_pairs import encode_pairs
from lite_c2f.reward.score import score
from lite_c2f.reward.train import train_reward
from lite_c2f.runs.corpus import Corpus
from lite_c2f.runs.model_pair import ModelPair

PAGE = Path(__file__).parents[2] / "docs" / "rewards.md"
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, about pin_memory and the CPU
SETTINGS = ["data.truncated=0", "lora.r=4", "reward.batch=4", "reward.micro_batch=4", "reward.epochs=1",
            "reward.lr=1.0e-12", "reward.center=0", "model.quantization=none"]  # fmt: skip
# The model does not move, so what its one step of training saw can be compared with what it was published as. In the
# first two pairs both sides are one text, ended and cut off.
PAIRS = [
    Pair((Turn("human", "How many?"),), "It is 5.", "It is 5.", True, False),
    Pair((Turn("human", "Why?"),), "Because 3 + 4 = 7.", "Because 3 + 4 = 7.", False, True),
    Pair((Turn("human", "And then?"),), "Good (very good).", "Ok...", True, True),
    Pair((Turn("human", "Naïve?"),), "First. Second!", "Let us", True, False),
]


# What config.json has as padding: EOS or nothing, whatever the tokenizer has.
EOS_PADS = {"neox", "sentencepiece"}
BEYOND = "sentencepiece and [PAD]"  # added to the tokenizer, and the model was not resized


class Trained(NamedTuple):
    """A reward model that was published, the rows it read (chosen sides first), and each row's score.

    The scores are by stock classes, a row at a time and without padding: they then read the last token.
    """

    run: Path
    base: str
    config: Config
    metrics: dict
    rows: list[list[int]]
    expected: torch.Tensor
    tokenizer: Any  # the published one
    stock: Any  # the published model, loaded as docs/rewards.md says


@pytest.fixture(scope="module", params=[*KINDS, BEYOND])
def trained(request, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    tokenizer = made(request.param) if request.param in KINDS else sentencepiece()
    size = len(tokenizer)
    if request.param == BEYOND:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    settings = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if request.param in EOS_PADS else None,
    )
    LlamaForCausalLM(settings).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    config = load_config({}, SETTINGS)
    models = ModelPair(str(folder / "base"), "unused")
    metrics = train_reward(config, models, Corpus(PAIRS, PAIRS, [], [], {}), folder / "run")
    pairs = encode_pairs(PAIRS, load_tokenizer(models.base), config, 0.0).rows
    rows = [pair[side] for side in ("chosen_ids", "rejected_ids") for pair in pairs]
    adapter = str(folder / "run" / "reward" / "adapter")
    published = AutoTokenizer.from_pretrained(adapter)
    stock = AutoPeftModelForSequenceClassification.from_pretrained(
        adapter, num_labels=1, pad_token_id=published.pad_token_id
    ).eval()
    padding, stock.config.pad_token_id = stock.config.pad_token_id, None
    with torch.no_grad():
        expected = torch.cat([stock(input_ids=torch.tensor([row])).logits.flatten() for row in rows])
    stock.config.pad_token_id = padding
    return Trained(folder / "run", models.base, config, metrics, rows, expected, published, stock)


def test_training_and_measuring_read_the_last_token(trained):
    chosen, rejected = trained.expected.double().chunk(2)
    assert abs(chosen[0] - rejected[0]) > 1e-3 and abs(chosen[1] - rejected[1]) > 1e-3  # one text, ended and cut off
    line = json.loads((trained.run / "metrics.jsonl").read_text().splitlines()[0])
    assert line["margin"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-5)
    assert line["loss"] == pytest.approx(float(torch.log1p(torch.exp(rejected - chosen)).mean()), abs=1e-5)
    assert trained.metrics["mean"] == pytest.approx(float(trained.expected.mean()), abs=1e-5)
    assert trained.metrics["std"] == pytest.approx(float(trained.expected.std(unbiased=False)), abs=1e-5)


def test_scoring_reads_the_last_token(trained):
    """In PPO, in the comparison and in the chat."""
    roles = Roles(load_model(trained.base, trained.config), trained.config.lora, ("reward",))
    roles.add_head("reward", load_into(roles, "reward", trained.run / "reward" / "adapter"))
    scores = score(roles, trained.rows, pad_id=padding_id(load_tokenizer(trained.base)), batch=8)
    torch.testing.assert_close(scores, trained.expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_published_adapter_gives_the_same_scores_with_stock_classes(trained, side):
    """In one batch, as docs/rewards.md says, where config.json has EOS as padding, and where it has none."""
    tokenizer = trained.tokenizer
    tokenizer.padding_side = side
    batch = tokenizer.pad({"input_ids": trained.rows}, return_tensors="pt")
    assert not batch["attention_mask"].all()
    with torch.no_grad():
        scores = trained.stock(**batch).logits.flatten()
    torch.testing.assert_close(scores, trained.expected, atol=1e-5, rtol=0)


def test_the_lines_in_the_documentation_give_these_scores(trained):
    """They read text: the published tokenizer has to put before it what the run put there."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (lines,) = (block for block in blocks if "AutoPeftModelForSequenceClassification" in block)
    names = {}
    exec(lines.replace("runs/toy", str(trained.run)), names)
    result = names["scores"].detach().flatten()
    torch.testing.assert_close(result, trained.expected[[0, 4]], atol=1e-5, rtol=0)
