"""What becomes of the best checkpoint at the end, and of one beyond the end."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_c2f.coarse.checkpoints import CheckpointManager
from lite_c2f.coarse.held_out import HeldOutState
from lite_c2f.coarse.length import LengthState
from lite_c2f.coarse.train import check_policy_trained
from lite_c2f.config.loading import load_config
from lite_c2f.errors import ConfigError, ModelError, NonFiniteError, RunError
from lite_c2f.storage.checkpoints import Checkpoint
from lite_c2f.storage.files import hash_of
from lite_c2f.storage.metrics import Metrics


def line(reward, std=0.3):
    return {"reward": reward, "reward_std": std}


class Loop:
    """A loop whose policy is one number: the step it stands at."""

    def __init__(self):
        self.step, self.lines = 0, []
        self.skipped = self.rollbacks = 0
        self.learning_rates = {"policy": 0.1}
        self.length = LengthState(128)
        self.held_out, self.judges = HeldOutState(), None

    def set_learning_rates(self, rollbacks):
        self.rollbacks = rollbacks

    def checkpoint(self):
        return Checkpoint(
            self.step,
            {"limit": self.length.limit},
            {"policy.lora_A": torch.tensor([float(self.step)]), "critic.x": torch.ones(1)},
        )

    def restore(self, checkpoint):
        self.step = checkpoint.step
        self.length = LengthState(checkpoint.state.get("limit", 128))
        return []


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "reward" / "adapter"
    folder.mkdir(parents=True)
    save_file({"w": torch.ones(1)}, folder / "adapter_model.safetensors")
    (tmp_path / "reward" / "metrics.json").write_text('{"mean": 0.5, "std": 2.0}')
    messages = []

    def saves(*more):
        settings = ["coarse.rollouts=16", "coarse.critic_warmup=0", "run.checkpoint_every=1", "run.keep_checkpoints=1"]
        config = load_config({}, [*settings, *more])
        return CheckpointManager(config, tmp_path, loop, Metrics(tmp_path), messages.append)

    loop = Loop()
    return SimpleNamespace(run=tmp_path, messages=messages, loop=loop, saves=saves)


def learn(place, saves, rewards):
    """Update t earns rewards[t - 1] with the policy that update t - 1 left."""
    for reward in rewards[place.loop.step :]:
        place.loop.step += 1
        place.loop.lines.append(line(reward))
        saves.after_update(stop_asked=False)


def publish(place, saves):
    adapter = place.run / "coarse" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"lora_A": torch.tensor([99.0])}, adapter / "adapter_model.safetensors")
    saves.publish_best()
    saves.clear()
    assert not (place.run / "coarse" / "checkpoints").exists()


def best_of(place):
    """(the weights that were kept, best.json); a policy's weights are the step it was made in."""
    best = place.run / "coarse" / "best"
    assert (best / "adapter" / "adapter_config.json").is_file()
    weights = load_file(best / "adapter" / "adapter_model.safetensors")["lora_A"].item()
    return weights, json.loads((best / "best.json").read_text())


def test_in_a_collapse_the_policy_that_earned_the_high_reward_stays(place):
    """Update 2 sampled from the policy after update 1 and earned 5: after it, nothing but the collapse is known."""
    saves = place.saves()
    saves.resume()
    learn(place, saves, [1.0, 5.0, -3.0, -3.0])
    publish(place, saves)
    weights, figures = best_of(place)
    assert weights == 1.0
    assert figures == {"step": 1, "reward": 5.0, "reward_last": -3.0, "reward_last_step": 3}
    words = "after update 1 earned a mean reward of +5.00, the last one that was measured (after update 3) -3.00"
    assert words in place.messages[-1]


@pytest.mark.parametrize("rewards", [[0.1, 0.9, 0.75], [0.1, 0.5, 0.9], [0.1, 0.9], [0.1], [9.0, 0.1, 0.1]])
def test_a_better_one_by_chance_the_last_and_the_untrained_do_not(place, rewards):
    """Standard error of a difference of means of 16 with spread 0.3: 0.106. Update 1 is answered by the base."""
    saves = place.saves()
    saves.resume()
    learn(place, saves, rewards)
    publish(place, saves)
    assert not (place.run / "coarse" / "best").exists() and place.messages == []


