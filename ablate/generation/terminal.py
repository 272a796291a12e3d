"""Reads prompts from a file or the terminal, and writes texts to the standard output as they are generated."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ablate.errors import AblateError


def read_prompts(path: str | Path) -> list[str]:
    """The prompts of a file: in .jsonl the field `prompt` of each line, in any other file each line that is not empty.

    Raises:
        AblateError: the file cannot be read, is not UTF-8, holds no prompt, or is .jsonl with a line without a prompt.
    """
    path = Path(str(path)).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise AblateError(f"prompts={path}: cannot be read ({error.strerror}); give a file of prompts") from error
    except UnicodeDecodeError as error:
        raise AblateError(f"prompts={path}: not UTF-8 text (byte offset {error.start}); convert it") from error
    prompts = [(number, line) for number, line in enumerate(lines, start=1) if line]
    if not prompts:
        raise AblateError(f"prompts={path}: no prompt in it; write one per line")
    if path.suffix.lower() == ".jsonl":
        return [_prompt_of(line, f"prompts={path}:{number}") for number, line in prompts]
    return [line for _, line in prompts]


def _prompt_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AblateError(f"{where}: broken JSON; repair or remove it") from error
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise AblateError(f'{where}: expected an object with a prompt, such as {{"prompt": "def "}}')
    return prompt


def texts(prompts: list[str], continuation: Callable[[str], Iterable[str]]) -> list[tuple[str, Iterable[str]]]:
    """Each prompt with its continuation. All prompts are checked before the first text is generated.

    Raises:
        AblateError: a prompt that cannot be continued; the message gives its number.
    """
    checked = []
    for number, prompt in enumerate(prompts, start=1):
        try:
            checked.append((prompt, continuation(prompt)))
        except AblateError as error:
            raise AblateError(f"prompts: number {number}, {prompt[:20]!a}: {error}") from error
    return checked


def at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def piped() -> Iterator[str]:
    """Each line of the standard input that is not empty, as soon as it arrives.

    Raises:
        AblateError: there is no such line, or the input is not UTF-8 text.
    """
    prompt = None
    for prompt in _typed():
        yield prompt
    if prompt is None:
        raise AblateError("prompt: needs a value; set prompt=... or prompts=FILE, or write one per line to the input")


def _typed(mark: str = "") -> Iterator[str]:
    while True:
        try:
            line = input(mark)
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise AblateError("prompt: the standard input is not UTF-8 text; convert it") from error
        if line:
            yield line


def write(texts: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Writes prompts and their continuations to the standard output, piece by piece, with an empty line between texts.

    If the reader closes the pipe, the process ends silently with exit status 141, like other programs in a pipe.
    """
    try:
        for number, (prompt, pieces) in enumerate(texts):
            _put("\n" if number else "")
            _write_one(prompt, pieces)
    except BrokenPipeError:
        sys.exit(141)  # 128 + SIGPIPE
    except OSError as error:
        raise AblateError(f"the text cannot be written to the standard output: {error.strerror}") from error


def converse(continuation: Callable[[str], Iterable[str]]) -> None:
    """Continues each line typed at the terminal, until Ctrl-D or Ctrl-C at the prompt.

    A mistake in a line, or Ctrl-C while its text is written, ends only that text.
    """
    with contextlib.suppress(ImportError):  # some builds of Python lack it
        import readline  # noqa: F401  (gives `input` its line editing)

    prompts = _typed("> ")
    while True:
        try:
            prompt = next(prompts, None)
        except KeyboardInterrupt:
            prompt = None
        if prompt is None:
            _put("\n")
            return
        try:
            _write_one(prompt, continuation(prompt))
        except AblateError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            pass
        _put("\n")


def _write_one(prompt: str, pieces: Iterable[str]) -> None:
    try:
        _put(prompt)
        for piece in pieces:
            _put(piece)
    finally:  # also after Ctrl-C, so that the next output starts on a new line
        _put("\n")


def _put(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
