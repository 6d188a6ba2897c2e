"""Bad input of every command but `merge` (tests/fine/test_bad_inputs.py): exit code 2 and one line that names what is
wrong, before a weight is loaded; nothing is written or touched.
"""

import gzip
import json
import shutil
import socket
from collections import namedtuple
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from lite_c2f import cli
from lite_c2f.config.loading import load_config
from lite_c2f.toy import CONFIG

TOY = str(CONFIG)
SHORT = (
    "model.stop=[]",  # no tokenizer of whole words spells the default
    "data.max_prompt_tokens=16",
    "data.max_answer_tokens=32",
    "coarse.length.start=8",
    "coarse.length.max=32",
    "fine.max_tokens=32",
    "evaluation.max_tokens=32",
    "model.quantization=none",
    "hardware.device=cpu",
)
SECRET = "hunter2"
PROGRESS = {"models ...", "ratios ...", "comparison ..."}


class Place:
    """A folder in which a case may do what it likes, with good inputs to damage: models, pairs, a finished run."""

    def __init__(self, root, pico):
        self.root, self.pico, self.run = root, pico, root / "run"

    def file(self, name, content=b""):
        """Write a file: bytes, text, or a list of rows as JSON lines."""
        if isinstance(content, list):
            content = "".join(f"{json.dumps(row)}\n" for row in content)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def models(self, *which):
        """Copies of the pair of models."""
        for name in which or ("base", "instruct"):
            shutil.copytree(self.pico[name], self.root / name)

    def train(self, *more):
        """`train` on the pair of models and good pairs."""
        good = self.file("good.jsonl", pairs(20))
        models = [f"model.{name}={self.root / name}" for name in ("base", "instruct")]
        return ["train", TOY, *SHORT, *models, f"data.preferences=[{good}]", "--run-dir", str(self.run), *more]

    def finished(self):
        """Everything that is looked at in a finished run before models are loaded."""
        good = self.file("good.jsonl", pairs(20))
        models = {name: str(self.pico[name]) for name in ("base", "instruct")}
        settings = [f"model.{name}={folder}" for name, folder in models.items()]
        config = load_config(TOY, [*SHORT, *settings, f"data.preferences=[{good}]", "data.truncated=0.5"])
        self.file("run/config.yaml", config.to_yaml())
        update = {"stage": "coarse", "step": 1, "reward": 0.1, "limit": 8, "hit_limit": 0.5, "kl": 0.1}
        tried = [{"ratio": 0.5, "reward": 0.1, "tokens": 5.0}]
        for name, content in {
            "run.json": {"schema": 1, "models": models, "seconds": {}},
            "reward/metrics.json": {"accuracy": 0.9, "mean": 0.0, "std": 1.0, "pairs_by_source": {"good": 18}},
            "coarse/metrics.json": {"limit_first": 8, "limit_last": 9, "reward_first": 0, "reward_last": 1},
            "fine/model/config.json": {},
            "fine/merge.json": {"ratio": 0.5},
            "fine/ratios.json": {"chosen": 0.5, "rule": "best", "tried": tried},
            "fine/groups.json": {},
            "summary.json": {"schema": 1, "seconds": {}, "actors": {"base": {"reward": 0.1, "tokens": 5.0}}},
            "metrics.jsonl": {**update, "value_loss": 0.1, "tokens": 5.0},
            "evaluation/responses.jsonl": {
                "prompt": "w1", "actor": "base", "reward": 0.1, "tokens": 5, "finish": "eos", "response": "w2"
            },
        }.items():  # fmt: skip
            self.file(f"run/{name}", json.dumps(content) + "\n")
        for stage in ("coarse", "reward"):
            shutil.copytree(self.pico["adapter"], self.run / stage / "adapter")
        return self.run


def pairs(count):
    return [{"prompt": f"w{n}", "chosen": f"w{n} w1", "rejected": "w2 w3"} for n in range(count)]


@pytest.fixture
def refused(tmp_path, pico, capsys, monkeypatch):
    """Run a command in this process that has to be refused with these words, and leave everything as it was."""

    def no_network(*given, **more):
        raise OSError("no network in tests")

    def no_weights(*given, **more):
        raise AssertionError("weights were about to be loaded")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    monkeypatch.setattr("datasets.load_dataset", no_network)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", no_weights)
    monkeypatch.setattr("lite_c2f.toy.build.toy_pair", no_weights)
    monkeypatch.chdir(tmp_path)

    def check(arguments, *words):
        before = everything(tmp_path)
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        *before_it, error = said.err.splitlines()  # before it, the stages it got to
        assert ended.value.code == 2
        assert error.startswith("error: ") and {*before_it} <= PROGRESS, said.err
        assert [word for word in words if word not in error] == [], error
        assert SECRET not in said.out + said.err
        assert everything(tmp_path) == before

    return check


def everything(folder):
    """Contents of every file below a folder; None for folders. A run may write down what it refused."""
    files = (path for path in folder.rglob("*") if path.name not in ("log.txt", "progress.json"))
    return {path: path.read_bytes() if path.is_file() else None for path in files}


@pytest.fixture
def place(tmp_path, pico):
    return Place(tmp_path, pico)


# A configuration file, given to all commands that read one.

