"""Kills, full disks, resume: never a folder that looks finished and is wrong, and the same hashes in the end."""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from processes import Command, hold
from safetensors.torch import load_file, save_file

from lite_c2f.errors import ModelError, RunError
from lite_c2f.fine import shards
from lite_c2f.fine.merge import merge
from lite_c2f.fine.sparsify import Treatment
from lite_c2f.fine.staging import JOURNAL, LOCK, MODEL, staging_folder


def interrupted(pico, out, share=0.5, error=KeyboardInterrupt, **given):
    """A merge that is stopped when `share` of the bytes are written."""

    def stop(done, total):
        if done > share * total:
            raise error

    with contextlib.suppress(KeyboardInterrupt, RunError, ModelError):
        merge(pico["adapter"], pico["base"], pico["sharded"], out, progress=stop, **given)
    return out.with_name(f".{out.name}.merging")


def resumed(pico, out, **given):
    """(report, what was said) of a merge that goes on."""
    said = []
    given = {"resume": True, **given}
    report = merge(pico["adapter"], pico["base"], pico["sharded"], out, notice=said.append, **given)
    return report, [text for text in said if not text.startswith("warning")]  # the pico pair is no real pair


def test_resume_keeps_finished_shards_and_gives_the_same_hashes(tmp_path, pico):
    whole = merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "whole")
    left = interrupted(pico, tmp_path / "out")
    journal = json.loads((left / JOURNAL).read_text())["shards"]
    finished = {name: (left / MODEL / name).stat().st_mtime_ns for name in journal}
    assert 0 < len(finished) < len(whole.shards)
    assert {path.name for path in (left / MODEL).iterdir()} == {*finished}  # the one under way is gone
    report, said = resumed(pico, tmp_path / "out")
    assert said == [f"resumed: {len(finished)} of {len(finished)} finished shards are intact and kept"]
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == finished
    assert report == whole
    assert not left.exists() and not (tmp_path / "out" / JOURNAL).exists() and not (tmp_path / "out" / LOCK).exists()


def test_damaged_shards_are_made_again(tmp_path, pico):
    whole = merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "whole")
    left = interrupted(pico, tmp_path / "out", 0.7)
    names = sorted(json.loads((left / JOURNAL).read_text())["shards"])
    assert len(names) > 2
    content = bytearray((left / MODEL / names[0]).read_bytes())
    content[-1] ^= 1
    (left / MODEL / names[0]).write_bytes(content)
    (left / MODEL / names[1]).unlink()
    report, said = resumed(pico, tmp_path / "out")
    assert said == [f"resumed: {len(names) - 2} of {len(names)} finished shards are intact and kept"]
    assert report.shards == whole.shards


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"ratio": 0.5}, "ratio"),
        ({"dtype": "float32"}, "dtype"),
        ({"treatment": Treatment(rounding="stochastic")}, "treatment"),
    ],
)
def test_other_settings_start_again(tmp_path, pico, given, named):
    interrupted(pico, tmp_path / "out")
    report, said = resumed(pico, tmp_path / "out", **given)
    assert said == [f"not resumed: {named} changed; starting from the first shard"]
    assert report.shards == merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "whole", **given).shards


def test_other_inputs_start_again(tmp_path, pico, editable):
    instruct = editable("sharded")
    models = {**pico, "sharded": instruct}
    interrupted(models, tmp_path / "out")
    os.utime(max(instruct.glob("*.safetensors")), (1, 1))
    assert resumed(models, tmp_path / "out")[1] == ["not resumed: instruct changed; starting from the first shard"]


