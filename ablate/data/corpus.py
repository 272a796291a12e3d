"""Where documents come from. A corpus is a component of the axis `data`."""

import ast
import hashlib
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from ablate.data.prepare import Prepared, TextSettings, prepare
from ablate.errors import AblateError
from ablate.registry import Axis

CORPORA = Axis("data")
NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


class Corpus:
    """A source of documents. A subclass gives `documents` and `fingerprint`; its class name, in lower
    case, begins the name of the folder that holds the prepared corpus."""

    Settings = TextSettings
    remedy = "give it more documents"  # what to do about a corpus of a single document

    def documents(self) -> Iterator[str]:
        """The documents, none of them empty, always in the same order.

        Raises:
            AblateError: the source is missing, unreadable or holds no text.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of all that decides which documents come out.

        Raises:
            AblateError: the source is missing.
        """
        raise NotImplementedError

    def open(self, settings: TextSettings, seed: int, cache_dir: Path) -> Prepared:
        """The corpus as packed rows, prepared below `cache_dir` first if it is not there yet. No seed changes it.

        Raises:
            AblateError: as `prepare`.
        """
        return prepare(
            self,
            tokenizer=settings.tokenizer,
            vocab_size=settings.vocab_size,
            context=settings.context,
            packing=settings.packing,
            val_fraction=settings.val_fraction,
            cache_dir=cache_dir,
            document_mask=settings.document_mask,
            restart_positions=settings.restart_positions,
        )


def hash_files(files: Iterable[Path], root: Path, *options: object) -> str:
    """SHA-256 over the names below `root` and the bytes of `files`, and over `options`.

    Neither the place of the folder nor its timestamps count, so a copy has the same fingerprint.

    Raises:
        AblateError: a file cannot be read.
    """
    digest = hashlib.sha256(repr(options).encode())
    for file in files:
        try:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise AblateError(f"data.path={file}: cannot read it ({error.strerror}); mend or remove it") from error
        digest.update(f"{file.relative_to(root).as_posix()}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@CORPORA.register("stdlib")
class Stdlib(Corpus):
    """The source of the running Python's own standard library: real text that every machine has.

    `documents`: one document per module file, or per top-level function and class (`definition`).
    """

    def __init__(self, *, documents: Literal["module", "definition"] = "module"):
        self.unit = documents
        self.root = Path(sysconfig.get_path("stdlib"))

    def files(self) -> list[Path]:
        found = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = [f for f in folders if f not in NOT_STDLIB and not f.startswith("config-")]
            found += [Path(folder, name) for name in names if name.endswith(".py")]
        if not found:
            raise AblateError(f"data: no standard library source in {self.root}; use data=text data.path=FOLDER")
        return sorted(found)

    def documents(self) -> Iterator[str]:
        for file in self.files():
            try:
                source = file.read_bytes().decode("utf-8")
            except UnicodeDecodeError:  # a module in an older encoding is no loss
                continue
            for document in [source] if self.unit == "module" else _definitions(source):
                if document.strip():
                    yield document

    def fingerprint(self) -> str:
        return hash_files(self.files(), self.root, "stdlib", self.unit)


def _definitions(source: str) -> list[str]:
    """The top-level functions and classes of a module, each with its decorators; none if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return []
    lines = source.split("\n")  # as the parser counts them; str.splitlines also cuts at form feeds
    return [
        "\n".join(lines[min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 : node.end_lineno])
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
