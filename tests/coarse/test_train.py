"""One PPO update on a pico base in real NF4, against direct forwards and hand-made sums."""

import pytest
import torch
from tokenizer_kinds import word_tokenizer

from lite_c2f.backbone.roles import Roles
from lite_c2f.coarse import update as update_module
from lite_c2f.coarse.advantage import Advantages
from lite_c2f.coarse.rollout import (
    ResponseEnds,
    RolloutBatches,
    RolloutContext,
    RolloutRequest,
    check_numbers,
    collect,
    micro_batches,
)
from lite_c2f.coarse.state import ResponseLengths, TrainState
from lite_c2f.coarse.train import check_models
from lite_c2f.coarse.update import update
from lite_c2f.config.loading import load_config
from lite_c2f.errors import MemoryFullError, NonFiniteError
from lite_c2f.reward.files import Normalizer
from lite_c2f.sampling import Sampling, Stops, sample

PROMPTS = [[1, 5, 9, 12], [1, 7], [1, 20, 41], [1, 30, 31, 32, 33]]
ENDS = ResponseEnds(eos_id=2, pad_id=0, stops=Stops(word_tokenizer(), [" w2"]))


def config(*more):
    settings = ["coarse.rollouts=4", "coarse.micro_batch=3", "coarse.sampling_batch=3", "coarse.temperature=0.7"]
    return load_config({}, [*settings, "coarse.minibatches=1", "coarse.epochs=1", *more]).coarse


@pytest.fixture
def roles(random_roles):
    return random_roles("policy", "critic", "reward")


@pytest.fixture
def rollout(roles):
    return collected(roles, config("coarse.minibatches=2"))


def collected(roles, settings, batches=None):
    context = RolloutContext(roles, settings, ENDS, Normalizer(0.5, 2.0), batches or RolloutBatches.of(settings))
    return collect(context, RolloutRequest(PROMPTS, limit=6, seed=1))


def direct_logprobs(roles, role, row):
    with roles.use(role):
        logits = roles.lm_head(roles.hidden(torch.tensor([row])))[0].double()
    return (logits / 0.7).log_softmax(-1)


def test_a_rollout_row_by_row(roles, rollout):
    assert "stop" in rollout.responses.finish  # the reward model reads none of the stop text
    for index, prompt in enumerate(PROMPTS):
        generated = rollout.responses.tokens[index]
        row, first, last = prompt + generated, len(prompt) - 1, len(prompt) + len(generated) - 1
        assert rollout.tokens[index, : len(row)].tolist() == row
        assert rollout.mask[index].nonzero().flatten().tolist() == list(range(first, last))
        for role, result in (("policy", rollout.logprobs), ("reference", rollout.reference)):
            expected = direct_logprobs(roles, role, row)[range(first, last), generated]
            torch.testing.assert_close(result[index, first:last].double(), expected, atol=2e-5, rtol=0)
        with roles.use("critic"):
            values = roles.value(torch.tensor([row]))[0, first:last]
        torch.testing.assert_close(rollout.values[index, first:last], values, atol=2e-5, rtol=0)
        text = generated[: len(generated) - rollout.responses.ending[index]]
        judged = prompt + text + ([2] if rollout.responses.finish[index] != "limit" else [])
        with roles.use("reward"):
            raw = roles.value(torch.tensor([judged]))[0, -1]
        torch.testing.assert_close(rollout.scores[index], (raw - 0.5) / 2.0, atol=2e-5, rtol=0)
    assert rollout.sampling_gap < 1e-5
    gap = (rollout.logprobs - rollout.reference)[rollout.mask].sum() / 4
    assert rollout.kl == pytest.approx(float(gap), abs=1e-5) and abs(rollout.kl) > 1e-3


def test_the_length_controllers_figures_are_means_over_the_responses(rollout):
    responses = rollout.responses._replace(finish=["limit", "eos", "limit", "limit"])
    scored = rollout._replace(scores=torch.tensor([1.0, 2.0, 3.5, -2.5]), responses=responses)
    assert (scored.reward, scored.hit_limit) == (1.0, 0.75)


