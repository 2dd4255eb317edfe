from __future__ import annotations

import pytest

from mlx_serving.machine.device import device_name


@pytest.mark.parametrize(
    ("device", "metal", "name"),
    [
        ("Device(cpu, 0)", False, "CPU"),
        ("Device(cpu, 0)", True, "CPU"),
        ("Device(gpu, 0)", True, "GPU (Metal)"),
        ("Device(gpu, 0)", False, "GPU (CUDA)"),
    ],
)
def test_a_device_has_a_name_that_people_know(device: str, metal: bool, name: str) -> None:
    assert device_name(device, metal=metal) == name
