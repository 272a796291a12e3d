import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from ablate.data import CORPORA, Corpus, Text, TextSettings, Tokenizer, prepare
from ablate.errors import AblateError
from ablate.files import workspace

DOCUMENTS = [f"document {i}: " + "été of the 😀 fox " * (i % 7 + 1) for i in range(60)]
OPTIONS = {"tokenizer": None, "vocab_size": 280, "context": 32, "packing": "concat", "val_fraction": 0.2}
OTHERS = {"document_mask": True, "restart_positions": True, "batch_size": 1, "workers": 0, "max_rows": None}


def settings(**changes):
    return TextSettings(**OPTIONS | OTHERS | changes)


def write(folder, documents=DOCUMENTS):
    folder.mkdir(exist_ok=True)
    for i, document in enumerate(documents):
        (folder / f"{i:03}.txt").write_bytes(document.encode())
    return folder


def prepared(folder, cache, documents="file", **changes):
    corpus = Text(path=str(folder), documents=documents)
    return prepare(corpus, settings(**changes), cache, show_progress=False)


def split_documents(rows, tokenizer):
    """The documents of a split, read back from its stream."""
    ends = [*rows.starts[1:].tolist(), len(rows.stream) - 1]
    assert all(rows.stream[at] == tokenizer.eot for at in [*rows.starts, len(rows.stream) - 1])
    return [tokenizer.decode(rows.stream[s + 1 : e]) for s, e in zip(rows.starts, ends, strict=True)]


def test_every_document_is_in_one_split_and_comes_back(tmp_path):
    ours = prepared(write(tmp_path / "text"), tmp_path / "cache")
    train, val = (split_documents(rows, ours.tokenizer) for rows in (ours.train, ours.val))
    assert sorted(train + val) == sorted(DOCUMENTS)
    below = [d for d in DOCUMENTS if int(hashlib.sha256(d.encode()).hexdigest()[:16], 16) < 0.2 * 2**64]
    assert val == below and 0 < len(below) < len(DOCUMENTS)
    assert ours.val.bytes == sum(len(d.encode()) for d in val)
    assert ours.train.bytes == sum(len(d.encode()) for d in train)


def test_each_validation_target_is_scored_once_whatever_training_does(tmp_path):
    folder = write(tmp_path / "text")
    for packing in ("concat", "padded", "best_fit"):
        ours = prepared(
            folder, tmp_path / "cache", packing=packing, document_mask=False, restart_positions=False, context=16
        )
        batch = ours.val[range(len(ours.val))]
        scored = batch["targets"][batch["targets"] != -100]
        assert len(scored) == ours.val.targets == len(ours.val.stream) - 1
        assert sorted(scored.tolist()) == sorted(ours.val.stream[1:].tolist())
        assert (batch["positions"][batch["documents"] > 0]).min() == 0
        assert "documents" not in ours.train[[0]]


def test_the_tokenizer_is_trained_on_the_train_split_alone(tmp_path):
    documents = [chr(0x410 + i) * 50 for i in range(30)]  # each needs its own merges
    ours = prepared(write(tmp_path / "text", documents), tmp_path / "cache", vocab_size=400)
    train = split_documents(ours.train, ours.tokenizer)
    assert Tokenizer.train(train, 400).to_json() == ours.tokenizer.to_json()
    assert Tokenizer.train(documents, 400).to_json() != ours.tokenizer.to_json()


def test_documents_stay_in_their_split_when_others_come(tmp_path):
    few = prepared(write(tmp_path / "few", DOCUMENTS[:30]), tmp_path / "cache")
    all_ = prepared(write(tmp_path / "all"), tmp_path / "cache")
    assert few.folder != all_.folder
    for split in ("train", "val"):
        before = set(split_documents(getattr(few, split), few.tokenizer))
        after = set(split_documents(getattr(all_, split), all_.tokenizer))
        assert before == after & set(DOCUMENTS[:30])


