"""What a report shows beyond the run's own comparison, where it was asked for: general benchmarks and judgments."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lite_c2f.errors import RunError
from lite_c2f.evaluation.page import Block, Heading, Table, Text
from lite_c2f.storage.files import read_json


def general(run: Path) -> list[Block]:
    """Figures of `lite-c2f eval RUN --tasks ...`, each with its standard error and its difference to the baseline."""
    file = run / "evaluation" / "general.json"

    def make() -> list[Block]:
        found = read_json(file)
        columns = [*found["actors"], *(f"{actor} to {found['baseline']}" for actor in others(found))]
        rows = {
            f"{task}, {metric}": benchmark_row(found, row)
            for task in found["shown"]
            for metric, row in found["tasks"][task]["metrics"].items()
        }
        told = (
            f"lm-evaluation-harness {found['lm_eval']}. ± one standard error, of the differences document by document "
        )
        told += "where that can be; a difference with a star is above two, from 30 documents on."
        told += f" At most {found['limit']} documents of a task." if found["limit"] else ""
        told += " Asked as conversations." if found["chat_template"] else " Asked as plain text, not as conversations."
        told += f" Models loaded with quantization {found['loaded']['quantization']}."
        return [Heading("General benchmarks"), Text(told), Table("task", columns, rows)]

    return part(file, make, "run `lite-c2f eval --tasks` again, or remove it") if file.is_file() else []


def others(found: Mapping[str, Any]) -> list[str]:
    """The actors that are compared with the baseline."""
    return [actor for actor in found["actors"] if actor != found["baseline"]]


def benchmark_row(found: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Figures of one metric, then differences; what there is not stays empty."""
    shown = [with_error(row["actors"][actor], "") for actor in found["actors"]]
    for actor in others(found):
        gap = row["differences"].get(actor)
        shown.append(with_error(gap, "+") + ("*" if gap["clear"] else "") if gap else "")
    return shown


def with_error(found: Mapping[str, Any], sign: str) -> str:
    """`0.500 ± 0.020`; without an error where there is none."""
    if found["value"] is None:
        return ""
    return f"{found['value']:{sign}.3f}" + ("" if found["se"] is None else f" ± {found['se']:.3f}")


def judged(run: Path) -> list[Block]:
    """What `lite-c2f judge` found, by category: wins in pairs, and grades."""
    return judgments(run / "evaluation" / "judge-pairwise.json") + judgments(run / "evaluation" / "judge-single.json")


def judgments(file: Path) -> list[Block]:
    """The tables of one judgment; nothing where there was none."""

    def make() -> list[Block]:
        found = read_json(file)
        told = f"{found['questions']} questions, judged by {found['judge']}."
        blocks: list[Block] = [Heading("Judged by a model" + (", in pairs" if "pairs" in found else ", by grades"))]
        for title, result in found.get("pairs", {}).items():
            if result["agreement"] is not None:
                told += f" {title}: the same in both orders in {result['agreement']:.0%} of the pairs."
            blocks.append(plain_table(result["categories"], title))
        if grades := found.get("grades"):
            blocks.append(plain_table(grades, "grades, 1 to 10"))
        return [*blocks, Text(" ".join([told, *across_turns(found)]))]

    return part(file, make, "run `lite-c2f judge` again, or remove it") if file.is_file() else []


def probed(run: Path) -> list[Block]:
    """What `lite-c2f probe` found: unwanted words by layer, and how often they are said."""
    file = run / "evaluation" / "probe.json"

    def make() -> list[Block]:
        found = read_json(file)
        names = list(found["layers"])
        rows = {
            f"layer {layer}" if layer else "embeddings": [f"{value:.2e}" for value in values]
            for layer, values in enumerate(zip(*found["layers"].values(), strict=True))
        }
        rates = {
            name: [f"{row['bad_words']:.1%}", f"{row['refusals']:.1%}"] for name, row in sorted(found["said"].items())
        }
        told = f"Probability that an answer begins with one of {found['words']} unwanted words or phrases, each layer "
        told += f"read as if it were the last, over {found['prompts']} prompts; and the share of answers that have one "
        told += "anywhere."
        return [
            Heading("Unwanted words"),
            Text(told),
            Table("layer", names, rows),
            Table("said", ["unwanted words", "refusals"], rates),
        ]

    return part(file, make, "run `lite-c2f probe` again, or remove it") if file.is_file() else []


def across_turns(found: Mapping[str, Any]) -> list[str]:
    """A sentence about what the actors repeat of their earlier turns, where the questions have several."""
    repeated = {name: share for name, share in found.get("repeated_across_turns", {}).items() if share is not None}
    shares = ", ".join(f"{name} {share:.1%}" for name, share in repeated.items())
    return [f"Of the 4-word sequences in later turns, earlier turns had: {shares}."] if repeated else []


def plain_table(rows: Mapping[str, Mapping[str, Any]], first: str) -> Table:
    """A table of counts and rates, as short as they can be written."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    return Table(
        first, columns, {name: [f"{row[key]:g}" if key in row else "" for key in columns] for name, row in rows.items()}
    )


def part(file: Path, make: Callable[[], list[Block]], do: str = "train that stage again") -> list[Block]:
    """What is made of a file. Raises RunError naming it where it is gone or of another form; do: what helps then."""
    try:
        return make()
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        StopIteration,
        IndexError,
        OSError,
        yaml.YAMLError,
    ) as error:
        why = "cannot be read" if isinstance(error, OSError) else "has another form than lite-c2f gives it"
        raise RunError.because(f"'{file}' {why}", "a file of a run, unchanged", do) from None