def run_update(roles, rollout, settings, advantages=None, train_policy=True, lr=1e-2, batches=None):
    optimizers = {name: torch.optim.SGD(roles.trainable(name), lr=lr) for name in ("policy", "critic")}
    before = {name: [p.detach().clone() for p in roles.trainable(name)] for name in ("policy", "critic", "reward")}
    result = advantages or Advantages(torch.where(rollout.mask, 1.0, 0.0), torch.where(rollout.mask, 2.0, 0.0))
    shuffler = torch.Generator().manual_seed(0)
    figures = update(roles, optimizers, rollout, result, settings, shuffler, train_policy=train_policy, batches=batches)
    moved = {
        name: [now.detach() - old for now, old in zip(roles.trainable(name), olds, strict=True)]
        for name, olds in before.items()
    }
    return figures, moved


def size(changes):
    return max(float(change.abs().max()) for change in changes)


def test_warm_up_trains_the_critic_alone(roles, rollout):
    _, moved = run_update(roles, rollout, config(), train_policy=False)
    assert size(moved["critic"]) > 0 and size(moved["policy"]) == size(moved["reward"]) == 0
    _, moved = run_update(roles, rollout, config())
    assert size(moved["critic"]) > 0 and size(moved["policy"]) > 0 and size(moved["reward"]) == 0


