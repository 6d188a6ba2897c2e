"""Broken inputs of `lite-c2f merge`: exit code 2, one line that names what is wrong, nothing written or touched."""

import json
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from lite_c2f import cli
from lite_c2f.fine import checks

Q = "model.layers.0.self_attn.q_proj"


class Place:
    """Copies of base, instruct (in shards) and adapter that a case may break, and the command line to run."""

    def __init__(self, root, pico):
        self.root, self.out, self.more = root, root / "out", []
        self.base, self.instruct, self.adapter = root / "base", root / "instruct", root / "adapter"
        for name, source in (("base", "base"), ("instruct", "sharded"), ("adapter", "adapter")):
            shutil.copytree(pico[source], root / name)

    @property
    def shard(self):
        return max(self.instruct.glob("*.safetensors"))

    def config(self, file, **changes):
        content = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    def index(self, change):
        file = self.instruct / "model.safetensors.index.json"
        content = json.loads(file.read_text())
        change(content["weight_map"])
        file.write_text(json.dumps(content))

    def weights(self, file, change):
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    def factor(self, change):
        self.weights(self.adapter / "adapter_model.safetensors", change)


def cut(place):
    place.shard.write_bytes(place.shard.read_bytes()[:-5])


def huge_header(place):
    place.shard.write_bytes((2**40).to_bytes(8, "little") + place.shard.read_bytes()[8:])


def twice(place):
    first, *_, last = sorted(place.instruct.glob("*.safetensors"))
    extra = next(iter(load_file(first).items()))
    place.weights(last, lambda tensors: tensors.update([extra]))


def of_a_reward_model(place):
    place.config(place.adapter / "adapter_config.json", task_type="SEQ_CLS")


def circle(folder):
    shutil.rmtree(folder)
    folder.symlink_to(folder)


def circle_within(place):
    (place.instruct / "tokenizer_config.json").unlink()
    (place.instruct / "tokenizer_config.json").symlink_to("tokenizer_config.json")


def pickles(place):
    for file in place.instruct.glob("*.safetensors*"):
        file.unlink()
    torch.save({"a": torch.ones(1)}, place.instruct / "pytorch_model.bin")


def bigger_vocabulary(place):
    place.config(place.instruct / "config.json", vocab_size=65)


def another_word(place):
    file = place.instruct / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"v7"'))


def another_architecture(tensors):
    for name in list(tensors):
        tensors[name.replace("self_attn.q_proj", "attention.wq")] = tensors.pop(name)


def without_lora_b(tensors):
    del tensors[f"base_model.model.{Q}.lora_B.weight"]


def to_float8(tensors):
    tensors.update({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()})


def setting(*words):
    return lambda place: place.more.extend(words)


def a_factor(**changes):
    """Replace lora_A of the first layer's q_proj."""
    return lambda place: place.factor(
        lambda tensors: tensors.update({f"base_model.model.{Q}.lora_A.weight": changes["to"]})
    )


def occupied(place):
    place.out.mkdir()
    (place.out / "x").write_text("mine")


def renamed(place):
    place.adapter.rename(place.root / "run" / "coarse" / "adapter")
    place.adapter = place.root / "run"


def inside(place):
    place.out = place.instruct / "fine"


def through_a_link(place):
    (place.root / "link").symlink_to(place.instruct)
    place.out = place.root / "link" / "fine"


def ratios_file(text):
    def make(place):
        (place.root / "ratios.yaml").write_text(text)
        place.more += ["--layer-ratios", str(place.root / "ratios.yaml")]

    return make


def json_of(name, text):
    return lambda place: (place.root / name).write_text(text)


