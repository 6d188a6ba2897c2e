"""A run whose models were moved, renamed or copied: the same files are the same model, others are refused."""

import json
import shutil
import struct
from pathlib import Path

import pytest
from test_refusals import SHORT, TOY, Place, pairs

from lite_c2f.config.loading import load_config
from lite_c2f.config.settings_diff import in_recorded_format, without_locations
from lite_c2f.errors import RunError
from lite_c2f.evaluation.actor_hashes import actor_hashes
from lite_c2f.runs.fingerprints import changed_inputs, fingerprint, fingerprints, refuse_changes
from lite_c2f.runs.manifest import save_settings
from lite_c2f.runs.model_pair import ModelPair
from lite_c2f.runs.places import check_model_folders, check_places, record_base
from lite_c2f.storage.checkpoints import FORMAT, check_identity
from lite_c2f.storage.files import write_json, write_text
from lite_c2f.storage.results import ResultCache

ADAPTER_CONFIGS = {"reward/adapter/adapter_config.json", "coarse/adapter/adapter_config.json"}
READERS = (["sweep"], ["eval"], ["chat"], ["app"])


def build(root, pico):
    """A finished run of models in `root/base` and `root/instruct`, as far as it is read before weights are loaded."""
    place = Place(root, pico)
    place.models()
    run, models = place.finished(), ModelPair(str(root / "base"), str(root / "instruct"))
    settings = [f"model.{name}={folder}" for name, folder in models._asdict().items()]
    config = load_config(TOY, [*SHORT, *settings, f"data.preferences=[{root / 'good.jsonl'}]", f"run.dir={run}"])
    write_text(run / "config.yaml", config.to_yaml())
    manifest = {"schema": 1, "models": models._asdict(), "seconds": {}, "inputs": fingerprints(config, models)}
    write_json(run / "run.json", manifest)
    for stage in ("reward", "coarse", "fine"):
        save_settings(run, stage, config)
    saved = json.loads((run / "reward" / "settings.json").read_text())  # as earlier versions wrote it, with the places
    write_json(run / "reward" / "settings.json", saved | {"model": config.model.model_dump(mode="json")})
    for file in ADAPTER_CONFIGS:
        settings = json.loads((run / file).read_text())
        write_json(run / file, settings | {"base_model_name_or_path": models.base})
    actors = {actor: {"reward": 0.1, "tokens": 5.0} for actor in ("base", "instruct", "coarse", "fine")}
    write_json(run / "evaluation" / "actors.json", actors)
    asked = {"settings": config.evaluation.model_dump(mode="json"), "made_of": actor_hashes(config, run)}
    write_json(run / "evaluation" / "settings.json", asked)
    return run