@pytest.mark.parametrize("which", ["base", "adapter_config.json", "adapter_model.safetensors"])
def test_another_base_or_adapter_starts_again(tmp_path, pico, editable, which):
    models = {**pico, "base": editable("base"), "adapter": editable("adapter")}
    interrupted(models, tmp_path / "out")
    if which == "base":
        os.utime(models["base"] / "model.safetensors", (1, 1))
    elif which == "adapter_config.json":
        (models["adapter"] / which).write_text((models["adapter"] / which).read_text() + "\n")
    else:
        tensors = load_file(models["adapter"] / which)
        save_file({name: tensor * 2 for name, tensor in tensors.items()}, models["adapter"] / which)
    named = "base" if which == "base" else "adapter"
    assert resumed(models, tmp_path / "out")[1] == [f"not resumed: {named} changed; starting from the first shard"]


def test_without_resume_it_starts_again(tmp_path, pico):
    left = interrupted(pico, tmp_path / "out")
    (left / MODEL / "stray").mkdir()
    report, said = resumed(pico, tmp_path / "out", resume=False)
    assert said == ["an interrupted merge was discarded; --resume would have kept its finished shards"]
    assert len(report.shards) > 3
    assert not (tmp_path / "out" / "stray").exists()


@pytest.mark.parametrize(
    "journal",
    ["", "[]", '{"identity": {}, "shards": 3}', '{"identity": {}}', '{"identity": null, "shards": {}}', "[" * 100_000],
)
def test_damaged_journal_starts_again(tmp_path, pico, journal):
    left = interrupted(pico, tmp_path / "out")
    (left / JOURNAL).write_text(journal)
    assert "starting from the first shard" in resumed(pico, tmp_path / "out")[1][0]


@pytest.mark.parametrize("harm", ["number", "no changes", "empty changes", "other field", "other input", "outside"])
def test_damaged_records_are_not_taken_over(tmp_path, pico, harm):
    whole = merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "whole")
    left = interrupted(pico, tmp_path / "out", 0.7)
    journal = json.loads((left / JOURNAL).read_text())
    count = len(journal["shards"])
    for name, record in list(journal["shards"].items()):
        if harm == "number":
            journal["shards"][name] = 3
        elif harm == "no changes":
            del record["changes"]
        elif harm == "empty changes":
            record["changes"] = {"ghost": {}}
        elif harm == "other field":
            record["changes"] = {weight: {"x": 1} for weight in record["changes"]} or {"x": {"x": 1}}
        elif harm == "other input":
            record["input"] = "0" * 32
        else:
            journal["shards"][f"../../{name}"] = journal["shards"].pop(name)
    (left / JOURNAL).write_text(json.dumps(journal))
    report, said = resumed(pico, tmp_path / "out")
    assert said == [f"resumed: 0 of {count} finished shards are intact and kept"]
    assert report == whole


def test_a_replaced_input_of_the_same_size_and_time_is_seen(tmp_path, pico, editable):
    instruct = editable("sharded")
    models = {**pico, "sharded": instruct}
    left = interrupted(models, tmp_path / "out", 0.7)
    name = min(json.loads((left / JOURNAL).read_text())["shards"])
    times = (instruct / name).stat()
    content = bytearray((instruct / name).read_bytes())
    content[-1] ^= 1
    (instruct / name).write_bytes(content)
    os.utime(instruct / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    report, said = resumed(models, tmp_path / "out")
    assert (
        "resumed" in said[0]
        and report.shards == merge(pico["adapter"], pico["base"], instruct, tmp_path / "whole").shards
    )


def test_a_hidden_folder_of_somebody_else_is_left_alone(tmp_path, pico):
    (tmp_path / ".out.merging").mkdir()
    (tmp_path / ".out.merging" / "mine").write_text("x")
    with pytest.raises(RunError, match="not made by a merge"):
        merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / ".linked.merging").symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match="not made by a merge"):
        merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "linked")
    shutil.copytree(pico["sharded"], tmp_path / ".in.merging")
    with pytest.raises(RunError, match="which is read"):
        merge(pico["adapter"], pico["base"], tmp_path / ".in.merging", tmp_path / "in")
    assert (tmp_path / ".out.merging" / "mine").read_text() == "x" and (tmp_path / "mine").is_dir()
    assert (tmp_path / ".in.merging" / "config.json").is_file()


