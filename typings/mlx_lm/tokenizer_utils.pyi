from typing import Any

from transformers import PreTrainedTokenizerBase

class TokenizerWrapper:
    has_chat_template: bool
    _tokenizer: PreTrainedTokenizerBase
    @property
    def eos_token_ids(self) -> set[int]: ...
    def apply_chat_template(self, *args: Any, tokenize: bool = True, **kwargs: Any) -> Any: ...
    def __len__(self) -> int: ...
