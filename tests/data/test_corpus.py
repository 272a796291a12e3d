import json
import shutil
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from ablate.data import CORPORA, hub, huggingface
from ablate.data.stdlib import definitions
from ablate.errors import AblateError


def corpus(name, **options):
    return CORPORA.build({"name": name, **{key: str(v) if key == "path" else v for key, v in options.items()}})


def texts(name, **options):
    return list(corpus(name, **options).documents())


def failure(name, **options):
    """The error message of reading the corpus, which must be one line."""
    with pytest.raises(AblateError) as caught:
        source = corpus(name, **options)
        source.fingerprint()
        list(source.documents())
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_importing_the_package_imports_no_datasets():
    code = "import sys, ablate.data; print([m for m in ('datasets', 'pyarrow', 'tokenizers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_stdlib_holds_the_library_and_not_its_tests_or_what_is_installed():
    source = corpus("stdlib")
    names = {file.relative_to(source.root).as_posix() for file in source.files()}
    assert {"ast.py", "json/decoder.py", "asyncio/tasks.py"} <= names
    assert not [n for n in names if {"site-packages", "test", "tests", "idle_test"} & set(n.split("/")[:-1])]
    documents = list(source.documents())
    assert documents == list(source.documents())
    assert (source.root / "ast.py").read_bytes().decode() in documents
    assert all(d.strip() for d in documents)


def test_stdlib_fingerprint_depends_on_the_option():
    assert corpus("stdlib").fingerprint() == corpus("stdlib").fingerprint()
    assert corpus("stdlib").fingerprint() != corpus("stdlib", documents="definition").fingerprint()


def test_definitions_carry_their_decorators_and_skip_the_rest():
    source = "import os\n\n@a\n@b(\n  1)\ndef f():\n    '\x0c'\n    return 1\n\nx = 2\nclass C:\n    y = 1\n# end\n"
    assert definitions(source) == [
        "@a\n@b(\n  1)\ndef f():\n    '\x0c'\n    return 1",
        "class C:\n    y = 1",
    ]
    assert definitions("def f(:\n") == []


def test_text_reads_each_kind_in_the_order_of_names(tmp_path):
    import pandas

    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\t\n".encode())
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n\n{"text": null}\n{"text": "four"}\n')
    (tmp_path / "c.json").write_text('[{"text": "five"}, "six"]')
    (tmp_path / "d.csv").write_text('id,text\n1,"seven, and\neight"\n2,null\n')
    pandas.DataFrame({"text": ["nine", "ten"], "id": [1, 2]}).to_parquet(tmp_path / "e.parquet")
    (tmp_path / "sub" / "f.md").write_text("eleven")
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "g.bin").write_bytes(b"\0\1")
    (tmp_path / "empty.txt").write_text("")
    assert texts("text", path=tmp_path) == [
        "one\r\ntwo\t\n", "three", "four", "five", "six", "seven, and\neight", "null", "nine", "ten", "eleven"
    ]  # fmt: skip


def test_text_reads_a_table_whose_name_looks_like_a_pattern(tmp_path):
    (tmp_path / "a[1]*.csv").write_text("text\nx y\n")
    assert texts("text", path=tmp_path / "a[1]*.csv") == ["x y"]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [("file", ["a\nb\r\n\n \n\nc\n"]), ("line", ["a", "b", "c"]), ("paragraph", ["a\nb", "c"])],
)
def test_text_cuts_plain_files(tmp_path, documents, expected):
    (tmp_path / "x.unknown").write_bytes(b"a\nb\r\n\n \n\nc\n")
    assert texts("text", path=tmp_path / "x.unknown", documents=documents) == expected


