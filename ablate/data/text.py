"""The corpus `text`: local files and folders."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from ablate import check
from ablate.data.corpus import CORPORA, Corpus, hash_files
from ablate.data.huggingface import first_line, quiet_datasets
from ablate.errors import AblateError, did_you_mean

PROSE = {".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".html"}
SOURCE = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".js", ".ts", ".java"}
SOURCE |= {".go", ".rs", ".sh", ".jl", ".r"}
RECORDS = {".jsonl", ".ndjson", ".json", ".csv", ".parquet"}


@CORPORA.register("text")
class Text(Corpus):
    """A file, or every readable file of a folder and its subfolders, in the order of their names.

    path: the file or folder.
    field: the field with the text in a record of .jsonl, .ndjson, .json, .csv and .parquet.
    documents: what a document is in plain text: a `file`, a `paragraph` (between blank lines) or a `line`.
    """

    def __init__(self, *, path: str, field: str = "text", documents: Literal["file", "paragraph", "line"] = "file"):
        self.path = Path(check.text("data.path", path)).expanduser()
        self.field = field
        self.unit = documents
        if documents == "file":
            self.remedy = "give it more files, or cut a plain text file with data.documents=paragraph"

    def files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        if not self.path.is_dir():
            raise AblateError(f"data.path={self.path}: no such file or folder; set data.path to your text")
        files = sorted(
            file
            for file in self.path.rglob("*")
            if file.suffix.lower() in PROSE | SOURCE | RECORDS
            and not any(part.startswith(".") for part in file.relative_to(self.path).parts)
            and file.is_file()
        )
        if not files:
            kinds = " ".join(sorted(RECORDS | {".txt", ".md", ".py"}))
            raise AblateError(f"data.path={self.path}: no file in it that can be read; it reads {kinds} and the like")
        return files

    def documents(self) -> Iterator[str]:
        empty = True
        for file in self.files():
            for document in self._read(file):
                if document.strip():
                    empty = False
                    yield document
        if empty:
            raise AblateError(f"data.path={self.path}: no text in it; give files that are not empty")

    def fingerprint(self) -> str:
        root = self.path if self.path.is_dir() else self.path.parent
        return hash_files(self.files(), root, "text", self.field, self.unit)

    def _read(self, file: Path) -> Iterator[str]:
        kind = file.suffix.lower()
        if kind in (".jsonl", ".ndjson"):
            return self._json_lines(file)
        if kind == ".json":
            return self._json(file)
        if kind in (".csv", ".parquet"):
            return self._table(file, kind[1:])
        if self.unit == "line":
            return (line.rstrip("\r\n") for line in _lines(file))
        if self.unit == "paragraph":
            return _paragraphs(file)
        return iter(["".join(_lines(file))])

    def _json_lines(self, file: Path) -> Iterator[str]:
        for number, line in enumerate(_lines(file), start=1):
            if line.strip():
                yield text_of(_parse(line, f"{file}:{number}"), self.field, f"{file}:{number}")

    def _json(self, file: Path) -> Iterator[str]:
        records = _parse("".join(_lines(file)), str(file), "; if each line is an object, name it .jsonl")
        if not isinstance(records, list):
            raise AblateError(
                f"data.path={file}: a .json file must be a list of objects; if each line is one, name it .jsonl"
            )
        for index, record in enumerate(records):
            yield record if isinstance(record, str) else text_of(record, self.field, f"{file}[{index}]")

    def _table(self, file: Path, kind: str) -> Iterator[str]:
        from glob import escape

        from datasets import load_dataset

        if file.stat().st_size == 0:
            return
        # Otherwise pandas reads a CSV cell such as "null" as a missing value.
        reading = {"keep_default_na": False} if kind == "csv" else {}
        data_files = escape(str(file.absolute()))
        try:
            with quiet_datasets():
                rows = load_dataset(kind, data_files=data_files, split="train", streaming=True, **reading)
                for index, row in enumerate(rows):
                    yield text_of(row, self.field, f"{file}[{index}]")
        except AblateError:
            raise
        except Exception as error:  # each reader raises its own exceptions for a damaged file
            reason = first_line(error.__cause__ or error)
            raise AblateError(f"data.path={file}: damaged, or not a {kind} file: {reason}; replace it") from error


def text_of(record: Any, field: str, where: str) -> str:
    """The text in the field `field` of `record`; null gives an empty text. Errors name the record `where`.

    Raises:
        AblateError: `record` is not an object, lacks the field, or has something other than text in it.
    """
    if not isinstance(record, dict):
        raise AblateError(f"data.path={where}: expected an object with a field '{field}', not {type(record).__name__}")
    if field not in record:
        raise AblateError(f"data.field: no field '{field}' in {where}{did_you_mean(field, map(str, record))}")
    value = record[field]
    if value is not None and not isinstance(value, str):
        raise AblateError(f"data.field: '{field}' in {where} is not text but {type(value).__name__}; choose another")
    return value or ""


def _parse(text: str, where: str, hint: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = (
            f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        )
        raise AblateError(f"data.path={where}: broken JSON: {reason}{hint}; repair or remove it") from error


def _lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends, one at a time, for files of any size."""
    offset = 0
    try:
        with file.open("rb") as opened:
            for line in opened:
                bad = line.find(b"\0")
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    bad = error.start if bad < 0 else min(bad, error.start)
                if bad >= 0:
                    raise AblateError(
                        f"data.path={file}: not UTF-8 text (byte offset {offset + bad}); convert or remove it"
                    )
                yield text.removeprefix("\ufeff") if offset == 0 else text
                offset += len(line)
    except OSError as error:
        raise AblateError(f"data.path={file}: cannot read it ({error.strerror}); repair or remove it") from error


def _paragraphs(file: Path) -> Iterator[str]:
    """The runs of lines between blank lines."""
    lines: list[str] = []
    for line in _lines(file):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines).rstrip("\r\n")
            lines = []
    yield "".join(lines).rstrip("\r\n")
