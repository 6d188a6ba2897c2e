"""Tables of results that commands print, with the next commands."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lite_c2f.actors.answers import min_eos_message
from lite_c2f.cli.program import program
from lite_c2f.data.order import short_names
from lite_c2f.evaluation.extras import across_turns


def comparison_table(summary: dict[str, Any]) -> Table:
    """Base, instruct, Coarse and Fine side by side."""
    columns = {
        "reward": "reward",
        "tokens": "tokens",
        "repeated_4gram": "repeated 4-grams",
        "eos": "ended",
        "accuracy": "accuracy",
        "analytic": "analytic",
    }
    actors = summary["actors"]
    names = [name for name in columns if all(name in figures for figures in actors.values())]
    table = Table(title="Held-out prompts", title_justify="left")
    table.add_column("actor")
    for name in names:
        table.add_column(columns[name], justify="right")
    for actor, figures in actors.items():
        style = "bold" if actor == "fine" else ""
        table.add_row(actor, *(_format(name, figures[name]) for name in names), style=style)
    return table


def source_table(summary: dict[str, Any]) -> Table | None:
    """Results of the actors and the reward model by data source; None for a single source.

    The accuracy after the reward exists for the toy world only; the reward model's accuracy is on held-out pairs.
    """
    actor_figures = summary.get("by_source", {})
    pair_accuracies = summary.get("reward_model", {}).get("accuracy_by_source", {})
    names = short_names([*actor_figures, *pair_accuracies])
    if len(names) < 2:
        return None
    table = Table(title="By data source: mean reward, and accuracy where answers can be checked", title_justify="left")
    table.add_column("actor")
    for name in names.values():
        table.add_column(Text(name), justify="right", overflow="fold")
    for actor in dict.fromkeys(actor for row in actor_figures.values() for actor in row):
        cells = [actor_figures.get(source, {}).get(actor, {}) for source in names]
        table.add_row(actor, *map(_reward_cell, cells), style="bold" if actor == "fine" else "")
    if actor_figures:
        prompts = [
            max((row["prompts"] for row in actor_figures.get(source, {}).values()), default=0) for source in names
        ]
        table.add_row("prompts", *(f"{count}" for count in prompts), end_section=True)
    if pair_accuracies:
        ranked = (f"{pair_accuracies[source]:.3f}" if source in pair_accuracies else "" for source in names)
        table.add_row("pairs ranked right", *ranked)
    return table


def _reward_cell(figures: dict[str, float]) -> str:
    accuracy = f" ({figures['accuracy']:.3f})" if "accuracy" in figures else ""
    return _format("reward", figures["reward"]) + accuracy if figures else ""


def ratio_table(result: dict[str, Any], run: Path, models: Any = None) -> None:
    """Print the ratios that were tried with the chosen one marked, those by group of layers, and the next command.

    models: the base and the instruct model of the run.
    """
    console = Console(highlight=False)
    short = {"repeated_4gram": "repeated", "eos": "ended", "reward_se": "± reward", "behind_se": "± behind"}
    columns = list(result["tried"][0])
    if "behind_se" in columns:
        columns.remove("reward_se")  # eleven columns do not fit a terminal of 80, and this error decides nothing
    table = Table(title="Ratios of the residue", title_justify="left", pad_edge=False)
    for name in columns:
        table.add_column(short.get(name, name), justify="right", overflow="fold")
    for row in result["tried"]:
        cells = (f"{row[name]:g}" if name == "ratio" else _format(name, row[name]) for name in columns)
        table.add_row(*cells, style="bold" if row["ratio"] == result["chosen"] else "")
    console.print(table)
    console.print(f"chosen {result['chosen']:g}: {result['rule']}")
    if shortfall := min_eos_message(result):
        console.print(Text(f"warning: {shortfall}"), soft_wrap=True)
    grouped = result.get("groups")
    if grouped:
        table = Table(title="Ratios by group of layers", title_justify="left")
        for name in ("tried", "reward", "ended", "gain", "± gain", "kept"):
            table.add_column(name, justify="left" if name == "tried" else "right")
        for trial in grouped["trials"]:
            gain = (f"{trial['gain']:+.3f}", f"{trial['gain_se']:.3f}") if "gain" in trial else ("", "")
            figures = (f"{trial['reward']:+.3f}", f"{trial['eos']:.3f}", *gain, "yes" if trial["kept"] else "no")
            table.add_row(trial["change"], *figures, style="bold" if trial["kept"] else "")
        console.print(table)
        console.print(Text(grouped["verdict"]), soft_wrap=True)
    console.print(Text(f"\nThe curve is in {run / 'fine' / 'sweep.svg'}."), soft_wrap=True)
    option = f"--ratio {result['chosen']:g}"
    if grouped and grouped["better"]:
        option = f"--layer-ratios {run / 'fine' / 'layer-ratios.yaml'}"
    base, instruct = (models.base, models.instruct) if models else ("BASE", "INSTRUCT")
    command = f"{program()} merge --adapter {run / 'coarse' / 'adapter'} --base {base} --instruct {instruct} --out OUT"
    console.print(Text(f"Next, to merge with this:\n  {command} {option}"), soft_wrap=True)


def print_merge(report: Any, out: Path) -> None:
    """Print the figures that show whether a merge worked, and the next command. report: a `MergeReport`."""
    console, totals = Console(highlight=False), report.totals
    rows = {"weights changed": f"{totals['tensors']} tensors, {totals['elements']:,} elements"}
    if totals["relative_change"] is not None:
        rows["size of the change"] = f"{totals['relative_change']:.3%} of |W|"
    if report.treatment["sparsify"] != "none":
        rows["kept by the treatment"] = f"{totals['kept_share']:.1%} of its elements"
    caps = [row["cap"] for row in report.tensors.values() if "cap" in row]
    if caps:
        rows["norm cap"] = (
            f"{sum(cap < 1 for cap in caps)} of {len(caps)} weights scaled, by {min(caps):.2f} at the least"
        )
    if totals["unchanged_share"] is not None:
        rows["changes lost to rounding"] = f"{totals['unchanged_share']:.1%} of the elements"
    if totals["projection"] is not None:
        rows["carried after rounding"] = f"{totals['projection']:.1%} of the change"
    if totals["drift"] is not None:
        rows["instruct away from base"] = f"{totals['drift']:.3%} of |W_base|"
    if totals["cosine"] is not None:
        rows["cosine with the tuning"] = f"{totals['cosine']:+.3f}"
    if report.verified:
        verified = report.verified
        rows["logits"] = (
            f"{verified['error']:.2g} from the unmerged adapter's, which changes them by {verified['effect']:.2g}; the "
            f"same token in {verified['agreement']:.1%} of positions"
            if verified["compared"]
            else f"finite; {verified['effect']:.2g} from the instruct model's (no unmerged counterpart to compare with)"
        )
    for name, value in rows.items():
        console.print(Text(f"{name:<27} {value}"), soft_wrap=True)
    shares = sorted({row["ratio"] for row in report.tensors.values()})
    ratio = f"ratio {shares[0]:g}" if len(shares) == 1 else f"ratios {shares[0]:g} to {shares[-1]:g}"
    text = f"merged at {ratio} into {out}; every figure in {out / 'merge.json'}"
    next_commands = f'AutoModelForCausalLM.from_pretrained("{out}"), or any server that reads such folders'
    console.print(Text(f"{text}\n\nNext:\n  {next_commands}"), soft_wrap=True)


def print_judgment(judgment: dict[str, Any], run: Path) -> None:
    """Print the tables of a judgment by category, and the file with all texts."""
    console = Console(highlight=False)
    for title, result in judgment.get("pairs", {}).items():
        table = Table(title=title, title_justify="left")
        for name in ("category", "win", "tie", "loss", "unread", "rate"):
            table.add_column(name, justify="left" if name == "category" else "right")
        for category, row in result["categories"].items():
            rate = f"{row['rate']:.2f} ± {row['se']:.2f}" if "rate" in row else ""
            table.add_row(category, *(str(row[name]) for name in ("win", "tie", "loss", "unread")), rate)
        console.print(table)
        if result["agreement"] is not None:
            console.print(f"the same verdict in both orders in {result['agreement']:.0%} of the pairs")
    if grades := judgment.get("grades"):
        names = list(dict.fromkeys(name for row in grades.values() for name in row))
        table = Table(title="Grades, 1 to 10", title_justify="left")
        table.add_column("")
        for actor in grades:
            table.add_column(actor, justify="right")
        for name in names:
            table.add_row(name, *(f"{row[name]:g}" if name in row else "" for row in grades.values()))
        console.print(table)
    for sentence in across_turns(judgment):
        console.print(sentence)
    about = f"{judgment['questions']} questions, judged by {judgment['judge']}"
    console.print(
        Text(f"{about}; every text is in {run / 'evaluation' / ('judge-' + judgment['mode'] + '.json')}"),
        soft_wrap=True,
    )


def print_probe(result: dict[str, Any], run: Path) -> None:
    """Print the probability of unwanted words by layer, and how often answers contain them."""
    console = Console(highlight=False)
    table = Table(title="Probability that an answer begins with an unwanted word", title_justify="left")
    for name in ("layer", *result["layers"]):
        table.add_column(name, justify="right")
    for layer, row in enumerate(zip(*result["layers"].values(), strict=True)):
        table.add_row(str(layer) if layer else "embeddings", *(f"{value:.2e}" for value in row))
    console.print(table)
    for name, row in result["said"].items():
        console.print(
            f"{name:<10} unwanted words in {row['bad_words']:.1%} of the answers, refusals in {row['refusals']:.1%}"
        )
    ratio = "ratios by layer" if result.get("layer_ratios") else f"ratio {result['ratio']:g}"
    about = f"{result['prompts']} prompts, {ratio}; the curve is in {run / 'evaluation' / 'probe.svg'}"
    console.print(Text(about), soft_wrap=True)


def _format(name: str, value: float) -> str:
    if name == "reward":
        return f"{value:+.2f}"
    return f"{value:.1f}" if name == "tokens" else f"{value:.3f}"


def print_summary(summary: dict[str, Any], run: Path) -> None:
    """Print the comparison, the figures of the stages, and the next commands."""
    console = Console(highlight=False)
    if "actors" in summary:
        console.print(comparison_table(summary))
    if (sources := source_table(summary)) is not None:
        console.print(sources)
    for name in ("coarse over base", "fine over instruct"):
        if win := summary.get("wins", {}).get(name):
            console.print(
                f"{name}  wins {win['rate']:.2f} ± {win['se']:.2f}, at equal length {win['controlled']:.2f} (0.5: no "
                "better; judged by the reward it was trained on)",
                soft_wrap=True,
            )
    if "reward_model" in summary:
        console.print(f"reward model accuracy on held-out pairs  {summary['reward_model']['accuracy']:.3f}")
    coarse = summary.get("coarse")
    if coarse and coarse.get("algorithm") == "dpo":
        console.print(
            f"coarse actor  DPO, {coarse['steps']} steps: {coarse['accuracy_last']:.2f} of the last batch's pairs "
            f"ranked right, margin {coarse['margin_last']:+.2f}"
        )
    elif coarse:
        console.print(
            f"coarse actor  reward {coarse['reward_first']:+.2f} in the first batch under a limit of "
            f"{coarse['limit_first']} tokens, {coarse['reward_last']:+.2f} in the last under {coarse['limit_last']}"
        )
    if fine := summary.get("fine"):
        console.print(f"fine actor    residue merged at ratio {fine['ratio']:g}")
    if "actors" in summary and summary["actors"]["fine"]["reward"] <= summary["actors"]["instruct"]["reward"]:
        console.print("note: the fine actor is not better than the instruct model; train longer or look at the samples")
    seconds = summary["seconds"]
    console.print(f"time  {', '.join(f'{stage} {value:.0f} s' for stage, value in seconds.items())}")
    console.print(Text(f"saved in {run}"))
    next_commands = [f"{program()} train {run}/config.yaml --run-dir {run}"]
    if "actors" in summary:
        next_commands = [
            f"{program()} chat {run}      talk to all of them",
            f"{program()} app {run}       in the browser",
            f"{program()} report {run}    curves and samples",
        ]
    console.print("\nNext:", Text("".join(f"\n  {line}" for line in next_commands)))
    sys.stdout.flush()
