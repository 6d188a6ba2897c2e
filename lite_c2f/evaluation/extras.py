"""Report sections of later evaluations: general benchmarks, judgments and unwanted words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lite_c2f.evaluation.page import Block, Heading, Table, Text
from lite_c2f.evaluation.sections import section
from lite_c2f.storage.files import read_json


@section("evaluation/general.json", "run `lite-c2f eval --tasks` again, or remove it")
def general(file: Path) -> list[Block]:
    """Figures of `lite-c2f eval RUN --tasks ...`, each with its standard error and its difference to the baseline."""
    result = read_json(file)
    columns = [*result["actors"], *(f"{actor} to {result['baseline']}" for actor in compared_actors(result))]
    rows = {
        f"{task}, {metric}": benchmark_row(result, row)
        for task in result["shown"]
        for metric, row in result["tasks"][task]["metrics"].items()
    }
    text = (
        f"lm-evaluation-harness {result['lm_eval']}. ± one standard error, of the differences document by document "
        "where that is possible; a difference with a star is above two standard errors, from 30 documents on."
    )
    text += f" At most {result['limit']} documents of a task." if result["limit"] else ""
    text += " Prompts are conversations." if result["chat_template"] else " Prompts are plain text, not conversations."
    text += f" Models loaded with quantization {result['loaded']['quantization']}."
    return [Heading("General benchmarks"), Text(text), Table("task", columns, rows)]


def compared_actors(result: Mapping[str, Any]) -> list[str]:
    """The actors that are compared with the baseline."""
    return [actor for actor in result["actors"] if actor != result["baseline"]]


def benchmark_row(result: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """The actors' figures in one metric, then differences to the baseline; a cell without a value is empty."""
    cells = [with_error(row["actors"][actor], "") for actor in result["actors"]]
    for actor in compared_actors(result):
        difference = row["differences"].get(actor)
        cells.append(with_error(difference, "+") + ("*" if difference["clear"] else "") if difference else "")
    return cells


def with_error(figure: Mapping[str, Any], sign: str) -> str:
    """`0.500 ± 0.020`, without the error if there is none; "" for no value."""
    if figure["value"] is None:
        return ""
    return f"{figure['value']:{sign}.3f}" + ("" if figure["se"] is None else f" ± {figure['se']:.3f}")


def judgments(run: Path) -> list[Block]:
    """Results of `lite-c2f judge` by category: wins in pairs, and grades."""
    return [*pairwise_judgments(run), *grades(run)]


JUDGE_AGAIN = "run `lite-c2f judge` again, or remove it"


@section("evaluation/judge-pairwise.json", JUDGE_AGAIN)
def pairwise_judgments(file: Path) -> list[Block]:
    """Wins by category for each pair of actors."""
    result = read_json(file)
    text, tables = judge_text(result), []
    for title, pair in result["pairs"].items():
        if pair["agreement"] is not None:
            text += f" {title}: the same verdict in both orders in {pair['agreement']:.0%} of the pairs."
        tables.append(counts_table(pair["categories"], title))
    return [Heading("Judged by a model, in pairs"), *tables, Text(" ".join([text, *across_turns(result)]))]


@section("evaluation/judge-single.json", JUDGE_AGAIN)
def grades(file: Path) -> list[Block]:
    """Mean grades by category."""
    result = read_json(file)
    table = counts_table(result["grades"], "grades, 1 to 10")
    text = " ".join([judge_text(result), *across_turns(result)])
    return [Heading("Judged by a model, by grades"), table, Text(text)]


def judge_text(result: Mapping[str, Any]) -> str:
    """A sentence on the number of questions and the judge."""
    return f"{result['questions']} questions, judged by {result['judge']}."


@section("evaluation/probe.json", "run `lite-c2f probe` again, or remove it")
def unwanted_words(file: Path) -> list[Block]:
    """Results of `lite-c2f probe`: unwanted words by layer, and how often they occur in answers."""
    result = read_json(file)
    layers = {
        f"layer {layer}" if layer else "embeddings": [f"{value:.2e}" for value in values]
        for layer, values in enumerate(zip(*result["layers"].values(), strict=True))
    }
    rates = {
        name: [f"{row['bad_words']:.1%}", f"{row['refusals']:.1%}"] for name, row in sorted(result["said"].items())
    }
    text = (
        f"Probability that an answer begins with one of {result['words']} unwanted words or phrases, each layer read "
        f"as if it were the last, over {result['prompts']} prompts; and the share of answers with one of them anywhere."
    )
    return [
        Heading("Unwanted words"),
        Text(text),
        Table("layer", list(result["layers"]), layers),
        Table("actor", ["answers with unwanted words", "refusals"], rates),
    ]


def across_turns(result: Mapping[str, Any]) -> list[str]:
    """A sentence on how much the actors repeat of their earlier turns; [] for questions of one turn."""
    repeated = {name: share for name, share in result.get("repeated_across_turns", {}).items() if share is not None}
    shares = ", ".join(f"{name} {share:.1%}" for name, share in repeated.items())
    return [f"Of the 4-word sequences in later turns, earlier turns had: {shares}."] if repeated else []


def counts_table(rows: Mapping[str, Mapping[str, Any]], first: str) -> Table:
    """A table of counts and rates in short form."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    cells = {name: [f"{row[key]:g}" if key in row else "" for key in columns] for name, row in rows.items()}
    return Table(first, columns, cells)
