"""Files of the prefix cache: what is in one, and how it gets there whole or not at all.

    <folder>/v2/<fingerprint of a model>/<key>.safetensors     one record, as `core.prefix.record` has it
    <folder>/v2/<fingerprint of a model>/.<key>.<random>       being written; renamed when it is whole

A file is safetensors. Its metadata say what it is and hold two digests: one of all other metadata and the tensors'
places, so that reading the beginning of a file is enough to believe it, and one of the tensors. The name is the key,
which is a digest of the tokens before and in the record; so servers that share a folder write the same thing under the
same name, whoever is last, and need no lock. What is in a file is believed as far as the digests hold.

The digest of the tensors is XXH3 of 128 bits: it finds what a disk does to a file, as fast as memory can be read.
Whoever may write to the folder could make any digest fit; that is what its mode is for.

The files hold what users said. They belong to their owner alone: 0600, in folders of 0700.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import xxhash

from mlx_serving.core.prefix.record import KEY_DIGITS, TOKEN_BYTES, DiskRecord, Key, RecordKind, chain_key
from mlx_serving.machine.page_cache import advise_open

FORMAT_VERSION = 2
SUFFIX = ".safetensors"
IDENTITIES = "identities.json"
"""In the folder of a version: what the files of models hold, so that they need not be read again to know that."""
_FORMAT = "mlx-serving prefix"
_MAX_HEADER_BYTES = 16 << 20
_LENGTH_BYTES = 8
_VERSION = re.compile(r"v([0-9]{1,9})")
_OWN = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}{re.escape(SUFFIX)}|\.[0-9a-f]{{{KEY_DIGITS}}}\..+")

DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip


class UnusableRecord(Exception):
    """A file that is not what its name says: cut short, changed, of another model or another version."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array in the machine's memory: `dtype` in safetensors' words, `data` in C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Content:
    """What a record holds. `layout` says what the tensors are to the model's caches; it is JSON."""

    kind: RecordKind
    layout: str
    tensors: Sequence[Tensor]

    @property
    def size(self) -> int:
        return sum(tensor.size for tensor in self.tensors)


class _Metadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All are text, as the format wants it."""

    format: Literal["mlx-serving prefix"]
    version: str
    model: str
    kind: RecordKind
    parent: str
    start: str
    tokens: str
    layout: str
    payload: str
    header: str = ""


class _Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def version_folder(folder: Path) -> Path:
    return folder / f"v{FORMAT_VERSION}"


def path_of(folder: Path, record: DiskRecord) -> Path:
    return version_folder(folder) / record.model / f"{record.key}{SUFFIX}"


def models_of(folder: Path) -> list[str]:
    """The fingerprints of the models of which there are records."""
    try:
        return sorted(path.name for path in version_folder(folder).iterdir() if path.is_dir())
    except OSError:
        return []


def clear_outdated(folder: Path) -> int:
    """Delete the files of earlier versions, which nobody can read; returns how many there were. Raises OSError."""
    count = 0
    for version in folder.iterdir():
        number = _VERSION.fullmatch(version.name)
        if number is not None and int(number[1]) < FORMAT_VERSION and _is_ours(version):
            for model in version.iterdir():
                if _is_ours(model):
                    count += _clear(model)
            _clear(version)
    return count


def _clear(folder: Path) -> int:
    """Delete a folder with the files that a server writes into such; returns how many of them are records."""
    count = 0
    for path in folder.iterdir():
        if path.suffix == SUFFIX or path.name.startswith(".") or path.name == IDENTITIES:
            path.unlink()
            count += path.suffix == SUFFIX
    folder.rmdir()
    return count


def files_of(folder: Path, model: str) -> list[Path]:
    """All files that belong to a model; none where another user could have put them, because what they say would be
    used. What has another name than we give is somebody's who took the folder for his own. Raises OSError, but not for
    a folder that is not there."""
    place = version_folder(folder) / model
    try:
        return [path for path in place.iterdir() if _OWN.fullmatch(path.name)] if _is_ours(place) else []
    except FileNotFoundError:
        return []


def _is_ours(place: Path) -> bool:
    status = place.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def make_private(folder: Path) -> None:
    """Make a folder that nobody else can look into. Raises OSError, also for a folder that is somebody else's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise PermissionError(f"{folder} is not a folder of this user")
    if status.st_mode & 0o077:
        folder.chmod(0o700)


