from __future__ import annotations

import json
from pathlib import Path

from mlx_serving.catalog.prefix_records import Content, Tensor, make_private, path_of, write_record
from mlx_serving.core.prefix.record import DiskRecord, chain_key, pack, root_key

from ..command_line import run


def _write(folder: Path, model: str, *token_ids: int) -> Path:
    root, tokens = root_key(model, "", "blocks"), pack(token_ids)
    record = DiskRecord(chain_key(root, tokens), root, model, 0, tokens, 0, 0)
    make_private(path_of(folder, record).parent)
    write_record(folder, record, Content("blocks", "[]", [Tensor("U8", (2,), b"ab")]))
    return path_of(folder, record)


def test_what_is_kept_is_told_and_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "prefixes"
    paths = [_write(folder, "0123456789abcdef", 1, 2, 3), _write(folder, "fedcba9876543210", 4)]
    damaged = _write(folder, "fedcba9876543210", 5)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (tmp_path / "mlx-serving.yaml").write_text(json.dumps({"prefix_cache": {"disk": {"path": str(folder)}}}))

    told = run(tmp_path, "cache", "info")
    assert told.returncode == 0
    lines = [line.split() for line in told.stdout.splitlines()]
    assert [lines[0], lines[1][0]] == [[str(folder)], "model"]
    assert [line[:3] for line in lines[2:]] == [
        ["0123456789ab", "1", "3"],
        ["fedcba987654", "1", "1"],
        ["all", "2", "4"],
    ]
    assert lines[3][-1] == lines[4][-1] == "1"
    told = json.loads(run(tmp_path, "cache", "info", "--json").stdout)
    assert told["size_bytes"] == sum(path.stat().st_size for path in paths)
    assert [model["damaged"] for model in told["models"]] == [0, 1]

    cleared = run(tmp_path, "cache", "clear", "--path", str(folder))
    assert cleared.stdout.startswith("deleted 3 records")
    assert not any(folder.rglob("*.safetensors"))
    assert json.loads(run(tmp_path, "cache", "info", "--json").stdout)["models"] == []


def test_what_is_not_ours_stays_where_it_is(tmp_path: Path) -> None:
    path = _write(tmp_path, "0123456789abcdef", 1, 2, 3)
    others = [path.with_name("model.safetensors"), path.with_name(".hidden"), path.parent / "folder" / "file"]
    others[-1].parent.mkdir()
    for other in others:
        other.touch()
    [told] = json.loads(run(tmp_path, "cache", "info", "--json", "--path", str(tmp_path)).stdout)["models"]
    assert (told["records"], told["damaged"]) == (1, 0)
    cleared = run(tmp_path, "cache", "clear", "--path", str(tmp_path))
    assert cleared.stdout.startswith("deleted 1 records")
    assert all(other.exists() for other in others)
    assert not path.exists()


def test_a_folder_must_be_named_and_one_that_is_not_there_is_empty(tmp_path: Path) -> None:
    refused = run(tmp_path, "cache", "info")
    assert refused.returncode == 2
    assert "prefix_cache.disk.path" in refused.stderr
    assert "deleted 0 records" in run(tmp_path, "cache", "clear", "--path", str(tmp_path / "nowhere")).stdout
    assert run(tmp_path, "cache", "clear", "--path", "").returncode == 2
    (tmp_path / "file").touch()
    refused = run(tmp_path, "cache", "info", "--path", str(tmp_path / "file"))
    assert (refused.returncode, refused.stderr) == (2, f"mlx-serving: {tmp_path}/file is no folder\n")
