from typing import IO, Any

def http_get(
    url: str,
    temp_file: IO[bytes],
    *,
    resume_size: int = 0,
    headers: dict[str, str] | None = None,
    expected_size: int | None = None,
    tqdm_class: type[Any] | None = None,
) -> None: ...
