"""Pico Mistral models, tokenizers and real PEFT adapters, built from configs: nothing is downloaded."""

import fcntl
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch: beside another job, spinning threads cost 5-20x

if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes: a thread each, or they get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import HealthCheck, settings
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizer_kinds import word_tokenizer
from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: tests send it, and pass it on
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Drawn examples are the same in every run, and nothing is said of how long they take: machines differ.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

# Files that take longest come first, so that the processes end together; the first one makes the run others share.
LONG = (
    "chat/test_engine.py",
    "faults/test_resume.py",
    "faults/test_processes.py",
    "ui/runs/test_launch.py",
    "test_evidence.py",
    "cli/test_cli.py",
    "ui/store/test_votes.py",
    "ui/test_browser.py",
    "ui/test_offline.py",
)
CHAT_TEMPLATE = "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"


def pytest_configure(config):
    """`LITE_C2F_TEST_SEED=1 pytest ...`: all tests use toy models trained from that seed (trained now, once).

    The models are put into a cache of their own, where the default recipe's are looked for: the code under test, in
    this process and in those it starts, takes its usual way to them.
    """
    seed = int(os.environ.get("LITE_C2F_TEST_SEED", "0"))
    if seed and "PYTEST_XDIST_WORKER" not in os.environ:  # those that it starts inherit the place
        from lite_c2f.toy.build import Recipe, cache_root, toy_folder, toy_pair

        os.environ["LITE_C2F_CACHE"] = str(cache_root() / f"tests-seed-{seed}")
        trained, usual = toy_pair(Recipe(seed=seed)).base.parent, toy_folder()
        if not usual.is_symlink():
            usual.symlink_to(trained.name)
    slow = config.option.markexpr != "not slow"
    if slow and getattr(config.option, "numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        # Slow tests need the toy models: trained here with all cores, before the workers with one thread each.
        code = "from lite_c2f.toy.build import toy_pair; toy_pair()"
        subprocess.run([sys.executable, "-c", code], check=True)


def pytest_collection_modifyitems(items):
    places = {str(Path(__file__).parent / name): place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(str(item.path), len(LONG)))


def pytest_make_parametrize_id(val):
    """Bytes are no names: a gzip holds the second it was made in, and all test processes must collect the same."""
    return "bytes" if isinstance(val, bytes) else None


def build_model(folder: Path, seed: int, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    """A Mistral of 2 layers, hidden 32, vocabulary 64, with a tokenizer, a chat template and a generation config."""
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    model = MistralForCausalLM(config).to(dtype)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, max_new_tokens=7)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def build_adapter(folder: Path, base: Path, **lora) -> Path:
    """An adapter saved by PEFT itself, with random lora_B (PEFT starts it at zero)."""
    torch.manual_seed(7)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's and Transformers' own, of no interest here
        model = get_peft_model(MistralForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name or "lora_embedding" in name:
                    weight.normal_(std=0.05)
        model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def build_hand_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config) -> Path:
    """An adapter folder written by hand; tensor names without PEFT's prefix."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({f"base_model.model.{name}": t for name, t in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def build_hand_model(folder: Path, tensors: dict[str, torch.Tensor], **config) -> Path:
    """A model folder of a config and one safetensors file, enough to merge into without a base."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral", **config}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", autouse=True)
def _young_objects_alone():
    """What freeing memory and the trainer ask for, a collection of garbage, looks at this module's objects alone.

    It takes half a second where it goes through those of all imported libraries too.
    """
    gc.freeze()


@pytest.fixture(scope="session")
def pico(tmp_path_factory):
    """Read-only folders: base, instruct (float32), instruct in bfloat16 in several shards, a plain adapter."""
    root = tmp_path_factory.mktemp("pico")
    folders = {
        "base": build_model(root / "base", 0),
        "instruct": build_model(root / "instruct", 1),
        "sharded": build_model(root / "sharded", 1, torch.bfloat16, "10KB"),
    }
    folders["adapter"] = build_adapter(root / "adapter", folders["base"])
    return folders


@pytest.fixture
def editable(pico, tmp_path):
    """A copy of one of the read-only folders that a test may damage."""
    return lambda name: Path(shutil.copytree(pico[name], tmp_path / f"copy-of-{name}"))


@pytest.fixture
def edit_json():
    """Change keys of a JSON file; the value `...` removes the key."""

    def edit(file: Path, **changes) -> None:
        content = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return edit


@pytest.fixture
def make_adapter():
    return build_adapter


@pytest.fixture
def hand_adapter():
    return build_hand_adapter


@pytest.fixture
def hand_model():
    return build_hand_model


@pytest.fixture(scope="session")
def toy_models():
    """The real toy pair: from the cache, or trained now (about two minutes, once)."""
    from lite_c2f.toy.build import toy_pair

    return toy_pair()


@pytest.fixture(scope="session")
def lite_c2f():
    """Run the command line in a process of its own, as people do."""

    def run(*arguments, **given):
        command = [sys.executable, "-m", "lite_c2f", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=900, **given)

    return run


@pytest.fixture(scope="session")
def toy_run(lite_c2f, tmp_path_factory):
    """A finished run directory: the real demo, run once for all test processes (two to four minutes). Read-only."""
    if given := os.environ.get("LITE_C2F_TEST_RUN"):  # one made before, while tests are written
        return Path(given)
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    run = folder / "toy"
    with (folder / "toy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "stdout.txt").is_file():
            done = lite_c2f("demo", "--out", run)
            assert done.returncode == 0, done.stderr
            (run / "stdout.txt").write_text(done.stdout)
    return run


@pytest.fixture(scope="session")
def quantized(pico):
    """A pico base in real NF4, loaded through the real path."""
    from lite_c2f.backbone.load import load_model
    from lite_c2f.config.loading import load_config

    settings = [
        "data.max_prompt_tokens=16",
        "coarse.length.max=32",
        "coarse.length.start=8",
        "evaluation.max_tokens=32",
    ]
    return lambda *more: load_model(str(pico["base"]), load_config({}, [*settings, *more]))


@pytest.fixture
def call(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""
    from lite_c2f.cli import main

    def run(*arguments):
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def in_process(call):
    """As `lite_c2f`, in this process, which has the libraries loaded: their warnings are of no interest here."""

    def run(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return subprocess.CompletedProcess(arguments, *call(*arguments))

    return run


@pytest.fixture
def random_roles(quantized):
    """Roles on a pico base whose adapters do something, with heads of a reward model and a critic."""
    import torch

    from lite_c2f.backbone.heads import ScalarHead
    from lite_c2f.backbone.roles import Roles
    from lite_c2f.config.settings import Lora

    def make(*adapters, settings=(), **given):
        torch.manual_seed(0)
        made = Roles(quantized(*settings), Lora(r=4, alpha=8), adapters, **given)
        with torch.no_grad():
            for name in made.adapters:
                for parameter in made.adapter_parameters(name):
                    parameter.normal_(std=0.2)
        made.add_head("reward", ScalarHead.of(torch.randn(1, 32)))
        made.add_head("critic", ScalarHead.of(torch.randn(1, 32), 0.3))
        return made

    return make