def test_the_policy_step_is_that_of_one_unbatched_mean(roles, rollout):
    """Micro-batches of 3 + 1 rows give the gradient of one mean over all response tokens, clipped to norm 1."""
    total = torch.zeros(())
    with roles.use("policy", train=True):
        for index, prompt in enumerate(PROMPTS):
            generated = rollout.responses.tokens[index]
            logits = roles.lm_head(roles.hidden(torch.tensor([prompt + generated])))[0, len(prompt) - 1 : -1]
            total = total - (logits / 0.7).log_softmax(-1)[range(len(generated)), generated].sum()
        (total / rollout.mask.sum()).backward()  # at ratio 1 the gradient of -ratio * 1 is that of -log pi
    targets = [parameter.grad.clone() for parameter in roles.trainable("policy")]
    norm = torch.stack([grad.norm() for grad in targets]).norm()
    for parameter in roles.trainable("policy"):
        parameter.grad = None
    figures, moved = run_update(roles, rollout, config())
    assert figures["policy_grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for change, grad in zip(moved["policy"], targets, strict=True):
        torch.testing.assert_close(change, -1e-2 * grad / max(1.0, float(norm)), atol=1e-6, rtol=1e-3)


def test_the_critic_step_follows_its_loss(roles, rollout):
    figures, _ = run_update(roles, rollout, config(), lr=0.0)
    expected = 0.5 * ((rollout.values - 2.0) ** 2)[rollout.mask].mean()
    assert figures["value_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert figures["policy_loss"] == pytest.approx(-1.0, abs=1e-5) and figures["clip_fraction"] == 0.0


def test_epochs_and_minibatches_are_optimiser_steps(roles, rollout):
    steps = []
    optimizers = {name: torch.optim.SGD(roles.trainable(name), lr=0.0) for name in ("policy", "critic")}
    for name, optimizer in optimizers.items():
        optimizer.register_step_post_hook(lambda *_, name=name: steps.append(name))
    flat = Advantages(torch.where(rollout.mask, 1.0, 0.0), torch.where(rollout.mask, 2.0, 0.0))
    settings = config("coarse.epochs=3", "coarse.minibatches=2")
    update(roles, optimizers, rollout, flat, settings, torch.Generator().manual_seed(0), train_policy=True)
    assert steps.count("policy") == steps.count("critic") == 6
    assert all(parameter.grad is None for name in ("policy", "critic") for parameter in roles.trainable(name))


def test_micro_batches_cover_every_row_once_and_hold_the_tokens_of_the_longest_rows():
    lengths = [4, 9, 2, 6, 3]
    assert list(micro_batches(lengths, range(5), 1)) == [([2, 4], 3), ([0], 4), ([3], 6), ([1], 9)]  # 9 tokens a group
    assert list(micro_batches(lengths, range(5), 2)) == [([2, 4, 0], 4), ([3, 1], 9)]  # 18 tokens a group
    assert list(micro_batches(lengths, [0, 1], 1)) == [([0], 4), ([1], 9)]


@pytest.fixture
def small_card(monkeypatch):
    """A card on which a forward of more than so many tokens runs out of memory, with the error CUDA raises."""

    def limit(tokens):
        original = Roles.hidden

        def hidden(self, rows):
            states = original(self, rows)
            if rows.numel() > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return states

        monkeypatch.setattr(Roles, "hidden", hidden)

    return limit


def test_out_of_memory_in_an_update_gives_the_same_step_in_smaller_parts(roles, rollout, small_card):
    messages = []
    batches = RolloutBatches.of(config(), messages.append)
    expected, _ = run_update(roles, rollout, config("coarse.epochs=2"), lr=0.0)
    small_card(16)  # rows are 8 to 11 tokens: 3 at once are too many, and so are 2 of the longest
    figures, _ = run_update(roles, rollout, config("coarse.epochs=2"), lr=0.0, batches=batches)
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert batches.update.size == 1 and len(messages) == 1  # remembered: it fails once, not every time
    assert messages[0] == "out of memory: coarse.micro_batch 3 -> 1, doing that part again"


@pytest.mark.parametrize("epochs", [1, 2])
def test_half_made_gradients_do_not_count(roles, rollout, monkeypatch, epochs):
    """Memory runs out at the third micro-batch of each role, when two have already left their gradients."""
    settings = config(f"coarse.epochs={epochs}", "coarse.micro_batch=1")
    parameters = roles.trainable("policy") + roles.trainable("critic")
    before = [parameter.detach().clone() for parameter in parameters]
    expected, targets = run_update(roles, rollout, settings, lr=0.05)
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    original, calls = Roles.hidden, []

    def hidden(self, rows):
        calls.append(len(rows))
        if len(calls) in (3, 9):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, rows)

    monkeypatch.setattr(Roles, "hidden", hidden)
    batches = RolloutBatches.of(settings)
    batches.update.size = 4
    monkeypatch.setattr(
        "lite_c2f.coarse.update.micro_batches", lambda lengths, rows, _: micro_batches(lengths, rows, 1)
    )
    figures, moved = run_update(roles, rollout, settings, lr=0.05, batches=batches)
    assert batches.update.halved == 2 and len(calls) >= 4 + 3 + 4
    assert figures == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name in ("policy", "critic"):
        assert size(targets[name]) > 1e-3
        for change, other in zip(moved[name], targets[name], strict=True):
            torch.testing.assert_close(change, other, atol=1e-6, rtol=1e-4)


def test_scoring_takes_twice_the_rows_of_an_update():
    batches = RolloutBatches.of(config("coarse.micro_batch=5", "coarse.sampling_batch=7"))
    assert (batches.sampling.size, batches.scoring.size, batches.update.size) == (7, 10, 5)
    with pytest.raises(ValueError, match="auto"):
        RolloutBatches.of(load_config({}).coarse)


def test_out_of_memory_while_scoring_gives_the_same_rollout(roles, rollout, small_card):
    small_card(24)
    settings = config("coarse.minibatches=2")
    batches = RolloutBatches.of(settings)
    again = collected(roles, settings, batches)
    assert batches.scoring.size < 6 and batches.update.size == 3
    for name in ("tokens", "logprobs", "reference", "values", "scores"):
        torch.testing.assert_close(getattr(again, name), getattr(rollout, name), atol=1e-5, rtol=0)


def test_a_row_that_fits_nowhere_ends_with_one_clear_line(roles, rollout, small_card):
    small_card(4)
    with pytest.raises(MemoryFullError, match=r"out of memory at coarse\.micro_batch=1 .*; expected .*; shorten"):
        run_update(roles, rollout, config())
    assert all(parameter.grad is None for parameter in roles.trainable("critic"))


def test_an_error_of_another_kind_is_not_taken_for_a_full_card(roles, rollout, monkeypatch):
    def hidden(self, rows):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Roles, "hidden", hidden)
    with pytest.raises(RuntimeError, match="a bug"):
        run_update(roles, rollout, config())


def test_known_lengths_come_back_for_the_same_prompts():
    lengths = ResponseLengths()
    assert lengths.expected([4, 7]) == [0, 0]
    lengths.record([4, 7], [[1] * 9, [1] * 3])
    assert lengths.expected([7, 5, 4]) == [3, 6, 9]  # the mean for one that is new


