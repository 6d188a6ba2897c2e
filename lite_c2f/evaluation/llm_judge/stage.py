"""Judging of a finished run's actors by a language model, with results by category."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lite_c2f.actors.names import FINE, INSTRUCT
from lite_c2f.backbone.machine import plan_here
from lite_c2f.config.loading import load_config
from lite_c2f.config.settings import Config
from lite_c2f.errors import ConfigError
from lite_c2f.evaluation.actor_names import check_actors
from lite_c2f.evaluation.llm_judge.conversations import answer_all
from lite_c2f.evaluation.llm_judge.judges import Judge
from lite_c2f.evaluation.llm_judge.judging import (
    RULE,
    grade_table,
    grade_tasks,
    most_common,
    pair_table,
    pair_tasks,
    run_judge,
)
from lite_c2f.evaluation.llm_judge.questions import load_questions
from lite_c2f.evaluation.llm_judge.verdicts import read_grade, read_verdict
from lite_c2f.evaluation.metrics import repeated_ngrams_across
from lite_c2f.memory import resolve
from lite_c2f.runs.manifest import check_actor_settings, open_run
from lite_c2f.runs.published import is_finished
from lite_c2f.runtime import disk_errors
from lite_c2f.runtime.progress import ProgressSink, SilentSink
from lite_c2f.runtime.record import recording
from lite_c2f.storage.files import write_json
from lite_c2f.storage.lock import locked

MODES = ("pairwise", "single")


def repeated_across_turns(conversations: Sequence[Sequence[str]]) -> float | None:
    """Share of the 4-word sequences of later answers that an earlier one of the conversation has; None without any."""
    counts = [repeated_ngrams_across([answer.split() for answer in answers]) for answers in conversations]
    repeated, total = (sum(column) for column in zip(*counts, strict=True))
    return round(repeated / total, 4) if total else None


def judge(
    run: str | Path,
    questions: str | Path,
    make_judge: Callable[[Config], Judge],
    *,
    actors: Sequence[str] = (FINE, INSTRUCT),
    mode: str = "pairwise",
    references: str | Path | None = None,
    limit: int | None = None,
    overrides: Sequence[str] = (),
    sink: ProgressSink | None = None,
) -> dict[str, Any]:
    """Let a language model judge the actors' answers to questions of one or more turns, as MT-Bench does.

    mode: `pairwise` compares the first actor with each of the others, in both orders; `single` grades every answer
    from 1 to 10. make_judge: called once the actors are out of memory. limit: at most so many questions, evenly spread.
    Writes RUN/evaluation/judge-MODE.json with every question, answer and judgment, and returns its tables. An
    interrupted judging resumes from its finished results. Raises ConfigError for unknown actors or modes.
    """
    run, sink = Path(run), sink or SilentSink()
    names = check_actors(actors)
    if mode not in MODES or (mode == "pairwise" and len(names) < 2):
        raise ConfigError.because(f"mode {mode} of {len(names)} actor(s)", "single, or pairwise of two", "name two")
    loaded = load_questions(Path(questions), Path(references) if references else None, limit)
    recorded, models = open_run(run)
    config = load_config(recorded.model_dump(), overrides)
    check_actor_settings(config, recorded)
    config = resolve(config, plan_here(config, models.base))
    folder = run / "evaluation"
    answers_file, judged_file = folder / "judge-answers.jsonl", folder / f"judge-{mode}.jsonl"
    with disk_errors.as_user_errors(run), locked(run), recording(run, sink, is_finished) as sink:
        sink.on_stage("answers", len(names), "actors")
        answers = answer_all(config, models, run, names, loaded, answers_file, lambda done: sink.on_step(done, {}))
        read: Callable[[str], Any] = read_verdict if mode == "pairwise" else read_grade
        pairs = [(names[0], other) for other in names[1:]] if mode == "pairwise" else []
        tasks = [task for pair in pairs for task in pair_tasks(loaded, answers, *pair)]
        tasks = tasks or grade_tasks(loaded, answers, names)
        judging = make_judge(config)
        sink.on_stage("judgments", len(tasks), "judgments")
        texts, refusals = run_judge(judging, tasks, judged_file, lambda done: sink.on_step(done, {}))
        result: dict[str, Any] = {"judge": judging.name, "questions": len(loaded), "mode": mode}
        result |= {"refused": len(refusals), "adapted": judging.adapted}
        result["repeated_across_turns"] = {name: repeated_across_turns(answers[name]) for name in names}
        if pairs:
            tables = {f"{left} over {right}": pair_table(loaded, texts, left, right) for left, right in pairs}
            result |= {"rule": RULE, "pairs": tables}
        else:
            result["grades"] = grade_table(loaded, texts, names)
        rows = [
            {**question._asdict(), "answers": {name: answers[name][index] for name in names}}
            for index, question in enumerate(loaded)
        ]
        for note in judgment_notes(texts, refusals, judging.adapted, read):
            sink.on_message(note)
        write_json(folder / f"judge-{mode}.json", result | {"rows": rows, "judgments": texts, "refusals": refusals})
        answers_file.unlink(missing_ok=True)
        judged_file.unlink(missing_ok=True)
    return result


def judgment_notes(
    texts: Mapping[str, str], refusals: Mapping[str, str], adapted: Sequence[str], read: Callable[[str], Any]
) -> list[str]:
    """Messages on settings that the judge does not accept, refused judgments, and unreadable ones."""
    notes = [f"the judge: {sentence}" for sentence in adapted]
    if refusals:
        reason = most_common(refusals.values())
        notes.append(f"{len(refusals)} of {len(texts)} judgments were refused and count as unread: {reason}")
    unread = [text for name, text in texts.items() if name not in refusals and read(text) is None]
    if unread:
        example = " ".join(unread[0].split())[:80]
        notes.append(f"{len(unread)} of {len(texts)} judgments could not be read; one began: {example!r}")
    return notes