def test_policies_of_the_critics_warm_up_are_the_base_and_do_not_count(place):
    """Updates 1 and 2 train the critic alone: the rewards of updates 1 to 3 are the base's."""
    saves = place.saves("coarse.critic_warmup=2")
    saves.resume()
    learn(place, saves, [1.0, 9.0, 9.0, 4.0, -3.0])
    publish(place, saves)
    weights, figures = best_of(place)
    assert (weights, figures["step"], figures["reward"]) == (3.0, 3, 4.0)


@pytest.mark.parametrize("stops", [(), (1,), (3,), (2, 3)])
def test_a_run_that_was_stopped_keeps_the_same_policy(place, stops):
    """Stopped after update 3, a checkpoint lies there whose policy earned most; one that was not stopped has none."""
    rewards = [0.0, 0.0, 4.0, 6.0, 5.0, 0.0, 0.0]
    saves = place.saves("run.checkpoint_every=2")
    saves.resume()
    for stop in stops:
        learn(place, saves, rewards[: stop - 1])
        place.loop.step, place.loop.lines = stop, [line(reward) for reward in rewards[:stop]]
        with pytest.raises(KeyboardInterrupt):
            saves.after_update(stop_asked=True)
        saves = place.saves("run.checkpoint_every=2")
        saves.resume()
    learn(place, saves, rewards)
    publish(place, saves)
    weights, figures = best_of(place)
    assert (weights, figures["step"], figures["reward"]) == (4.0, 4, 5.0)


def test_scores_of_earlier_versions_are_not_believed(place):
    """They said what the policy before had earned: 5.0 of update 2 lay beside the weights that it collapsed into."""
    saves = place.saves("run.keep_checkpoints=2")
    saves.resume()
    learn(place, saves, [1.0, 5.0])
    for folder in saves._store.folders():
        score = folder / "score.json"
        score.write_text(json.dumps({"step": int(folder.name[-6:]), "score": 5.0 if folder.name[-1] == "2" else 1.0}))
        hashes = json.loads((folder / "hashes.json").read_text())
        (folder / "hashes.json").write_text(json.dumps(hashes | {"score.json": hash_of(score)}))
    saves = place.saves()
    saves.resume()
    assert "going on after update 2" in place.messages[-1]
    learn(place, saves, [1.0, 5.0, -3.0])
    publish(place, saves)
    assert best_of(place)[0] == 1.0


def test_a_checkpoint_beyond_the_end_is_refused(place):
    saves = place.saves("coarse.critic_warmup=1", "coarse.updates=9")
    place.loop.step, place.loop.lines = 6, [line(0.0)] * 6
    saves.after_update(stop_asked=False)
    with pytest.raises(RunError, match=r"step-000006' is after 6 updates, coarse\.updates=4; expected as many or more"):
        place.saves("coarse.critic_warmup=1", "coarse.updates=4").resume()
    place.loop.step = 0
    place.saves("coarse.critic_warmup=1", "coarse.updates=12").resume()
    assert place.loop.step == 6 and "going on after update 6" in place.messages[-1]


def test_a_checkpoint_beyond_the_token_budget_is_refused(place):
    """Three updates of 16 responses of 10 tokens: 480. A budget of 320 was spent after two, one of 321 by the third."""
    saves = place.saves()
    place.loop.step = 3
    checkpoint = place.loop.checkpoint()
    place.loop.checkpoint = lambda: checkpoint._replace(state={"lines": [line(0.0) | {"tokens": 10.0}] * 3})
    saves.after_update(stop_asked=False)
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
        check_policy_trained(SimpleNamespace(step=2), settings)
    check_policy_trained(SimpleNamespace(step=3), settings)