def test_an_output_that_is_taken_meanwhile_costs_nothing(tmp_path, pico):
    def take(done, total):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine").write_text("x")

    with pytest.raises(RunError, match="in the meantime"):
        merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "out", progress=take)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    shutil.rmtree(tmp_path / "out")
    said = resumed(pico, tmp_path / "out")[1]
    assert said == ["resumed: 5 of 5 finished shards are intact and kept"]


def test_every_file_of_the_instruct_model_comes_along(tmp_path, pico, editable):
    instruct = editable("sharded")
    for name in ("lock", "journal.json", "model"):
        (instruct / name).write_text(name)
    merge(pico["adapter"], pico["base"], instruct, tmp_path / "out")
    assert all((tmp_path / "out" / name).read_text() == name for name in ("lock", "journal.json", "model"))
    (instruct / "templates").symlink_to(pico["base"])
    with pytest.raises(ModelError, match="a link to a folder"):
        merge(pico["adapter"], pico["base"], instruct, tmp_path / "out2")


def test_config_comes_last(tmp_path, pico, monkeypatch):
    """Where config.json is copied, everything else but the report is there already."""
    seen = []
    copy = shards.copy_files

    def watch(source, target, files):
        seen.append(([str(name) for name in files], sorted(path.name for path in target.iterdir())))
        copy(source, target, files)

    monkeypatch.setattr(shards, "copy_files", watch)
    merge(pico["adapter"], pico["base"], pico["sharded"], tmp_path / "out")
    files, there = seen[-1]
    assert files == ["config.json"] and "config.json" not in there
    assert {path.name for path in (tmp_path / "out").iterdir()} - set(there) == {"config.json", "merge.json"}


def test_a_bad_input_leaves_nothing(tmp_path, pico):
    assert not interrupted(pico, tmp_path / "out", error=ModelError).exists()
    assert list(tmp_path.iterdir()) == []


def test_one_merge_at_a_time(tmp_path):
    with staging_folder(tmp_path / "out", {}) as work:
        with pytest.raises(RunError, match="another process merges"), staging_folder(tmp_path / "out", {}):
            pass
        assert work.folder.is_dir()  # the first one's
    assert (tmp_path / "out").is_dir()


def test_an_empty_output_folder_is_used_and_a_full_one_never(tmp_path):
    (tmp_path / "out").mkdir()
    with staging_folder(tmp_path / "out", {}) as work:
        (work.folder / "a").write_text("x")
    with pytest.raises(OSError), staging_folder(tmp_path / "out", {}) as work:
        (work.folder / "b").write_text("y")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


