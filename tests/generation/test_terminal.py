"""Prompts from files and from the terminal; texts written as they are generated."""

import io
import subprocess
import sys

import pytest

from ablate.errors import AblateError
from ablate.generation import terminal


@pytest.fixture
def prompts_in(tmp_path):
    def write(name: str, data: bytes):
        (tmp_path / name).write_bytes(data)
        return terminal.read_prompts(tmp_path / name)

    return write


class Keys:
    """A terminal whose user types a sequence of lines, Ctrl-C (KeyboardInterrupt) and Ctrl-D (EOFError)."""

    def __init__(self, monkeypatch, *typed):
        self.typed, self.marks = iter(typed), []
        monkeypatch.setattr("builtins.input", self.input)

    def input(self, mark):
        self.marks.append(mark)
        key = next(self.typed)
        if isinstance(key, str):
            return key
        raise key


def loud(prompt: str):
    """A continuation: the prompt's letters in capitals, one by one; "!" is a mistake, "^" the user's Ctrl-C."""
    if "!" in prompt:
        raise AblateError("prompt: no")

    def pieces():
        for letter in prompt:
            if letter == "^":
                raise KeyboardInterrupt
            yield letter.upper()

    return pieces()


def test_a_file_of_prompts_is_one_a_line(prompts_in):
    assert prompts_in("a.txt", "\ufeffdef \r\n\n  \nein \u2028 Wort\nlast".encode()) == [
        "def ",
        "  ",
        "ein \u2028 Wort",
        "last",
    ]


def test_a_jsonl_file_holds_prompts_of_several_lines(prompts_in):
    data = b'{"prompt": "a\\nb", "id": 3}\n\n{"prompt": "\\u65e5"}\n'
    assert prompts_in("a.jsonl", data) == prompts_in("a.JSONL", data) == ["a\nb", "日"]


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("a.txt", b"", "a.txt: no prompt in it"),
        ("a.txt", b"\n\r\n", "a.txt: no prompt in it"),
        ("a.txt", b"caf\xe9", "a.txt: not UTF-8 text .byte offset 3"),
        ("a.jsonl", b"", "a.jsonl: no prompt in it"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": ', "a.jsonl:2: broken JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: broken JSON"),
        ("a.jsonl", b'\n{"promt": "a"}', "a.jsonl:2: expected an object with a prompt"),
        ("a.jsonl", b'["prompt"]', "a.jsonl:1: expected an object with a prompt"),
        ("a.jsonl", b'{"prompt": 3}', "a.jsonl:1: expected an object with a prompt"),
        ("a.jsonl", b'{"prompt": ""}', "a.jsonl:1: expected an object with a prompt"),
    ],
)
def test_bad_files(prompts_in, name, data, said):
    with pytest.raises(AblateError, match=f"^prompts=.*{said}") as error:
        prompts_in(name, data)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "missing.txt", str(tmp_path / "missing.jsonl")):
        with pytest.raises(AblateError, match=r"^prompts=.*: cannot be read \("):
            terminal.read_prompts(path)


def test_all_prompts_are_checked_before_the_first_text(capsys):
    with pytest.raises(AblateError, match=r"^prompts: number 2, 'b! is longer than tw': prompt: no"):
        terminal.write(terminal.texts(["a", "b! is longer than twenty letters"], loud))
    assert capsys.readouterr().out == ""


def test_texts_stand_apart(capsys):
    terminal.write(terminal.texts(["ab", "日本 "], loud))
    assert capsys.readouterr().out == "abAB\n\n日本 日本 \n"


def test_each_piece_is_written_before_the_next_is_made(capfd, monkeypatch):
    monkeypatch.setattr(
        sys, "stdout", io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)))
    )  # as a pipe is
    seen = []

    def pieces():
        for letter in "xyz":
            seen.append(capfd.readouterr().out)
            yield letter

    terminal.write([("prompt ", pieces())])
    assert seen == ["prompt ", "x", "y"]


def test_an_interrupted_text_ends_its_line(capsys):
    with pytest.raises(KeyboardInterrupt):
        terminal.write([("ab^c", loud("ab^c"))])
    assert capsys.readouterr().out == "ab^cAB\n"


def test_piped_lines_are_prompts_as_they_come(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\n two \r\nthree"))
    assert not terminal.at_terminal()
    lines = terminal.piped()
    assert next(lines) == "one" and sys.stdin.tell() <= len("one\n\n")
    assert list(lines) == [" two \r", "three"]  # StringIO keeps line ends; a real pipe does not


def test_an_empty_pipe_is_a_missing_prompt(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    with pytest.raises(AblateError, match=r"^prompt: needs a value; set prompt=\.\.\. or prompts=FILE"):
        list(terminal.piped())


def test_a_pipe_that_is_not_utf8_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(AblateError, match="the standard input is not UTF-8"):
        list(terminal.piped())


def test_a_conversation(monkeypatch, capsys):
    keys = Keys(monkeypatch, "ab", "", "c^d", "e!", "f", EOFError())
    terminal.converse(loud)
    out, err = capsys.readouterr()
    assert out == "abAB\n\nc^dC\n\n\nfF\n\n\n"
    assert err == "error: prompt: no\n"
    assert keys.marks == ["> "] * 6


def test_ctrl_c_at_the_prompt_ends_the_conversation(monkeypatch, capsys):
    Keys(monkeypatch, "a", KeyboardInterrupt())
    terminal.converse(loud)
    assert capsys.readouterr().out == "aA\n\n\n"


def test_whoever_reads_may_leave():
    code = "from ablate.generation import terminal; terminal.write([('x' * 9, iter(lambda: 'y' * 99, 0))])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(4) == b"xxxx"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
