"""Loss scaling: what float16 loses without it, and what an overflow costs."""

from types import SimpleNamespace

import pytest
import torch

from lite_c2f.backbone.heads import ScalarHead
from lite_c2f.backbone.roles import Roles
from lite_c2f.coarse.advantage import Advantages
from lite_c2f.coarse.length import LengthState
from lite_c2f.coarse.loss_scale import GROWTH_STEPS, MAX_SCALE, START_SCALE, LossScale
from lite_c2f.coarse.rollout import ResponseEnds, RolloutBatches, RolloutContext, RolloutRequest, collect
from lite_c2f.coarse.state import TrainState
from lite_c2f.coarse.train import initial_state
from lite_c2f.coarse.update import Minibatch, gradients, update
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Lora
from lite_c2f.reward.files import Normalizer
from lite_c2f.runs.corpus import Corpus
from lite_c2f.runtime.batch_size import BatchSize

FINE = {"loss": torch.tensor(1.0)}


def half(value, scale):
    """The gradient, 1 * value, of a float32 weight that is used in float16."""
    weight = torch.ones(1, requires_grad=True)
    (weight.half().float() * value * scale.value).sum().backward()
    return [weight.grad]


def test_a_gradient_that_float16_loses_survives_scaled():
    """The smallest number of float16 is 2**-24, 6e-8: 1e-8 becomes 0, and 1e-8 * 2**16 does not."""
    off, scale = LossScale(torch.float32), LossScale(torch.float16)
    lost, result = half(1e-8, off), half(1e-8, scale)
    assert off.accept(lost, FINE) and lost[0].item() == 0.0
    assert scale.accept(result, FINE) and result[0].item() == pytest.approx(1e-8, rel=1e-3)


def test_an_overflow_halves_the_scale_until_it_is_gone():
    """3 * 2**15 is above 65,504, 3 * 2**14 is not."""
    scale = LossScale(torch.float16)
    assert START_SCALE == 2**16
    tried = []
    while not scale.accept(grads := half(3.0, scale), FINE):
        tried.append(scale.value)
    assert tried == [2.0**15, 2.0**14] and grads[0].item() == 3.0 and scale.value == 2.0**14


def test_a_quiet_time_doubles_it_up_to_the_largest():
    scale = LossScale(torch.float16)
    for _ in range(GROWTH_STEPS - 1):
        scale.accept([torch.ones(1)], FINE)
    assert scale.value == 2.0**16
    scale.accept([torch.ones(1)], FINE)
    assert (scale.value, scale.steps) == (2.0**17, 0)
    scale.value = MAX_SCALE
    for _ in range(GROWTH_STEPS):
        scale.accept([torch.ones(1)], FINE)
    assert scale.value == MAX_SCALE


def test_what_no_scale_mends_is_left_to_the_caller():
    scale = LossScale(torch.float16)
    assert scale.accept([torch.tensor([torch.nan])], {"loss": torch.tensor(torch.nan)})
    tries = 0
    while not scale.accept([torch.tensor([torch.inf])], FINE):
        tries += 1
    assert tries == 16 and scale.value == START_SCALE


def standing(roles):
    """A loop between two updates, with nothing in it but its roles."""
    prompts = SimpleNamespace(taken=0, go_to=lambda taken: None)
    optimizers = {name: torch.optim.AdamW(roles.trainable(name)) for name in ("policy", "critic")}
    batches = RolloutBatches.of(load_config({}, ["coarse.micro_batch=1", "coarse.sampling_batch=1"]).coarse)
    scales = {name: LossScale(torch.float16) for name in optimizers}
    rates = dict.fromkeys(optimizers, 0.1)
    shuffler = torch.Generator()
    return TrainState(
        roles, optimizers, shuffler, prompts, batches, LengthState(8), 0.1, learning_rates=rates, loss_scales=scales
    )


