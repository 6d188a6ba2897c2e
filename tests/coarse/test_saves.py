"""What becomes of the best checkpoint at the end, and of one beyond the end."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_c2f.checkpoints import Checkpoint
from lite_c2f.coarse.saves import Saves
from lite_c2f.coarse.train import check_learned
from lite_c2f.config import load_config
from lite_c2f.errors import ConfigError, ModelError, NonFiniteError, RunError
from lite_c2f.runs import Metrics


def line(reward, spread=0.3):
    return {"reward": reward, "reward_std": spread}


class Loop:
    """A loop whose policy is one number: the step it stands at."""

    def __init__(self):
        self.step, self.lines = 0, []
        self.skipped = self.rollbacks = 0
        self.rates = {"policy": 0.1}

    def slow_down(self, rollbacks):
        self.rollbacks = rollbacks

    def checkpoint(self):
        return Checkpoint(self.step, {}, {"policy.lora_A": torch.tensor([float(self.step)]), "critic.x": torch.ones(1)})

    def restore(self, found):
        self.step = found.step


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "reward" / "adapter"
    folder.mkdir(parents=True)
    save_file({"w": torch.ones(1)}, folder / "adapter_model.safetensors")
    (tmp_path / "reward" / "metrics.json").write_text('{"mean": 0.5, "std": 2.0}')
    told = []

    def saves(*more):
        config = load_config({}, ["coarse.rollouts=16", "run.checkpoint_every=1", "run.keep_checkpoints=1", *more])
        return Saves(config, tmp_path, loop, Metrics(tmp_path), told.append)

    loop = Loop()
    return SimpleNamespace(run=tmp_path, told=told, loop=loop, saves=saves)


def learn(place, saves, rewards):
    for reward in rewards:
        place.loop.step += 1
        place.loop.lines.append(line(reward))
        saves.after_update(reward, asked=False)
    adapter = place.run / "coarse" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"lora_A": torch.tensor([99.0])}, adapter / "adapter_model.safetensors")
    saves.clear()
    assert not (place.run / "coarse" / "checkpoints").exists()


def test_an_adapter_that_was_clearly_better_stays(place):
    """Standard error of a difference of means of 16 with spread 0.3: 0.106; the best is 0.4 above the end."""
    saves = place.saves()
    saves.resume()
    learn(place, saves, [0.1, 0.9, 0.5])
    best = place.run / "coarse" / "best"
    assert load_file(best / "adapter" / "adapter_model.safetensors")["lora_A"].item() == 2.0
    assert (best / "adapter" / "adapter_config.json").is_file()
    assert json.loads((best / "best.json").read_text()) == {"step": 2, "reward": 0.9, "reward_last": 0.5}
    assert "higher after update 2 (+0.90, at the end +0.50)" in place.told[-1]


@pytest.mark.parametrize("rewards", [[0.1, 0.9, 0.75], [0.1, 0.5, 0.9]])
def test_a_better_one_by_chance_and_the_last_do_not(place, rewards):
    saves = place.saves()
    saves.resume()
    learn(place, saves, rewards)
    assert not (place.run / "coarse" / "best").exists() and place.told == []


def test_a_checkpoint_beyond_the_end_is_refused(place):
    saves = place.saves("coarse.critic_warmup=1", "coarse.updates=9")
    place.loop.step, place.loop.lines = 6, [line(0.0)] * 6
    saves.after_update(0.0, asked=False)
    with pytest.raises(RunError, match=r"step-000006' is after 6 updates, coarse\.updates=4; expected as many or more"):
        place.saves("coarse.critic_warmup=1", "coarse.updates=4").resume()
    place.loop.step = 0
    place.saves("coarse.critic_warmup=1", "coarse.updates=12").resume()
    assert place.loop.step == 6 and "going on after update 6" in place.told[-1]


def test_a_checkpoint_beyond_the_token_budget_is_refused(place):
    """Three updates of 16 responses of 10 tokens: 480. A budget of 320 was spent after two, one of 321 by the third."""
    saves = place.saves()
    place.loop.step = 3
    found = place.loop.checkpoint()
    place.loop.checkpoint = lambda: found._replace(state={"lines": [line(0.0) | {"tokens": 10.0}] * 3})
    saves.after_update(0.0, asked=False)
    with pytest.raises(RunError, match=r"is after 480 tokens, coarse\.token_budget=320; expected as many or more"):
        place.saves("coarse.token_budget=320").resume()
    place.saves("coarse.token_budget=321").resume()
    assert place.loop.step == 3


@pytest.mark.parametrize(("then", "now"), [("shared", "reward_model"), ("zero", "shared")])
@pytest.mark.parametrize("force", [False, True])
def test_a_critic_of_other_tensors_cannot_be_forced(place, then, now, force):
    place.saves(f"coarse.critic={then}").resume()
    saves = place.saves(f"coarse.critic={now}")
    saves._force = force
    with pytest.raises(RunError, match=f"made with coarse.critic='{then}', now '{now}'") as raised:
        saves.resume()
    assert "--force" not in str(raised.value)


def test_a_budget_that_ends_before_the_policy_has_trained_is_refused():
    settings = load_config({}, ["coarse.token_budget=300", "coarse.critic_warmup=2"]).coarse
    with pytest.raises(
        ConfigError, match=r"coarse\.token_budget=300 is spent after 2 updates; expected more updates than"
    ):
        check_learned(SimpleNamespace(step=2), settings)
    check_learned(SimpleNamespace(step=3), settings)


def test_a_run_that_is_removed_meanwhile_does_not_grow_again(place):
    saves = place.saves()
    saves.resume()
    shutil.rmtree(place.run)
    place.loop.step, place.loop.lines = 1, [line(0.0)]
    with pytest.raises(RunError, match="was removed or emptied while it ran"):
        saves.after_update(0.0, asked=False)
    assert not place.run.exists()


def test_the_first_checkpoint_is_made_before_the_first_update(place):
    """So that a disk which takes none is noticed at once, and there is something to go back to."""
    place.saves().resume()
    assert [folder.name for folder in (place.run / "coarse" / "checkpoints").iterdir()] == ["step-000000"]


@pytest.mark.parametrize(("form", "words"), [(1, "has format 1; expected format 2"), (None, "has format None")])
def test_a_checkpoint_of_another_version_is_refused(place, form, words):
    saves = place.saves()
    saves.resume()
    store = saves._store
    found, _ = store.newest()
    store.save(found._replace(state={**found.state, "format": form}))
    with pytest.raises(RunError, match=words):
        place.saves().resume()


def test_a_checkpoint_that_does_not_fit_is_named(place):
    place.saves().resume()

    def restore(found):
        raise KeyError("policy.lora_B")

    place.loop.restore = restore
    with pytest.raises(RunError, match=r"step-000000' does not fit this run \(KeyError: 'policy\.lora_B'\)"):
        place.saves().resume()


def test_a_checkpoint_that_does_not_help_is_left_for_the_one_before(place):
    """Update 7 fails again after going back to 6: 6 is given up, then 4; a third checkpoint is not there to try."""
    saves = place.saves("run.keep_checkpoints=3")
    for step in (2, 4, 6):
        place.loop.step, place.loop.lines = step, [line(0.0)] * step
        saves.after_update(0.0, asked=False)

    def fail():
        for _ in range(3):
            saves.after_failure(NonFiniteError("a reward that is not finite"), asked=False)

    reached = []
    for _ in range(3):
        place.loop.step = 6  # every time it comes as far as update 7
        fail()
        reached.append(place.loop.step)
    assert reached == [6, 4, 2] and place.loop.rollbacks == 3 and place.loop.skipped == 9
    place.loop.step = 6
    with pytest.raises(ModelError, match="update 7 is not finite 3 times in a row, after 3 rollbacks"):
        fail()


def test_an_interruption_is_heard_while_updates_fail(place):
    saves = place.saves()
    saves.resume()
    with pytest.raises(KeyboardInterrupt):
        saves.after_failure(NonFiniteError("nothing finite"), asked=True)


def test_an_end_that_is_asked_for_is_saved_first(place):
    """Between two checkpoints that are due."""
    saves = place.saves("run.checkpoint_every=10")
    place.loop.step, place.loop.lines = 3, [line(0.0)] * 3
    saves.after_update(0.0, asked=False)
    assert not (place.run / "coarse").exists()
    with pytest.raises(KeyboardInterrupt):
        saves.after_update(0.0, asked=True)
    assert [folder.name for folder in (place.run / "coarse" / "checkpoints").iterdir()] == ["step-000003"]
