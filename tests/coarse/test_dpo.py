"""DPO as the coarse stage: its loss worked out with plain torch, resumed runs, refusals, the plan, the settings."""

import json
import os
import signal

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lite_c2f.coarse.dpo import train_dpo
from lite_c2f.config.loading import load_config
from lite_c2f.data.records import Pair, Turn
from lite_c2f.errors import RunError
from lite_c2f.memory.plan import make_plan
from lite_c2f.pipeline.prepare import check_algorithm
from lite_c2f.reward.encode_pairs import encode_pairs
from lite_c2f.runs.corpus import Corpus
from lite_c2f.runs.model_pair import ModelPair

SETTINGS = ["data.max_prompt_tokens=16", "data.max_answer_tokens=16", "data.truncated=0", "lora.r=4",
            "evaluation.max_tokens=16", "fine.max_tokens=16", "coarse.algorithm=dpo", "coarse.dpo.batch=4",
            "coarse.dpo.micro_batch=2", "coarse.dpo.lr=1.0e-2", "coarse.dpo.beta=0.3", "coarse.dpo.warmup=0",
            "model.quantization=none", "hardware.device=cpu"]  # fmt: skip
PAIRS = [
    Pair((Turn("human", f"w{n} w{n + 1}"),), f"w{n + 9} w{n + 5} w{n + 6}", f"w{n + 7} w{n + 20}", source="a")
    for n in range(3, 7)
]
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own, about pin_memory and the CPU


def train(run, pico, *more, progress=None):
    config = load_config({}, [*SETTINGS, *more])
    (run / "reward").mkdir(parents=True, exist_ok=True)
    (run / "reward" / "metrics.json").write_text("{}")
    models = ModelPair(str(pico["base"]), str(pico["instruct"]))
    train_dpo(config, models, Corpus(PAIRS, PAIRS, [], [], {}), run, progress)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@torch.no_grad()
def answer_logprob(model, prompt, tokens):
    """Sum of the log-probabilities of the tokens after the prompt, one by one."""
    logprobs = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    return sum(logprobs[place - 1, tokens[place]].item() for place in range(prompt, len(tokens)))


def test_loss_is_that_of_the_paper(pico, tmp_path):
    """The loss of the second step is that of the adapter which a run of one step publishes; batch = all pairs."""
    train(tmp_path / "one", pico, "coarse.dpo.epochs=1")
    lines = train(tmp_path / "two", pico, "coarse.dpo.epochs=2")
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-5)  # log 2: nothing has changed yet
    base = AutoModelForCausalLM.from_pretrained(pico["base"], dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(pico["base"], dtype=torch.float32)
    policy = PeftModel.from_pretrained(base, tmp_path / "one" / "coarse" / "adapter").eval()
    encoded = encode_pairs(PAIRS, AutoTokenizer.from_pretrained(pico["base"]), load_config({}, SETTINGS), 0.0)
    losses, chosen, rejected = [], [], []
    for row, prompt in zip(encoded.rows, encoded.prompt_tokens, strict=True):
        for side, rewards in (("chosen_ids", chosen), ("rejected_ids", rejected)):
            difference = answer_logprob(policy, prompt, row[side]) - answer_logprob(reference, prompt, row[side])
            rewards.append(0.3 * difference)
        losses.append(-torch.tensor(chosen[-1] - rejected[-1]).sigmoid().log().item())
    assert len(losses) == 4 and sum(losses) / 4 < 0.69
    assert lines[1]["loss"] == pytest.approx(sum(losses) / 4, abs=1e-4)
    assert lines[1]["chosen_reward"] == pytest.approx(sum(chosen) / 4, abs=1e-4)
    assert lines[1]["rejected_reward"] == pytest.approx(sum(rejected) / 4, abs=1e-4)
    assert lines[1]["margin"] == pytest.approx((sum(chosen) - sum(rejected)) / 4, abs=1e-4)


def test_resumes_bit_for_bit(pico, tmp_path):
    def stop(step, steps, line):
        if step == 2:  # the step was over when its line was written: the next one is finished and saved
            os.kill(os.getpid(), signal.SIGINT)

    options = ("coarse.dpo.epochs=4", "coarse.dpo.batch=2")
    whole = train(tmp_path / "whole", pico, *options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", pico, *options, progress=stop)
    assert [folder.name for folder in (tmp_path / "run/coarse/checkpoints").glob("step-*")] == ["step-000003"]
    with pytest.raises(RunError, match=r"checkpoints of coarse\.algorithm=dpo"):
        check_algorithm(load_config({}), tmp_path / "run")
    lines = train(tmp_path / "run", pico, *options)
    for line in (*whole, *lines):
        del line["seconds"]
    assert lines == whole and len(lines) == 8
    first, second = (tmp_path / name / "coarse/adapter/adapter_model.safetensors" for name in ("whole", "run"))
    assert first.read_bytes() == second.read_bytes()


def test_settings_of_ppo_are_as_before_and_do_not_count_for_dpo():
    ppo, dpo = load_config({}), load_config({}, ["coarse.algorithm=dpo"])
    assert not {"algorithm", "dpo"} & ppo.identity(("coarse",))["coarse"].keys()
    other = load_config({}, ["coarse.algorithm=dpo", "coarse.updates=7", "coarse.dpo.micro_batch=1"])
    assert other.identity(("coarse",)) == dpo.identity(("coarse",))
    assert load_config({}, ["coarse.algorithm=dpo", "coarse.dpo.beta=0.2"]).identity(("coarse",)) != dpo.identity(
        ("coarse",)
    )


def test_plan_has_dpo_in_place_of_ppo_and_refuses_what_cannot_fit():
    settings = ["coarse.algorithm=dpo", "data.max_answer_tokens=4096", "coarse.dpo.micro_batch=32"]
    plan = make_plan(load_config({"model": {"base": "x/7b", "instruct": "x/7b-it"}}, settings), 24)
    assert [need.stage for need in plan.needs] == ["reward", "coarse_dpo", "comparison"]
    assert any("coarse dpo needs" in refusal.message for refusal in plan.refusals)
