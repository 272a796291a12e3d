"""The corpus `hub`: any Hugging Face dataset, by its name or in a local folder."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from ablate import check
from ablate.data.corpus import CORPORA, Corpus, hash_files
from ablate.data.huggingface import first_line, hub_or_cache, quiet_datasets
from ablate.data.text import text_of
from ablate.errors import AblateError, did_you_mean


@CORPORA.register("hub")
class Hub(Corpus):
    """A Hugging Face dataset: a name on the hub, a folder that `load_dataset` reads, or one made by `save_to_disk`.

    path: the name or folder.
    subset: a configuration of the dataset.
    split: the split to read; the train and validation splits of the run are made from it.
    field: the field with the text.
    revision: a commit, tag or branch. With it, a prepared corpus opens without a network; without it, every start asks
        the hub for the newest revision.
    streaming: read from the network, without a copy of the whole dataset on disk.
    max_documents: read only the first `max_documents` documents.
    """

    def __init__(
        self,
        *,
        path: str,
        subset: str | None = None,
        split: str = "train",
        field: str = "text",
        revision: str | None = None,
        streaming: bool = False,
        max_documents: int | None = None,
    ):
        check.text("data.path", path)
        check.whole("data.max_documents", max_documents, 1, null=True)
        self.path, self.subset, self.split, self.field = path, subset, split, field
        self.revision, self.streaming, self.max_documents = revision, streaming, max_documents
        self.folder = Path(path).expanduser()
        if revision is not None and self.folder.is_dir():
            raise AblateError(f"data.revision={revision}: {path} is a local folder and has no revisions; unset it")

    def documents(self) -> Iterator[str]:
        texts = (text for text in self._texts() if text.strip())
        empty = True
        for document in islice(texts, self.max_documents):
            empty = False
            yield document
        if empty:
            raise AblateError(f"data.path={self.path}: no text in its field '{self.field}'; set data.field")

    def fingerprint(self) -> str:
        options = ("hub", self.subset, self.split, self.field, self.max_documents)
        if self.folder.is_dir():
            files = (f for f in self.folder.rglob("*") if f.is_file())
            visible = (f for f in files if not any(p.startswith(".") for p in f.relative_to(self.folder).parts))
            return hash_files(sorted(visible), self.folder, *options)
        revision = self.revision or self._newest_revision()
        return hashlib.sha256(repr((self.path, revision, *options)).encode()).hexdigest()

    def _newest_revision(self) -> str:
        from datasets import load_dataset_builder

        with self._errors(), hub_or_cache():
            builder = load_dataset_builder(self.path, self.subset)
            return str(builder.hash)

    def _texts(self) -> Iterator[str]:
        local = self.folder.is_dir()
        with self._errors(), nullcontext() if local else hub_or_cache(), quiet_datasets():
            dataset = self._load()
            if dataset.column_names is not None:
                if self.field not in dataset.column_names:
                    valid = did_you_mean(self.field, dataset.column_names)
                    raise AblateError(f"data.field: no field '{self.field}' in {self.path}{valid}")
                dataset = dataset.select_columns([self.field])  # so that images in other fields are not decoded
            for index, row in enumerate(dataset):
                yield text_of(row, self.field, f"{self.path}[{index}]")

    def _load(self) -> Any:
        import datasets

        if self.folder.is_dir():
            saved = any((self.folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
            if not saved:
                return datasets.load_dataset(
                    str(self.folder.absolute()), self.subset, split=self.split, streaming=self.streaming
                )
            dataset = datasets.load_from_disk(str(self.folder))
            if not isinstance(dataset, datasets.DatasetDict):
                return dataset
            if self.split not in dataset:
                raise AblateError(
                    f"data.split: no split '{self.split}' in {self.path}{did_you_mean(self.split, dataset)}"
                )
            return dataset[self.split]
        return datasets.load_dataset(
            self.path, self.subset, split=self.split, revision=self.revision, streaming=self.streaming
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns the errors of `datasets` into one line for the user."""
        try:
            yield
        except AblateError:
            raise
        except ConnectionError as error:
            raise AblateError(
                f"data.path={self.path}: no such folder here, and the Hugging Face hub cannot be reached; "
                "check the network, or set data.path to a local dataset folder"
            ) from error
        except Exception as error:  # `datasets` raises what its readers and the hub client raise
            raise AblateError(
                f"data.path={self.path}: cannot load it (data.subset={self.subset}, data.split={self.split}): "
                f"{first_line(error)}"
            ) from error
