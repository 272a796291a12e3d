"""Documents -> tokens -> packed rows. Build a corpus with `CORPORA.build({"name": ...})`.

A corpus of your own subclasses `Corpus` (text) or `Task` (rows drawn at random) and is registered in `CORPORA`.
"""

from ablate.data.contract import Opened, RowSource, Settings, Source, TextSettings
from ablate.data.corpus import CORPORA, Corpus, hash_files
from ablate.data.hub import Hub
from ablate.data.order import StepOrder
from ablate.data.packing import PACKERS, Packing
from ablate.data.prepare import Prepared, prepare
from ablate.data.rows import IGNORE, PackedRows, pieces_of
from ablate.data.stdlib import Stdlib
from ablate.data.task import Task, TaskSettings
from ablate.data.tasks import Copy, Induction, Leak, LeakSettings, Recall
from ablate.data.text import Text
from ablate.data.tokenizer import Tokenizer

__all__ = [
    "CORPORA",
    "IGNORE",
    "PACKERS",
    "Copy",
    "Corpus",
    "Hub",
    "Induction",
    "Leak",
    "LeakSettings",
    "Opened",
    "PackedRows",
    "Packing",
    "Prepared",
    "Recall",
    "RowSource",
    "Settings",
    "Source",
    "Stdlib",
    "StepOrder",
    "Task",
    "TaskSettings",
    "Text",
    "TextSettings",
    "Tokenizer",
    "hash_files",
    "pieces_of",
    "prepare",
]
