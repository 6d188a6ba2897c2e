"""The views of a run: plain lines without a terminal, one live line with one, and the table."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from lite_c2f.cli.chat_terminal import ChatTerminal
from lite_c2f.cli.exit_codes import interruption_hint
from lite_c2f.cli.program import program
from lite_c2f.cli.tables import comparison_table, print_summary, source_table
from lite_c2f.cli.terminal import TerminalSink, format_figures
from lite_c2f.runtime.signals import AT_ONCE


def view(terminal, width=100):
    return TerminalSink(Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False))


def said(shown):
    return shown.console.file.getvalue()


def test_plain_lines_name_the_stage_and_keep_notes(monkeypatch):
    shown = view(False)
    monkeypatch.setattr("lite_c2f.cli.terminal.PLAIN_LINE_SECONDS", 0.0)
    shown.on_stage("coarse actor", 4, "updates")
    shown.on_step(1, {"reward": -0.5, "limit": 16, "tokens_per_s": 12.3, "unknown": 1})
    shown.on_message("rows skipped: 4 [empty answer]")
    shown.close()
    assert "coarse actor 1/4 updates  reward -0.50  limit 16  tokens/s 12" in said(shown)
    assert "rows skipped: 4 [empty answer]" in said(shown)


def test_a_live_line_ends_with_the_stage(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("lite_c2f.cli.terminal.time", SimpleNamespace(monotonic=lambda: clock.now))
    shown = view(True)
    shown.on_stage("reward model", 0, "steps")
    shown.live.refresh()
    assert "begins" in said(shown) and "left" not in said(shown)  # neither its length nor a time is known
    shown.on_stage("reward model", 10, "steps")  # its length is known now: the same line goes on
    shown.on_step(3, {"accuracy": 0.75})
    shown.on_tokens(64)
    shown.on_stage("models", 0, "steps")  # over in no time: not worth a line
    clock.now += 0.9
    shown.on_stage("data", 0, "steps")
    clock.now += 1.5
    shown.on_stage("merge", 100, "%")
    shown.on_step(100, {"loss": 0.1})
    shown.close()
    assert shown.live is None
    assert said(shown).count("reward model: ") == 1 and "merge: " in said(shown) and "models: " not in said(shown)
    assert "data: 1.5 s" in said(shown)


@pytest.mark.parametrize(
    ("typed", "found", "name"),
    [
        ("/envs/a/bin/lite-c2f", "/envs/a/bin/lite-c2f", "lite-c2f"),
        (".venv/bin/lite-c2f", None, ".venv/bin/lite-c2f"),
        ("my env/bin/lite-c2f", None, "'my env/bin/lite-c2f'"),
        ("/site-packages/lite_c2f/__main__.py", None, "python -m lite_c2f"),
        ("script.py", None, "lite-c2f"),
    ],
)
def test_commands_to_continue_with_can_be_pasted(monkeypatch, typed, found, name):
    monkeypatch.setattr("sys.argv", [typed])
    monkeypatch.setattr("shutil.which", lambda program: found)
    assert program() == name


@pytest.mark.parametrize(
    ("error", "begun", "text"),
    [
        (KeyboardInterrupt(), True, "interrupted; what was done is saved. Continue with: C"),
        (KeyboardInterrupt(AT_ONCE), True, "interrupted; the step was not saved, earlier ones are. Continue with: C"),
        (KeyboardInterrupt(), False, "interrupted; nothing was begun"),
    ],
)
def test_an_interruption_says_what_is_saved(capsys, error, begun, text):
    with pytest.raises(KeyboardInterrupt), interruption_hint(lambda: None, "C", lambda: begun):
        raise error
    assert capsys.readouterr().err.strip() == text


def test_commands_in_the_chat_say_what_they_did_to_a_person_alone():
    chat = SimpleNamespace(check=lambda settings: None)
    for live in (True, False):
        console = Console(file=io.StringIO(), highlight=False)
        terminal = ChatTerminal(chat, console, live=live)
        assert terminal._command("ratio", "0.5") and terminal._command("tokens", "80") and terminal._command("clear")
        shown = console.file.getvalue()
        told = "ratio 0.5, seed 0, up to 80 tokens" in shown and "a new conversation" in shown
        assert told if live else shown == ""


def test_a_narrow_terminal_cuts_figures_before_progress():
    shown = view(True, width=80)
    shown.on_stage("coarse actor", 40, "updates")
    many = {"reward": 0.12, "limit": 1024.0, "hit_limit": 1.0, "kl": 10.25, "tokens_per_s": 1234.0, "loss": 1.0}
    shown.on_step(7, {})  # an earlier process did seven
    shown.on_step(8, many)
    shown.live.refresh()
    lines = said(shown)
    shown.close()
    assert "coarse actor 8/40" in lines and "left reward 0.12  limit 1024" in lines
    assert "loss 1.00" not in lines and "…" in lines


def test_figures_and_table():
    assert format_figures({"kl": 0.123, "limit": 16.0}) == "limit 16  kl 0.12"
    row = {"reward": 1.0, "tokens": 5.25, "repeated_4gram": 0.0, "eos": 1.0}
    table = comparison_table({"actors": {"base": row, "fine": {**row, "reward": -2.0}}})
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    text = console.file.getvalue()
    assert "+1.00" in text and "-2.00" in text and "accuracy" not in text


def by_source(name, base, fine, **more):
    return {name: {"base": {"reward": base, "prompts": 3, **more}, "fine": {"reward": fine, "prompts": 3, **more}}}


SOURCES = {
    "reward_model": {"accuracy": 0.7, "accuracy_by_source": {"/data/helpful.jsonl": 0.75, "toy": 0.5}},
    "by_source": by_source("/data/helpful.jsonl", -0.5, 1.25) | by_source("toy", 0.125, 0.5, accuracy=0.875),
}


def test_figures_of_each_source(capsys):
    print_summary({**SOURCES, "seconds": {"reward": 1.0}}, "run")
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if line[:1] in ("│", "┃")]
    assert rows == [
        ["actor", "helpful.jsonl", "toy"],
        ["base", "-0.50", "+0.12 (0.875)"],
        ["fine", "+1.25", "+0.50 (0.875)"],
        ["prompts", "3", "3"],
        ["pairs ranked right", "0.750", "0.500"],
    ]


def test_one_source_has_no_table():
    assert source_table({"reward_model": {"accuracy": 0.7}}) is None
    assert source_table({"reward_model": {"accuracy": 0.7, "accuracy_by_source": {"toy": 0.7}}}) is None
    assert source_table(SOURCES) is not None
