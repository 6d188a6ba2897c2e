"""One self-contained HTML page of a run: curves, the comparison, samples over time."""

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lite_c2f.errors import RunError
from lite_c2f.runs import read_json, read_lines, write_text

CURVES = (
    ("reward", "reward (standard deviations)"),
    ("limit", "limit (tokens)"),
    ("hit_limit", "share at the limit"),
    ("kl", "KL to the base (nats a response)"),
    ("value_loss", "critic loss"),
    ("tokens", "tokens a response"),
)

STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #8886}
td:first-child,th:first-child{text-align:left}img{max-width:100%;background:#fff;border-radius:6px}
.sample{display:grid;grid-template-columns:9rem 1fr;gap:.2rem 1rem;margin:.6rem 0;white-space:pre-wrap}
.sample b{font-weight:600}h2{margin-top:2.2rem}@media(max-width:40rem){.sample{grid-template-columns:1fr}}
"""


def write_report(run: Path) -> Path:
    """Write RUN/report/index.html; no network is needed to read it.

    Raises RunError without a summary, and naming the file that is not as lite-c2f writes it.
    """
    if run.exists() and not run.is_dir():
        raise RunError.because(f"'{run}' is a file", "a run directory", "give one made by lite-c2f")
    compared = part(run / "summary.json", lambda: comparison(read_json(run / "summary.json")))
    body = [f"<h1>{html.escape(run.resolve().name)}</h1>", *compared]
    body += part(run / "metrics.jsonl", lambda: curves(read_lines(run / "metrics.jsonl")))
    if (run / "fine" / "ratios.json").is_file():
        body += part(run / "fine" / "ratios.json", lambda: ratios(run))
    if compared:
        responses = run / "evaluation" / "responses.jsonl"
        body += part(responses, lambda: ["<h2>Answers</h2>", *answers(read_lines(responses)[:16])])
    body += part(run / "config.yaml", lambda: configuration(run / "config.yaml"))
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(run.resolve().name)}</title><style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    )
    target = run / "report" / "index.html"
    write_text(target, page)
    return target


def part(file: Path, make: Callable[[], list[str]]) -> list[str]:
    """What is made of a file. Raises RunError naming it where it is gone or of another form."""
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration, OSError) as error:
        why = "cannot be read" if isinstance(error, OSError) else "has another form than lite-c2f gives it"
        raise RunError.because(f"'{file}' {why}", "a file of a run, unchanged", "train that stage again") from None


def comparison(summary: dict[str, Any]) -> list[str]:
    """The table of the actors; nothing where they are not compared yet."""
    if not isinstance(summary, dict):
        raise TypeError("not a summary")
    return ["<h2>Comparison on held-out prompts</h2>", table(summary["actors"])] if "actors" in summary else []


def curves(rows: list[dict[str, Any]]) -> list[str]:
    """The learning curves of the coarse stage; nothing before its first update."""
    lines = [line for line in rows if line["stage"] == "coarse"]
    return ["<h2>Coarse Actor</h2>", f'<img alt="learning curves" src="{plot(lines)}">'] if lines else []


def ratios(run: Path) -> list[str]:
    """The ratios that were tried, with their picture."""
    tried = read_json(run / "fine" / "ratios.json")
    rows = {f"{row['ratio']:g}": {k: v for k, v in row.items() if k != "ratio"} for row in tried["tried"]}
    return [
        "<h2>Ratios of the residue</h2>",
        f"<p>Chosen: <b>{tried['chosen']:g}</b> ({html.escape(tried['rule'])}).</p>",
        *picture(run / "fine" / "ratios.png", "figures over the ratio"),
        table(rows, "ratio"),
    ]


def configuration(file: Path) -> list[str]:
    """The configuration as it was written."""
    return ["<h2>Configuration</h2>", f"<pre>{html.escape(file.read_text(encoding='utf-8'))}</pre>"]


def table(rows: dict[str, dict[str, float]], first: str = "actor") -> str:
    """Rows of figures as an HTML table."""
    columns = list(next(iter(rows.values())))
    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in (first, *columns))
    body = "".join(
        f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{row[column]:.3f}</td>' for column in columns)}</tr>"
        for name, row in rows.items()
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def picture(file: Path, text: str) -> list[str]:
    """A PNG as an image within the page; nothing where there is none."""
    if not file.is_file():
        return []
    return [
        f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}">'
    ]


def plot(lines: list[dict[str, Any]]) -> str:
    """Learning curves as a PNG data address."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(2, 3).flat, CURVES, strict=True):
        axes.plot([line["step"] for line in lines], [line[name] for line in lines], color="#2563eb", lw=1.6)
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
        axes.set_xlabel("update", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def answers(rows: list[dict[str, Any]]) -> list[str]:
    """The same few prompts answered by every actor."""
    parts, prompt = [], None
    for row in rows:
        if row["prompt"] != prompt:
            prompt = row["prompt"]
            parts.append(f"<h3>{html.escape(prompt)}</h3>")
        label = f"<b>{row['actor']}</b> {row['reward']:+.2f}<br>{row['tokens']} tokens, {row['finish']}"
        parts.append(f'<div class="sample"><span>{label}</span><span>{html.escape(row["response"])}</span></div>')
    return parts
