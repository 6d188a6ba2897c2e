"""Stopped and started again, a run ends as one that was never stopped: the same bytes, the same figures."""

import functools
import random
import shutil
import signal
import time

import pytest
from harness import figures, finish, leftovers, published, same, stopped, train
from processes import hold

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory, toy_models):
    """A small run without an interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish(run)
    assert leftovers(run) == []
    return run


@pytest.fixture
def rewarded(whole, tmp_path):
    """A run that has its reward model, and nothing after it."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "run.json"):
        shutil.copy(whole / name, run / name)
    shutil.copytree(whole / "reward", run / "reward")
    lines = [line for line in (whole / "metrics.jsonl").read_text().splitlines(True) if '"stage": "reward"' in line]
    (run / "metrics.jsonl").write_text("".join(lines))
    return run


def steps(run, stage):
    return [int(folder.name[-6:]) for folder in sorted((run / stage / "checkpoints").iterdir())]


def starts(run):
    return (run / "log.txt").read_text().count("started:") if (run / "log.txt").is_file() else 0


@pytest.mark.parametrize(
    ("stage", "how"),
    [("reward", signal.SIGINT), ("reward", signal.SIGHUP), ("coarse", signal.SIGTERM), ("coarse", signal.SIGHUP)],
)
def test_a_signal_finishes_the_step_and_saves_it(rewarded, whole, stage, how):
    if stage == "reward":
        shutil.rmtree(rewarded / "reward")
        (rewarded / "metrics.jsonl").unlink()
    code, said = stopped(rewarded, how, stage, 3, "--stage", stage)
    assert code == 130
    if how != signal.SIGHUP:  # its terminal is gone
        assert "finishing this step" in said and f"Continue with: lite-c2f train {rewarded}/config.yaml" in said
    last = {"reward": 5, "coarse": 4}[stage]  # the reward model's fourth step was over when its line was written
    assert steps(rewarded, stage)[-1] == last
    assert f" {last}, from " in finish(rewarded, "--stage", stage)
    same(rewarded, whole, stage)
    assert leftovers(rewarded) == []


MOMENTS = (  # what is seen when a kill comes, a moment later: a file, and what stands in it so many times
    *[("log.txt", "started:", 1)] * 3,  # while the libraries and the data are read
    *[("metrics.jsonl", f'"stage": "reward", "step": {step},', 1) for step in (1, 2, 4, 6)],
    *[("metrics.jsonl", f'"stage": "coarse", "step": {step},', 1) for step in (1, 3, 4, 5, 7, 8)],
    *[("fine/trials.jsonl", '"name"', ratios) for ratios in (1, 1, 2)],  # of three
    ("fine/ratios.json", "{", 1),
    *[("evaluation/answers.jsonl", '"name"', actors) for actors in (1, 2, 3)],  # of four
)


def counted(file, words):
    """How often something stands in a file that may come and go."""
    try:
        return file.read_text().count(words)
    except FileNotFoundError:
        return 0


def test_twenty_kills_at_random_moments_in_all_stages(tmp_path, whole):
    """kill -9 while loading, training, saving, trying ratios, merging, comparing: nothing is lost or differs."""
    chance, finished = random.Random(0), 0
    run = tmp_path / "run0"
    assert len(MOMENTS) == 20
    for name, words, times in MOMENTS:
        for _ in range(10):  # a run that is faster than the kill is compared, and the next one is tried
            before, file = starts(run), run / name
            command = train(run)
            command.until(lambda run=run, before=before: starts(run) > before)
            command.until(lambda file=file: counted(file, words) >= times)  # noqa: B023
            time.sleep(chance.uniform(0.0, 0.3))
            command.send(signal.SIGKILL)
            if command.wait() == -signal.SIGKILL:
                break
            assert command.process.exitcode == 0, command.said()  # it was faster than the kill
            same(run, whole)
            finished += 1
            run = tmp_path / f"run{finished}"
        else:
            raise AssertionError(f"never killed where {name} has {words} {times} times")
    finish(run)
    same(run, whole)
    assert leftovers(run) == []


@pytest.mark.parametrize("stage", ["reward", "coarse"])
def test_a_damaged_checkpoint_costs_steps_not_the_run(rewarded, whole, stage):
    if stage == "reward":
        shutil.rmtree(rewarded / "reward")
        (rewarded / "metrics.jsonl").unlink()
    stopped(rewarded, signal.SIGKILL, stage, 5, "--stage", stage)
    newest = max((rewarded / stage / "checkpoints").iterdir())
    name = {"reward": "optimizer.pt", "coarse": "tensors.safetensors"}[stage]
    content = bytearray((newest / name).read_bytes())
    content[-7] ^= 1
    (newest / name).write_bytes(content)
    said = finish(rewarded, "--stage", stage)
    assert "is damaged" in said and "going on after" in said
    same(rewarded, whole, stage)


def test_a_stopped_choice_of_ratios_and_comparison_go_on(tmp_path, whole):
    run = tmp_path / "run"
    for file in ("fine/trials.jsonl", "evaluation/answers.jsonl"):
        hand = tmp_path / file.replace("/", " ")
        command = train(run, patch=functools.partial(hold, run / file, '"name"', hand))
        command.until_held(hand)
        command.send(signal.SIGKILL)
        assert command.wait() == -signal.SIGKILL
        assert counted(run / file, '"name"') == 1
    finish(run)
    same(run, whole)
    assert leftovers(run) == []


