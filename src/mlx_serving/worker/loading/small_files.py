"""What is read of a model without arrays, on a thread of its own: its config, its tokenizer, its processor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_tokenizer

from mlx_serving.core.images.models import sees
from mlx_serving.core.output.output_formats import MARKERS
from mlx_serving.wire.methods import LoadModelParams
from mlx_serving.worker.loading.model_files import OnProgress, blaming, find_directory, read_object, refuse_own_code
from mlx_serving.worker.loading.model_shape import vocabulary_of
from mlx_serving.worker.loading.weights import tensor_names
from mlx_serving.worker.token_bytes import TokenBytes
from mlx_serving.worker.tokenizing import PromptTokenizer, make_decoder
from mlx_serving.worker.vision.architecture import is_known
from mlx_serving.worker.vision.processing import Processor
from mlx_serving.worker.vision.tokenizer import VisionTokenizer, with_template

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""They say what becomes of the pixels of an image, and so what a model makes of it."""


class SmallFiles:
    """What a thread without arrays finds out: `find` first, then `read`."""

    directory: Path
    config: Mapping[str, object]
    digest: str
    generation_config: Mapping[str, object]
    words: Words
    sees: bool

    def __init__(self, params: LoadModelParams, on_progress: OnProgress) -> None:
        self._params = params
        self._on_progress = on_progress

    def find(self) -> None:
        directory = self.directory = find_directory(self._params, self._on_progress)
        with blaming("its config.json", self._params.model_id, directory):
            self.config = read_object(directory / "config.json")
        refuse_own_code(self.config, self._params.model_id, directory)
        with blaming("its weights", self._params.model_id, directory):
            names = tensor_names(directory)
        with blaming("its config.json", self._params.model_id, directory):
            self.sees = sees(self.config, names) and is_known(self.config)
            self.digest = _digest(directory, sees=self.sees)

    def read(self) -> None:
        directory, model_id = self.directory, self._params.model_id
        with blaming("its generation_config.json", model_id, directory):
            path = directory / "generation_config.json"
            self.generation_config = read_object(path) if path.exists() else {}
        with blaming("its tokenizer", model_id, directory):
            self.words = Words(directory, self.config)
        if self.sees:
            with blaming("its processor", model_id, directory):
                self.words.see(directory, self.config)


class Words:
    """What the tokenizer is needed for, a copy for each thread that will have one."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        # Said outright: left open, transformers asks on stdin whether code from the directory may run.
        self.tokenizer = load_tokenizer(
            directory, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
        )
        self.decode = make_decoder(self.tokenizer)
        self.token_bytes = TokenBytes(self.tokenizer)
        self.prompts = PromptTokenizer(self.tokenizer)
        self.decode_marked = make_decoder(self.tokenizer, MARKERS)
        self.eos_token_ids = frozenset(self.tokenizer.eos_token_ids)
        self.spared_token_ids = self.eos_token_ids | set(self.prompts.encode("\n", add_special_tokens=False))

    def see(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Have prompts take images."""
        processor = Processor(directory, config)
        vocabulary = vocabulary_of(config, self.tokenizer)
        self.prompts = VisionTokenizer(with_template(self.tokenizer, processor), processor, vocabulary)


def _digest(directory: Path, *, sees: bool) -> str:
    """Of config.json, and of a model that sees, of what its processor is made from as well."""
    config = _file_digest(directory / "config.json")
    if not sees:
        return config
    files = [directory / name for name in _PROCESSOR_FILES]
    told = [f"{file.name} {_file_digest(file)}" for file in files if file.is_file()]
    return hashlib.sha256(" ".join((config, *told)).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
