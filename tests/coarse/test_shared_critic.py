"""A critic that is only a head on the policy's adapter: both losses in one pass, hand-made sums beside it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_c2f.backbone.adapters import save_critic
from lite_c2f.coarse.advantage import Advantages
from lite_c2f.coarse.rollout import ResponseEnds, RolloutBatches, RolloutContext, RolloutRequest, collect
from lite_c2f.coarse.state import ResponseLengths, TrainState
from lite_c2f.coarse.train import prepare_roles
from lite_c2f.coarse.update import update
from lite_c2f.config.loading import load_config
from lite_c2f.memory.stages import trained_adapters
from lite_c2f.reward.files import Normalizer
from lite_c2f.runs.model_pair import ModelPair

PROMPTS = [[1, 5, 9, 12], [1, 7], [1, 20, 41], [1, 30, 31, 32, 33]]
SETTINGS = load_config(
    {},
    [
        *("coarse.rollouts=4", "coarse.micro_batch=3", "coarse.sampling_batch=4", "coarse.minibatches=1"),
        *("coarse.epochs=1", "coarse.critic=shared", "coarse.value_coef=0.5", "coarse.max_grad_norm=1000"),
    ],
).coarse


@pytest.fixture
def roles(random_roles):
    return random_roles("policy", "reward", shares={"critic": "policy"})


@pytest.fixture
def rollout(roles):
    ends = ResponseEnds(eos_id=2, pad_id=0)
    context = RolloutContext(roles, SETTINGS, ends, Normalizer(0.5, 2.0), RolloutBatches.of(SETTINGS))
    return collect(context, RolloutRequest(PROMPTS, limit=6, seed=1))


def moved_by(roles, rollout, train_policy):
    optimizers = {name: torch.optim.SGD(roles.trainable(name), lr=0.1) for name in ("policy", "critic")}
    before = {name: [p.detach().clone() for p in roles.trainable(name)] for name in ("policy", "critic", "reward")}
    targets = Advantages(torch.where(rollout.mask, 1.0, 0.0), torch.where(rollout.mask, 2.0, 0.0))
    figures = update(
        roles, optimizers, rollout, targets, SETTINGS, torch.Generator().manual_seed(0), train_policy=train_policy
    )
    return figures, {
        name: [now.detach() - old for now, old in zip(roles.trainable(name), olds, strict=True)]
        for name, olds in before.items()
    }


def largest(changes):
    return max(float(change.abs().max()) for change in changes)


def test_it_reads_the_policys_adapter_with_its_own_head(roles):
    tokens = torch.tensor([[1, 5, 9]])
    with roles.use("policy"):
        expected = roles.heads["critic"](roles.hidden(tokens))
    with roles.use("critic"):
        torch.testing.assert_close(roles.value(tokens), expected, rtol=0, atol=0)
    assert roles.adapter_parameters("critic") == [] and len(roles.trainable("critic")) == 2


def test_warm_up_trains_the_head_alone(roles, rollout):
    _, moved = moved_by(roles, rollout, train_policy=False)
    assert largest(moved["critic"]) > 0 and largest(moved["policy"]) == largest(moved["reward"]) == 0


def test_one_step_is_that_of_both_losses(roles, rollout):
    total = torch.zeros(())
    with roles.use("policy", train=True):
        for index, prompt in enumerate(PROMPTS):
            generated = rollout.responses.tokens[index]
            hidden = roles.hidden(torch.tensor([prompt + generated]))[0, len(prompt) - 1 : -1]
            logprobs = roles.lm_head(hidden).log_softmax(-1)[range(len(generated)), generated]
            values = roles.heads["critic"](hidden)
            total = total + (-logprobs + 0.5 * 0.5 * (values - 2.0) ** 2).sum()  # no value has moved: nothing clipped
        (total / rollout.mask.sum()).backward()
    targets = {name: [p.grad.clone() for p in roles.trainable(name)] for name in ("policy", "critic")}
    for name in targets:
        for parameter in roles.trainable(name):
            parameter.grad = None
    figures, moved = moved_by(roles, rollout, train_policy=True)
    for name, grads in targets.items():
        assert largest(grads) > 1e-4
        for change, grad in zip(moved[name], grads, strict=True):
            torch.testing.assert_close(change, -0.1 * grad, atol=1e-6, rtol=1e-3)
    expected = 0.5 * ((rollout.values - 2.0) ** 2)[rollout.mask].mean()
    assert figures["value_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert largest(moved["reward"]) == 0


def test_a_checkpoint_brings_back_adapter_head_and_both_optimisers(roles, rollout):
    rates = {"policy": 0.1, "critic": 0.1}
    optimizers = {name: torch.optim.AdamW(roles.trainable(name), lr=0.1) for name in rates}
    state = TrainState(
        roles,
        optimizers,
        torch.Generator().manual_seed(0),
        None,
        RolloutBatches.of(SETTINGS),
        None,
        0.0,
        ResponseLengths(),
        rates,
    )
    flat = Advantages(torch.where(rollout.mask, 1.0, 0.0), torch.where(rollout.mask, 2.0, 0.0))

    def step():
        update(roles, optimizers, rollout, flat, SETTINGS, torch.Generator().manual_seed(0), train_policy=True)
        return state.snapshot()

    first = step()
    assert {name.split(".")[0] for name in first} == {"policy", "optimizer", "head"}
    second = step()
    state.restore_weights(first)
    again = step()
    assert all(torch.equal(second[name], again[name]) for name in second)


def test_only_the_head_is_published(roles, tmp_path):
    save_critic(roles, tmp_path / "critic", "base")
    assert [file.name for file in (tmp_path / "critic").iterdir()] == ["head.safetensors"]


def test_it_is_planned_with_an_adapter_less():
    shared, own = (load_config({}, [f"coarse.critic={kind}"]) for kind in ("shared", "zero"))
    assert (trained_adapters(shared), trained_adapters(own)) == (1, 2)


@pytest.mark.parametrize(
    ("budget", "tokens", "done"),
    [(None, [10.0, 10.0], False), (81, [10.0, 10.0], False), (80, [10.0, 10.0], True), (None, [1.0] * 3, True)],
)
def test_an_end_by_updates_or_by_tokens(budget, tokens, done):
    settings = load_config({}, ["coarse.rollouts=4", "coarse.updates=3", "coarse.critic_warmup=0"]).coarse
    settings = settings.model_copy(update={"token_budget": budget})
    state = TrainState(None, {}, None, None, None, None, 0.0, lines=[{"tokens": count} for count in tokens])
    state.step = len(tokens)
    assert state.finished(settings) is done


@pytest.mark.parametrize("start", ["reward_model", "zero", "shared"])
def test_what_the_critic_starts_as(pico, tmp_path, start):
    """The reward model's adapter, and its head on normalised rewards; or values of 0 whatever is read."""
    shutil.copytree(pico["adapter"], tmp_path / "reward" / "adapter")
    file = tmp_path / "reward" / "adapter" / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.score.weight": torch.ones(1, 32)}, file)
    (tmp_path / "reward" / "metrics.json").write_text(json.dumps({"mean": 3.0, "std": 2.0}))
    config = load_config({}, ["lora.r=4", "lora.alpha=8", "data.max_prompt_tokens=16", f"coarse.critic={start}"])
    made, normalizers = prepare_roles(config, ModelPair(str(pico["base"]), str(pico["instruct"])), tmp_path)
    tokens, result = torch.tensor([[1, 5, 9, 12]]), {}
    for role in ("critic", "reward"):
        with made.use(role):
            result[role] = made.value(tokens)
    assert ("critic" in made.adapters) is (start != "shared")
    expected = (result["reward"] - 3.0) / 2.0 if start == "reward_model" else torch.zeros(1, 4)
    torch.testing.assert_close(result["critic"], expected, atol=1e-5, rtol=1e-5)
    assert result["reward"].abs().max() > 1e-2 and normalizers == {"reward_model": (3.0, 2.0)}