@pytest.fixture
def run(tmp_path, pico, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return build(tmp_path, pico)


def state(run):
    """Content and time of every file of the stages."""
    files = [file for stage in ("reward", "coarse", "fine") for file in (run / stage).rglob("*") if file.is_file()]
    return {str(file.relative_to(run)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_a_moved_model_is_named_and_its_new_place_recorded(run, in_process):
    """Both renamed at once, given relative to another folder; then one of them again. Nothing is trained."""
    before = state(run)
    Path("elsewhere").mkdir()
    Path("base").rename("elsewhere/b")
    Path("instruct").rename("elsewhere/i")
    wanted = f"`lite-c2f train {run} model.base=NEW_BASE model.instruct=NEW_INSTRUCT`"
    for command in READERS:
        done = in_process(*command, run)
        assert done.returncode == 2 and done.stderr.strip().count("\n") == 0, done.stderr
        assert wanted in done.stderr and f"'{run.parent / 'base'}'" in done.stderr
    done = in_process("train", run)  # without their places
    assert done.returncode == 2 and wanted in done.stderr.splitlines()[-1]
    (run / "config.yaml").chmod(0o444)
    done = in_process("train", "run", "model.base=elsewhere/b", "model.instruct=./elsewhere/../elsewhere/i")
    assert done.returncode == 0, done.stderr
    after = state(run)
    assert {file for file in before if before[file] != after[file]} == ADAPTER_CONFIGS and before.keys() == after.keys()
    new = {"base": str(run.parent / "elsewhere/b"), "instruct": str(run.parent / "elsewhere/i")}
    assert json.loads((run / "run.json").read_text())["models"] == new
    config = load_config(run / "config.yaml")
    assert {"base": config.model.base, "instruct": config.model.instruct} == new
    for file in ADAPTER_CONFIGS:
        then, now = json.loads(before[file][0]), json.loads(after[file][0])
        assert now == then | {"base_model_name_or_path": new["base"]} != then
    assert in_process("train", run).returncode == 0 and state(run) == after  # the same command as ever
    Path("elsewhere/i").rename("third")
    done = in_process("chat", run)
    assert done.returncode == 2 and f"`lite-c2f train {run} model.instruct=NEW`" in done.stderr
    assert "base model" not in done.stderr
    Path("third/merges.txt").touch()  # beside tokenizer.json nothing is read from it
    done = in_process("train", run, f"model.instruct={run.parent / 'third'}")
    assert done.returncode == 0 and state(run) == after, done.stderr


def test_a_configuration_that_was_cut_off_is_given_again(run, in_process):
    """As the refusal says; the stages stay as they are, and another configuration is still another one."""
    before, given = state(run), run.parent / "given.yaml"
    shutil.copy(run / "config.yaml", given)
    (run / "config.yaml").write_text("")
    done = in_process("train", run)
    assert done.returncode == 2 and f"`lite-c2f train CONFIG --run-dir {run}`" in done.stderr, done.stderr
    done = in_process("train", given, "lora.r=4", "--run-dir", run)
    assert done.returncode == 2 and "lora.r=" in done.stderr.splitlines()[-1]
    Path("base").rename("moved")
    done = in_process("train", given, "model.base=moved", "--run-dir", run)
    assert done.returncode == 0, done.stderr
    after = state(run)
    assert {file for file in before if before[file] != after[file]} == ADAPTER_CONFIGS
    assert load_config(run / "config.yaml").model.base == str(run.parent / "moved")


OTHER = {
    "weights": (lambda base: (base / "model.safetensors").write_bytes(b"x"), "model.safetensors was"),
    "tokenizer": (lambda base: (base / "tokenizer.json").write_text("{}"), "tokenizer.json was"),
    "a file less": (lambda base: (base / "generation_config.json").unlink(), "generation_config.json was", "not there"),
    "a file more": (lambda base: (base / "added_tokens.json").write_text("{}"), "added_tokens.json was not there"),
}


@pytest.mark.parametrize("case", OTHER)
def test_a_folder_with_other_files_is_refused(run, in_process, case):
    """The first file that differs is named, and --force does not help; nothing is written."""
    damage, *words = OTHER[case]
    base = Path(shutil.copytree("base", "other"))
    damage(base)
    before, files = state(run), {name: (run / name).read_bytes() for name in ("config.yaml", "run.json")}
    for more in ((), ("--force",)):
        done = in_process("train", run, "model.base=other", *more)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and last.startswith("error: model.base: "), done.stderr
        assert [word for word in [f"'{base.resolve()}'", f"'{run}'", *words] if word not in last] == [], last
        assert state(run) == before and {name: (run / name).read_bytes() for name in files} == files


def test_force_accepts_no_other_model_where_the_configuration_is_lost(run, in_process):
    """Other weights, under a configuration that is given again; the same files in another place go through."""
    given = shutil.copy(run / "config.yaml", "given.yaml")
    (run / "config.yaml").write_text("")
    (Path(shutil.copytree("base", "other")) / "model.safetensors").write_bytes(b"x")
    before = state(run)
    for more in ((), ("--force",)):
        done = in_process("train", given, "model.base=other", "--run-dir", run, *more)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and "model.safetensors was" in last and "--force" not in last, done.stderr
        assert state(run) == before and (run / "config.yaml").read_text() == ""


def in_the_middle_of(tensor):
    return tensor * 2**18 + 2**17 - 2**11


MIDDLES = (in_the_middle_of(1), in_the_middle_of(2))


def large(folder, changed=()):
    """A safetensors file of four tensors of 256 KiB, with other bytes at `changed`, from where the data begin."""
    size = 2**18
    ranges = {f"layer.{n}": [n * size, (n + 1) * size] for n in range(4)}
    tensors = {name: {"dtype": "U8", "shape": [size], "data_offsets": ends} for name, ends in ranges.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    data = bytearray(4 * size)
    for place in changed:
        data[place : place + 2**12] = b"x" * len(data[place : place + 2**12])
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return str(folder)


@pytest.fixture
def small_limits(monkeypatch):
    """Large is what is above 64 KiB; few blocks are spread over it, so that the tensors' own count."""
    for name, value in {"MAX_WHOLE_BYTES": 2**16, "END_BYTES": 2**12, "BLOCK_BYTES": 2**10, "BLOCK_COUNT": 2}.items():
        monkeypatch.setattr(f"lite_c2f.runs.fingerprints.{name}", value)


@pytest.mark.parametrize("place", [*map(in_the_middle_of, range(4)), 0, 2**20 - 4096, 2**20 - 1])
def test_a_large_model_with_other_layers_is_another_one(tmp_path, small_limits, place):
    """As merging a LoRA into a copy changes it: size, header and both ends stay; then its very end alone."""
    base, same, other = (large(tmp_path / name, (place,) if name == "c" else ()) for name in "abc")
    made, now = (load_config({}, [f"model.base={folder}", f"model.instruct={base}"]) for folder in (base, same))
    inputs = fingerprints(made, ModelPair(base, base))
    assert list(check_places(tmp_path, now, made, inputs)) == ["base"]
    now = load_config({}, [f"model.base={other}", f"model.instruct={base}"])
    with pytest.raises(RunError, match=r"is not the model of .*: model\.safetensors was \d+ bytes"):
        check_places(tmp_path, now, made, inputs)
    with pytest.raises(RunError, match=r"model\.base: model\.safetensors was"):
        refuse_changes(tmp_path, inputs, fingerprints(now, ModelPair(other, base)), force=False)


def test_blocks_are_spread_over_a_large_file_of_any_kind(tmp_path, monkeypatch, small_limits):
    monkeypatch.setattr("lite_c2f.runs.fingerprints.BLOCK_COUNT", 5)
    file, marks = tmp_path / "data.jsonl", []
    headers = (b"[{]}", b"[]", b'{"a": {"b": 10}}')  # none of safetensors
    for start in (b"", *(bytes([len(header)]) + bytes(7) + header for header in headers)):
        for place in (None, 50_000, 100_000, 150_000):  # (200_000 - 1024) / 4 = 49_744 from block to block
            data = bytearray(start.ljust(200_000, b"."))
            if place:
                data[place] = 1
            file.write_bytes(data)
            marks.append(fingerprint(file))
    assert len(set(marks)) == 16 and all(mark.startswith("200000 bytes, ends ") for mark in marks)


def test_a_run_of_an_earlier_version_is_compared_by_both_ends(tmp_path, small_limits):
    """Its record has no blocks; what it can tell apart is still refused, and partial results are taken up."""
    base, middle, end = (large(tmp_path / name, at) for name, at in (("a", ()), ("b", MIDDLES), ("c", (2**20 - 1,))))
    made = load_config({}, [f"model.base={base}", f"model.instruct={base}"])
    inputs = fingerprints(made, ModelPair(base, base))
    earlier = {name: text.partition(", blocks ")[0] for name, text in inputs.items()}
    assert all(text.count("ends") == 1 and text != inputs[name] for name, text in earlier.items())
    assert refuse_changes(tmp_path, earlier, inputs, force=False) == []
    for folder, refused in ((middle, False), (end, True)):
        now, models = load_config({}, [f"model.base={folder}", f"model.instruct={base}"]), ModelPair(folder, base)
        if refused:
            with pytest.raises(RunError, match=r"model\.safetensors was"):
                check_places(tmp_path, now, made, earlier, models)
            with pytest.raises(RunError, match=r"model\.safetensors was"):
                refuse_changes(tmp_path, earlier, fingerprints(now, models), force=False)
        else:
            assert list(check_places(tmp_path, now, made, earlier, models)) == ["base"]
    ResultCache(tmp_path / "kept.jsonl", {"models": earlier}).put("x", 3)
    assert ResultCache(tmp_path / "kept.jsonl", {"models": inputs}).get("x") == 3
    assert ResultCache(tmp_path / "kept.jsonl", {"models": fingerprints(made, ModelPair(end, base))}).get("x") is None
    ResultCache(tmp_path / "new.jsonl", {"models": inputs}).put("x", 3)
    assert ResultCache(tmp_path / "new.jsonl", {"models": fingerprints(made, ModelPair(middle, base))}).get("x") is None
    assert in_recorded_format({"a": "9 bytes, b"}, {"a": "9 bytes, b, blocks c"}) == {"a": "9 bytes, b, blocks c"}


def test_actors_are_not_asked_of_another_folder(run, in_process):
    shutil.copytree("base", "other")
    done = in_process("eval", run, f"model.base={Path('other').resolve()}")
    assert done.returncode == 2 and "`lite-c2f train RUN model.base=NEW`" in done.stderr, done.stderr


def test_what_is_not_a_place_of_the_same_files(run):
    """By hand: hub names, what a download leaves out, runs that have not begun and those without a record."""
    root, made = run.parent, load_config(run / "config.yaml")
    inputs = json.loads((run / "run.json").read_text())["inputs"]
    hub = load_config(made.model_dump(), ["model.base=owner/name", "model.base_revision=abc"])
    assert check_places(run, hub, made, inputs) == {}  # not resolved yet
    (root / "base" / "merges.txt").write_text("a b")
    (root / "base" / "consolidated.safetensors").write_text("x")
    models = ModelPair(str(root / "base"), str(root / "instruct"))
    assert list(check_places(run, hub, made, inputs, models)) == ["base"]  # a snapshot, and a folder of the same
    assert list(check_places(run, made, hub, inputs, models)) == ["base"]
    assert check_places(run, hub, None, {}, models) == {}
    more = {**inputs, "model.base: vocab.txt": "9 bytes", "model.base: consolidated.00.safetensors": "9 bytes"}
    assert list(check_places(run, hub, made, more, models)) == ["base"]  # a folder, and a download without them
    with pytest.raises(RunError, match=r"merges\.txt was 9 bytes"):
        check_places(run, hub, made, {**inputs, "model.base: merges.txt": "9 bytes"}, models)
    with pytest.raises(RunError, match=r"model\.base=.*now 'owner/name'.*no record"):
        check_places(run, hub, made, {}, models)
    without = {key: value for key, value in inputs.items() if "tokenizer.json" not in key}
    (root / "base" / "tokenizer.json").unlink()
    with pytest.raises(RunError, match=r"merges\.txt was not there"):  # then it is the tokenizer
        check_places(run, hub, made, without, models)


@pytest.mark.parametrize(("place", "remedy"), [("owner/name", "fetch it again: "), ("toy", "make it again: ")])
def test_what_can_be_had_again_needs_no_place(tmp_path, place, remedy):
    config = load_config({}, [f"model.base={place}", f"model.instruct={place}"])
    with pytest.raises(RunError, match=f"{remedy}`lite-c2f train '/a b'`"):
        check_model_folders(Path("/a b"), config, {"base": str(tmp_path / "cache"), "instruct": str(tmp_path)})


def test_an_adapter_that_names_a_hub_model_is_left_alone(run):
    models = ModelPair(str(run.parent / "new"), str(run.parent / "instruct"))
    file = run / "reward" / "adapter" / "adapter_config.json"
    write_json(file, {"base_model_name_or_path": "owner/name", "revision": "abc"})
    record_base(run, str(run.parent / "base"), load_config({}, ["model.base=/n", "model.instruct=/i"]), models)
    assert json.loads(file.read_text())["base_model_name_or_path"] == "owner/name"


def test_an_adapter_names_the_new_place_and_its_revision(run):
    """From a hub snapshot to a folder, which has none, and to a snapshot of another commit."""
    file, instruct = run / "reward" / "adapter" / "adapter_config.json", str(run.parent / "instruct")
    for place, revision in ((str(run.parent / "new"), None), ("owner/name", "abc")):
        write_json(file, {"base_model_name_or_path": "/old", "revision": "gone", "r": 4})
        given = [f"model.base={place}", f"model.instruct={instruct}"]
        given += [f"model.base_revision={revision}"] * bool(revision)
        record_base(run, "/old", load_config({}, given), ModelPair(place, instruct))
        expected = {"base_model_name_or_path": place, "revision": revision, "r": 4}
        assert json.loads(file.read_text()) == expected


def test_an_identity_of_an_earlier_version_is_compared_without_places(tmp_path):
    made = load_config({}, ["model.base=/a", "model.instruct=/b", "lora.r=4"])
    other = load_config({}, ["model.base=/c", "model.instruct=/d", "lora.r=4"])
    sections = ("model", "lora")
    assert made.identity(sections) == other.identity(sections)
    earlier = {
        "model": made.model.model_dump(mode="json"),
        "lora": made.lora.model_dump(mode="json"),
        "run": {"seed": 0},
    }
    assert without_locations(earlier) == made.identity(sections) and without_locations([1]) == [1]
    check_identity(tmp_path, FORMAT, earlier, other.identity(sections), "begin anew")  # a checkpoint's
    with pytest.raises(RunError, match=r"lora\.r=4, now 8"):
        check_identity(tmp_path, FORMAT, earlier, load_config({}, ["lora.r=8"]).identity(sections), "begin anew")
    file = tmp_path / "kept.jsonl"
    file.write_text(json.dumps({"identity": earlier}) + '\n{"name": "x", "value": 3}\n')
    assert ResultCache(file, other.identity(sections)).get("x") == 3
    assert ResultCache(file, load_config({}, ["model.stop=[x]", "lora.r=4"]).identity(sections)).get("x") is None


def test_data_files_of_one_name_are_told_apart(tmp_path):
    """Both are watched; a run of an earlier version, which watched the last one alone, goes on."""
    files = [tmp_path / folder / "train.jsonl" for folder in "abc"]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(json.dumps(pairs(2)[0]) * (number + 1))
    config = load_config({}, [f"data.preferences={[str(file) for file in files]}", f"data.prompts=[{files[0]}]"])
    models = ModelPair(str(tmp_path), str(tmp_path))
    now = fingerprints(config, models)
    first, second, third = map(fingerprint, files)
    name = "data.preferences: train.jsonl"
    assert now == {name: first, f"{name} (2)": second, f"{name} (3)": third, "data.prompts: train.jsonl": first}
    files[0].write_text("changed")
    assert len(changed_inputs(now, fingerprints(config, models))) == 2  # as preferences, and as prompts
    earlier = {name: third, "data.prompts: train.jsonl": first}
    assert refuse_changes(tmp_path, earlier, now, force=False) == []
    with pytest.raises(RunError, match=r"data\.preferences: train\.jsonl was"):
        refuse_changes(tmp_path, {**earlier, name: second}, now, force=False)
    hub = load_config({}, ["data.preferences=[{path: o/n, data_dir: x, revision: r}, {path: o/n, revision: s}]"])
    key = "data.preferences: o/n"
    assert fingerprints(hub, models) == {key: "hub, revision r", f"{key} (2)": "hub, revision s"}
