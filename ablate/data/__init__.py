"""Documents -> tokens -> packed rows. A corpus is built with `CORPORA.build({"name": ...})`."""

from ablate.data.contract import Opened, RowSource, Settings
from ablate.data.corpus import CORPORA, Corpus
from ablate.data.hub import Hub
from ablate.data.order import StepOrder
from ablate.data.packing import PACKERS, Rows
from ablate.data.prepare import Prepared, prepare
from ablate.data.rows import PackedRows
from ablate.data.task import Task
from ablate.data.tasks import Copy, Induction, Leak, Recall
from ablate.data.text import Text
from ablate.data.tokenizer import Tokenizer

__all__ = [
    "CORPORA",
    "PACKERS",
    "Copy",
    "Corpus",
    "Hub",
    "Induction",
    "Leak",
    "Opened",
    "PackedRows",
    "Prepared",
    "Recall",
    "RowSource",
    "Rows",
    "Settings",
    "StepOrder",
    "Task",
    "Text",
    "Tokenizer",
    "prepare",
]