CONFIGS = {
    "empty": (b"", "'c.yaml' sets nothing", "lite-c2f train KEY=VALUE"),
    "comments alone": ("# model:\n#   base: b\n", "'c.yaml' sets nothing"),
    "an empty mapping": ("{}", "'c.yaml' sets nothing"),
    "an empty document": ("---\n", "'c.yaml' sets nothing"),
    "empty sections": ("model: {}\ncoarse: {length: {}}\n", "'c.yaml' sets nothing"),
    "unknown section": ("trainer: {}", "unknown key 'trainer'", "one of model, data"),
    "unknown key": ("reward: {learning_rate: 1}", "'reward.learning_rate'"),
    "key misspelt": ("lora: {rank: 8, alhpa: 3}", "unknown key 'lora.rank'"),
    "unknown key, three deep": ("coarse: {length: {maximum: 9}}", "'coarse.length.maximum'", "'coarse.length.max'"),
    "key in another section": ("reward: {kl_coef: 1}", "'reward.kl_coef'", "'coarse.kl_coef'"),
    "unknown key of a source": ("data: {preferences: [{path: a.jsonl, wieght: 2}]}", "data.preferences.0.wieght"),
    "key that is a number": ("1: 2", "unknown key '1'"),
    "text for a number": ("coarse: {updates: many}", "coarse.updates='many'"),
    "list for a number": ("reward: {lr: [1]}", "reward.lr=[1]"),
    "null for a number": ("lora: {r: null}", "lora.r=None"),
    "null for a section": ("lora:", "lora"),
    "fraction for a count": ("coarse: {rollouts: 2.5}", "coarse.rollouts=2.5"),
    "number for a path": ("model: {base: 5}", "model.base=5"),
    "text for a section": ("coarse: fast", "coarse is a str", "mapping"),
    "list for a section": ("coarse: {length: [1]}", "coarse.length is a list"),
    "switch for a number": ("coarse: {updates: true}", "coarse.updates=True"),
    "switch for a ratio": ("fine: {ratio: on}", "fine.ratio=True"),
    "switch for a word": ("run: {tracker: off}", "run.tracker=False", "quote"),
    "seed beyond NumPy's": ("run: {seed: 4294967296}", "run.seed=4294967296"),
    "variable of the program's": (
        "model: {chat_template_kwargs: {tokenize: no}}",
        "model.chat_template_kwargs.tokenize",
    ),
    "switch for variables": ("model: {chat_template_kwargs: true}", "model.chat_template_kwargs=True"),
    "no preferences": ("data: {preferences: []}", "data.preferences=[]"),
    "sources that are none": ("data: {preferences: [[a.jsonl]]}", "data.preferences.0=['a.jsonl']"),
    "half a character": ('run: {tracker: "\\uD800"}', "run.tracker"),
    "nan": ("reward: {lr: .nan}", "reward.lr=nan"),
    "infinity": ("coarse: {clip: .inf}", "coarse.clip=inf"),
    "minus infinity": ("coarse: {length: {bias: -.inf}}", "coarse.length.bias=-inf"),
    "nan among ratios": ("fine: {ratios: [0.5, .nan]}", "fine.ratios.1=nan"),
    "nan as weight": ("data: {preferences: [{path: a.jsonl, weight: .nan}]}", "data.preferences.0.weight=nan"),
    "negative rate": ("coarse: {critic_lr: -1.0e-4}", "coarse.critic_lr=-0.0001"),
    "negative seed": ("run: {seed: -3}", "run.seed=-3"),
    "negative ratio": ("fine: {ratio: -0.5}", "fine.ratio", "-0.5"),
    "rank of zero": ("lora: {r: 0}", "lora.r=0"),
    "all held out": ("data: {held_out: 1.0}", "data.held_out=1.0"),
    "no ratios": ("fine: {ratios: []}", "fine.ratios=[]"),
    "no card": ("hardware: {vram_gib: 0}", "hardware.vram_gib=0"),
    "unknown device": ("hardware: {device: tpu}", "hardware.device='tpu'"),
    "unknown tracker": ("run: {tracker: mlflow}", "run.tracker='mlflow'"),
    "unknown quantisation": ("model: {quantization: int8}", "model.quantization='int8'"),
    "template without prompt": ("model: {prompt_template: 'Q:'}", "model.prompt_template", "{prompt}"),
    "empty stop": ("model: {stop: ['']}", "model.stop"),
    "empty path": ("data: {prompts: ['']}", "data.prompts.0.path"),
    "no modules": ("lora: {target_modules: []}", "lora.target_modules"),
    "adapter on the head": ("lora: {target_modules: [q_proj, lm_head]}", "lora.target_modules", "lm_head"),
    "limit that shrinks": ("coarse: {length: {start: 64, max: 32}}", "coarse.length.max=32", "coarse.length.start=64"),
    "growth that rounds away": ("coarse: {length: {step: 4, multiple: 8}}", "coarse.length.multiple=8"),
    "warm-up for ever": ("coarse: {updates: 3, critic_warmup: 3}", "coarse.updates=3", "coarse.critic_warmup=3"),
    "uneven minibatches": ("coarse: {rollouts: 7, minibatches: 2}", "coarse.rollouts=7", "coarse.minibatches=2"),
    "KL target without KL": ("coarse: {kl_coef: 0, kl_target: 5}", "coarse.kl_target", "coarse.kl_coef"),
    "half a toy pair": ("model: {base: toy, instruct: ./it}", "model.base", "model.instruct"),
    "password in a model's address": (
        f"model: {{base: 'https://me:{SECRET}@hub.example/base', instruct: ./it}}",
        "model.base",
        "hub name",
    ),
    "password in a data address": (
        f"data: {{preferences: ['https://me:{SECRET}@hub.example/a.jsonl']}}",
        "data.preferences",
        "hub",
    ),
    "not YAML": ("coarse: {updates: 3", "c.yaml", "not YAML"),
    "not YAML in line 3": ("run:\n  seed: 1\n dir: x\n", "c.yaml:3", "not YAML"),
    "two documents": ("run: {seed: 1}\n---\nrun: {seed: 2}\n", "c.yaml", "not YAML"),
    "tab": ("run:\n\tseed: 1\n", "c.yaml:2", "not YAML"),
    "python object": ("run: !!python/object/apply:os.getcwd []", "c.yaml:1", "not YAML"),
    "number of another kind": ("run: {seed: !!int x}", "c.yaml", "not YAML"),
    "a day that is none": ("run: {dir: 2026-02-31}", "c.yaml", "not YAML"),
    "key that cannot be one": ("{[1]: 2}", "c.yaml", "not YAML"),
    "nested too deeply": ("[" * 1000, "c.yaml", "not YAML"),
    "key twice": ("run: {seed: 1}\nlora: {r: 8}\nrun: {dir: x}\n", "c.yaml:3", "'run'", "twice"),
    "key twice, deep": ("coarse:\n  length:\n    max: 64\n    max: 96\n", "c.yaml:4", "'max'", "twice"),
    "a list": ("- model: toy", "c.yaml", "a list", "mapping"),
    "a text": ("toy", "c.yaml", "a str", "mapping"),
    "not UTF-8": (b"run: {dir: \xff\xfe}", "c.yaml", "not UTF-8"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\x00", "c.yaml"),
    "zeroes": (b"\x00" * 64, "c.yaml", "not YAML"),
    "pickle": (b"\x80\x04\x95\x0b\x00.", "c.yaml"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_file(refused, place, case):
    content, *words = CONFIGS[case]
    place.file("c.yaml", content)
    refused(["plan", "c.yaml"], *words)
    refused(["train", "c.yaml", "--run-dir", "new"], *words)
    refused(["train", "c.yaml", "hardware.gradient_checkpointing=true", "--dry-run"], *words)


# Command lines that need no input but the toy configuration.

LONG = "x" * 300
COMMANDS = {
    "no config": (["train"], "CONFIG", "train --help"),
    "missing config": (["plan", "gone.yaml"], "no config file at 'gone.yaml'"),
    "config is a folder": (["train", "."], "'.'"),
    "config is empty text": (["plan", ""], "config"),
    "config of a name too long": (["plan", LONG], "name too long", "xxx"),
    "config of a name with a zero": (["plan", "a\0b"], "CONFIG", "null byte"),
    "run dir of a name too long": (["train", TOY, "--run-dir", LONG], "name too long", "xxx"),
    "data of a name too long": (["train", TOY, f"data.preferences=[{LONG}.jsonl]"], "name too long", "xxx"),
    "models of a name too long": (["plan", TOY, f"model.base={LONG}", "model.instruct=i"], "name too long", "xxx"),
    "run of a name too long": (["report", LONG], "name too long", "xxx"),
    "unknown command": (["tran", TOY], "'tran'"),
    "unknown flag": (["train", TOY, "--epochs", "3"], "--epochs"),
    "flag without value": (["train", TOY, "--run-dir"], "--run-dir"),
    "value that is a flag": (["plan", TOY, "--vram", "--json"], "--vram"),
    "unknown stage": (["train", TOY, "--stage", "sft"], "'sft'", "reward"),
    "stage without name": (["train", TOY, "--stage", ""], "--stage"),
    "resume with nothing": (["train", TOY, "--resume"], "nothing to resume", "runs/toy"),
    "override without value": (["plan", TOY, "coarse.updates"], "'coarse.updates'", "key=value"),
    "override with nothing": (["plan", TOY, "coarse.updates="], "coarse.updates=''"),
    "override without key": (["plan", TOY, "=3"], "'=3'"),
    "override of an unknown key": (["train", TOY, "coarse.length.maks=3", "--dry-run"], "'coarse.length.max'"),
    "override below a value": (["plan", TOY, "run.seed.x=3"], "run.seed"),
    "override of a section": (["plan", TOY, "coarse=3"], "coarse is a int"),
    "override with two dots": (["plan", TOY, "coarse..updates=3"], "'coarse.'"),
    "override that is not YAML": (["plan", TOY, "fine.ratios=[0.5"], "fine.ratios=[0.5"),
    "override of another kind": (["plan", TOY, "run.seed=!!int x"], "run.seed=!!int x"),
    "override nan": (["plan", TOY, "coarse.lr=nan"], "coarse.lr=nan"),
    "override infinite": (["plan", TOY, "reward.center=inf"], "reward.center=inf"),
    "override negative": (["train", TOY, "coarse.kl_coef=-1"], "coarse.kl_coef=-1"),
    "override that contradicts": (["train", TOY, "coarse.length.max=8"], "coarse.length.max=8"),
    "override with a word for a switch": (["plan", TOY, "lora.rslora=maybe"], "lora.rslora='maybe'"),
    "run dir that is empty text": (["train", TOY, "run.dir="], "run.dir"),
    "card of nothing": (["plan", TOY, "--vram", "0"], "a card of 0 GiB"),
    "negative card": (["plan", TOY, "--vram", "-1"], "a card of -1 GiB"),
    "card of nan": (["plan", TOY, "--vram", "nan"], "a card of nan GiB"),
    "infinite card": (["plan", TOY, "--vram", "inf"], "a card of inf GiB"),
    "card in words": (["plan", TOY, "--vram", "24GB"], "--vram", "number", "plan --help"),
    "context too short": (["train", TOY, "coarse.length.max=4000"], "context of"),
    "model folder gone": (["plan", TOY, "model.base=./no/b", "model.instruct=./no/i"], "./no/b"),
    "model folder gone, dry": (["train", TOY, "model.base=/no/b", "model.instruct=/no/i", "--dry-run"], "/no/b"),
    "demo seed": (["demo", "--seed", "-1"], "run.seed=-1"),
    "demo seed too large": (["demo", "--seed", "9" * 30], "run.seed=999"),
    "demo seed in words": (["demo", "--seed", "one"], "--seed", "integer", "demo --help"),
    "demo with a config": (["demo", TOY], "toy.yaml"),
    "no run to sweep": (["sweep"], "RUN"),
    "ratios in words": (["sweep", "gone", "--ratios", "0.5;1"], "--ratios '0.5;1'"),
    "no ratios": (["sweep", "gone", "--ratios", ""], "--ratios ''"),
    "ratio of nan": (["sweep", "gone", "--ratios", "0.5,nan"], "--ratios '0.5,nan'"),
    "ratio of zero": (["sweep", "gone", "--ratios", "0,1"], "--ratios '0,1'"),
    "infinite ratio": (["sweep", "gone", "--ratios", "1e999"], "--ratios '1e999'"),
    "budget too small": (["sweep", "gone", "--budget", "3"], "--budget"),
    "run gone to sweep": (["sweep", "gone"], "'gone' is no run directory"),
    "run gone to eval": (["eval", "gone"], "'gone' is no run directory"),
    "run gone to report": (["report", "gone"], "gone"),
    "run gone to chat": (["chat", "gone"], "'gone' is no run directory"),
    "run gone to app": (["app", "gone"], "'gone' is no run directory"),
    "host without auth": (["app", "gone", "--host", "0.0.0.0"], "--host 0.0.0.0", "--auth"),
    "host name without auth": (["app", "gone", "--host", "example.org"], "--host example.org", "--auth"),
    "host of another machine": (["app", "gone", "--host", "203.0.113.1", "--auth", "me:x"], "on 203.0.113.1", "--port"),
    "auth without password": (["app", "gone", "--auth", "me"], "--auth"),
    "auth with empty password": (["app", "gone", "--auth", "me:"], "--auth"),
    "proxy's address": (["app", "gone", "--root-path", "http://["], "--root-path 'http://['"),
    "port of zero": (["app", "gone", "--port", "0"], "--port"),
    "negative port": (["app", "gone", "--port", "-1"], "--port"),
    "port too high": (["app", "gone", "--port", "65536"], "--port"),
    "port in words": (["app", "gone", "--port", "http"], "--port", "integer"),
    "doctor of no run": (["doctor", "x"], "'x' is no directory", "run.json or config.json"),
    "schema with a flag": (["schema", "--yaml"], "--yaml"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_command_line(refused, case):
    refused(*COMMANDS[case])


def test_demo_over_a_file(refused, place):
    refused(["demo", "--out", place.file("taken")], "taken", "is a file")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(refused):
    refused(["train", TOY, "hardware.device=cuda"], "hardware.device=cuda")
    refused(["plan", TOY, "hardware.device=cuda"], "hardware.device=cuda")


def test_port_in_use(refused, place):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(["app", place.finished(), "--port", port], f"port {port}", "--port")


# Data: a file of preferences (or what `path` names instead), and what is said of it.

ROW = {"prompt": "w1", "chosen": "w2", "rejected": "w3"}
CSV = "prompt,chosen,rejected\n"
DATA = {
    "missing": (None, None, "a.jsonl"),
    "empty": ("a.jsonl", b"", "a.jsonl: no rows"),
    "only blank lines": ("a.jsonl", b"\n\n\n", "a.jsonl: no rows"),
    "not JSON in row 3": ("a.jsonl", json.dumps(ROW) + "\n" + json.dumps(ROW) + "\n{oops\n", "a.jsonl:3", "not JSON"),
    "cut off": ("a.jsonl", json.dumps(ROW) + "\n" + json.dumps(ROW)[:-9], "a.jsonl:2", "not JSON"),
    "row is a list": ("a.jsonl", [ROW, [1, 2]], "a.jsonl:2", "list"),
    "wrong columns": (
        "a.jsonl",
        [{"question": "a", "answer": "b"}],
        "a.jsonl:1",
        "'chosen'",
        "question (text), answer (text)",
    ),
    "one side missing": ("a.jsonl", [{"prompt": "a", "chosen": "b"}], "a.jsonl:1", "'rejected'"),
    "number for an answer": ("a.jsonl", [ROW, {**ROW, "chosen": 5}], "1 'chosen' is a number (first at", "a.jsonl:2"),
    "odd flag": ("a.jsonl", [{**ROW, "chosen_ended": "yes"}], "a.jsonl:1", "'chosen_ended'"),
    "messages without content": ("a.jsonl", [{**ROW, "prompt": [{"role": "user"}]}], "a.jsonl:1", "'prompt'"),
    "both sides equal": ("a.jsonl", [{**ROW, "chosen": "w3"}] * 3, "sides equal: 3", "a.jsonl:1"),
    "empty prompt": ("a.jsonl", [{**ROW, "prompt": " "}], "empty prompt: 1", "a.jsonl:1"),
    "empty answers": ("a.jsonl", [{**ROW, "rejected": ""}], "empty answer: 1", "a.jsonl:1"),
    "role nobody plays": (
        "a.jsonl",
        [{**ROW, "prompt": [{"role": "tool", "content": "w1"}]}],
        "role 'tool': 1",
        "a.jsonl:1",
    ),
    "not UTF-8": ("a.jsonl", b'{"prompt": "\xff"}\n', "a.jsonl:1", "not UTF-8"),
    "UTF-16": ("a.jsonl", json.dumps(ROW).encode("utf-16"), "a.jsonl:1", "not UTF-8"),
    "zeroes": ("a.jsonl", b"\x00" * 100, "a.jsonl:1"),
    "nested too deeply": ("a.jsonl", b"[" * 100_000, "a.jsonl:1"),
    "JSON, not a list": ("a.json", json.dumps(ROW), "a.json", "list"),
    "JSON of lines": ("a.json", [ROW, ROW], "a.json:2", ".jsonl"),
    "gz that is none": ("a.jsonl.gz", b"hello", "a.jsonl.gz", "cannot be read"),
    "gz cut off": ("a.jsonl.gz", gzip.compress(json.dumps(ROW).encode() * 99)[:-9], "a.jsonl.gz", "cannot be read"),
    "gz of a broken row": ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n{'), "a.jsonl.gz"),
    "CSV without header": ("a.csv", "w1,w2,w3\nw4,w5,w6\n", "a.csv: row 1", "'chosen'"),
    "CSV with a header alone": ("a.csv", CSV, "a.csv: no rows"),
    "CSV, a cell too many": ("a.csv", CSV + "w1,w2,w3\nw1,w2,w3,w4\n", "a.csv: row 2", "too many cells"),
    "CSV, a cell too few": ("a.csv", CSV + "w1,w2\n", "a.csv: row 1", "too few cells"),
    "CSV with a column twice": ("a.csv", "chosen,rejected,chosen\nw1,w2,w3\n", "a.csv", "'chosen' twice"),
    "CSV with an open quote": ("a.csv", CSV + 'w1,"w2,w3\n', "a.csv: row 1", "not CSV"),
    "CSV in another code": ("a.csv", (CSV + "é,w2,w3\n").encode("latin-1"), "a.csv", "not UTF-8"),
    "parquet that is none": ("a.parquet", b"PAR1 hello", "a.parquet", "not Parquet"),
    "empty parquet": ("a.parquet", b"", "a.parquet", "not Parquet"),
    "unknown suffix": ("a.txt", b"hello", "a.txt", "'.txt'"),
    "only one prompt": ("a.jsonl", [ROW, {**ROW, "chosen": "w9"}], "no usable held-out pairs"),
    "one pair": ("a.jsonl", [ROW], "no usable held-out pairs"),
}


@pytest.mark.parametrize("case", DATA)
def test_data(refused, place, case):
    name, content, *words = DATA[case]
    if name is not None:
        place.file(name, content)
    refused(["train", TOY, f"data.preferences=[{place.root / (name or 'a.jsonl')}]", "--run-dir", "new"], *words)


SOURCES = {
    "folder without data": ("here", "no data file in folder", "here"),
    "folder of other files": ("{path: other}", "no data file in folder", "other"),
    "glob that fits nothing": ("'here/*.jsonl'", "no data file in pattern", "here/*.jsonl"),
    "split of a file": ("{path: good.jsonl, split: train}", "good.jsonl", "split='train'"),
    "revision of a file": ("{path: good.jsonl, revision: main}", "good.jsonl", "revision='main'"),
    "weight of nothing": ("{path: good.jsonl, weight: 0}", "data.preferences.0.weight=0"),
    "second of two is missing": ("good.jsonl, gone.jsonl", "gone.jsonl"),
    "one of a folder is broken": ("mixed", "b.jsonl:1", "not JSON"),
    "hub name that the hub does not give": ("owner/none", "'owner/none'", "not loaded from the hub"),
}


@pytest.mark.parametrize("key", ["preferences", "prompts"])
@pytest.mark.parametrize("case", SOURCES)
def test_sources(refused, place, case, key):
    source, *words = SOURCES[case]
    place.file("good.jsonl", pairs(20))
    place.file("mixed/a.jsonl", pairs(3))
    place.file("mixed/b.jsonl", "{")
    place.file("other/readme.txt", "hello")
    (place.root / "here").mkdir()
    words = [word.replace("preferences", key) for word in words]
    refused(["train", TOY, "data.preferences=[good.jsonl]", f"data.{key}=[{source}]", "--run-dir", "new"], *words)


# Models: what is done to the folder of one of the two, and what is said of it.


def change(**values):
    """Change keys of config.json; `...` removes one."""

    def make(folder):
        file = folder / "config.json"
        content = {**json.loads(file.read_text()), **values}
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return make


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index(**files):
    """Weights in shards that are not there."""

    def make(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))

    return make


def another_word(folder):
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"v7"'))


def no_chat_template(folder):
    (folder / "chat_template.jinja").unlink()


CODE = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
BOTH, BASE, INSTRUCT = ("base", "instruct"), ("base",), ("instruct",)
MODELS = {
    "base is gone": (BASE, shutil.rmtree, "base"),
    "instruct is gone": (INSTRUCT, shutil.rmtree, "instruct", "no such folder"),
    "base without config.json": (BASE, without("config.json"), "base", "config.json"),
    "instruct without config.json": (INSTRUCT, without("config.json"), "instruct/config.json"),
    "config.json is not JSON": (BASE, write("config.json", "{oops"), "base/config.json"),
    "instruct's config.json is not JSON": (INSTRUCT, write("config.json", "{oops"), "instruct/config.json", "JSON"),
    "base's config.json is nested too deeply": (BASE, write("config.json", "[" * 100_000), "base/config.json"),
    "config.json is a list": (BASE, write("config.json", "[1]"), "base/config.json"),
    "config.json is binary": (BASE, write("config.json", b"\xff\xfe\x00"), "base/config.json"),
    "config.json is nested too deeply": (INSTRUCT, write("config.json", "[" * 100_000), "instruct/config.json"),
    "sizes in words": (BASE, change(hidden_size="wide"), "base/config.json"),
    "no heads": (BASE, change(num_attention_heads=0, head_dim=None), "base/config.json"),
    "vocabulary of null": (BOTH, change(vocab_size=None), "base/config.json"),
    "negative width": (BOTH, change(hidden_size=-32), "base/config.json"),
    "instruct of another architecture": (
        INSTRUCT,
        change(architectures=["LlamaForCausalLM"], model_type="llama"),
        "'architectures'",
        "LlamaForCausalLM",
    ),
    "both of an architecture that is no decoder": (
        BOTH,
        change(architectures=["BertModel"], model_type="bert"),
        "base/config.json",
        "bert",
    ),
    "unknown architecture": (BOTH, change(model_type="mistral9"), "base/config.json", "mistral9"),
    "no architecture": (BOTH, change(model_type=...), "base/config.json", "model_type"),
    "own code": (BOTH, change(auto_map=CODE, model_type="x"), "base/config.json", "auto_map"),
    "quantised base": (BASE, change(quantization_config={"quant_method": "gptq"}), "base", "quantization_config"),
    "quantised instruct": (INSTRUCT, change(quantization_config={"bits": 4}), "instruct", "quantization_config"),
    "other width": (INSTRUCT, change(hidden_size=64), "'hidden_size'", "32", "64"),
    "other depth": (INSTRUCT, change(num_hidden_layers=3), "'num_hidden_layers'"),
    "other vocabulary": (INSTRUCT, change(vocab_size=65), "'vocab_size'"),
    "other lineage": (INSTRUCT, change(sliding_window=7), "'sliding_window'"),
    "another word": (INSTRUCT, another_word, "'w7'"),
    "context too short": (BOTH, change(max_position_embeddings=40), "48 tokens", "context of 40"),
    "context too short for the instruct model": (
        INSTRUCT,
        change(max_position_embeddings=40),
        "instruct",
        "context of 40",
    ),
    "no tokenizer": (BOTH, without("tokenizer.json"), "tokenizer.json", "base"),
    "instruct without tokenizer": (INSTRUCT, without("tokenizer.json"), "tokenizer.json", "instruct"),
    "tokenizer.json is not JSON": (BOTH, write("tokenizer.json", "{"), "base/tokenizer.json"),
    "tokenizer without vocabulary": (BOTH, write("tokenizer.json", "{}"), "base/tokenizer.json", "vocabulary"),
    "tokenizer without EOS": (
        BOTH,
        write("tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}'),
        "base",
        "end-of-sequence",
    ),
    "instruct without EOS": (
        INSTRUCT,
        write("tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}'),
        "instruct",
        "end-of-sequence",
    ),
    "instruct without chat template": (INSTRUCT, no_chat_template, "instruct", "chat template"),
    "chat template that fails": (INSTRUCT, write("chat_template.jinja", "{{ raise('x') }}"), "instruct", "template"),
    "base without weights": (BASE, without("model.safetensors"), "base", "model.safetensors"),
    "instruct without weights": (INSTRUCT, without("model.safetensors"), "instruct", "model.safetensors"),
    "base with a pickle alone": (BASE, pickled, "base", "pytorch_model.bin"),
    "instruct with a pickle alone": (INSTRUCT, pickled, "instruct", "pytorch_model.bin"),
    "base's shard is missing": (BASE, index(a="gone.safetensors"), "base", "gone.safetensors"),
    "instruct's shard is missing": (INSTRUCT, index(a="gone.safetensors"), "instruct", "gone.safetensors"),
    "base's weights are cut off": (BASE, write("model.safetensors", b"\x08" * 40), "base/model.safetensors"),
    "instruct's weights are cut off": (INSTRUCT, write("model.safetensors", b"\x08"), "instruct/model.safetensors"),
    "instruct's weights are empty": (INSTRUCT, write("model.safetensors", b""), "instruct/model.safetensors"),
    "instruct is an adapter": (INSTRUCT, write("adapter_config.json", "{}"), "instruct", "adapter_config.json"),
}


def test_a_chat_template_that_thinks_is_no_form_to_train_in(refused, place):
    """Its prompt opens a thought, its answers have none."""
    place.models()
    thinking = "{% for m in messages %} {{ m.content }} {% endfor %}{% if add_generation_prompt %}<think> {% endif %}"
    (place.root / "base" / "chat_template.jinja").write_text(thinking)
    refused(place.train("model.prompt_template=chat"), "<think>", "set model.chat_template_kwargs")


@pytest.mark.parametrize("case", MODELS)
def test_models(refused, place, case):
    which, damage, *words = MODELS[case]
    place.models()
    for name in which:
        damage(place.root / name)
    refused(place.train(), *words)


def test_a_tokenizer_that_loses_spaces_is_noticed_before_anything_is_trained(refused, place):
    """Two letters and a space are enough; its decoder is gone, and tokens are joined as if they were words."""
    letters = Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, "\u2581": 2, "a": 3, "s": 4}, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, bos_token="<s>", eos_token="</s>")
    place.models()
    for name in BOTH:
        (place.root / name / "tokenizer.json").unlink()
        tokenizer.save_pretrained(place.root / name)
    refused(place.train(), "base", "gives the text 'a s", "expected the same text", "download the tokenizer's files")


def test_4bit_layers_that_are_wrong_here_are_noticed_before_anything_is_trained(refused, place, monkeypatch):
    """As of a ready-made build for another card; the remedy that is named goes past it."""
    right = bnb.nn.Linear4bit.forward
    monkeypatch.setattr(bnb.nn.Linear4bit, "forward", lambda self, x: right(self, x.flip(-1)))
    place.models()
    refused(place.train("model.quantization=nf4"), "4-bit layers are wrong on this device", "model.quantization=none")


SETTINGS = {
    "stop without tokens": (["model.stop=['  ']"], "stop sequence", "no tokens"),
    "prompt without room": (["model.prompt_template='w1 w2 w3 w4 w5 w6 w7 w8 w9 {prompt}'", "data.max_prompt_tokens=8"],
        "data.max_prompt_tokens=8"),
    "layers nobody has": (["lora.target_modules=[query]"], "lora.target_modules", "query"),
    "hub names": (["model.base=owner/none", "model.instruct=owner/none-it"], "'owner/none'", "the hub did not give it"),
    "addresses": (["model.base=a/b/c", "model.instruct=a/b/d"], "'a/b/c'", "no such folder"),
    "half precision on a CPU": (["model.compute_dtype=float16"], "model.compute_dtype=float16"),
    "tracker that is not installed": (["run.tracker=wandb"], "run.tracker=wandb", "pip install"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_do_not_suit_the_models(refused, place, monkeypatch, case):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    overrides, *words = SETTINGS[case]
    place.models()
    refused(place.train(*overrides), *words)


def test_model_that_is_a_file(refused, place):
    place.models()
    shutil.rmtree(place.root / "base")
    place.file("base", "hello")
    refused(place.train(), "base")


# Run directories: what is done to a finished run, the command, and what is said of it.


def lose(name):
    """Remove a file or a folder of the run."""
    return lambda run: shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()


def put(name, content):
    return lambda run: (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def models_gone(run):
    (run / "run.json").write_text(json.dumps({"models": {"base": "/gone/b", "instruct": "/gone/i"}, "seconds": {}}))


READERS = ("sweep", "eval", "chat", "app")
WEIGHTS = "adapter/adapter_model.safetensors"
RUNS = {
    "run.json is gone": (READERS, lose("run.json"), "is no run directory"),
    "run.json is damaged": (READERS, put("run.json", "{oops"), "run.json", "not JSON"),
    "run.json is binary": (READERS, put("run.json", b"\xff\xfe"), "run.json", "not JSON"),
    "run.json is a list": (READERS, put("run.json", "[]"), "run.json"),
    "run.json names no models": (READERS, put("run.json", '{"seconds": {}}'), "run.json", "models"),
    "run.json names half a pair": (READERS, put("run.json", '{"models": {"base": "x"}}'), "run.json", "models"),
    "models are gone": (READERS, models_gone, "base model", "'/gone/b'"),
    "no coarse stage": (READERS[:3], lose("coarse"), "no coarse stage"),  # the app waits for it
    "no fine stage": (READERS[:3], lose("fine"), "no fine stage"),
    "config.yaml is gone": (READERS, lose("config.yaml"), "config.yaml"),
    "config.yaml is damaged": (READERS, put("config.yaml", "coarse: {"), "config.yaml", "not YAML"),
    "config.yaml is empty": (READERS, put("config.yaml", ""), "run/config.yaml", "train CONFIG --run-dir run`"),
    "config.yaml of tomorrow": (READERS, put("config.yaml", "tomorrow: 1"), "config.yaml", "'tomorrow'"),
    "merge.json is gone": (("chat", "app"), lose("fine/merge.json"), "merge.json"),
    "merge.json is damaged": (("chat", "app"), put("fine/merge.json", "{oops"), "merge.json", "not JSON"),
    "merge.json without ratio": (("chat", "app"), put("fine/merge.json", "{}"), "merge.json", "ratio"),
    "reward model's numbers are gone": (READERS, lose("reward/metrics.json"), "reward"),
    "reward model's numbers are damaged": (READERS, put("reward/metrics.json", "{oops"), "reward/metrics.json", "JSON"),
    "reward model's numbers are others": (READERS, put("reward/metrics.json", "{}"), "reward/metrics.json"),
    "Coarse adapter is gone": (READERS, lose("coarse/adapter"), "coarse/adapter/adapter_config.json"),
    "Coarse adapter without weights": (READERS, lose(f"coarse/{WEIGHTS}"), f"coarse/{WEIGHTS}", "no such file"),
    "Coarse adapter is cut off": (READERS, put(f"coarse/{WEIGHTS}", b"\x08"), f"coarse/{WEIGHTS}"),
    "reward model is gone": (READERS, lose("reward/adapter"), "reward/adapter/adapter_config.json"),
    "reward model is cut off": (READERS, put(f"reward/{WEIGHTS}", b""), f"reward/{WEIGHTS}"),
    "data is gone": (("sweep", "eval"), lambda run: (run.parent / "good.jsonl").unlink(), "good.jsonl"),
    "data has changed": (("sweep", "eval"), lambda run: (run.parent / "good.jsonl").write_text("{"), "good.jsonl:1"),
    "summary is damaged": (("report",), put("summary.json", "{oops"), "summary.json", "not JSON"),
    "summary is binary": (("report",), put("summary.json", b"\xff"), "summary.json", "not JSON"),
    "summary is a list": (("report",), put("summary.json", "[]"), "summary.json"),
    "summary without figures": (("report",), put("summary.json", '{"actors": {}}'), "summary.json"),
    "summary of words": (("report",), put("summary.json", '{"actors": {"base": {"reward": "x"}}}'), "summary.json"),
    "metrics.jsonl is damaged": (("report",), put("metrics.jsonl", '{"stage": "reward"}\n{oops'), "metrics.jsonl:2"),
    "metrics.jsonl is binary": (("report",), put("metrics.jsonl", b"\xff\xfe\n"), "metrics.jsonl"),
    "metrics.jsonl of lists": (("report",), put("metrics.jsonl", "[1]\n"), "metrics.jsonl"),
    "metrics.jsonl without a curve": (("report",), put("metrics.jsonl", '{"stage": "coarse"}\n'), "metrics.jsonl"),
    "ratios.json is damaged": (("report",), put("fine/ratios.json", "{oops"), "ratios.json", "not JSON"),
    "ratios.json is empty": (("report",), put("fine/ratios.json", "{}"), "ratios.json"),
    "answers are damaged": (("report",), put("evaluation/responses.jsonl", "{oops"), "responses.jsonl:1"),
    "answers without actors": (("report",), put("evaluation/responses.jsonl", "{}\n"), "responses.jsonl"),
    "no configuration to report": (("report",), lose("config.yaml"), "config.yaml"),
}


@pytest.mark.parametrize("case", RUNS)
def test_run_directory(refused, place, case):
    commands, damage, *words = RUNS[case]
    damage(place.finished())
    for command in commands:
        refused([command, "run"], *words)


AGAIN = {
    "eval of other settings": (["eval", "run", "fine.ratio=0.5"], "fine.ratio='auto'", "now 0.5"),
    "eval with other data": (["eval", "run", "data.truncated=0"], "data.truncated"),
    "eval of an unknown setting": (["eval", "run", "evaluation.promts=9"], "'evaluation.prompts'"),
    "eval of nothing": (["eval", "run", "evaluation.prompts=0"], "evaluation.prompts=0"),
    "eval beyond the context": (["eval", "run", "evaluation.max_tokens=500"], "context of 64"),
    "eval at nan": (["eval", "run", "evaluation.temperature=nan"], "evaluation.temperature=nan"),
}


@pytest.mark.parametrize("case", AGAIN)
def test_eval(refused, place, case):
    place.finished()
    refused(*AGAIN[case])


TRAIN = {
    "another configuration": (lambda run: None, ["lora.r=4"], "lora.r", "'run'"),
    "another seed": (lambda run: None, ["run.seed=7"], "run.seed=0", "now 7"),
    "no reward stage": (lose("reward"), [], "coarse stage but not the reward stage"),
    "no coarse stage": (lose("coarse"), [], "fine stage but not the coarse stage"),
    "damaged config.yaml": (put("config.yaml", "{"), [], "run/config.yaml", "not YAML"),
    "damaged config.yaml, resumed": (put("config.yaml", "a: b: c"), ["--resume"], "run/config.yaml"),
    "config.yaml gone": (lose("config.yaml"), [], "is not empty and no run"),
    "config.yaml gone, resumed": (lose("config.yaml"), ["--resume"], "nothing to resume", "run"),
    "later stage alone": (shutil.rmtree, ["--stage", "fine"], "no reward stage", "--stage reward"),
    "run directory is a file": (
        lambda run: shutil.rmtree(run) or run.write_text("mine"),
        [],
        "is a file",
    ),
    "run directory below a file": (lambda run: None, ["--run-dir", "good.jsonl/run"], "good.jsonl/run"),
    "run.json is damaged": (put("run.json", "{oops"), [], "run.json", "not JSON"),
    "run.json is a list": (put("run.json", "[]"), [], "run.json"),
    "reward model's numbers are damaged": (put("reward/metrics.json", "{oops"), [], "reward/metrics.json"),
    "reward model's numbers are others": (put("reward/metrics.json", "{}"), [], "reward/metrics.json"),
}


@pytest.mark.parametrize("case", TRAIN)
def test_train_on_a_run(refused, place, case):
    damage, more, *words = TRAIN[case]
    run = place.finished()
    given = shutil.copy(run / "config.yaml", place.root / "given.yaml")
    damage(run)
    refused(["train", given, "--run-dir", "run", *more], *words)


def test_folder_with_other_things(refused, place):
    place.file("mine/letter.txt", "hello")
    refused(["train", TOY, "--run-dir", "mine"], "'mine'", "not empty and no run")
    refused(["train", TOY, "--run-dir", "mine", "--resume"], "nothing to resume in 'mine'")


def test_run_directory_that_cannot_be_made(refused, place):
    """A place where nobody can make a folder, root neither."""
    place.models()
    refused(place.train("--run-dir", "/proc/x/run"), "/proc")


def test_disk_without_room(refused, place, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("lite_c2f.fine.checks.shutil.disk_usage", lambda path: usage(10, 10, 0))
    place.models()
    refused(place.train(), "0 MiB free")


def test_run_is_a_file(refused, place):
    file = place.file("file", "hello")
    for command in READERS:
        refused([command, file], "file")
    refused(["report", file], "file")
    assert Path(file).read_text() == "hello"