def write_record(folder: Path, record: DiskRecord, content: Content) -> int:
    """Write a record's file, whole or not at all; returns its size in bytes. Raises OSError.

    Nothing is forced to the device: what a power failure leaves half written is found out by its digests, and costs
    a computation.
    """
    header = _encode_header(record, content)
    path = path_of(folder, record)
    fresh = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{record.key}.", delete=False)  # noqa: SIM115
    try:
        with fresh:  # its mode is 0600
            fresh.write(len(header).to_bytes(_LENGTH_BYTES, "little"))
            fresh.write(header)
            for tensor in content.tensors:
                fresh.write(tensor.data)
        Path(fresh.name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(fresh.name).unlink()
        raise
    return _LENGTH_BYTES + len(header) + content.size


def read_header(path: Path) -> DiskRecord:
    """What a file says of itself, of which only the beginning is read. `used_at` is when it was last used.

    Raises `UnusableRecord`, and OSError.
    """
    with _opened(path) as file:
        return _read_header(file, path)[0]


def advise_record(folder: Path, record: DiskRecord) -> None:
    """Have the system read a record's file, which `read_record` is going to be called for. Returns soon. Raises
    OSError."""
    with _opened(path_of(folder, record)) as file:
        advise_open(file)


def read_record(folder: Path, record: DiskRecord) -> Content:
    """What a record holds. Raises `UnusableRecord` for a file that does not hold just that, and OSError."""
    path = path_of(folder, record)
    with _opened(path) as file:
        found, metadata, places, begin = _read_header(file, path)
        if (found.parent, found.start, found.tokens) != (record.parent, record.start, record.tokens):
            raise UnusableRecord("it holds other tokens")  # the key would have to be the same
        payload = memoryview(bytearray(found.size - begin))
        _read_into(file, payload)
    if xxhash.xxh3_128(payload).hexdigest() != metadata.payload:
        raise UnusableRecord("its tensors were changed")
    tensors = [
        Tensor(place.dtype, tuple(place.shape), payload[place.data_offsets[0] : place.data_offsets[1]])
        for place in places
    ]
    return Content(metadata.kind, metadata.layout, tensors)


def _opened(path: Path) -> io.FileIO:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return io.FileIO(os.open(path, flags))


def _encode_header(record: DiskRecord, content: Content) -> bytes:
    payload = xxhash.xxh3_128()
    places: dict[str, _Place] = {}
    end = 0
    for number, tensor in enumerate(content.tensors):
        payload.update(tensor.data)
        places[str(number)] = _Place(tensor.dtype, list(tensor.shape), (end, end + tensor.size))
        end += tensor.size
    metadata = _Metadata(
        format=_FORMAT,
        version=str(FORMAT_VERSION),
        model=record.model,
        kind=content.kind,
        parent=record.parent,
        start=str(record.start),
        tokens=base64.b64encode(record.tokens).decode(),
        layout=content.layout,
        payload=payload.hexdigest(),
    )
    metadata = msgspec.structs.replace(metadata, header=_digest(metadata, list(places.values())))
    header = msgspec.json.encode({"__metadata__": metadata, **places})
    return header + b" " * (-len(header) % _LENGTH_BYTES)  # tensors begin at a multiple of eight bytes


def _digest(metadata: _Metadata, places: Sequence[_Place]) -> str:
    return hashlib.sha256(msgspec.json.encode((msgspec.structs.replace(metadata, header=""), places))).hexdigest()


def _read_header(file: io.FileIO, path: Path) -> tuple[DiskRecord, _Metadata, list[_Place], int]:
    """The record, its metadata, where its tensors are, and where in the file these begin: there it stops reading."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise UnusableRecord("it is no file")
    prefix = bytearray(_LENGTH_BYTES)
    _read_into(file, memoryview(prefix))
    length = int.from_bytes(prefix, "little")
    begin = _LENGTH_BYTES + length
    if length > min(_MAX_HEADER_BYTES, status.st_size):
        raise UnusableRecord("it is cut short, or no file of ours")
    header = bytearray(length)
    _read_into(file, memoryview(header))
    try:
        members = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(members.pop("__metadata__"), type=_Metadata)
        places = [msgspec.json.decode(members[str(number)], type=_Place) for number in range(len(members))]
        tokens = base64.b64decode(metadata.tokens, validate=True)
        start = int(metadata.start)
        key: Key = chain_key(metadata.parent, tokens)
    except (msgspec.MsgspecError, KeyError, ValueError, RecursionError) as error:
        raise UnusableRecord(f"its header cannot be read: {error}") from error
    if metadata.version != str(FORMAT_VERSION):
        raise UnusableRecord(f"it is of version {metadata.version}, not {FORMAT_VERSION}")
    if _digest(metadata, places) != metadata.header:
        raise UnusableRecord("its header was changed")
    if metadata.model != path.parent.name:
        raise UnusableRecord("it is of another model")
    if key + SUFFIX != path.name or not tokens or len(tokens) % TOKEN_BYTES:
        raise UnusableRecord("it holds other tokens than its name says")
    if status.st_size != begin + _checked_size(places):
        raise UnusableRecord("it is cut short or has grown")
    record = DiskRecord(key, metadata.parent, metadata.model, start, tokens, status.st_size, status.st_mtime)
    return record, metadata, places, begin


def _checked_size(places: Sequence[_Place]) -> int:
    """Of all tensors, if they lie one behind the other and are as large as their shapes."""
    end = 0
    for place in places:
        size = DTYPE_BYTES.get(place.dtype, 0)
        for extent in place.shape:
            size *= extent
        if place.dtype not in DTYPE_BYTES or place.data_offsets != (end, end + size) or size < 0:
            raise UnusableRecord("its tensors do not fit their shapes")
        end += size
    return end


def _read_into(file: io.FileIO, buffer: memoryview) -> None:
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            raise UnusableRecord("it is cut short")
        done += count
