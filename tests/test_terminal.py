"""The views of a run: plain lines without a terminal, one live line with one, and the table."""

import io

from rich.console import Console

from lite_c2f.terminal import Terminal, comparison_table, figures


def view(terminal):
    return Terminal(Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False))


def said(shown):
    return shown.console.file.getvalue()


def test_plain_lines_name_the_stage_and_keep_notes(monkeypatch):
    shown = view(False)
    monkeypatch.setattr("lite_c2f.terminal.PLAIN_EVERY", 0.0)
    shown.stage("coarse actor", 4, "updates")
    shown.step(1, {"reward": -0.5, "limit": 16, "tokens_per_s": 12.3, "unknown": 1})
    shown.note("rows skipped: 4 [empty answer]")
    shown.close()
    assert "coarse actor 1/4 updates  reward -0.50  limit 16  tokens/s 12" in said(shown)
    assert "rows skipped: 4 [empty answer]" in said(shown)


def test_a_live_line_ends_with_the_stage():
    shown = view(True)
    shown.stage("reward model", 0, "steps")
    shown.stage("reward model", 10, "steps")  # its length is known now: the same line goes on
    shown.step(3, {"accuracy": 0.75})
    shown.tick(64)
    shown.stage("merge", 100, "%")
    shown.close()
    assert shown.live is None
    assert said(shown).count("reward model: ") == 1 and "merge: " in said(shown)


def test_figures_and_table():
    assert figures({"kl": 0.123, "limit": 16.0}) == "limit 16  kl 0.12"
    row = {"reward": 1.0, "tokens": 5.25, "repeated_4gram": 0.0, "eos": 1.0}
    table = comparison_table({"actors": {"base": row, "fine": {**row, "reward": -2.0}}})
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    text = console.file.getvalue()
    assert "+1.00" in text and "-2.00" in text and "accuracy" not in text
