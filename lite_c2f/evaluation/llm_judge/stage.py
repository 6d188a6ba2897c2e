"""A finished run before a judge: who answers best, and in which category."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lite_c2f.backbone.load import plan_here
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config
from lite_c2f.errors import ConfigError
from lite_c2f.evaluation.llm_judge.conversations import answer_all, check_actors
from lite_c2f.evaluation.llm_judge.judges import Judge
from lite_c2f.evaluation.llm_judge.pairwise import (
    RULE,
    ask,
    grade_table,
    grade_tasks,
    most_common,
    pair_table,
    pair_tasks,
)
from lite_c2f.evaluation.llm_judge.questions import load_questions
from lite_c2f.evaluation.llm_judge.verdicts import read_grade, read_verdict
from lite_c2f.evaluation.metrics import said_before
from lite_c2f.memory import resolve
from lite_c2f.runs.manifest import check_own, open_run
from lite_c2f.runs.published import is_finished
from lite_c2f.runtime import disk_errors
from lite_c2f.runtime.progress import ProgressSink, SilentSink
from lite_c2f.runtime.record import recording
from lite_c2f.storage.files import write_json
from lite_c2f.storage.lock import locked

MODES = ("pairwise", "single")


def repeated_across_turns(conversations: Sequence[Sequence[str]]) -> float | None:
    """Share of all 4-word sequences in later answers that an earlier one of the conversation had; None without any."""
    counts = [said_before([answer.split() for answer in answers]) for answers in conversations]
    repeated, total = (sum(column) for column in zip(*counts, strict=True))
    return round(repeated / total, 4) if total else None


def judge(
    run: str | Path,
    questions: str | Path,
    make_judge: Callable[[Config], Judge],
    *,
    actors: Sequence[str] = ("fine", "instruct"),
    mode: str = "pairwise",
    references: str | Path | None = None,
    limit: int | None = None,
    overrides: Sequence[str] = (),
    sink: ProgressSink | None = None,
) -> dict[str, Any]:
    """Let a language model judge the actors' answers to questions of one or more turns, in the way of MT-Bench.

    mode: `pairwise` compares the first actor with each of the others, in both orders; `single` grades every answer
    from 1 to 10. make_judge: called once the actors are out of memory. limit: about so many questions, evenly spread.
    Writes RUN/evaluation/judge-MODE.json with every question, answer and judgment, and returns its tables. What was
    done before a stop is kept. Raises ConfigError for actors or a mode that do not exist.
    """
    run, sink = Path(run), sink or SilentSink()
    names = check_actors(actors)
    if mode not in MODES or (mode == "pairwise" and len(names) < 2):
        raise ConfigError.because(f"mode {mode} of {len(names)} actor(s)", "single, or pairwise of two", "name two")
    asked = load_questions(Path(questions), Path(references) if references else None, limit)
    made, models = open_run(run)
    config = load_config(made.model_dump(), overrides)
    check_own(config, made)
    config = resolve(config, plan_here(config, models.base))
    folder = run / "evaluation"
    answers_file, judged_file = folder / "judge-answers.jsonl", folder / f"judge-{mode}.jsonl"
    with disk_errors.as_user_errors(run), locked(run), recording(run, sink, is_finished) as sink:
        sink.on_stage("answers", len(names), "actors")
        said = answer_all(config, models, run, names, asked, answers_file, lambda done: sink.on_step(done, {}))
        read: Callable[[str], Any] = read_verdict if mode == "pairwise" else read_grade
        pairs = [(names[0], other) for other in names[1:]] if mode == "pairwise" else []
        tasks = [task for pair in pairs for task in pair_tasks(asked, said, *pair)]
        tasks = tasks or grade_tasks(asked, said, names)
        judging = make_judge(config)
        sink.on_stage("judgments", len(tasks), "judgments")
        told, refusals = ask(judging, tasks, judged_file, lambda done: sink.on_step(done, {}))
        found: dict[str, Any] = {"judge": judging.name, "questions": len(asked), "mode": mode}
        found |= {"refused": len(refusals), "adapted": judging.adapted}
        found["repeated_across_turns"] = {name: repeated_across_turns(said[name]) for name in names}
        if pairs:
            tables = {f"{left} over {right}": pair_table(asked, told, left, right) for left, right in pairs}
            found |= {"rule": RULE, "pairs": tables}
        else:
            found["grades"] = grade_table(asked, told, names)
        rows = [
            {**question._asdict(), "answers": {name: said[name][place] for name in names}}
            for place, question in enumerate(asked)
        ]
        for note in notes_on(told, refusals, judging.adapted, read):
            sink.on_message(note)
        write_json(folder / f"judge-{mode}.json", found | {"rows": rows, "judgments": told, "refusals": refusals})
        answers_file.unlink(missing_ok=True)
        judged_file.unlink(missing_ok=True)
    return found


def notes_on(
    texts: Mapping[str, str], refusals: Mapping[str, str], adapted: Sequence[str], read: Callable[[str], Any]
) -> list[str]:
    """What to say of how the judge was asked, of judgments that were refused, and of those that cannot be read."""
    notes = [f"the judge: {sentence}" for sentence in adapted]
    if refusals:
        sentence = most_common(refusals.values())
        notes.append(f"{len(refusals)} of {len(texts)} judgments were refused and count as unread: {sentence}")
    unread = [text for name, text in texts.items() if name not in refusals and read(text) is None]
    if unread:
        example = " ".join(unread[0].split())[:80]
        notes.append(f"{len(unread)} of {len(texts)} judgments could not be read; one began: {example!r}")
    return notes
