"""Corpora of text. A corpus is a component of the axis `data`.

A corpus of your own is one class and one YAML file:

    @CORPORA.register("poems")
    class Poems(Corpus):
        def __init__(self, *, author: str): ...

        def documents(self): ...
        def fingerprint(self): ...

`data/poems.yaml`, in a folder that hydra.searchpath names:

    defaults: [/base_corpus, _self_]
    name: poems
    author: ???
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ablate.data.prepare import Prepared, TextSettings, prepare
from ablate.errors import AblateError
from ablate.registry import Axis

CORPORA = Axis("data")


class Corpus:
    """A corpus of text: a `Source` that opens. A subclass defines `documents` and `fingerprint`."""

    Settings = TextSettings
    remedy = "give it more documents"

    @property
    def name(self) -> str:
        """The name that the class is registered under.

        Raises:
            LookupError: it is not registered.
        """
        for name in CORPORA.names():
            if CORPORA.component(name) is type(self):
                return name
        raise LookupError(f"{type(self).__name__} is not registered; use @CORPORA.register(NAME)")

    def documents(self) -> Iterator[str]:
        """See `Source.documents`."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        raise NotImplementedError

    def open(self, settings: TextSettings, seed: int, cache_dir: Path) -> Prepared:
        """The corpus as packed rows; prepares it in `cache_dir` the first time. `seed` has no effect.

        Raises:
            AblateError: see `prepare`.
        """
        return prepare(self, settings, cache_dir)


def hash_files(files: Iterable[Path], root: Path, *options: object) -> str:
    """SHA-256 (hex) of `options` and of the contents of `files` and their names relative to `root`.

    The location of `root` and timestamps do not count, so a copy of the files has the same hash.

    Raises:
        AblateError: a file cannot be read.
    """
    digest = hashlib.sha256(repr(options).encode())
    for file in files:
        try:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError as error:
            raise AblateError(f"data.path={file}: cannot read it ({error.strerror}); repair or remove it") from error
        digest.update(f"{file.relative_to(root).as_posix()}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
