from pathlib import Path

import mlx.nn as nn

def load_sequence_classification_model(model_path: Path, lazy: bool = False) -> nn.Module: ...