@pytest.mark.slow
def test_a_run_with_a_budget_and_a_shared_critic(toy_run, in_process, tmp_path):
    """It ends when the tokens are spent, and its samples carry rewards at their own limit."""
    run = tmp_path / "run"
    shutil.copytree(toy_run / "reward", run / "reward")
    shutil.copy(toy_run / "config.yaml", run / "config.yaml")
    shutil.copy(toy_run / "run.json", run / "run.json")
    more = ["coarse.token_budget=3000", "coarse.critic=shared", "coarse.sample_tokens=40", "coarse.sample_prompts=8"]
    done = in_process("train", run / "config.yaml", *more, f"--run-dir={run}", "--stage=coarse")
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "coarse" / "metrics.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    spent = [48 * line["tokens"] for line in lines if line["stage"] == "coarse"]
    assert sum(spent) >= 3000 > sum(spent[:-1]) and result["updates"] == len(spent) < 40
    samples = [json.loads(line) for line in (run / "coarse" / "samples.jsonl").read_text().splitlines()]
    assert {row["limit"] for row in samples} == {40} and 16 < max(row["tokens"] for row in samples) <= 40
    assert {row["step"] for row in samples} == {1, 5, len(spent)} - ({5} if len(spent) < 5 else set())
    assert len({row["reward"] for row in samples}) > 2
