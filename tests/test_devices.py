"""What runs on a card, checked without one: on the `meta` device, and in bfloat16 on the CPU.

On `meta`, joining a tensor with one left on the CPU raises, and so does every number read on the host, which on a card
would wait for all that was launched. Values do not exist there: types and results are checked in bfloat16 on the CPU.
"""

import math
from contextlib import ExitStack, nullcontext

import pytest
import torch
from tokenizer_kinds import word_tokenizer
from torch.fx.experimental import _config as symbolic
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import MistralConfig, MistralForCausalLM

from lite_c2f.backbone.heads import ScalarHead
from lite_c2f.backbone.roles import Roles
from lite_c2f.coarse.advantage import gae, token_rewards
from lite_c2f.coarse.rollout import (
    ResponseEnds,
    Rollout,
    RolloutBatches,
    RolloutContext,
    RolloutRequest,
    collect,
    role_outputs,
)
from lite_c2f.coarse.update import Minibatch, gradients, update
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Lora
from lite_c2f.reward.files import Normalizer
from lite_c2f.reward.score import score, score_at
from lite_c2f.runtime.batch_size import BatchSize
from lite_c2f.sampling import Sampling, Stops
from lite_c2f.sampling.slots import ResponseBuffer, SlotJob, Slots

META, CPU = torch.device("meta"), torch.device("cpu")
PROMPTS = [[1, 5, 9], [1, 7, 20, 41, 8], [1, 33]]
SETTINGS = load_config({}, ["coarse.rollouts=4", "coarse.minibatches=2", "coarse.epochs=1", "coarse.micro_batch=2",
                            "coarse.sampling_batch=4"]).coarse  # fmt: skip
SHARED = {"adapters": ("policy", "reward"), "shares": {"critic": "policy"}}
APART = {"adapters": ("policy", "critic", "reward")}