def test_a_run_that_is_removed_meanwhile_does_not_grow_again(place):
    saves = place.saves()
    saves.resume()
    shutil.rmtree(place.run)
    place.loop.step, place.loop.lines = 1, [line(0.0)]
    with pytest.raises(RunError, match="was removed or emptied while it ran"):
        saves.after_update(stop_asked=False)
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
    checkpoint, _ = store.newest()
    store.save(checkpoint._replace(state={**checkpoint.state, "format": form}))
    with pytest.raises(RunError, match=words):
        place.saves().resume()


def test_a_checkpoint_that_does_not_fit_is_named(place):
    place.saves().resume()

    def restore(checkpoint):
        raise KeyError("policy.lora_B")

    place.loop.restore = restore
    with pytest.raises(RunError, match=r"step-000000' does not fit this run \(KeyError: 'policy\.lora_B'\)"):
        place.saves().resume()


def test_a_checkpoint_that_does_not_help_is_left_for_the_one_before(place):
    """Update 7 fails again after going back to 6: 6 is given up, then 4; a third checkpoint is not there to try."""
    saves = place.saves("run.keep_checkpoints=3")
    for step in (2, 4, 6):
        place.loop.step, place.loop.lines = step, [line(0.0)] * step
        saves.after_update(stop_asked=False)

    def fail():
        for _ in range(3):
            saves.after_failure(NonFiniteError("a reward that is not finite"), stop_asked=False)

    reached = []
    for _ in range(3):
        place.loop.step = 6  # every time it comes as far as update 7
        fail()
        reached.append(place.loop.step)
    assert reached == [6, 4, 2] and place.loop.rollbacks == 3 and place.loop.skipped == 9
    place.loop.step = 6
    with pytest.raises(ModelError, match="update 7 is not finite 3 times in a row, after 3 rollbacks"):
        fail()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_float16_the_type_is_named_as_the_nearest_cause(place, dtype):
    saves = place.saves(f"model.compute_dtype={dtype}")
    with pytest.raises(ModelError) as raised:
        for _ in range(3):
            saves.after_failure(NonFiniteError("a reward that is not finite"), stop_asked=False)
    assert ("set model.compute_dtype=float32" in str(raised.value)) == (dtype == "float16")


def test_an_interruption_is_heard_while_updates_fail(place):
    saves = place.saves()
    saves.resume()
    with pytest.raises(KeyboardInterrupt):
        saves.after_failure(NonFiniteError("nothing finite"), stop_asked=True)


def test_an_end_that_is_asked_for_is_saved_first(place):
    """Between two checkpoints that are due."""
    saves = place.saves("run.checkpoint_every=10")
    place.loop.step, place.loop.lines = 3, [line(0.0)] * 3
    saves.after_update(stop_asked=False)
    assert not (place.run / "coarse").exists()
    with pytest.raises(KeyboardInterrupt):
        saves.after_update(stop_asked=True)
    assert [folder.name for folder in (place.run / "coarse" / "checkpoints").iterdir()] == ["step-000003"]


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        (["coarse.length.max=300"], 300),
        (["coarse.length.max=512"], 512),
        (["coarse.length.max=2000"], 512),
        (["coarse.length.mode=fixed", "coarse.length.start=64"], 64),
    ],
)
def test_a_restored_limit_obeys_settings_that_were_forced(place, settings, limit):
    """The limit had grown to 512 under coarse.length.max=1024."""
    saves = place.saves()
    place.loop.step, place.loop.lines, place.loop.length = 3, [line(0.0)] * 3, LengthState(512)
    saves.after_update(stop_asked=False)
    with pytest.raises(RunError, match=r"coarse\.length\.") as refused:
        place.saves(*settings).resume()
    assert "--force" in str(refused.value)
    saves = place.saves(*settings)
    saves._force = True
    saves.resume()
    assert place.loop.length.limit == limit and place.loop.step == 3
    reported = any(f"the response limit was 512 tokens, now {limit}" in text for text in place.messages)
    assert reported == (limit != 512)
