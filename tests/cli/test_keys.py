from __future__ import annotations

import json
import stat
from pathlib import Path

from mlx_serving.config.api_keys import read_keys

from ..command_line import run


def _keys(home: Path, *arguments: str, status: int = 0, typed: str = "") -> tuple[str, str]:
    ended = run(home, "keys", *arguments, stdin=typed)
    assert ended.returncode == status, ended.stderr
    return ended.stdout, ended.stderr


def test_a_key_is_made_shown_once_listed_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    (tmp_path / "mlx-serving.yaml").write_text(json.dumps({"keys": {"file": str(path)}}))
    limits = ("--models", "a, b", "--requests-per-minute", "60", "--daily-tokens", "1000", "--priority", "low")
    out, told = _keys(tmp_path, "add", "ann", *limits, "--expires", "2030-01-31")
    secret = out.strip()
    assert "shown only now" in told
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret not in path.read_text()
    (key,) = read_keys(path)
    assert key.matches(secret.encode())
    assert not key.matches(secret[:-1].encode())
    assert (key.models, key.requests_per_minute, key.daily_tokens, key.priority) == (["a", "b"], 60, 1000, "low")

    other = _keys(tmp_path, "add", "bob")[0].strip()
    assert len({secret, other, *(each.hash for each in read_keys(path))}) == 4
    listed, _ = _keys(tmp_path, "list")
    assert "2030-01-31 00:00 UTC" in listed
    assert [line.split()[0] for line in listed.splitlines()] == ["name", "ann", "bob"]
    assert secret not in listed

    assert "is a key ann already" in _keys(tmp_path, "add", "ann", status=2)[1]
    assert "did you mean ann?" in _keys(tmp_path, "remove", "anne", status=2)[1]
    _keys(tmp_path, "remove", "ann")
    assert [each.name for each in read_keys(path)] == ["bob"]


def test_what_is_not_right_is_refused_by_name(tmp_path: Path) -> None:
    file = ("--file", str(tmp_path / "keys.json"))
    assert "keys.file" in _keys(tmp_path, "list", status=2)[1]
    assert "keys.file" in _keys(tmp_path, "list", "--file", "", status=2)[1]
    assert "No such file" in _keys(tmp_path, "list", *file, status=2)[1]
    for arguments, expected in [
        (
            ("a b",),
            "argument NAME: must be 1 to 64 letters, digits and . _ @ -, the first a letter or a digit, got 'a b'",
        ),
        (("a", "--tokens-per-minute", "0"), "--tokens-per-minute: must be a whole number of at least 1, got '0'"),
        (("a", "--daily-tokens", "many"), "--daily-tokens: must be a whole number of at least 1, got 'many'"),
        (("a", "--models", "x,,y"), "--models: must be names of models, separated by commas, got 'x,,y'"),
        (("a", "--expires", "soon"), "--expires must be a day or a time"),
        (("a", "--expires", "2020-01-01"), "--expires must be in the future, got '2020-01-01'"),
    ]:
        assert expected in " ".join(_keys(tmp_path, "add", *arguments, *file, status=2)[1].split())
    assert not (tmp_path / "keys.json").exists()


def test_a_key_of_ones_own_is_hashed_if_it_is_long_enough(tmp_path: Path) -> None:
    mine = "x" * 40
    hashed = _keys(tmp_path, "hash", typed=mine + "\n")[0].strip()
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "me", "hash": hashed}]}))
    assert read_keys(path)[0].matches(mine.encode())
    refused = _keys(tmp_path, "hash", typed="short\n", status=2)[1]
    assert "at least 32" in refused
    assert "short" not in refused
