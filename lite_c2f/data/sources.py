"""Rows of a data source (file, glob, folder, hub dataset), each with its location for messages."""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from lite_c2f.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
JSON_TYPE = "extension<arrow.json>"
BATCH = 1000  # rows of a hub dataset that are converted together


class SourceSettings(Protocol):
    """Settings of a source. A weight below 1 keeps that share of the usable rows, above 1 repeats them."""

    @property
    def path(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def split(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...


def name_of(source: SourceSettings) -> str:
    """Name of a source in results: its path or hub name, the folder within it, and a split other than train.

    Sources of the same name (a hub dataset at two revisions, a file twice) are counted as one.
    """
    folder, split = getattr(source, "data_dir", None), source.split
    name = f"{source.path}/{folder}" if folder else source.path
    return f"{name} ({split})" if split not in (None, "train") else name


def read_rows(source: SourceSettings) -> Iterator[tuple[str, Any]]:
    """(location, row) of every row of a source; the location (file and row) is for messages.

    A row is usually {column: cell}, but a JSON file may hold any value instead. Cells of CSV are text.
    """
    files = local_files(source.path)
    for key in ("split", "revision", "data_dir"):
        if files and getattr(source, key, None) is not None:
            raise DataError.because(
                f"'{source.path}' is a local path with {key}={getattr(source, key)!r}",
                f"{key} for hub datasets only",
                f"remove {key}",
            )
    tables = [(str(file), _file_rows(file)) for file in files] if files else [(source.path, _hub_rows(source))]
    for name, rows in tables:
        empty = True
        for place, row in rows:
            empty = False
            yield f"{name}{place}", row
        if empty:
            raise DataError.because(f"{name}: no rows", "at least one", "check that the file is complete")


def local_files(path: str) -> list[Path]:
    """The local files of a file, folder or glob path; empty when it can only be a hub dataset."""
    local = Path(path).expanduser()
    if local.is_file():
        if not _is_data_file(local):
            raise DataError.because(f"{path}: suffix '{local.suffix}'", _suffixes(), "convert the file")
        return [local]
    if local.is_dir():
        files = list(local.iterdir())
    elif any(character in path for character in "*?["):
        try:
            files = list(Path(local.anchor).glob(str(local.relative_to(local.anchor))))
        except ValueError as error:
            raise DataError.because(f"'{path}': {_brief(error)}", "a pattern like data/*.jsonl", "correct it") from None
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) and not _is_data_file(local):
        return []
    else:
        raise DataError.because(f"no such file or folder '{path}'", f"{_suffixes()} or owner/name", "check the path")
    files = sorted(file for file in files if file.is_file() and _is_data_file(file))
    if not files:
        what = "folder" if local.is_dir() else "pattern"
        raise DataError.because(f"no data file in {what} '{path}'", _suffixes(), "check the path")
    return files


def _is_data_file(file: Path) -> bool:
    return file.name.lower().removesuffix(".gz").endswith(SUFFIXES) and not file.name.startswith(".")


def _suffixes() -> str:
    return ", ".join(SUFFIXES) + " (or those with .gz)"


def _file_rows(file: Path) -> Iterator[tuple[str, Any]]:
    name = file.name.lower()
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    try:
        data = gzip.decompress(file.read_bytes()) if name.endswith(".gz") else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError.because(f"{file}: cannot be read ({_brief(error)})", "a whole file", "fetch it again") from None
    yield from readers[Path(name.removesuffix(".gz")).suffix](data, str(file))


def _jsonl(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    # Not by `datasets`, which would not name the line. Split as bytes, because text may hold U+2028.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield f":{number}", _parsed(line, f"{name}:{number}", "one JSON object per line", 0)


def _json(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    rows = _parsed(data.removeprefix(b"\xef\xbb\xbf"), name, "a JSON list of rows (or the suffix .jsonl)", 1)
    if not isinstance(rows, list):
        inside = [key for key, value in rows.items() if isinstance(value, list)] if isinstance(rows, dict) else []
        do = f"write the list under '{inside[0]}' as the file" if len(inside) == 1 else "write the rows as one list"
        raise DataError.because(f"{name}: {type_and_text(rows)}", "a JSON list of rows", do)
    yield from ((f": row {number}", row) for number, row in enumerate(rows, 1))


def _parsed(data: bytes, where: str, expected: str, first_line: int) -> Any:
    try:
        return json.loads(_decoded(data, where))
    except json.JSONDecodeError as error:
        where = f"{where}:{error.lineno}" if first_line else where
        problem = f"{error.msg} at column {error.colno}"
        raise DataError.because(f"{where}: not JSON ({problem})", expected, "correct that line") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise DataError.because(f"{where}: not usable JSON ({_brief(error)})", expected, "correct it") from None


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError.because(f"{where}: byte {error.start} is not UTF-8", "UTF-8", "convert the file") from None


def _csv(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    # Not by `datasets`: type inference would turn the answers "42" and "None" into a number and a missing value.
    limit = csv.field_size_limit(sys.maxsize)  # transcripts exceed the 128 KiB default
    number = 0
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(_decoded(data, name), newline=""), strict=True)
        if len(names := list(reader.fieldnames or ())) == 1 and (separator := re.search("[;\t]", names[0])):
            got = f"{name}: one column, whose name holds {separator[0]!r}"
            raise DataError.because(got, "commas between the cells", "save it with commas")
        for column in reader.fieldnames or ():
            if list(reader.fieldnames or ()).count(column) > 1:
                raise DataError.because(f"{name}: column '{column}' twice", "every column once", "rename one")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                got = f"{name}: row {number} has too {'many' if None in row else 'few'} cells"
                raise DataError.because(got, "one for each column", "quote cells that hold commas or line breaks")
            rows.append(row)
    except csv.Error as error:
        where = f"{name}: row {number + 1}"
        raise DataError.because(f"{where}: not CSV ({_brief(error)})", "comma-separated rows", "quote it") from None
    finally:
        csv.field_size_limit(limit)
    yield from ((f": row {number}", row) for number, row in enumerate(rows, 1))


def _parquet(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    # Not by `datasets`, which would first copy everything into a cache folder.
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        yield from _table_rows(table, name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError.because(f"{name}: not Parquet ({_brief(error)})", "a Parquet file", "fetch it again") from None


def _table_rows(table: Any, name: str, before: int = 0) -> Iterator[tuple[str, Any]]:
    """Rows of an Arrow table, with JSON text decoded. before: number of rows of the source before this table."""
    columns = [(field.name, field.type) for field in table.schema if JSON_TYPE in str(field.type)]
    for number, row in enumerate(table.to_pylist(), before + 1):
        for column, arrow in columns:
            row[column] = _json_decoded(row[column], arrow, f"{name}: row {number}, '{column}'")
        yield f": row {number}", row


def _json_decoded(value: Any, arrow: Any, where: str) -> Any:
    """A value of an Arrow type, with the JSON text in it decoded.

    `datasets` stores values of mixed types or keys (a text in one row, messages in another) as JSON text of the type
    arrow.json, at any depth, and pyarrow returns that text. A text that is JSON itself is stored unchanged, so that the
    answer "42" cannot be distinguished from the number: numbers, true, false and null stay text, which can be used.
    Raises DataError for a text that is not JSON.
    """
    import pyarrow.types as kinds

    if value is None:
        return None
    if str(arrow) == JSON_TYPE:
        decoded = _parsed(value.encode(), where, "JSON, as the column's type says", 0)
        return decoded if isinstance(decoded, str | list | dict) else value
    if kinds.is_struct(arrow):
        return {field.name: _json_decoded(value[field.name], field.type, where) for field in arrow}
    if kinds.is_map(arrow):
        return [(key, _json_decoded(item, arrow.item_type, where)) for key, item in value]
    if isinstance(value, list):
        return [_json_decoded(item, arrow.value_type, where) for item in value]
    return value


def _hub_rows(source: SourceSettings) -> Iterator[tuple[str, Any]]:
    import datasets  # slow to import, and needed for the hub only

    options = {"split": source.split or "train", "revision": source.revision}
    if folder := getattr(source, "data_dir", None):
        options["data_dir"] = folder
    try:
        rows = datasets.load_dataset(source.path, **options)
    except Exception as error:  # the hub client raises many unrelated exceptions
        got = f"'{source.path}': no such folder here, and not loaded from the hub ({_brief(error)})"
        raise DataError.because(
            got, f"a local path, or a dataset with split '{options['split']}'", "check it"
        ) from None
    if isinstance(rows, datasets.Dataset) and JSON_TYPE in str(rows.features.arrow_schema):
        for batch, table in enumerate(
            rows.with_format("arrow").iter(BATCH)
        ):  # `datasets` itself would decode texts to numbers
            yield from _table_rows(table, source.path, batch * BATCH)
    else:
        yield from ((f": row {number}", row) for number, row in enumerate(rows, 1))


def _brief(error: BaseException) -> str:
    """The first line of an error message, which may be a paragraph."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def type_and_text(value: Any) -> str:
    """Type and shortened text of a value, for a message."""
    return f"{type(value).__name__} {json.dumps(value, ensure_ascii=True, default=str)[:60]}"
