"""What the hub's client raises, in our words."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlx_serving.catalog.reference import HubRepository
from mlx_serving.errors import EngineError, HubRefused, HubUnreachable, ModelLoadError, ModelNotFound

if TYPE_CHECKING:
    from huggingface_hub import errors

_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
_ACCESS_HINT = "set HF_TOKEN to a token of an account that has access"


def translated(error: Exception, repository: HubRepository) -> EngineError:
    """The error of ours that says what `error` means for somebody who wants `repository`. `details.reason` is why it
    cannot be had now, for somebody who has it.

    The client wraps the reason of some failures in others, so the whole chain of causes is looked at.
    """
    from huggingface_hub import errors

    chain = list(_causes(error))
    for cause in chain:
        match cause:
            case errors.GatedRepoError():
                return HubRefused(
                    f"{repository} is gated: accept its conditions on its page at the hub, then {_ACCESS_HINT}",
                    model=repository.repo_id,
                )
            case errors.DisabledRepoError():
                return HubRefused(f"{repository} was disabled by its author", model=repository.repo_id)
            case errors.RevisionNotFoundError():
                return ModelNotFound(
                    f"{repository.repo_id} has no revision {repository.revision!r}",
                    model=repository.repo_id,
                    revision=repository.revision,
                )
            case errors.RepositoryNotFoundError():
                return ModelNotFound(
                    f"{repository.repo_id} does not exist at the hub, or it is private: {_ACCESS_HINT}",
                    model=repository.repo_id,
                )
            case errors.OfflineModeIsEnabled():
                return _unreachable(repository, "HF_HUB_OFFLINE forbids to use the network")
            case errors.HfHubHTTPError():
                return _refused(repository, cause)
            case _:
                pass
    reason = f"the download failed: {_text(chain[-1])}"
    if any(isinstance(cause, OSError) and cause.errno in _OF_THE_DISK for cause in chain):
        return ModelLoadError(_incomplete(repository, reason), model=repository.repo_id, reason=reason)
    return _unreachable(repository, reason)


def _refused(repository: HubRepository, error: errors.HfHubHTTPError) -> EngineError:
    status = error.response.status_code
    if status in (401, 403):
        return HubRefused(
            f"the hub refuses {repository} with status {status}: {_ACCESS_HINT}",
            model=repository.repo_id,
            status=status,
        )
    kind = HubUnreachable if status == 429 or status >= 500 else HubRefused
    reason = f"the hub answers with status {status}: {_text(error)}"
    return kind(
        _incomplete(repository, reason),
        model=repository.repo_id,
        reason=reason,
        status=status,
    )


def _unreachable(repository: HubRepository, reason: str) -> EngineError:
    return HubUnreachable(_incomplete(repository, reason), model=repository.repo_id, reason=reason)


def _incomplete(repository: HubRepository, reason: str) -> str:
    return f"{repository} is not complete in the local cache, and {reason}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _text(error: BaseException) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {first[:300]}"
