"""The API keys that have limits of their own: who sent one, and what he has used.

The file is looked at for each request, and read again when it has changed: a key that is taken out of it is refused
from then on. A file that cannot be read any more changes nothing, and is told in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from mlx_serving.config.api_keys import ApiKey, parse_keys, read_keys
from mlx_serving.core.key_usage import DaySpent, KeyLimits, KeyUsage
from mlx_serving.errors import InvalidConfig
from mlx_serving.telemetry.logger import get_logger

_log = get_logger("mlx_serving.server")

_SAVE_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class KeySettings:
    """Where keys come from: a file, and a document of the same form. `state_file` remembers what was spent today."""

    file: Path | None = None
    inline: str | None = field(default=None, repr=False)
    state_file: Path | None = None


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Who sent a key that is known."""

    name: str
    limits: KeyLimits
    usage: KeyUsage

    @property
    def expired(self) -> bool:
        return self.limits.expired(time.time())


class KeyRing:
    def __init__(self, settings: KeySettings) -> None:
        """Raises `InvalidConfig` for keys that cannot be read."""
        self._settings = settings
        self._inline: tuple[ApiKey, ...] = ()
        self._from_file: tuple[ApiKey, ...] = ()
        self._seen: object = None  # how the file looked when it was read
        self._usages: dict[str, KeyUsage] = {}
        self._saving: asyncio.TimerHandle | None = None
        self._spent = _load_state(settings.state_file)
        self._take(settings)

    def __bool__(self) -> bool:
        """Whether there is any key, so that one must be sent."""
        return bool(self._inline or self._settings.file)

    def reconfigure(self, settings: KeySettings) -> None:
        """Raises `InvalidConfig` before anything has changed."""
        self._take(settings)

    def find(self, sent: Sequence[str]) -> KeyHolder | None:
        """Whose key one of these is. All keys are compared with all that was sent, whichever it is."""
        self._look_at_file()
        found: ApiKey | None = None
        for text in sent:
            raw = text.encode("latin-1", "replace")
            for key in (*self._inline, *self._from_file):
                if key.matches(raw):
                    found = key
        return None if found is None else KeyHolder(found.name, found.limits, self._usage(found))

    def spent_changed(self) -> None:
        """Write what was spent, soon."""
        if self._settings.state_file is not None and self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(_SAVE_AFTER_S, self.save)

    def save(self) -> None:
        """Write what was spent now. What cannot be written is told in the log."""
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        path = self._settings.state_file
        if path is None:
            return
        now = time.time()
        spent = {**self._spent, **{name: usage.spent(now) for name, usage in self._usages.items()}}
        today = {name: {"day": each.day, "tokens": each.tokens} for name, each in spent.items() if each.tokens}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as fresh:
                fresh.write(json.dumps(today).encode())
            Path(fresh.name).replace(path)
        except OSError as error:
            _log.warning("token budgets not saved", path=str(path), reason=error.strerror)

    def _take(self, settings: KeySettings) -> None:
        seen = _look(settings.file)
        inline, from_file = _read(settings)
        self._settings, self._seen = settings, seen
        self._adopt(inline, from_file)

    def _look_at_file(self) -> None:
        path = self._settings.file
        if path is None or (seen := _look(path)) == self._seen:
            return
        self._seen = seen
        try:
            from_file = read_keys(path)
            _require_unique(self._inline, from_file)
        except InvalidConfig as error:
            _log.error("API keys not read again", path=str(path), reason=error.message)
            return
        self._adopt(self._inline, from_file)
        _log.info("API keys read again", path=str(path), keys=len(from_file))

    def _adopt(self, inline: tuple[ApiKey, ...], from_file: tuple[ApiKey, ...]) -> None:
        self._inline, self._from_file = inline, from_file
        limits = {key.name: key.limits for key in (*inline, *from_file)}
        for name, usage in self._usages.items():
            if name in limits:
                usage.reconfigure(limits[name], time.monotonic())

    def _usage(self, key: ApiKey) -> KeyUsage:
        usage = self._usages.get(key.name)
        if usage is None:
            usage = self._usages[key.name] = KeyUsage(key.limits, time.monotonic(), self._spent.get(key.name))
        return usage


def check_keys(settings: KeySettings) -> None:
    """Raises `InvalidConfig` for keys that cannot be read."""
    _read(settings)


def _read(settings: KeySettings) -> tuple[tuple[ApiKey, ...], tuple[ApiKey, ...]]:
    """Those that are given inline, and those of the file."""
    inline = () if settings.inline is None else parse_keys(settings.inline, "keys.inline")
    from_file = () if settings.file is None else read_keys(settings.file)
    _require_unique(inline, from_file)
    return inline, from_file


def _require_unique(inline: Sequence[ApiKey], from_file: Sequence[ApiKey]) -> None:
    twice = {key.name for key in inline} & {key.name for key in from_file}
    if twice:
        why = f"the name {min(twice)} is given in keys.file and in keys.inline"
        raise InvalidConfig(f"API keys: {why}", issues=[{"path": "keys", "message": why}])


def _look(path: Path | None) -> object:
    """How a file looks from outside, None while there is none."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _load_state(path: Path | None) -> dict[str, DaySpent]:
    if path is None:
        return {}
    try:
        document = cast("dict[str, dict[str, int]]", json.loads(path.read_bytes()))
        return {name: DaySpent(int(each["day"]), int(each["tokens"])) for name, each in document.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        aside = path.with_name(f"{path.name}.unreadable-{time.time_ns()}")
        with contextlib.suppress(OSError):
            path.replace(aside)
        _log.warning("token budgets begin anew", path=str(path), reason=str(error), moved_to=str(aside))
        return {}
