"""Reward modelling on a pico base in real NF4: out of memory, the stage goes on with smaller micro-batches."""

from types import SimpleNamespace

import pytest
import torch
from tokenizer_kinds import made
from trl import RewardTrainer

from lite_c2f.config.loading import load_config
from lite_c2f.data.records import Pair, Turn
from lite_c2f.errors import DataError, MemoryFullError
from lite_c2f.reward.encode_pairs import encode_pairs
from lite_c2f.reward.train import measure, train_reward, trainer_arguments
from lite_c2f.runs.corpus import Corpus
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runtime import distributed
from lite_c2f.runtime.batch_size import BatchSize

SETTINGS = ["data.max_prompt_tokens=16", "data.max_answer_tokens=16", "data.truncated=0", "lora.r=4",
            "coarse.length.start=8", "coarse.length.max=16", "evaluation.max_tokens=16", "fine.max_tokens=16",
            "reward.batch=4", "reward.lr=1.0e-3"]  # fmt: skip


def pairs(count):
    numbers = torch.Generator().manual_seed(0)

    def words(size):
        return " ".join(f"w{number}" for number in torch.randint(3, 60, (size,), generator=numbers).tolist())

    return [
        Pair((Turn("human", words(4)),), words(5 + index % 3), words(4), source="ab"[index % 4 == 3])
        for index in range(count)
    ]


def train(run, pico, micro_batch, messages=None):
    config = load_config({}, [*SETTINGS, f"reward.micro_batch={micro_batch}"])
    corpus = Corpus(pairs(16), pairs(24)[16:], [], [], {})
    models = ModelPair(str(pico["base"]), str(pico["instruct"]))
    return train_reward(config, models, corpus, run, on_message=messages)


@pytest.mark.filterwarnings("ignore")  # the libraries' own, about pin_memory and the CPU
def test_out_of_memory_gives_the_same_reward_model_in_smaller_parts(pico, tmp_path, monkeypatch):
    expected = train(tmp_path / "small", pico, 2)
    original, messages = RewardTrainer.training_step, []

    def step(self, model, inputs, *more, **options):
        if len(inputs["input_ids"]) > 4:  # two pairs
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return original(self, model, inputs, *more, **options)

    monkeypatch.setattr(RewardTrainer, "training_step", step)
    result = train(tmp_path / "large", pico, 4, messages.append)
    padding = "padding: rows are filled up with '<unk>' (id 0), as the tokenizer has no padding token"
    assert messages == [padding, "out of memory: reward.micro_batch 4 -> 2, doing that part again"]
    for name in ("accuracy", "margin", "mean", "std"):
        assert result[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4)
    monkeypatch.setattr(RewardTrainer, "training_step", full)
    # Of sixteen pairs every fourth is of b; of the eight that are held out too.
    assert result["pairs_by_source"] == {"a": 12, "b": 4} and result["held_out_pairs_by_source"] == {"a": 6, "b": 2}
    of_each = result["accuracy_by_source"]
    assert list(of_each) == ["a", "b"] and (6 * of_each["a"] + 2 * of_each["b"]) / 8 == pytest.approx(
        result["accuracy"], abs=1e-3
    )
    with pytest.raises(MemoryFullError, match=r"reward\.micro_batch=1"):
        train(tmp_path / "none", pico, 2)
    assert not (tmp_path / "none" / "reward").exists()


class SumOfTokens(torch.nn.Module):
    """A reward model that scores a text by the sum of its token ids."""

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=(input_ids * attention_mask).sum(1, keepdim=True).float())


def test_accuracy_of_each_source_by_hand():
    sides = [([5], [3]), ([5], [7]), ([9, 9], [4]), ([2], [1, 1, 1]), ([6], [2])]  # right, wrong, right, wrong, right
    rows = [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in sides]
    batch = BatchSize("rows", 2)
    result = measure(SumOfTokens(), rows, 0, load_config({}), torch.device("cpu"), batch, ["b", "a", "b", "a", "a"])
    assert result["accuracy"] == 0.6 and result["accuracy_by_source"] == {"a": 0.3333, "b": 1.0}
    one = measure(SumOfTokens(), rows, 0, load_config({}), torch.device("cpu"), batch, ["toy"] * 5)
    assert one["accuracy_by_source"] == {"toy": 0.6}