def test_neither_split_is_ever_empty(tmp_path):
    folder = write(tmp_path / "text", DOCUMENTS[:2])
    for fraction in (1e-6, 1 - 1e-6):
        ours = prepared(folder, tmp_path / "cache", val_fraction=fraction)
        assert (len(ours.train.starts), len(ours.val.starts)) == (1, 1)


@pytest.mark.parametrize("documents", [["one alone"], ["the same", "the same"]])
def test_one_document_cannot_be_split(tmp_path, documents):
    folder = write(tmp_path / "text", documents)
    with pytest.raises(AblateError, match=r"document.*data\.documents=paragraph"):
        prepared(folder, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_second_call_reads_what_the_first_wrote(tmp_path, monkeypatch):
    folder = write(tmp_path / "text")
    first = prepared(folder, tmp_path / "cache")
    monkeypatch.setattr(Text, "documents", lambda self: pytest.fail("read again"))
    second = prepared(folder, tmp_path / "cache")
    assert second.report() == first.report() and second.fingerprint == first.fingerprint
    assert second.fingerprint.startswith(first.folder.name.removeprefix("text-")) and len(second.fingerprint) == 64
    prepared(folder, tmp_path / "cache", packing="padded", context=8)  # another packing, the same tokens
    assert sorted(f.name for f in first.folder.glob("rows-*")) == [
        "rows-train-concat-32.npz", "rows-train-padded-8.npz", "rows-val-best_fit-32.npz", "rows-val-best_fit-8.npz"
    ]  # fmt: skip


def test_the_fingerprint_follows_what_decides_the_tokens(tmp_path):
    folder = write(tmp_path / "text")
    first = prepared(folder, tmp_path / "cache").fingerprint
    assert prepared(folder, tmp_path / "elsewhere", context=8, packing="padded").fingerprint == first
    assert prepared(folder, tmp_path / "cache", vocab_size=270).fingerprint != first
    assert prepared(folder, tmp_path / "cache", val_fraction=0.3).fingerprint != first
    assert prepared(folder, tmp_path / "cache", documents="line").fingerprint != first


def test_a_given_tokenizer(tmp_path):
    Tokenizer.train(DOCUMENTS, 290).save(tmp_path / "tokenizer.json")
    folder, given = write(tmp_path / "text"), str(tmp_path / "tokenizer.json")
    ours = prepared(folder, tmp_path / "cache", tokenizer=given, vocab_size=290)
    assert len(ours.tokenizer) == 290
    message = r"^data\.tokenizer: .*tokenizer\.json has 290 tokens, but data\.vocab_size=280; set data\.vocab_size=290$"
    with pytest.raises(AblateError, match=message):
        prepared(folder, tmp_path / "cache", tokenizer=given)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    assert prepared(folder, tmp_path / "cache", tokenizer=str(tmp_path / "copy"), vocab_size=290).folder == ours.folder


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"packing": "bestfit"}, "data.packing='bestfit': no such choice; did you mean 'best_fit'"),
        ({"val_fraction": 0.0}, "data.val_fraction=0.0"),
        ({"val_fraction": 2}, "data.val_fraction=2"),
        ({"vocab_size": 100}, "data.vocab_size=100"),
        ({"context": 0}, "data.context=0"),
    ],
)
def test_bad_options_stop_before_anything_is_read(tmp_path, change, expected):
    with pytest.raises(AblateError) as caught:
        prepared(tmp_path / "nowhere", tmp_path / "cache", **change)
    assert str(caught.value).startswith(expected)


def test_a_corpus_too_small_for_a_batch(tmp_path):
    ours = prepared(write(tmp_path / "text"), tmp_path / "cache")
    ours.require(batch_size=2)
    with pytest.raises(AblateError, match=rf"has {ours.train.targets} training tokens, .* 1000 x 32 = 32000"):
        ours.require(batch_size=1000)


