from typing import Any

import mlx.nn as nn

def linear_to_lora_layers(
    model: nn.Module, num_layers: int, config: dict[str, Any], use_dora: bool = False
) -> None: ...
def load_adapters(model: nn.Module, adapter_path: str) -> nn.Module: ...