# -- real processes


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model of 8 shards of 8 MiB that needs about a second: room for a kill."""
    root = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(8)]
    for which in ("base", "instruct"):
        (root / which).mkdir()
        (root / which / "config.json").write_text('{"model_type": "mistral", "vocab_size": 4}')
        (root / which / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
        weight_map = {}
        for index, name in enumerate(names):
            file = f"model-{index + 1:05d}-of-00008.safetensors"
            save_file({name: (torch.randn(4096, 1024) * 0.02).bfloat16()}, root / which / file, {"format": "pt"})
            weight_map[name] = file
        (root / which / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (root / "adapter").mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16}
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    factors = {}
    for name in names:
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        factors[f"{stem}.lora_A.weight"] = torch.randn(8, 1024) * 0.05
        factors[f"{stem}.lora_B.weight"] = torch.randn(4096, 8) * 0.05
    save_file(factors, root / "adapter" / "adapter_model.safetensors")
    return root


def command(wide, out, *more):
    folders = [f"--{name}={wide / name}" for name in ("adapter", "base", "instruct")]
    return ["merge", *folders, f"--out={out}", *more]


def check(out, expected):
    """Whatever there is under the output's name is right: all shards, the report, the same hashes."""
    if out.exists():
        assert json.loads((out / "merge.json").read_text())["shards"] == expected
        assert (out / "config.json").is_file() and not (out / LOCK).exists() and not (out / JOURNAL).exists()


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path, wide):
    """15 times kill -9, then once Ctrl-C, then to the end: never a wrong folder, and the hashes of a whole run."""
    expected = merge(wide / "adapter", wide / "base", wide / "instruct", tmp_path / "whole").shards
    out, left, log = tmp_path / "out", tmp_path / ".out.merging", tmp_path / "said.txt"
    chance, killed, kept = random.Random(0), 0, []

    def begun():
        """Shards that are begun or finished."""
        return len(list((left / MODEL).iterdir())) if (left / MODEL).is_dir() else 0

    while killed < 15:
        process, wanted = Command(*command(wide, out, "--resume"), log=log), min(8, begun() + chance.randrange(3))
        process.until(lambda wanted=wanted: left.exists() and begun() >= wanted)
        time.sleep(chance.uniform(0.0, 0.05))
        process.send(signal.SIGKILL)
        code = process.wait()
        assert code in (0, -signal.SIGKILL), process.said()  # 0: it was faster than the kill
        killed += code != 0
        check(out, expected)
        kept.append(begun())
        shutil.rmtree(out, ignore_errors=True)
    assert max(kept) > 0
    shutil.rmtree(left, ignore_errors=True)
    journal, hand = left / JOURNAL, tmp_path / "hand"
    process = Command(*command(wide, out), log=log, patch=functools.partial(hold, journal, "model-00002", hand))
    process.until_held(hand)
    process.send(signal.SIGINT)
    process.let_go(hand)
    assert process.wait() == 130 and "--resume" in process.said(), process.said()
    finished = set(json.loads(journal.read_text())["shards"])
    assert 2 <= len(finished) < 8 and {path.name for path in (left / MODEL).iterdir()} == finished
    assert not out.exists()
    process = Command(*command(wide, out, "--resume"), log=log)
    assert process.wait() == 0, process.said()
    check(out, expected)
    assert out.exists() and not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize("room", [12, 30, 50])
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_disk_that_is_full_before_the_end(tmp_path, wide, room, call, monkeypatch):
    """A tmpfs of fewer MiB than the model has (64): one line, exit code 2, and what is finished is kept."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs rights that this machine does not give")
    try:
        code, _, errors = call(*command(wide, disk / "out"))
        assert code == 2 and "MiB free" in errors and errors.count("\n") == 1
        assert list(disk.iterdir()) == []
        with monkeypatch.context() as patched:  # without the check, as when another process fills the disk meanwhile
            usage = namedtuple("usage", "total used free")
            patched.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 2**40))
            code, _, errors = call(*command(wide, disk / "out"))
        assert code == 2 and "No space left" in errors and "Traceback" not in errors
        assert not (disk / "out").exists()
        left = disk / ".out.merging"
        kept = len(json.loads((left / JOURNAL).read_text())["shards"]) if left.exists() else 0
        assert len(list((left / MODEL).glob("*.safetensors"))) == kept
        # the last one may have found no room to be written down in the journal, and is then not kept
        assert (room - 1) // 8 - 1 <= kept <= (room - 1) // 8
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        code, _, errors = call(*command(wide, disk / "out", "--resume"))
        told = f"{kept} of {kept}" if kept else "starting from the first shard"
        assert code == 0 and told in errors, errors
        expected = merge(wide / "adapter", wide / "base", wide / "instruct", tmp_path / "whole").shards
        check(disk / "out", expected)
        assert (disk / "out").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_leftovers_are_hidden(tmp_path, pico):
    left = interrupted(pico, tmp_path / "out")
    assert left.name.startswith(".") and not Path(tmp_path / "out").exists()