def test_pairs_of_each_source_are_those_that_are_trained_on(pico):
    from lite_c2f.backbone.load import load_tokenizer

    question = (Turn("human", "w1"),)
    same = Pair(question, "w2 w3 w4 w5 w6 w7 w8 w9", "w2 w3 w4 w5 w6 w7 w8", source="a")  # equal within six tokens
    pairs = [same, Pair(question, "w2 w3 w4 w5 w6", "w3", source="a"), Pair(question, "w4", "w5", source="b")]
    config = load_config({}, ["data.max_answer_tokens=8", "data.max_prompt_tokens=16"])
    config = config.model_copy(update={"data": config.data.model_copy(update={"max_answer_tokens": 6})})
    encoded = encode_pairs(pairs, load_tokenizer(str(pico["base"])), config, truncated=1.0)
    assert encoded.by_source == {"a": 1, "b": 1} and encoded.report["pairs"] == 2
    # The chosen answer of five words and EOS is also set over itself cut off; one of a word and EOS is too short.
    assert encoded.sources == ["a", "a", "b"] and len(encoded.rows) == 3 and encoded.report["cut_off_pairs_added"] == 1


def full(self, model, inputs, *more, **options):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_pairs_in_a_chat_template_are_its_own_ids():
    """Qwen's kind: turns end with <|im_end|>, 2, and not with EOS, 0."""
    tokenizer = made("qwen")
    config = load_config({}, ["model.prompt_template=chat", "data.max_answer_tokens=12"])
    pair = Pair((Turn("human", "Why?"),), "is<|im_end|>", "is" + " is" * 30)
    rows, report, *_ = encode_pairs([pair], tokenizer, config, 0.0)
    question = [{"role": "user", "content": "Why?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    # 262 and 272 are `is` and ` is`; what is written of the end of a turn stays nine tokens of text.
    written = [30, 94, 75, 79, 65, 71, 281, 94, 32]
    assert tokenizer.decode(written) == "<|im_end|>"
    assert rows == [{"chosen_ids": [*prompt, 262, *written, 2], "rejected_ids": [*prompt, 262, *[272] * 11]}]
    assert report["answers_cut"] == 1


def test_a_prompt_that_just_fits_is_not_counted_as_truncated():
    tokenizer = made("qwen")
    config = load_config({}, ["model.prompt_template=chat", "data.max_answer_tokens=12"])
    pair = Pair((Turn("human", "Why " * 20),), "is", "are")
    question = [{"role": "user", "content": pair.turns[0].text}]
    length = len(tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False))
    for limit, truncated in ((length + 1, 0), (length, 0), (length - 1, 1)):
        data = config.data.model_copy(update={"max_prompt_tokens": limit})
        report = encode_pairs([pair], tokenizer, config.model_copy(update={"data": data}), 0.0).report
        assert report["prompts_truncated"] == truncated


@pytest.mark.parametrize(("micro_batch", "used"), [(4, 4), (3, 2), (8, 6), (1, 1)])
def test_micro_batches_make_up_the_batch_exactly(micro_batch, used, tmp_path):
    config = load_config({}, ["reward.batch=6"] if micro_batch == 8 else ["reward.batch=4"])
    result = trainer_arguments(config, torch.device("cpu"), str(tmp_path), 100, micro_batch)
    assert result.per_device_train_batch_size == used
    assert result.per_device_train_batch_size * result.gradient_accumulation_steps == config.reward.batch


@pytest.mark.parametrize(("count", "processes", "each"), [(5, 2, 2), (3, 3, 1), (40, 2, 4), (1, 1, 1)])
def test_few_pairs_are_shared_out_among_the_processes(count, processes, each, tmp_path, monkeypatch):
    """A batch of 8 pairs, or as many as there are, in equal parts."""
    monkeypatch.setattr(distributed, "world", lambda: processes)
    result = trainer_arguments(load_config({}, ["reward.batch=8"]), torch.device("cpu"), str(tmp_path), count, 8)
    assert result.per_device_train_batch_size * result.gradient_accumulation_steps == each and result.max_steps >= 1


def test_fewer_pairs_than_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 4)
    with pytest.raises(DataError, match="3 training pairs for 4 processes; expected at least one pair for each"):
        trainer_arguments(load_config({}, ["reward.batch=8"]), torch.device("cpu"), str(tmp_path), 3, 8)
