"""The command line: every command has help with an example; bad input is one line and exit code 2."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lite_c2f.config.settings import Length

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "toy.yaml")
SEVEN_B = ROOT / "configs" / "mistral-7b-24gb.yaml"
COMMANDS = (
    "demo",
    "train",
    "plan",
    "merge",
    "sweep",
    "export",
    "eval",
    "judge",
    "probe",
    "report",
    "chat",
    "app",
    "votes",
    "push",
    "doctor",
    "schema",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0 and "Example: lite-c2f" in out


def test_python_m_is_the_same():
    done = subprocess.run([sys.executable, "-m", "lite_c2f", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __import__("lite_c2f").__version__


def test_schema_is_a_table_or_json(call, monkeypatch):
    """Every key of a section once; a key that there is not is refused; 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call("schema", "--json")
    assert code == 0 and json.loads(out)["properties"]["coarse"]
    code, out, _ = call("schema", "coarse.length")
    lines = out.splitlines()
    assert code == 0 and max(map(len, lines)) <= 80 and lines[0].split() == ["key", "default", "meaning"]
    keys = [line.split()[0] for line in lines[1:] if line.startswith("coarse.")]
    assert keys == [f"coarse.length.{name}" for name in Length.model_fields]
    assert "0.2" in next(line for line in lines if line.startswith("coarse.length.tau"))
    code, out, _ = call("schema")
    assert code == 0 and "run.seed" in out and "model.base" in out
    code, _, err = call("schema", "coarse.lenght")
    assert code == 2 and "'coarse.length' (did you mean that?)" in err


