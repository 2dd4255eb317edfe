from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

def load_model(
    model_path: Path,
    lazy: bool = False,
    strict: bool = True,
    model_config: dict[str, Any] | None = None,
    *,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, dict[str, Any]]: ...
def load_tokenizer(
    model_path: Path,
    tokenizer_config_extra: dict[str, Any] | None = None,
    eos_token_ids: int | list[int] | None = None,
) -> TokenizerWrapper: ...
def get_total_parameters(model: nn.Module) -> int: ...
def load_adapters(model: nn.Module, adapter_path: str) -> nn.Module: ...
