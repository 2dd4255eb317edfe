from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from mlx_serving.machine import devices
from mlx_serving.machine.devices import DeviceShare, cuda_devices, shares, split


def test_a_worker_alone_gets_everything() -> None:
    assert split(1, ["0", "1"], 8, {}) == [DeviceShare()]
    assert shares(1) == [DeviceShare()]


def test_without_gpus_workers_share_the_processors() -> None:
    assert split(3, [], 8, {}) == [DeviceShare(3, {"OPENBLAS_NUM_THREADS": "2"})] * 3
    assert split(3, [], 2, {}) == [DeviceShare(3, {"OPENBLAS_NUM_THREADS": "1"})] * 3
    assert split(2, [], 8, {"OPENBLAS_NUM_THREADS": "8"}) == [DeviceShare(2)] * 2


def test_each_worker_has_a_gpu_of_its_own_as_far_as_there_are_several() -> None:
    one, other = {"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "6"}
    assert split(2, ["4", "6"], 8, {}) == [DeviceShare(1, one), DeviceShare(1, other)]
    assert split(3, ["4", "6"], 8, {}) == [DeviceShare(2, one), DeviceShare(1, other), DeviceShare(2, one)]


def test_cuda_devices_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "_CUDA_BUILDS", ("no-such-distribution",))
    assert cuda_devices() == []
    monkeypatch.setattr(devices, "_CUDA_BUILDS", ("no-such-distribution", metadata.metadata("pytest")["Name"]))
    monkeypatch.setattr(devices, "_NVIDIA_GPUS", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cuda_devices() == []
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert cuda_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1,")
    assert cuda_devices() == ["3", "1"]
