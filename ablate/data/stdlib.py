"""The corpus `stdlib`: the source code of Python's standard library."""

import ast
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ablate.data.corpus import CORPORA, Corpus, hash_files
from ablate.errors import AblateError

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}  # folders


@CORPORA.register("stdlib")
class Stdlib(Corpus):
    """The source of the running Python's own standard library: real text that every machine has.

    documents: `module`: each file is a document; `definition`: each top-level function and class.
    """

    def __init__(self, *, documents: Literal["module", "definition"] = "module"):
        self.unit = documents
        self.root = Path(sysconfig.get_path("stdlib"))

    def files(self) -> list[Path]:
        files = []
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [name for name in subfolders if name not in SKIPPED and not name.startswith("config-")]
            files += [Path(folder, name) for name in names if name.endswith(".py")]
        if not files:
            raise AblateError(f"data: no standard library source in {self.root}; use data=text data.path=FOLDER")
        return sorted(files)

    def documents(self) -> Iterator[str]:
        for file in self.files():
            try:
                source = file.read_bytes().decode("utf-8")
            except UnicodeDecodeError:  # a few modules have an older encoding
                continue
            for document in [source] if self.unit == "module" else definitions(source):
                if document.strip():
                    yield document

    def fingerprint(self) -> str:
        return hash_files(self.files(), self.root, "stdlib", self.unit)


def definitions(source: str) -> list[str]:
    """The top-level functions and classes of a module, with their decorators; empty if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            body = ast.parse(source).body
    except (SyntaxError, ValueError):
        return []
    lines = source.split("\n")  # the parser's lines; str.splitlines also splits at form feeds
    return [
        "\n".join(lines[min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 : node.end_lineno])
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
