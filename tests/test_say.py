"""Messages: on stderr unless the user of the package wants them elsewhere."""

import ast
import logging
import sys
from pathlib import Path

import pytest

from star_upstream.say import LOG, progress, say

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def logger(monkeypatch):
    monkeypatch.setattr(LOG, "handlers", [])
    monkeypatch.setattr(LOG, "propagate", True)
    before = LOG.level
    LOG.setLevel(logging.NOTSET)
    yield LOG
    LOG.setLevel(before)


def test_a_message_is_a_line_on_stderr_said_once(logger, capsys):
    logging.getLogger().addHandler(handler := logging.StreamHandler())
    say("50 % of it")
    say("\r1 of 2", end="")
    say("\r2 of 2")
    logging.getLogger().removeHandler(handler)
    out, err = capsys.readouterr()
    assert out == "" and err == "50 % of it\n\r1 of 2\r2 of 2\n"


@pytest.mark.parametrize("terminal, said", [(True, "\r1 of 2\r2 of 2\n"), (False, "2 of 2\n")])
def test_progress_is_one_line(logger, capsys, monkeypatch, terminal, said):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    progress("1 of 2")
    progress("2 of 2", last=True)
    assert capsys.readouterr().err == said


def test_a_user_silences_it_or_takes_it(logger, capsys):
    logger.setLevel(logging.WARNING)
    say("not heard")
    logger.setLevel(logging.INFO)
    taken = []
    handler = logging.Handler()
    handler.emit = lambda record: taken.append(record.getMessage())
    logger.handlers[:] = [handler]
    say("heard")
    assert taken == ["heard"] and capsys.readouterr().err == ""


def test_nothing_else_writes_to_stderr():
    for file in [*(REPO / "star_upstream").rglob("*.py"), *(REPO / "eval").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stderr.write"):
                told = "stderr" in ast.unparse(node)
                assert not told or file.name == "say.py", f"{file.name}:{node.lineno}: say() it"
