from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..command_line import command, environment, run
from .terminal import Terminal, at_terminal

CTRL_C, CTRL_D = "\x03", "\x04"


@contextmanager
def chatting(home: Path, *arguments: str) -> Generator[Terminal]:
    with at_terminal(command("chat", *arguments), home, environment(home)) as terminal:
        terminal.expect("is ready. /exit or Ctrl-D leaves, /clear starts over.")
        terminal.expect("> ")
        yield terminal


def test_a_conversation_with_the_embedded_model(tmp_path: Path) -> None:
    with chatting(tmp_path, "--temperature", "0", "--max-tokens", "200") as terminal:
        terminal.type("What is the capital of France?\n")
        terminal.expect("Paris")
        terminal.expect("> ")
        terminal.type("And of Germany?\n")
        terminal.expect("Berlin")
        terminal.expect("> ")
        terminal.type("Tell me a long story.\n")
        terminal.expect(" the ")
        terminal.type(CTRL_C)  # ends the answer, not the chat
        terminal.expect("> ")
        terminal.type("/exit\n")
        assert terminal.ended() == 0
    assert "Traceback" not in terminal.seen
    assert "Warning" not in terminal.seen


def test_clear_forgets_the_conversation(tmp_path: Path, tiny_model: Path) -> None:
    """The context has room for one question and its answer."""
    cap = ("--set", "models.served.0.context_length=40")
    with chatting(tmp_path, "--model", str(tiny_model), *cap, "--max-tokens", "8", "--stop", "> ") as terminal:
        terminal.type("hello\n")
        terminal.expect("\n> ")
        terminal.type("hello\n")
        terminal.expect("mlx-serving: The context holds 40 tokens")
        terminal.expect("\n> ")
        terminal.type("/clear\n")
        terminal.expect("> ")
        terminal.type("hello\n")
        terminal.expect("\n> ")
        terminal.type("/help\n")
        terminal.expect("there is no /help: /clear starts over, /exit leaves")
        terminal.expect("> ")
        terminal.type(CTRL_D)
        assert terminal.ended() == 0
    assert terminal.seen.count("mlx-serving:") == 1


def test_ctrl_c_at_the_prompt_leaves(tmp_path: Path, tiny_model: Path) -> None:
    with chatting(tmp_path, "--model", str(tiny_model)) as terminal:
        terminal.type(CTRL_C)
        terminal.type("\n")  # a signal just before Python waits for a line is noticed only when one comes
        assert terminal.ended() == 130
    assert "Traceback" not in terminal.seen


def test_lines_of_a_pipe_are_answered_without_a_prompt(tmp_path: Path) -> None:
    ended = run(tmp_path, "chat", "--temperature", "0", "--max-tokens", "20", stdin="What is the capital of France?\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("The capital of France is Paris")