def test_text_fingerprint_follows_content_alone(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("hello")
    (tmp_path / "one" / "notes.xyz").write_text("not read")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = corpus("text", path=tmp_path / "one").fingerprint()
    assert first == corpus("text", path=tmp_path / "two").fingerprint()
    assert first != corpus("text", path=tmp_path / "one", documents="line").fingerprint()
    assert first != corpus("text", path=tmp_path / "one", field="body").fingerprint()
    (tmp_path / "two" / "notes.xyz").write_text("still not read")
    assert first == corpus("text", path=tmp_path / "two").fingerprint()
    (tmp_path / "two" / "a.txt").write_text("hellO")
    assert first != corpus("text", path=tmp_path / "two").fingerprint()
    (tmp_path / "one" / "sub").mkdir()
    (tmp_path / "one" / "a.txt").rename(tmp_path / "one" / "sub" / "a.txt")
    assert first != corpus("text", path=tmp_path / "one").fingerprint()


BAD_FILES = {
    "zeros.txt": (b"abc\ndef\0ghi", ["zeros.txt", "byte offset 7", "UTF-8"]),
    "latin.txt": ("good\ncaf\xe9 au lait".encode("latin-1"), ["latin.txt", "byte offset 8"]),
    "utf16.txt": ("hello".encode("utf-16"), ["utf16.txt", "byte offset 0"]),
    "empty.txt": (b"", ["no text"]),
    "blank.txt": (b" \n\t\n", ["no text"]),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', ["broken.jsonl:2", "JSON"]),
    "missing.jsonl": (b'{"txt": "a", "id": 1}\n', ["data.field", "'text'", "did you mean 'txt'", "id, txt", ":1"]),
    "number.jsonl": (b'{"text": 5}\n', ["data.field", "int"]),
    "lists.jsonl": (b"[1]\n", ["object", "list"]),
    "object.json": (b'{"text": "a"}', ["list", ".jsonl"]),
    "lines.json": (b'{"text": "a"}\n{"text": "b"}\n', ["broken JSON", ".jsonl"]),
    "deep.json": (b"[" * 100_000, ["broken JSON"]),
    "broken.parquet": (b"PAR1 this is no parquet file PAR1", ["broken.parquet", "parquet"]),
    "empty.parquet": (b"", ["no text"]),
    "missing.csv": (b"id,body\n1,a\n", ["data.field", "valid: body, id"]),
    "empty.csv": (b"", ["no text"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_text_names_what_is_wrong(tmp_path, name):
    content, expected = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    message = failure("text", path=tmp_path / name)
    assert message.startswith(("data.path", "data.field"))
    for part in expected:
        assert part in message


def test_text_needs_a_place_with_readable_files(tmp_path):
    assert "no such file or folder" in failure("text", path=tmp_path / "nowhere")
    (tmp_path / "picture.png").write_bytes(b"x")
    assert "no file in it that can be read" in failure("text", path=tmp_path)
    assert "data.path: it is empty" in failure("text", path="")
    assert "data.path" in failure("text")


def test_hub_reads_a_saved_dataset(tmp_path):
    from datasets import Dataset, DatasetDict

    data = Dataset.from_dict({"text": ["a", "", "b", "c"], "id": [1, 2, 3, 4]})
    data.save_to_disk(tmp_path / "one")
    DatasetDict({"train": data, "test": data.select([3])}).save_to_disk(tmp_path / "both")
    assert texts("hub", path=tmp_path / "one") == ["a", "b", "c"]
    assert texts("hub", path=tmp_path / "one", max_documents=2) == ["a", "b"]
    assert texts("hub", path=tmp_path / "both", split="test") == ["c"]
    assert "data.split" in failure("hub", path=tmp_path / "both", split="tests")
    assert "did you mean 'test'" in failure("hub", path=tmp_path / "both", split="tests")
    message = failure("hub", path=tmp_path / "one", field="txt")
    assert "data.field" in message and "did you mean 'text'" in message
    assert "not text but int" in failure("hub", path=tmp_path / "one", field="id")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    first = corpus("hub", path=tmp_path / "one").fingerprint()
    assert first == corpus("hub", path=tmp_path / "copy").fingerprint()
    assert first != corpus("hub", path=tmp_path / "one", max_documents=2).fingerprint()


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_reads_a_folder_of_files(tmp_path, monkeypatch, streaming):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        lines = [json.dumps({"text": f"{split} {i}"}) for i in range(3)]
        (tmp_path / "set" / f"{split}.jsonl").write_text("\n".join(lines))
    options = {"path": tmp_path / "set", "streaming": streaming}
    assert texts("hub", **options) == ["train 0", "train 1", "train 2"]
    assert texts("hub", split="test", max_documents=1, **options) == ["test 0"]
    assert "data.split=dev" in failure("hub", split="dev", **options)
    assert "did you mean 'text'" in failure("hub", field="texts", **options)


@pytest.mark.parametrize("status", [200, 404, None])
def test_hub_is_used_where_it_answers_and_the_cache_where_not(monkeypatch, status):
    import datasets
    from huggingface_hub import constants

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        if status:
            Thread(target=server.handle_request, daemon=True).start()
        else:
            server.server_close()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with huggingface.hub_or_cache() as online:
            assert online == bool(status)
            assert constants.HF_HUB_OFFLINE == datasets.config.HF_HUB_OFFLINE == (not online)
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_hub_without_a_network_says_so_at_once(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    message = failure("hub", path="someone/something")
    assert time.monotonic() - began < 10
    assert message.startswith("data.path=someone/something") and "cannot be reached" in message


def test_hub_fingerprint_follows_the_revision(monkeypatch):
    monkeypatch.setattr(hub.Hub, "_newest_revision", lambda self: "abc")
    newest = corpus("hub", path="a/b").fingerprint()
    assert newest == corpus("hub", path="a/b", revision="abc").fingerprint()
    assert newest != corpus("hub", path="a/b", revision="abd").fingerprint()
    assert newest != corpus("hub", path="a/b", subset="x").fingerprint()


def test_hub_refuses_options_without_meaning(tmp_path):
    assert "data.max_documents=0" in failure("hub", path="a/b", max_documents=0)
    assert "data.revision" in failure("hub", path=tmp_path, revision="main")