def make_roles(device, dtype=torch.float32, adapters=APART["adapters"], **given):
    """Roles on an unquantised model of two layers; where there are values, those of the adapters do something."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=None,
        initializer_range=0.1,  # so that words, and rows, are told apart
    )
    with device:
        base = MistralForCausalLM(config).to(dtype).requires_grad_(False).eval()
        roles = Roles(base, Lora(r=4, alpha=8), adapters, **given)
        for name in adapters:
            for parameter in roles.adapter_parameters(name):
                torch.nn.init.normal_(parameter, std=0.05)
        for name in ("reward", "critic"):
            head = ScalarHead(32)
            torch.nn.init.normal_(head.linear.weight)
            roles.add_head(name, head)
    return roles


class OneDevice(TorchDispatchMode):
    """Raises where an operation takes tensors of two devices, as `meta` itself does for most, and a card for all.

    Numbers (no dimension) may come from the host, and copying from one to the other is meant.
    """

    COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor) and value.ndim]
        if func.overloadpacket not in self.COPIES:
            assert len({value.device for value in given}) < 2, f"{func} of tensors on two devices"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_host(monkeypatch):
    """Roles on the meta device, where two reads that are meant are let through.

    Choosing by a mask waits for the number of entries: once a micro-batch, here taken as all of them. Transformers
    asks in every forward pass without a cache whether rows were packed; ours never are. `meta` knows no autocast, and
    does not say so by itself.
    """
    enabled, autocast = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != "meta" and enabled(kind))
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **given: nullcontext() if kind == "meta" else autocast(kind, **given)
    )
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda positions: None)
    with symbolic.patch(meta_nonzero_assume_all_nonzero=True), ExitStack() as stack:

        def made(**given):
            roles = make_roles(META, **given)
            stack.enter_context(OneDevice())
            return roles

        yield made


def job(temperature, top_p=1.0):
    limits = [6] * len(PROMPTS)
    sampling = Sampling(6, temperature, 5 if top_p < 1 else 0, top_p)
    return SlotJob(PROMPTS, limits, sampling, [2], Stops(word_tokenizer(), [" w4 w5"]), 0, range(len(PROMPTS)))


@pytest.mark.parametrize("sampling", [(0.0,), (1.0,), (0.7, 0.9)])
@torch.no_grad()
def test_a_sampling_step_asks_the_host_nothing(no_host, sampling):
    roles = no_host()
    buffer = ResponseBuffer(job(*sampling), [0, 1, 2], META)
    with roles.sampling("policy"):
        slots = Slots(roles.decoder, roles.lm_head, job(*sampling), buffer, 2, 16)
        slots.start([0, 1], [0, 1])
        slots.advance(2, 4)
        slots.start([1], [2])  # a slot that has ended is filled again
        slots.select([1])
        slots.advance(1, 4)
    columns = [value for value in (*vars(buffer).values(), *vars(slots).values()) if isinstance(value, torch.Tensor)]
    assert len(columns) > 10 and {column.device for column in columns} == {META}


def test_scoring_asks_the_host_nothing(no_host):
    roles = no_host()
    tokens, last = torch.empty(3, 7, dtype=torch.long, device=META), torch.empty(3, dtype=torch.long, device=META)
    with roles.use("reward"):
        scores = score_at(roles, tokens, last)
    assert (scores.shape, scores.dtype, scores.device) == ((3,), torch.float32, META)


@pytest.mark.parametrize("kind", ["apart", "shared", "checkpointing"])
def test_an_update_asks_the_host_nothing(no_host, kind):
    """From the passes over a rollout to the gradients; the numbers of the log are read after them, all at once."""
    roles = no_host(**(SHARED if kind == "shared" else APART), checkpointing=kind == "checkpointing")
    batches, lengths = RolloutBatches.of(SETTINGS), [9, 8, 6, 5]
    tokens = torch.empty(4, 9, dtype=torch.long, device=META)
    mask = torch.empty(4, 8, dtype=torch.bool, device=META)
    roles_of = ("policy", "reference", "critic")
    logprobs, reference, values = (
        role_outputs(roles, role, tokens, mask, lengths, range(4), 1.0, BatchSize("rows", 2)) for role in roles_of
    )
    scores = torch.empty(4, device=META)
    rollout = Rollout(tokens, mask, lengths, logprobs, logprobs, reference, values, scores, None)
    rewards = token_rewards(scores.clamp(-5, 5), rollout.logprobs, reference, mask, 0.05)
    advantages = gae(rewards, values, mask, SETTINGS.gamma, SETTINGS.gae_lambda)
    for name in ("policy", "critic"):
        sums = gradients(roles, name, Minibatch(rollout, advantages, [0, 3, 1], 12), SETTINGS, batches)
        assert sums and all(value.shape == () and value.device == META for value in sums.values())
        learned = [weight for learner in roles.learners(name) for weight in roles.trainable(learner)]
        assert len(learned) >= (2 if kind == "shared" and name == "critic" else 28)
        assert {(weight.grad.device, weight.grad.dtype) for weight in learned} == {(META, torch.float32)}


def rolled_out(roles, settings=SETTINGS):
    """Four responses of a real rollout, with rewards and advantages."""
    batches = RolloutBatches.of(settings)
    context = RolloutContext(roles, settings, ResponseEnds(2, 0), Normalizer(0.0, 1.0), batches)
    rollout = collect(context, RolloutRequest([*PROMPTS, [1, 2]], limit=6, seed=1))
    rewards = token_rewards(rollout.scores, rollout.logprobs, rollout.reference, rollout.mask, 0.05)
    return rollout, gae(rewards, rollout.values, rollout.mask, 1.0, 0.95)


@pytest.mark.parametrize("kind", ["apart", "shared"])
def test_a_base_in_bfloat16_gives_float32_figures_near_those_of_float32(kind):
    """On the CPU under autocast, as on a card: sampling, scores, log-probabilities, values and one whole update."""
    given = SHARED if kind == "shared" else APART
    half, whole = make_roles(CPU, torch.bfloat16, **given), make_roles(CPU, **given)
    rollout, advantages = rolled_out(half)
    for part in ("sampled", "logprobs", "reference", "values", "scores"):
        assert getattr(rollout, part).dtype == torch.float32, part
    assert advantages.advantages.dtype == advantages.returns.dtype == torch.float32
    # bfloat16 has 8 bits: weights, and what flows between two layers, are each rounded by up to 1/256
    for role, got in (("policy", rollout.logprobs), ("reference", rollout.reference), ("critic", rollout.values)):
        rows = BatchSize("rows", 4)
        exact = role_outputs(whole, role, rollout.tokens, rollout.mask, rollout.lengths, range(4), 1.0, rows)
        spread = float(exact[rollout.mask].std())
        assert spread > 0.2 and float((got - exact).abs().max()) < spread / 8, role
    assert rollout.sampling_gap < 0.05
    assert score(half, PROMPTS, pad_id=0).dtype == torch.float32

    moved = {name: [weight.detach().clone() for weight in half.trainable(name)] for name in ("policy", "critic")}
    optimizers = {name: torch.optim.AdamW(half.trainable(name), lr=1e-3) for name in moved}
    figures = update(
        half, optimizers, rollout, advantages, SETTINGS, torch.Generator().manual_seed(0), train_policy=True
    )
    assert all(math.isfinite(value) for value in figures.values()) and figures["policy_grad_norm"] > 0
    for name, before in moved.items():
        for weight, old in zip(half.trainable(name), before, strict=True):
            assert weight.dtype == torch.float32 and weight.grad is None
            assert not torch.equal(weight, old)
            state = optimizers[name].state[weight]
            assert {state["exp_avg"].dtype, state["exp_avg_sq"].dtype} == {torch.float32}
    assert half.decoder.embed_tokens.weight.dtype == half.lm_head.weight.dtype == torch.bfloat16


def test_gradients_through_a_base_in_bfloat16_are_those_of_float32():
    """Same direction within bfloat16's rounding; an adapter or a loss in half precision would not even be near."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        roles = make_roles(CPU, dtype)
        if not found:
            rollout, advantages = rolled_out(roles)
        minibatch = Minibatch(rollout, advantages, [0, 1, 2, 3], int(rollout.mask.sum()))
        gradients(roles, "policy", minibatch, SETTINGS, RolloutBatches.of(SETTINGS))
        found.append(torch.cat([weight.grad.flatten() for weight in roles.trainable("policy")]))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.99
    assert float(found[1].norm() / found[0].norm()) == pytest.approx(1.0, abs=0.05)
