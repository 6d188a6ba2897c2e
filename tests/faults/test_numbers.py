"""Numbers that are not finite, and memory that runs out, put into real runs from inside."""

import json

import pytest
import torch
from harness import figures, finish, train

pytestmark = pytest.mark.slow


def break_advantages(*calls):
    """Advantages of these updates, counted in calls, are not numbers."""
    from lite_c2f.coarse import train as loop

    original, count = loop.gae, 0

    def gae(*given):
        nonlocal count
        count += 1
        found = original(*given)
        if count in calls:
            return found._replace(returns=found.returns * torch.nan)
        return found

    loop.gae = gae


def break_one():
    break_advantages(5)


def break_three_in_a_row():
    break_advantages(6, 7, 8)


def break_from_the_sixth_on():
    break_advantages(*range(6, 1000))


def break_the_reward_model():
    """Three steps in a row of the reward model's gradients are infinite, from its fourth on."""
    from trl import RewardTrainer

    original, count = RewardTrainer.training_step, 0

    def step(self, model, *given):
        nonlocal count
        loss = original(self, model, *given)
        count += 1
        if 4 <= count <= 6:
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.grad.fill_(torch.inf)
        return loss

    RewardTrainer.training_step = step


def break_a_loss(first, last):
    from trl import RewardTrainer

    original, count = RewardTrainer.compute_loss, 0

    def loss(self, *given, **named):
        nonlocal count
        count += 1
        found = original(self, *given, **named)
        if first <= count <= last:
            found = (found[0] * torch.nan, found[1]) if isinstance(found, tuple) else found * torch.nan
        return found

    RewardTrainer.compute_loss = loss


def break_one_loss_of_the_reward_model():
    break_a_loss(4, 4)


def break_all_losses_of_the_reward_model():
    break_a_loss(4, 10**6)


def explode_after(update):
    """The policy is finite and its words are not, from the end of this update on, once."""
    from lite_c2f.coarse import train as loop

    original, count = loop.update, 0

    def exploding(roles, *given, **named):
        nonlocal count
        count += 1
        found = original(roles, *given, **named)
        if count == update:
            for weight in roles.adapter_parameters("policy"):
                weight.data.mul_(1e30)
        return found

    loop.update = exploding


def explode_at_a_checkpoint():
    explode_after(6)


def fill_the_memory():
    """The card is full at the second update, as long as more than two rows are worked on at once."""
    from lite_c2f.backbone.roles import Roles

    original, count = Roles.hidden, 0

    def hidden(self, tokens):
        nonlocal count
        count += self._training
        if self._training and count > 20 and len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, tokens)

    Roles.hidden = hidden


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory, toy_models):
    """Runs that have a reward model."""
    first = tmp_path_factory.mktemp("numbers") / "run"
    finish(first, "--stage", "reward")
    return first


@pytest.fixture
def run(rewarded, tmp_path):
    import shutil

    return shutil.copytree(rewarded, tmp_path / "run")


COARSE = ("--stage", "coarse")


def lines_of(run):
    return [line for line in figures(run) if line["stage"] == "coarse"]


def test_one_update_that_is_not_finite_is_skipped_and_counted(run):
    said = finish(run, *COARSE, patch=break_one)
    assert "update 5 skipped (1 in a row): a loss or a gradient of the critic that is not finite" in said
    assert "1 updates skipped" in said
    lines = lines_of(run)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["skipped"] for line in lines] == [0, 0, 0, 0, 1, 1, 1, 1]
    metrics = json.loads((run / "coarse" / "metrics.json").read_text())
    assert (metrics["skipped"], metrics["rollbacks"]) == (1, 0)


def test_three_in_a_row_lead_back_to_a_checkpoint_with_lower_rates(run):
    said = finish(run, *COARSE, patch=break_three_in_a_row)
    assert "update 6 skipped (3 in a row)" in said
    assert "going back to update 4, with lower learning rates (policy 0.0005, critic 0.001)" in said
    lines = lines_of(run)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["skipped"] == 3
    assert json.loads((run / "coarse" / "metrics.json").read_text())["rollbacks"] == 1


def test_a_run_that_stays_broken_stops_with_one_clear_line(run):
    command = train(run, *COARSE, patch=break_from_the_sixth_on)
    assert command.wait() == 2
    last = command.said().splitlines()[-1]
    assert last.startswith("error: update") and "3 times in a row, after 3 rollbacks" in last
    assert "lower coarse.lr and coarse.critic_lr" in last and "Traceback" not in command.said()
    assert "Traceback" in (run / "log.txt").read_text()  # for those who want to know where
    assert not (run / "coarse" / "adapter").exists()
    finish(run, *COARSE)  # mended, it goes on
    assert [line["step"] for line in lines_of(run)] == list(range(1, 9))


def test_the_reward_model_skips_and_goes_back_too(tmp_path, toy_models):
    run = tmp_path / "run"
    said = finish(run, "--stage", "reward", patch=break_the_reward_model)
    assert "reward model, step 4: not finite 3 times in a row" in said.replace("step 6", "step 4")
    assert "with a learning rate of 0.001" in said
    metrics = json.loads((run / "reward" / "metrics.json").read_text())
    assert metrics["rollbacks"] == 1 and metrics["accuracy"] > 0.5
    lines = [line for line in figures(run) if line["stage"] == "reward"]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert lines[-1]["learning_rate"] < 0.001 < lines[1]["learning_rate"]


def test_a_loss_that_is_no_number_costs_one_step_of_the_reward_model(tmp_path, toy_models):
    run = tmp_path / "run"
    said = finish(run, "--stage", "reward", patch=break_one_loss_of_the_reward_model)
    assert "reward model, step 4 skipped (1 in a row): not finite" in said
    lines = [line for line in figures(run) if line["stage"] == "reward"]
    assert [line["step"] for line in lines] == [1, 2, 3, 5, 6] and all(line["loss"] > 0 for line in lines)
    assert json.loads((run / "reward" / "metrics.json").read_text())["skipped_steps"] == 1


def test_a_reward_model_that_does_not_learn_is_never_published(tmp_path, toy_models):
    run = tmp_path / "run"
    for _ in range(2):  # the second time it goes on from where the first one stood
        command = train(run, "--stage", "reward", patch=break_all_losses_of_the_reward_model)
        assert command.wait() == 2, command.said()
        assert "not finite" in command.said().splitlines()[-1]
        assert not (run / "reward" / "adapter").exists()
    finish(run, "--stage", "reward")  # mended
    assert json.loads((run / "reward" / "metrics.json").read_text())["accuracy"] > 0.5


def test_an_exploded_policy_does_not_become_a_checkpoint(run):
    said = finish(run, *COARSE, patch=explode_at_a_checkpoint)
    assert "update 6 skipped (1 in a row): the policy after its update is not finite" in said
    assert [line["step"] for line in lines_of(run)] == list(range(1, 9)) and lines_of(run)[-1]["skipped"] == 1


def test_running_out_of_memory_costs_a_smaller_batch(run):
    said = finish(run, *COARSE, patch=fill_the_memory)
    assert "out of memory: coarse.micro_batch" in said and "doing that part again" in said
    lines = lines_of(run)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["micro_batch"] < lines[0]["micro_batch"]
