"""Settings of the data: sources with columns, weights and splits; truncation and the held-out share."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A frozen part of the configuration that refuses keys it does not know and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Cell = bool | int | float | str
_Cells = _Cell | tuple[_Cell, ...]


class Columns(Section):
    """Uses of a source's columns that have other than the usual names (docs/data.md).

    `a.b` names the key b within column a, of every item where a is a list.
    """

    prompt: str | tuple[str, ...] | None = Field(
        None, description="Text or messages; several columns are put together, a blank line between."
    )
    system: str | None = Field(None, description="Text that comes before the prompt.")
    chosen: str | None = Field(None, description="The preferred answer.")
    rejected: str | None = Field(None, description="The other answer.")
    answers: str | tuple[str, ...] | None = Field(
        None, description="In place of chosen and rejected: the columns of the answers, or one that holds a list."
    )
    best: str | None = Field(
        None,
        description="Of two answers: the column that says which is better, by its place (0 or 1) or its column's name.",
    )
    values: tuple[_Cells, ...] | None = Field(
        None, description="What `best` holds, where not places: for the first answer and for the second."
    )
    rank: str | tuple[str, ...] | None = Field(
        None, description="Ranks of the answers, the lowest is the best: it and the worst become the pair."
    )
    score: str | tuple[str, ...] | None = Field(None, description="Scores likewise, the highest is the best.")

    @model_validator(mode="after")
    def _one_way(self) -> "Columns":
        ways = [key for key in ("best", "rank", "score") if getattr(self, key) is not None]
        if self.answers is None and (ways or self.values is not None):
            raise ValueError(f"columns.{(*ways, 'values')[0]} needs columns.answers; name the columns of the answers")
        if self.answers is not None and (self.chosen or self.rejected or len(ways) != 1):
            raise ValueError("columns.answers needs one of best, rank and score, and no chosen or rejected; correct it")
        if self.values is not None and self.best is None:
            raise ValueError("columns.values needs columns.best; name the column that holds them")
        if self.values is not None and len(self.values) != 2:
            raise ValueError("columns.values needs two entries, for the first answer and for the second; correct it")
        if not isinstance(self.answers, str | None):
            score_columns = self.rank or self.score
            if len(self.answers) < 2 or (self.best and len(self.answers) != 2):
                raise ValueError(f"columns.answers={list(self.answers)}: best compares two columns, rank or score more")
            if score_columns is not None and (
                isinstance(score_columns, str) or len(score_columns) != len(self.answers)
            ):
                raise ValueError("columns.rank and columns.score need a column for each of columns.answers; list them")
        elif isinstance(self.rank or self.score, tuple):
            raise ValueError("columns.answers is one column, a list of answers; name one column of ranks or scores")
        return self


class Source(Section):
    """One source of data."""

    path: str = Field(min_length=1, description="A file, a glob, a folder, a hub dataset name, `toy` or `smollm2`.")
    weight: float = Field(1.0, gt=0, description="Share of its rows to use; above 1 repeats rows.")
    split: str | None = Field(None, description="Split of a hub dataset (default: train).")
    revision: str | None = Field(None, description="Commit of a hub dataset, to pin it.")
    data_dir: str | None = Field(None, description="Folder within a hub dataset.")
    columns: Columns | None = Field(None, description="What its columns hold, where they have other names.")
    rewards: tuple[str, ...] | None = Field(
        None, min_length=1, description="Of prompts: names of the sources of reward that apply to them (default: all)."
    )


def _as_sources(value: Any) -> Any:
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list | tuple):
        return [{"path": item} if isinstance(item, str) else item for item in value]
    return value


Sources = Annotated[tuple[Source, ...], BeforeValidator(_as_sources)]


def refuse_address(key: str, name: str, expected: str) -> None:
    """Raise ValueError for a URL, which nothing can read and which may hold a password that must not be saved."""
    if "://" in name:
        scheme = name.partition("://")[0][:20]
        raise ValueError(f"{key} is an address ({scheme}://...); expected {expected}; download it and name the files")


class Data(Section):
    """Where preference pairs and prompts come from."""

    preferences: Sources = Field((Source(path="toy"),), description="Preference pairs for the reward model.")
    prompts: Sources = Field((), description="Prompts for PPO and evaluation (default: the preferences' own).")
    max_prompt_tokens: int = Field(256, ge=8, description="Longer prompts lose their oldest turns, in tokens.")
    max_answer_tokens: int = Field(1024, ge=8, description="Longer preference answers are cut, in tokens.")
    held_out: float = Field(
        0.1, gt=0, lt=0.9, description="Share of the prompts of each source, with all their pairs, never trained on."
    )
    max_held_out: int = Field(
        512, ge=8, description="Most different prompts (of pairs, and of prompts) kept for evaluation."
    )
    truncated: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Extra pairs, as a share: a chosen answer over itself cut off. Teaches the reward model that an "
        "answer which runs into the limit is worse than one which ends. Our own.",
    )

    @model_validator(mode="after")
    def _no_addresses(self) -> "Data":
        for key in ("preferences", "prompts"):
            for source in getattr(self, key):
                refuse_address(f"data.{key}", source.path, "a file, a glob, a folder or a hub name")
                if source.rewards is not None and key == "preferences":
                    raise ValueError(f"data.preferences: {source.path} names rewards; name them in data.prompts")
        return self