@pytest.mark.parametrize("where", ["advantages", "returns"])
def test_a_step_that_is_not_finite_is_not_taken(roles, rollout, where):
    parts = {"advantages": torch.ones(rollout.mask.shape), "returns": torch.ones(rollout.mask.shape)}
    parts[where][:, -3:] = torch.inf if where == "returns" else torch.nan
    who = {"advantages": "policy", "returns": "critic"}[where]
    parameters = roles.trainable(who)
    before = [parameter.detach().clone() for parameter in parameters]
    with pytest.raises(NonFiniteError, match=f"a loss or a gradient of the {who} that is not finite"):
        run_update(roles, rollout, config(), Advantages(**parts))
    assert all(torch.equal(left, right) for left, right in zip(before, parameters, strict=True))
    assert all(parameter.grad is None for parameter in parameters)


@pytest.mark.parametrize(
    ("field", "named"), [("scores", "reward"), ("logprobs", "log-probability"), ("values", "value")]
)
def test_a_rollout_that_is_not_finite_is_named(rollout, field, named):
    check_numbers(rollout)
    broken = getattr(rollout, field).clone()
    broken.view(-1)[-1] = torch.nan
    with pytest.raises(NonFiniteError, match=f"^a {named} that is not finite"):
        check_numbers(rollout._replace(**{field: broken}))


def test_a_judge_that_gives_no_number_stops_the_rollout(roles):
    with torch.no_grad():
        roles.heads["reward"].linear.weight.fill_(torch.inf)
    with pytest.raises(
        NonFiniteError, match=r"reward 'reward_model' is (nan|-?inf) for row 1; expected a finite number"
    ):
        collected(roles, config("coarse.minibatches=2"))


def test_a_part_of_the_prompts_says_what_it_says_among_all_of_them(roles, rollout):
    """With several processes each samples a part: the random numbers of a row go by its number, not by its place."""
    with roles.sampling("policy"):
        part = sample(
            roles.model,
            [PROMPTS[3], PROMPTS[1]],
            Sampling(6, 0.7, seed=1),
            eos_ids=[2],
            stops=ENDS.stops,
            pad_id=0,
            row_ids=[3, 1],
        )
    assert part.tokens == [rollout.responses.tokens[3], rollout.responses.tokens[1]]


def test_a_skipped_update_leaves_nothing_behind(roles, rollout, monkeypatch):
    """The critic and half of the policy have moved when a loss is no number: all of it is taken back."""
    optimizers = {name: torch.optim.AdamW(roles.trainable(name), lr=0.1) for name in ("policy", "critic")}
    state = TrainState(
        roles=roles,
        optimizers=optimizers,
        shuffler=torch.Generator().manual_seed(0),
        prompts=None,
        batches=RolloutBatches.of(config()),
        length=None,
        kl_coef=0.1,
    )
    ones = torch.where(rollout.mask, 1.0, 0.0)

    def learn():
        made = Advantages(ones, 2 * ones)
        update(roles, optimizers, rollout, made, config("coarse.minibatches=2"), state.shuffler, train_policy=True)

    learn()  # so that both optimisers remember something
    before = state.snapshot()
    assert {name.split(".")[0] for name in before} == {"policy", "critic", "optimizer", "head"}
    original, calls = update_module.policy_loss, []

    def breaking(*options):
        losses, clipped = original(*options)
        calls.append(1)
        return (losses * torch.nan if len(calls) > 1 else losses), clipped

    monkeypatch.setattr(update_module, "policy_loss", breaking)
    with pytest.raises(NonFiniteError):
        learn()
    moved = state.snapshot()
    for part in ("policy.", "critic.", "optimizer.policy", "optimizer.critic", "head."):
        assert any(not torch.equal(before[name], moved[name]) for name in before if name.startswith(part)), part
    state.restore_weights(before)
    after = state.snapshot()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_policy_that_exploded_is_noticed(roles, rollout):
    check_models(roles, rollout)
    with torch.no_grad():
        for weight in roles.adapter_parameters("policy"):
            weight.mul_(1e30)
    with pytest.raises(NonFiniteError, match="the policy after its update is not finite"):
        check_models(roles, rollout)