def test_other_settings_are_refused_with_the_difference_and_can_be_forced(rewarded):
    stopped(rewarded, signal.SIGINT, "coarse", 3)
    settings = [(rewarded / name).read_bytes() for name in ("config.yaml", "run.json")]
    refused = train(rewarded, "coarse.lr=0.5")
    assert refused.wait() == 2
    assert settings == [(rewarded / name).read_bytes() for name in ("config.yaml", "run.json")]
    last = refused.said().splitlines()[-1]
    assert last.startswith("error:") and "coarse.lr=0.001, now 0.5" in last and "--force" in last
    before = figures(rewarded)
    said = finish(rewarded, "coarse.lr=0.002", "--stage", "coarse", "--force")
    assert "going on after update" in said
    done = [line for line in figures(rewarded) if line["stage"] == "coarse"]
    assert [line["step"] for line in done] == list(range(1, 9))
    assert done[:3] == [line for line in before if line["stage"] == "coarse"][:3]


def test_forced_settings_do_not_rewrite_history(rewarded):
    """The reward model stays as it was made, and is known to be; a config.yaml of the run goes on with it."""
    refused = train(rewarded, "reward.lr=0.5", "--stage", "reward")
    assert refused.wait() == 2 and "reward.lr=0.002, now 0.5" in refused.said()
    assert f"or remove {rewarded}/reward to train that again" in refused.said()
    said = finish(rewarded, "reward.lr=0.5", "--stage", "reward", "--force")
    assert "accepted: the reward stage stays as it was made, with reward.lr=0.002, now 0.5" in said
    assert "accepted: the reward stage stays" in finish(rewarded, "reward.lr=0.5", "--stage", "reward")  # as before
    refused = train(rewarded, "reward.lr=0.6", "--stage", "reward")
    assert refused.wait() == 2 and "reward.lr=0.002, now 0.6" in refused.said()
    assert "already published, skipped" in finish(rewarded, "--stage", "reward")


def test_another_rank_cannot_be_forced(rewarded):
    stopped(rewarded, signal.SIGKILL, "coarse", 3)
    refused = train(rewarded, "lora.r=4", "--force")
    assert refused.wait() == 2 and "lora.r=8, now 4" in refused.said()


def test_changed_inputs_are_refused_with_the_difference_and_can_be_forced(tmp_path, whole):
    data = tmp_path / "mine.jsonl"
    row = '{"prompt": "question %d ?", "chosen": "a good answer to it .", "rejected": "no"}\n'
    data.write_text("".join(row % number for number in range(60)))
    run, more = tmp_path / "run", (f"data.preferences=[toy,{data}]", "--stage", "reward")
    code, _ = stopped(run, signal.SIGINT, "reward", 2, *more)
    assert code == 130
    data.write_text(data.read_text() + row % 99)
    refused = train(run, *more)
    assert refused.wait() == 2
    assert "data.preferences: mine.jsonl was" in refused.said() and "--force" in refused.said()
    said = finish(run, *more, "--force")
    assert "accepted: data.preferences" in said and "going on after step" in said
    assert "reward/adapter/adapter_model.safetensors" in published(run)
    (tmp_path / "elsewhere").mkdir()
    moved = data.rename(tmp_path / "elsewhere" / "mine.jsonl")  # the same content: the same run
    assert "already published" in finish(run, f"data.preferences=[toy,{moved}]", "--stage", "reward")


@pytest.mark.parametrize("stage", ["reward", "coarse"])
@pytest.mark.filterwarnings("ignore")  # of libraries that load an adapter
def test_a_stage_goes_on_after_its_models_were_moved(rewarded, whole, toy_models, tmp_path, stage):
    """From the toy pair's own place to a copy, which is renamed while the stage is stopped: the same result."""
    first, second = tmp_path / "first", tmp_path / "second"
    for name in ("base", "instruct"):
        shutil.copytree(getattr(toy_models, name), first / name)

    def at(place):
        return [f"model.base={place / 'base'}", f"model.instruct={place / 'instruct'}", "--stage", stage]

    if stage == "reward":
        shutil.rmtree(rewarded / "reward")
        (rewarded / "metrics.jsonl").unlink()
    code, _ = stopped(rewarded, signal.SIGINT, stage, 3, *at(first))
    assert code == 130
    first.rename(second)
    gone = train(rewarded, *at(first))
    assert gone.wait() == 2
    assert f"lite-c2f train {rewarded} model.base=NEW_BASE model.instruct=NEW_INSTRUCT`" in gone.said()
    said = finish(rewarded, *at(second))
    assert "going on after" in said and f"model.base: '{second / 'base'}' holds the same files" in said
    same(rewarded, whole, stage)
    if stage == "reward":
        from peft import AutoPeftModelForSequenceClassification

        model = AutoPeftModelForSequenceClassification.from_pretrained(rewarded / "reward" / "adapter", num_labels=1)
        assert model.get_base_model().name_or_path == str(second / "base")


def test_a_missing_input_is_named(tmp_path, whole):
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "why ?", "chosen": "because of it .", "rejected": "no"}\n' * 3)
    run, more = tmp_path / "run", (f"data.preferences=[toy,{data}]", "--stage", "reward")
    stopped(run, signal.SIGKILL, "reward", 2, *more)
    data.unlink()
    refused = train(run, *more)
    assert refused.wait() == 2 and f"no such file or folder '{data}'" in refused.said()