CASES = {
    "swapped models": (
        lambda p: (
            p.config(p.adapter / "adapter_config.json", base_model_name_or_path=str(p.instruct)),
            p.config(p.instruct / "config.json", dtype="bfloat16"),
        ),
        "swap the two",
    ),
    "adapter's run": (lambda p: (p.root / "run" / "coarse").mkdir(parents=True) or renamed(p), "did you mean"),
    "deep adapter_config": (json_of("adapter/adapter_config.json", "[" * 200_000), "JSON object"),
    "base name that is a number": (
        lambda p: p.config(p.adapter / "adapter_config.json", base_model_name_or_path=5),
        "base_model_name_or_path",
    ),
    "alpha beyond floats": (lambda p: p.config(p.adapter / "adapter_config.json", lora_alpha=10**400), "'lora_alpha'"),
    "deep config": (json_of("instruct/config.json", "[" * 200_000), "JSON object"),
    "config of words": (lambda p: p.config(p.instruct / "config.json", num_attention_heads="4", head_dim=None), "form"),
    "rotary list": (lambda p: p.config(p.instruct / "config.json", rope_parameters=[1]), "form"),
    "config is a folder": (
        lambda p: ((p.instruct / "config.json").unlink(), (p.instruct / "config.json").mkdir()),
        "config.json",
    ),
    "deep header": (
        lambda p: p.shard.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000),
        "header cannot be read",
    ),
    "linked folder": (lambda p: (p.instruct / "templates").symlink_to(p.base), "a link to a folder"),
    "name too long": (lambda p: setattr(p, "out", p.root / ("x" * 300)), "too long"),
    "truncated shard": (cut, "it has"),
    "header of nonsense": (huge_header, "header length"),
    "missing shard": (lambda p: p.shard.unlink(), "cannot read"),
    "index pointing nowhere": (lambda p: p.index(lambda m: m.update(dict.fromkeys(m, "gone.safetensors"))), "gone"),
    "index pointing outside": (
        lambda p: p.index(lambda m: m.update(dict.fromkeys(m, "../x.safetensors"))),
        "beside it",
    ),
    "index that is no JSON": (lambda p: (p.instruct / "model.safetensors.index.json").write_text("{"), "weight_map"),
    "index of tensors that are not there": (lambda p: p.index(lambda m: m.update(ghost=p.shard.name)), "'ghost'"),
    "tensor in two shards": (twice, "every tensor once"),
    "pickled model": (pickles, "only the pickle 'pytorch_model.bin'"),
    "NaN in the adapter": (a_factor(to=torch.full((4, 32), float("nan"))), "NaN"),
    "infinity in the adapter": (a_factor(to=torch.full((4, 32), float("inf"))), "infinity"),
    "wrong rank": (a_factor(to=torch.ones(3, 32)), "rank 4"),
    "wrong width": (a_factor(to=torch.ones(4, 30)), f"'{Q}.weight' is (32, 30)"),
    "wrong dtype": (a_factor(to=torch.ones(4, 32, dtype=torch.int32)), "I32"),
    "three dimensions": (a_factor(to=torch.ones(4, 32, 1)), "two matrices"),
    "half a pair": (lambda p: p.factor(without_lora_b), "lora_A and lora_B together"),
    "another architecture": (lambda p: p.factor(another_architecture), "attention.wq"),
    "stray tensor": (lambda p: p.factor(lambda t: t.update({"base_model.model.x.y": torch.ones(1)})), "'x.y'"),
    "no PEFT prefix": (lambda p: p.factor(lambda t: t.update(z=torch.ones(1))), "'z'"),
    "no tensors": (lambda p: p.factor(lambda t: t.clear()), "no tensors"),
    "untrained adapter": (
        lambda p: p.factor(lambda t: t.update({k: torch.zeros_like(v) for k, v in t.items() if "lora_B" in k})),
        "untrained one is zero",
    ),
    "reward model's adapter": (of_a_reward_model, "'task_type'"),
    "unknown key in adapter_config": (
        lambda p: p.config(p.adapter / "adapter_config.json", a_key_of_tomorrow=1),
        "'a_key_of_tomorrow'",
    ),
    "DoRA": (lambda p: p.config(p.adapter / "adapter_config.json", use_dora=True), "'use_dora'"),
    "adapter_config of nonsense": (lambda p: (p.adapter / "adapter_config.json").write_text("[1]"), "JSON object"),
    "no adapter_config": (lambda p: (p.adapter / "adapter_config.json").unlink(), "adapter_config.json"),
    "no adapter": (lambda p: shutil.rmtree(p.adapter), "adapter_config.json"),
    "pickled adapter": (
        lambda p: (p.adapter / "adapter_model.safetensors").rename(p.adapter / "adapter_model.bin"),
        "cannot be read without running code, or is damaged",
    ),
    "bigger vocabulary": (bigger_vocabulary, "'vocab_size' is 65"),
    "another word": (another_word, "'w7'"),
    "another lineage": (lambda p: p.config(p.instruct / "config.json", sliding_window=7), "'sliding_window'"),
    "quantised instruct": (
        lambda p: p.config(p.instruct / "config.json", quantization_config={"bits": 4}),
        "'quantization_config'",
    ),
    "8-bit weights": (
        lambda p: [p.weights(file, to_float8) for file in p.instruct.glob("*.safetensors")],
        "F8_E4M3",
    ),
    "instruct is an adapter": (lambda p: shutil.copy(p.adapter / "adapter_config.json", p.instruct), "adapter_config"),
    "no instruct": (lambda p: shutil.rmtree(p.instruct), "no folder"),
    "no config.json": (lambda p: (p.instruct / "config.json").unlink(), "config.json"),
    "base without weights": (lambda p: (p.base / "model.safetensors").unlink(), "model.safetensors"),
    "base without the weight": (
        lambda p: p.weights(p.base / "model.safetensors", lambda t: t.pop(f"{Q}.weight")),
        f"'{Q}.weight', which is missing",
    ),
    "base of another shape": (
        lambda p: p.weights(p.base / "model.safetensors", lambda t: t.update({f"{Q}.weight": torch.ones(32, 31)})),
        "(32, 31)",
    ),
    "base in whole numbers": (
        lambda p: p.weights(
            p.base / "model.safetensors", lambda t: t.update({f"{Q}.weight": torch.ones(32, 32).int()})
        ),
        "I32",
    ),
    "instruct is a link in a circle": (lambda p: circle(p.instruct), "leads nowhere"),
    "link in a circle within": (circle_within, "leads nowhere"),
    "output is there": (occupied, "exists"),
    "output is a file": (lambda p: p.out.write_text("mine"), "exists"),
    "output inside an input": (inside, "which is read"),
    "output inside an input, by a link": (through_a_link, "which is read"),
    "ratio NaN": (setting("--ratio", "nan"), "'ratio' is nan"),
    "ratio negative": (setting("--ratio", "-0.5"), "'ratio' is -0.5"),
    "ratio in words": (setting("--ratio", "half"), "--ratio"),
    "layer ratios gone": (setting("--layer-ratios", "gone.yaml"), "gone.yaml"),
    "empty layer ratios": (ratios_file(""), "holds no ratios"),
    "layer ratios of comments": (ratios_file("---\n# '*.mlp.*': 1\n"), "holds no ratios"),
    "layer ratios of nothing": (ratios_file("{}"), "holds no ratios"),
    "pattern that fits nothing": (ratios_file("'*.mpl.*': 1"), "fits no weight"),
    "YAML of another type": (ratios_file("'*.mlp.*': !!float x"), "is not YAML"),
    "deep YAML": (ratios_file("[" * 20_000), "is not YAML"),
    "ratio beyond floats": (ratios_file(f"'*.mlp.*': {'9' * 400}"), "finite"),
    "pattern twice": (ratios_file("'*.mlp.*': 1\n'*.mlp.*': 2"), "twice"),
    "gradient of one": (ratios_file("'*.mlp.*': [1]"), "two or more"),
    "sparsify without density": (setting("--sparsify", "dare"), "'density' is None"),
    "density without sparsify": (setting("--density", "0.5"), "both or neither"),
    "unknown sparsify": (setting("--sparsify", "prune", "--density", "0.5"), "prune"),
    "norm cap of zero": (setting("--norm-cap", "0"), "'norm_cap'"),
    "chance rounding to float16": (setting("--rounding", "stochastic", "--dtype", "float16"), "'rounding'"),
    "unknown dtype": (setting("--dtype", "int8"), "int8"),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_input(tmp_path, pico, capsys, case):
    break_it, named = CASES[case]
    place = Place(tmp_path, pico)
    break_it(place)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    folders = [f"--{name}={getattr(place, name)}" for name in ("adapter", "base", "instruct", "out")]
    with pytest.raises(SystemExit) as ended:
        cli.main(["merge", *folders, *place.more])
    beside = ("merge", "warning", "note")
    printed = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(beside)]
    assert ended.value.code == 2
    assert len(printed) == 1 and named in printed[0] and printed[0].startswith("error: "), printed
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def test_no_space(tmp_path, pico, capsys, monkeypatch):
    place = Place(tmp_path, pico)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(SystemExit) as ended:
        cli.main(["merge", *(f"--{n}={getattr(place, n)}" for n in ("adapter", "base", "instruct", "out"))])
    assert ended.value.code == 2 and "0 MiB free" in capsys.readouterr().err and not place.out.exists()


def test_read_only_output(tmp_path, pico, capsys):
    """A place where nobody can make a folder, root neither."""
    place = Place(tmp_path, pico)
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["merge", *(f"--{n}={getattr(place, n)}" for n in ("adapter", "base", "instruct")), "--out=/proc/x/fine"]
        )
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and "/proc" in printed and "Traceback" not in printed