def test_a_checkpoint_brings_the_scales_back(in_float16):
    roles = in_float16(torch.float32)
    before, after = standing(roles), standing(roles)
    before.loss_scales["policy"].value, before.loss_scales["policy"].steps = 2.0**11, 7
    saved = before.checkpoint()
    after.restore(saved)
    assert {name: (scale.value, scale.steps) for name, scale in after.loss_scales.items()} == {
        "policy": (2.0**11, 7),
        "critic": (2.0**16, 0),
    }
    del saved.state["loss_scales"]  # a checkpoint of an earlier version
    standing(roles).restore(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_loop_scales_its_losses_in_float16_alone(in_float16, dtype):
    config = load_config({}, ["coarse.micro_batch=1", "coarse.sampling_batch=1"])
    corpus = Corpus([], [], [], [], {})
    scales = initial_state(config, corpus, in_float16(dtype), None, None).loss_scales
    assert set(scales) == {"policy", "critic"}
    assert {scale.active for scale in scales.values()} == {dtype == torch.float16}


@pytest.fixture
def in_float16(pico):
    """Policy, critic and reward model on an unquantised base, in float16 and in float32."""
    from transformers import AutoModelForCausalLM

    def build(dtype):
        base = AutoModelForCausalLM.from_pretrained(pico["base"], dtype=dtype).requires_grad_(False)
        torch.manual_seed(0)
        roles = Roles(base, Lora(r=4, alpha=8), ("policy", "critic", "reward"))
        torch.manual_seed(1)
        with torch.no_grad():
            for name in roles.adapters:
                for weight in roles.adapter_parameters(name):
                    weight.normal_(std=0.1)
        for name in ("critic", "reward"):
            roles.add_head(name, ScalarHead.of(torch.randn(1, 32)))
        return roles

    return build


def two_responses(roles, settings, batches):
    context = RolloutContext(roles, settings, ResponseEnds(eos_id=2, pad_id=0), Normalizer(0.5, 2.0), batches)
    return collect(context, RolloutRequest([[1, 5, 9, 12], [1, 7]], limit=6, seed=1))


def test_an_update_in_float16_has_the_gradients_of_float32(in_float16):
    """An advantage of 1e-6: unscaled, the policy's gradients are mostly zero; scaled, they are those of float32."""
    settings = load_config(
        {}, ["coarse.rollouts=2", "coarse.micro_batch=2", "coarse.sampling_batch=2", "coarse.minibatches=2"]
    ).coarse
    exact, roles = in_float16(torch.float32), in_float16(torch.float16)
    rollout = two_responses(exact, settings, RolloutBatches.of(settings))

    def policy(roles, scale):
        small = torch.where(rollout.mask, 1e-6, 0.0)
        minibatch = Minibatch(rollout, Advantages(small, small), [0, 1], int(rollout.mask.sum()))
        gradients(roles, "policy", minibatch, settings, RolloutBatches.of(settings), scale)
        return torch.cat([weight.grad.flatten() for weight in roles.trainable("policy")])

    expected = policy(exact, None)
    scaled = policy(roles, LossScale(torch.float16))
    unscaled = policy(roles, None)
    assert (scaled - expected).norm() < 0.02 * expected.norm()
    assert (unscaled - expected).norm() > 0.5 * expected.norm()


def test_an_update_makes_an_overflowing_step_again_with_a_smaller_scale(in_float16):
    """2**140 is beyond float32: a loss overflows until its scale fits; the step taken is that of an unscaled loss."""
    settings = load_config({}, ["coarse.rollouts=2", "coarse.minibatches=1", "coarse.epochs=2"]).coarse
    roles = in_float16(torch.float32)
    sizes = RolloutBatches(*(BatchSize(name, 2) for name in RolloutBatches._fields))
    rollout = two_responses(roles, settings, sizes)
    targets = Advantages(torch.where(rollout.mask, 1.0, 0.0), torch.where(rollout.mask, 2.0, 0.0))
    before = {name: [weight.detach().clone() for weight in roles.trainable(name)] for name in ("policy", "critic")}

    def updated(scales):
        for name, weights in before.items():
            for weight, start in zip(roles.trainable(name), weights, strict=True):
                weight.data.copy_(start)
        optimizers = {name: torch.optim.SGD(roles.trainable(name), lr=1e-2) for name in before}
        shuffler = torch.Generator().manual_seed(0)
        update(
            roles,
            optimizers,
            rollout,
            targets,
            settings,
            shuffler,
            train_policy=True,
            batches=sizes,
            loss_scales=scales,
        )
        return torch.cat([weight.detach().flatten() for name in before for weight in roles.trainable(name)])

    scales = {name: LossScale(torch.float16) for name in before}
    for scale in scales.values():
        scale.value = 2.0**140
    expected, scaled = updated(None), updated(scales)
    start = torch.cat([weight.flatten() for weights in before.values() for weight in weights])
    assert (scaled - expected).norm() < 1e-4 * (expected - start).norm()
    assert all(scale.steps == 2 and 2.0**100 < scale.value < 2.0**140 for scale in scales.values())
