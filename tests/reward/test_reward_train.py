"""Reward modelling on a pico base in real NF4: out of memory, the stage goes on with smaller micro-batches."""

import pytest
import torch
from trl import RewardTrainer

from lite_c2f import ranks
from lite_c2f.config import load_config
from lite_c2f.data.records import Pair, Turn
from lite_c2f.errors import DataError, MemoryFullError
from lite_c2f.inputs import Corpus, ModelPair
from lite_c2f.reward.train import train_reward, trainer_arguments

SETTINGS = ["data.max_prompt_tokens=16", "data.max_answer_tokens=16", "data.truncated=0", "lora.r=4",
            "coarse.length.start=8", "coarse.length.max=16", "evaluation.max_tokens=16", "fine.max_tokens=16",
            "reward.batch=4", "reward.lr=1.0e-3"]  # fmt: skip


def pairs(count):
    numbers = torch.Generator().manual_seed(0)

    def words(size):
        return " ".join(f"w{number}" for number in torch.randint(3, 60, (size,), generator=numbers).tolist())

    return [Pair((Turn("human", words(4)),), words(5 + index % 3), words(4)) for index in range(count)]


def train(run, pico, micro_batch, told=None):
    config = load_config({}, [*SETTINGS, f"reward.micro_batch={micro_batch}"])
    corpus = Corpus(pairs(16), pairs(24)[16:], [], [], {})
    models = ModelPair(str(pico["base"]), str(pico["instruct"]))
    return train_reward(config, models, corpus, run, tell=told)


@pytest.mark.filterwarnings("ignore")  # the libraries' own, about pin_memory and the CPU
def test_out_of_memory_gives_the_same_reward_model_in_smaller_parts(pico, tmp_path, monkeypatch):
    expected = train(tmp_path / "small", pico, 2)
    original, told = RewardTrainer.training_step, []

    def step(self, model, inputs, *more, **given):
        if len(inputs["input_ids"]) > 4:  # two pairs
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return original(self, model, inputs, *more, **given)

    monkeypatch.setattr(RewardTrainer, "training_step", step)
    found = train(tmp_path / "large", pico, 4, told.append)
    assert told == ["out of memory: reward.micro_batch 4 -> 2, doing that part again"]
    for name in ("accuracy", "margin", "mean", "std"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-4)
    monkeypatch.setattr(RewardTrainer, "training_step", full)
    with pytest.raises(MemoryFullError, match=r"reward\.micro_batch=1"):
        train(tmp_path / "none", pico, 2)
    assert not (tmp_path / "none" / "reward").exists()


def full(self, model, inputs, *more, **given):
    raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(("asked", "used"), [(4, 4), (3, 2), (8, 6), (1, 1)])
def test_micro_batches_make_up_the_batch_exactly(asked, used, tmp_path):
    config = load_config({}, ["reward.batch=6"] if asked == 8 else ["reward.batch=4"])
    found = trainer_arguments(config, torch.device("cpu"), str(tmp_path), 100, asked)
    assert found.per_device_train_batch_size == used
    assert found.per_device_train_batch_size * found.gradient_accumulation_steps == config.reward.batch


@pytest.mark.parametrize(("count", "processes", "each"), [(5, 2, 2), (3, 3, 1), (40, 2, 4), (1, 1, 1)])
def test_few_pairs_are_shared_out_among_the_processes(count, processes, each, tmp_path, monkeypatch):
    """A batch of 8 pairs, or as many as there are, in equal parts."""
    monkeypatch.setattr(ranks, "world", lambda: processes)
    found = trainer_arguments(load_config({}, ["reward.batch=8"]), torch.device("cpu"), str(tmp_path), count, 8)
    assert found.per_device_train_batch_size * found.gradient_accumulation_steps == each and found.max_steps >= 1


def test_fewer_pairs_than_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "world", lambda: 4)
    with pytest.raises(DataError, match="3 training pairs for 4 processes; expected at least one pair for each"):
        trainer_arguments(load_config({}, ["reward.batch=8"]), torch.device("cpu"), str(tmp_path), 3, 8)