def test_help_has_groups_and_whole_sentences(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call("--help")
    places = [out.index(f" {group} ") for group in ("Train", "Look", "Tools")]
    assert places == sorted(places) and "…" not in out and "..." not in out.replace("ARGS]...", "")


HEAVY = "('torch', 'transformers', 'gradio', 'datasets')"


@pytest.mark.parametrize(
    "command", ["app", "app --also=http://h", "chat", "doctor", "eval", "report", "sweep", "votes"]
)
def test_a_wrong_path_is_refused_before_any_library_is_imported(tmp_path, command):
    code = f"""
import sys
from lite_c2f.cli import main
try:
    main([*{command.split()!r}, {str(tmp_path / "gone")!r}])
except SystemExit as stop:
    print(stop.code, [name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 []\n" and "gone" in done.stderr


def test_a_plan_without_a_gpu_imports_no_library():
    """Where Linux has no file of a GPU's driver, or the device is the CPU: half a second in place of ten."""
    code = f"""
import sys
from lite_c2f.cli import main
main(["plan", {str(CONFIG)!r}, "hardware.device=cpu"])
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_plans_are_80_columns_wide_and_begin_with_the_verdict(call):
    for size, verdict in (
        ("24", "a card of 24 GiB (22.04 usable): fits"),
        ("8", "a card of 8 GiB (6.68 usable): does not"),
    ):
        code, out, _ = call("plan", ROOT / "configs" / "mistral-7b-24gb.yaml", "--vram", size)
        assert code == 0 and max(map(len, out.splitlines())) <= 80 and out.startswith(verdict)


def test_plan_and_dry_run_need_no_weights(call, tmp_path):
    code, out, _ = call("plan", ROOT / "configs" / "mistral-7b-24gb.yaml", "--json")
    found = json.loads(out)
    assert code == 0 and found["fits"] is True
    assert found["stages"]["coarse_update"]["base"] == pytest.approx(3.84, abs=0.02)  # GiB, measured: 3.84
    code, out, _ = call("train", CONFIG, "coarse.updates=7", "--run-dir", tmp_path / "new", "--dry-run")
    assert code == 0 and "updates: 7" in out and "stages: reward, coarse, fine" in out and "disk" in out
    assert not (tmp_path / "new").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(out[out.index("model:\n  base") :])
    reward = "coarse.rewards=[{function: 'lite_c2f.reward.functions:ended'}]"
    code, out, _ = call("train", tmp_path / "run", reward, "--dry-run")  # a run in place of a file
    assert code == 0 and "updates: 7" in out and f"dir: {tmp_path / 'run'}" in out
    assert "stages: reward (skipped: no reward model is needed), coarse, fine" in out
    code, out, _ = call("train", "coarse.updates=7", "run.seed=3", "--dry-run")  # the defaults but for these
    assert code == 0 and "updates: 7" in out and "seed: 3" in out and "base: toy" in out
    code, out, _ = call("plan", "data.prompts=[a//b.jsonl]", "--vram", "24", "--json")
    assert code == 0 and json.loads(out)["fits"] is True


def jsonl(path: Path, *rows) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def train_on(source, *more):
    return lambda tmp_path, pico: ("train", CONFIG, f"data.preferences=[{source(tmp_path)}]", *more)


SHORT = ["model.stop=[]", "data.max_prompt_tokens=16", "data.max_answer_tokens=32", "coarse.length.max=32",
         "fine.max_tokens=32", "evaluation.max_tokens=32"]  # fmt: skip
EQUAL = {"prompt": "hi", "chosen": "same", "rejected": "same"}
BAD = {
    "no config": (lambda tmp_path, pico: ("train", "none.yaml"), "no config file at 'none.yaml'"),
    "unknown key": (lambda tmp_path, pico: ("train", CONFIG, "coarse.udpates=3"), "'coarse.updates'"),
    "not an override": (lambda tmp_path, pico: ("train", CONFIG, "fast"), "key=value"),
    "unknown command": (lambda tmp_path, pico: ("trian",), "'trian'"),
    "unknown flag": (lambda tmp_path, pico: ("train", CONFIG, "--fast"), "--fast"),
    "unknown stage": (lambda tmp_path, pico: ("train", CONFIG, "--stage", "final"), "'final'"),
    "bad seed": (lambda tmp_path, pico: ("demo", "--seed", "-1"), "run.seed=-1"),
    "missing data": (train_on(lambda tmp: tmp / "none.jsonl"), "none.jsonl"),
    "empty data": (train_on(lambda tmp: jsonl(tmp / "e.jsonl")), "e.jsonl"),
    "one column": (train_on(lambda tmp: jsonl(tmp / "o.jsonl", {"chosen": "a"})), "rejected"),
    "not json": (train_on(lambda tmp: jsonl(tmp / "n.jsonl", EQUAL, "{oops")), "n.jsonl:2"),
    "all equal": (train_on(lambda tmp: jsonl(tmp / "q.jsonl", EQUAL, EQUAL)), "sides equal"),
    "no run": (lambda tmp_path, pico: ("chat", tmp_path / "none"), "is no run directory"),
    "no run to sweep": (lambda tmp_path, pico: ("sweep", tmp_path), "is no run directory"),
    "no run to eval": (lambda tmp_path, pico: ("eval", tmp_path), "is no run directory"),
    "no run to report": (lambda tmp_path, pico: ("report", tmp_path), "summary.json"),
    "no run with votes": (lambda tmp_path, pico: ("votes", tmp_path), "is no run directory"),
    "bad ratios": (lambda tmp_path, pico: ("sweep", tmp_path, "--ratios", "0.5,x"), "--ratios '0.5,x'"),
    "nothing to resume": (
        lambda tmp_path, pico: ("train", CONFIG, "--resume", "--run-dir", tmp_path / "new"),
        "nothing to resume",
    ),
    "stage without the one before": (
        lambda tmp_path, pico: ("train", CONFIG, "--stage", "coarse", "--run-dir", tmp_path / "new"),
        "no reward stage",
    ),
    "run dir in use": (
        lambda tmp_path, pico: (jsonl(tmp_path / "x"), "train", CONFIG, "--run-dir", tmp_path)[1:],
        "is not empty and no run",
    ),
    "run dir is a file": (
        lambda tmp_path, pico: ("train", CONFIG, "--run-dir", jsonl(tmp_path / "file")),
        "is a file",
    ),
    "no model folder": (
        lambda tmp_path, pico: ("train", CONFIG, "model.base=./no/base", "model.instruct=./no/it"),
        "./no/base",
    ),
    "model without tokenizer": (
        lambda tmp_path, pico: pair_with(tmp_path, pico, lambda folder: (folder / "tokenizer.json").unlink()),
        "tokenizer",
    ),
    "other shape": (
        lambda tmp_path, pico: pair_with(tmp_path, pico, lambda folder: change(folder, hidden_size=64)),
        "hidden_size",
    ),
    "other lineage": (
        lambda tmp_path, pico: pair_with(tmp_path, pico, lambda folder: change(folder, sliding_window=77)),
        "sliding_window",
    ),
    "stop without tokens": (
        lambda tmp_path, pico: (*pair_with(tmp_path, pico, lambda folder: None), "model.stop=['  ']"),
        "has no tokens; expected a text",
    ),
    "limit of zero": (lambda tmp_path, pico: ("train", CONFIG, "coarse.length.start=0"), "coarse.length.start=0"),
    "negative limit": (
        lambda tmp_path, pico: ("train", CONFIG, "evaluation.max_tokens=-4"),
        "evaluation.max_tokens=-4",
    ),
    "batch of zero": (
        lambda tmp_path, pico: ("train", CONFIG, "coarse.micro_batch=0"),
        "coarse.micro_batch=0: input should be greater than or equal to 1 or",
    ),
    "batch of many": (
        lambda tmp_path, pico: ("plan", CONFIG, "coarse.sampling_batch=many"),
        "or input should be 'auto'",
    ),
    "longer than the context": (
        lambda tmp_path, pico: ("train", CONFIG, "coarse.length.max=4000", "--run-dir", tmp_path / "new"),
        "context of",
    ),
    "batch that cannot fit": (
        lambda tmp_path, pico: ("train", SEVEN_B, "coarse.sampling_batch=64", "coarse.length.max=2048"),
        "set coarse.sampling_batch to 5",
    ),
    "card that is too small": (
        lambda tmp_path, pico: ("train", SEVEN_B, "hardware.vram_gib=8", "--run-dir", tmp_path / "new"),
        "use smaller models or a larger card",
    ),
    "card of nothing": (lambda tmp_path, pico: ("plan", CONFIG, "--vram", "0"), "a card of 0 GiB"),
    "merge without adapter": (
        lambda tmp_path, pico: ("merge", "--adapter", tmp_path / "empty", *merge_into(pico, tmp_path)),
        "adapter_config.json",
    ),
    "merge at nan": (
        lambda tmp_path, pico: ("merge", "--adapter", pico["adapter"], *merge_into(pico, tmp_path), "--ratio", "nan"),
        "ratio",
    ),
    "merge below zero": (
        lambda tmp_path, pico: ("merge", "--adapter", pico["adapter"], *merge_into(pico, tmp_path), "--ratio", "-1"),
        "ratio",
    ),
}


def merge_into(pico, tmp_path):
    return ("--base", pico["base"], "--instruct", pico["instruct"], "--out", tmp_path / "out")


def change(folder: Path, **values) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def pair_with(tmp_path, pico, damage):
    import shutil

    folder = tmp_path / "instruct"
    shutil.copytree(pico["instruct"], folder)
    damage(folder)
    return "train", CONFIG, f"model.base={pico['base']}", f"model.instruct={folder}", *SHORT


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore")
def test_bad_input_is_one_line_and_exit_2(call, case, tmp_path, pico, monkeypatch):
    arguments, words = BAD[case]
    given = [str(part) for part in arguments(tmp_path, pico)]
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = call(*given)
    lines = [line for line in err.splitlines() if line.startswith(("error", "Usage", "Traceback"))]
    assert code == 2 and len(lines) == 1, err
    assert words in lines[0] and "Traceback" not in err
    published = [path for path in set(tmp_path.rglob("*")) - set(before) if path.suffix in (".safetensors", ".jsonl")]
    assert published == []


def commands_in(text: str):
    for block in text.split("```")[1::2]:
        for line in block.splitlines():
            line = line.strip().removeprefix("$ ").split("  #")[0].strip()
            if line.startswith("lite-c2f "):
                yield line


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands_in(page.read_text("utf-8"))}))
def test_every_command_in_the_documentation_parses(line, call):
    words = shlex.split(line)[1:]
    code, out, err = call(*words[:1], "--help")
    assert code == 0, err
    for flag in (word.split("=")[0] for word in words if word.startswith("--")):
        assert flag in out, f"{flag} of '{line}' is not in its help"
    for override in (word for word in words[1:] if "=" in word and not word.startswith("--")):
        from lite_c2f.config.loading import load_config

        load_config({}, [override] if not override.startswith("model.") else [])
    for name in (word for word in words if word.startswith("configs/")):
        assert (ROOT / name).is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_ctrl_c_exits_130_and_the_run_goes_on(toy_models, tmp_path, call):
    """Interrupted in the coarse stage: the reward model is kept, the same command finishes the run."""
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "lite_c2f", "train", CONFIG, "--run-dir", str(run), "reward.max_pairs=64",
        "coarse.updates=400", "coarse.rollouts=8", "evaluation.prompts=8", "fine.prompts=4", "fine.ratios=[1.0]",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    file, deadline = run / "metrics.jsonl", time.monotonic() + 900
    while process.poll() is None and not (file.is_file() and '"coarse"' in file.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "interrupted" in err
    assert (run / "reward" / "metrics.json").is_file() and not (run / "coarse" / "metrics.json").exists()
    command[command.index("coarse.updates=400")] = "coarse.updates=3"
    code, _, err = call(*command[3:], "--resume")
    assert code == 0, err
    assert "reward: already published, skipped" in err
    assert json.loads((run / "summary.json").read_text())["actors"]["fine"]
    code, _, err = call(*command[3:])
    assert code == 0 and "comparison: already made, skipped" in err
    assert len([line for line in (run / "metrics.jsonl").read_text().splitlines() if '"coarse"' in line]) == 3
    code, _, err = call(*command[3:], "coarse.lr=1e-5")
    assert code == 2 and "coarse.lr" in err