def test_the_report_is_plain_numbers_that_add_up(tmp_path):
    report = prepared(write(tmp_path / "text"), tmp_path / "cache").report()
    assert json.loads(json.dumps(report)) == report
    assert report["train_documents"] + report["val_documents"] == len(DOCUMENTS)
    assert report["train_tokens"] == report["train_rows"] * 32 + report["train_dropped"]
    assert 0.5 < report["val_utilisation"] <= 1


def test_half_a_surrogate_pair_does_not_stop_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "bad \\ud800 text"}\n{"text": "good"}\n')
    ours = prepared(tmp_path / "a.jsonl", tmp_path / "cache")
    assert ours.train.bytes + ours.val.bytes == len("bad ? text") + len("good")


def test_a_damaged_folder_is_named(tmp_path):
    folder = write(tmp_path / "text")
    ours = prepared(folder, tmp_path / "cache")
    with (ours.folder / "train.bin").open("ab") as file:
        file.write(b"xx")
    with pytest.raises(AblateError, match=r"damaged; delete that folder"):
        prepared(folder, tmp_path / "cache")


def test_a_folder_of_another_corpus_is_not_taken(tmp_path):
    folder = write(tmp_path / "text")
    manifest = prepared(folder, tmp_path / "cache").folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "0" * 64}))
    with pytest.raises(AblateError, match=r"damaged; delete that folder"):
        prepared(folder, tmp_path / "cache")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AblateError, match="cannot write in"):
        prepared(write(tmp_path / "text"), tmp_path / "file" / "cache")


class Failing(Corpus):
    name = "failing"

    def fingerprint(self):
        return "failing"

    def documents(self):
        yield "one"
        raise AblateError("no more")


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(AblateError, match="no more"):
        prepare(Failing(), settings(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def run_prepare(folder, cache, before=""):
    code = f"""
        import time
        from pathlib import Path
        from ablate.data import Text, TextSettings, Tokenizer, prepare
        {before}
        settings = TextSettings(**{OPTIONS | OTHERS!r})
        prepare(Text(path={str(folder)!r}), settings, Path({str(cache)!r}), show_progress=False)
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])


def test_a_killed_preparation_is_not_taken_for_a_finished_one(tmp_path):
    folder, cache = write(tmp_path / "text"), tmp_path / "cache"
    hang = "Tokenizer.encode_batch = lambda *_: time.sleep(60)"  # so that the kill comes while it tokenises
    child = run_prepare(folder, cache, hang)
    deadline = time.monotonic() + 60
    while not list(cache.glob(".preparing-*/corpus/train.bin")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    with workspace(cache):  # the folder of a living process stays
        assert list(cache.glob(".preparing-*/corpus/train.bin"))
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert list(cache.glob(".preparing-*/corpus/train.bin"))
    ours = prepared(folder, cache)
    assert [f.name for f in cache.iterdir()] == [ours.folder.name]
    assert len(ours.train.starts) + len(ours.val.starts) == len(DOCUMENTS)


def test_two_processes_may_prepare_at_once(tmp_path):
    folder, cache = write(tmp_path / "text"), tmp_path / "cache"
    wait = (
        "move = prepare.__globals__['put']; prepare.__globals__['put'] = lambda *paths: (time.sleep(2), move(*paths))"
    )
    children = [run_prepare(folder, cache, wait) for _ in range(2)]  # both start before either moves
    assert [child.wait() for child in children] == [0, 0]
    (only,) = cache.iterdir()
    assert only == prepared(folder, cache).folder


def test_the_default_corpus_can_be_prepared(tmp_path, monkeypatch):
    stdlib = CORPORA.build({"name": "stdlib"})
    files = stdlib.files()[:12]
    monkeypatch.setattr(type(stdlib), "files", lambda self: files)
    ours = prepare(stdlib, settings(packing="best_fit"), tmp_path, show_progress=False)
    assert ours.folder.name.startswith("stdlib-")
    assert ours.report()["train_utilisation"] > 0.9
    assert ours.train.stream.dtype == np.uint16
