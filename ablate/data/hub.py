"""The corpus `hub`: any Hugging Face dataset, by its name or in a local folder."""

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from ablate.data.corpus import CORPORA, Corpus, hash_files
from ablate.data.text import first_line, quiet_datasets, text_of
from ablate.errors import AblateError, did_you_mean


@contextmanager
def hub_or_cache() -> Iterator[bool]:
    """Inside, Hugging Face libraries use the hub if it answers (yields True), else only what they have cached.

    Left alone, they try an unreachable hub again and again, for half a minute at each request.
    """
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    online = not any(before) and _answers(constants.ENDPOINT)
    if not online:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield online
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


@CORPORA.register("hub")
class Hub(Corpus):
    """A Hugging Face dataset: a name on the hub, a folder that `load_dataset` reads, or one made by `save_to_disk`.

    Without a `revision` the hub is asked for the newest one at each start; with one, a corpus that was
    prepared before opens without a network. `streaming` reads without first keeping a copy of the
    whole dataset; `max_documents` stops after so many.
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
        if not path:
            raise AblateError("data.path: needs a value; set data.path to a dataset's name or folder")
        if max_documents is not None and max_documents < 1:
            raise AblateError(f"data.max_documents={max_documents}: expected a positive number, or null for all")
        self.path, self.subset, self.split, self.field = path, subset, split, field
        self.revision, self.streaming, self.max_documents = revision, streaming, max_documents
        self.folder = Path(path).expanduser()
        if revision is not None and self.folder.is_dir():
            raise AblateError(f"data.revision={revision}: {path} is a local folder and has no revisions; unset it")

    def documents(self) -> Iterator[str]:
        texts = (text for text in self._texts() if text.strip())
        none = True
        for document in islice(texts, self.max_documents):
            none = False
            yield document
        if none:
            raise AblateError(f"data.path={self.path}: no text in its field '{self.field}'; set data.field")

    def fingerprint(self) -> str:
        options = ("hub", self.subset, self.split, self.field, self.max_documents)
        if self.folder.is_dir():
            files = (f for f in self.folder.rglob("*") if f.is_file())
            shown = (f for f in files if not any(p.startswith(".") for p in f.relative_to(self.folder).parts))
            return hash_files(sorted(shown), self.folder, *options)
        state = self.revision or self._newest_revision()
        return hashlib.sha256(repr((self.path, state, *options)).encode()).hexdigest()

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
                dataset = dataset.select_columns([self.field])  # spares decoding images and the like
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
        try:
            yield
        except AblateError:
            raise
        except ConnectionError as error:
            raise AblateError(
                f"data.path={self.path}: no such folder here, and the Hugging Face hub cannot be reached; "
                "mend the network, or set data.path to a local dataset folder"
            ) from error
        except Exception as error:  # `datasets` raises what its readers and the hub client raise
            raise AblateError(
                f"data.path={self.path}: cannot load it (data.subset={self.subset}, data.split={self.split}): "
                f"{first_line(error)}"
            ) from error
