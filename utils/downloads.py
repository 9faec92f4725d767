"""Download files and unpack archives, whole or not at all."""

from __future__ import annotations

import errno
import filecmp
import gzip
import hashlib
import http.client
import io
import logging
import lzma
import os
import re
import shutil
import stat
import string
import struct
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, BinaryIO, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

from tqdm import tqdm

from utils.errors import UserError, shown
from utils.locks import exclusive

LOGGER = logging.getLogger("yolo.downloads")

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

MOST_EXPANSION = 200
"""Times that an archive's files may be larger than the archive; images hardly shrink, labels ten times."""
_SMALL_ARCHIVE = 64 << 20  # bytes of files that any archive may hold
_LONGEST_HEADER = 1 << 20  # bytes of a tar's pax header or long name
_BLOCK = 1 << 18
_TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""


def is_url(text: str) -> bool:
    """Return whether the text is an http(s) address."""
    return text.lower().startswith(("http://", "https://"))


def split_url(url: str) -> SplitResult:
    """Return the parts of an address.

    Raises:
        UserError: it is none, such as one with a single bracket; user and password are not shown.
    """
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").encode("idna"), parts.port  # each refuses what is none
        url.encode()
        if is_url(url) and (not host or b" " in host):
            raise ValueError("no host in it")
        return parts
    except ValueError as error:
        safe = re.sub(r"(?<=://)[^/?#]*@", "", url)
        raise UserError(f"{safe}: is not a valid address ({error}); check how it is written") from None


def is_archive(name: str) -> bool:
    """Return whether a file name ends as an archive that `unpack` knows."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def file_name(url: str) -> str:
    """Return the file name in a URL, without characters that a file system may refuse.

    >>> file_name("https://example.com/sets/my%20set.zip?token=1")
    'my_set.zip'
    """
    name = re.sub(r"[^\w.\-]", "_", PurePosixPath(unquote(split_url(url).path)).name).lstrip(".")
    return name or "download"


def leaves_folder(name: str) -> bool:
    """Return whether a name in an archive would be written outside the folder.

    The rules of Windows and of other systems both count, so the answer is the same everywhere. An empty name
    counts as outside.

    >>> leaves_folder("images/1.jpg"), leaves_folder("../1.jpg"), leaves_folder("C:1.jpg")
    (False, True, True)
    """
    windows = PureWindowsPath(name)
    outside = name.startswith(("/", "\\")) or bool(windows.drive) or ".." in windows.parts
    return outside or "\0" in name or not name


def fetch(
    url: str,
    dest: str | Path,
    size: int | None = None,
    digest: str | None = None,
    *,
    limit: int | None = None,
    attempts: int = 4,
    pause: float = 1.0,
    passing: bool = False,
) -> Path:
    """Download a file, whole or not at all.

    The bytes are written to `<dest>.part`. After a broken connection, or in a later run, an HTTP range asks
    for the rest. An existing file of the right size is kept. When several runs need the same file, one
    downloads it and the others wait.

    Args:
        url: http or https.
        dest: the file to write.
        size: its size in bytes, when known; otherwise the one that the server states.
        digest: such as "md5:8d0c...", when known.
        limit: most bytes to accept, for files of unknown origin.
        attempts: connections tried in a row without a byte of progress.
        pause: seconds before the second attempt, doubled each time.
        passing: `dest` is temporary, so messages do not tell the user to put the file there.

    Returns:
        `dest`.

    Raises:
        UserError: no network, no such file, or its size or digest is wrong.
    """
    dest = Path(dest)
    if not is_url(url):
        raise UserError(f"{url}: only http and https addresses are fetched; put the file at {dest} yourself")
    advice = "fetch it yourself and give its path" if passing else f"put the file at {dest}"
    split_url(url)
    if _is_whole(dest, size):
        return dest
    part = dest.with_name(dest.name + ".part")
    with exclusive(dest.with_name(dest.name + ".lock"), str(dest)):
        if not _is_whole(dest, size):  # a run that was waited for has it
            total = _receive_all(url, part, dest, size, attempts, pause, limit, advice)
            _check(part, url, size if size is not None else total, digest)
            os.replace(part, dest)
    return dest


def _is_whole(dest: Path, size: int | None) -> bool:
    return dest.is_file() and (size is None or dest.stat().st_size == size)


def _receive_all(
    url: str,
    part: Path,
    dest: Path,
    size: int | None,
    attempts: int,
    pause: float,
    limit: int | None,
    advice: str,
) -> int | None:
    """Connect until the part is whole."""
    failures = 0
    while True:
        before = _length(part)
        try:
            return _receive(url, part, size, limit)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise UserError(
                    f"{url}: the server answers {error.code} {error.reason}; check the address"
                ) from None
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            _raise_if_disk(error, dest)
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 0 if _length(part) > before else failures + 1
        if failures >= attempts:
            raise UserError(f"{url}: cannot be fetched ({reason}); check the network, or {advice}")
        wait = pause * 2 ** max(failures - 1, 0)
        LOGGER.warning("%s: %s, trying again in %g s (%d of %d)", url, reason, wait, failures + 1, attempts)
        time.sleep(wait)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _raise_if_disk(error: BaseException, dest: Path) -> None:
    """Raise when the disk is full or read-only; asking the server again cannot help."""
    if not isinstance(error, OSError) or isinstance(error, urllib.error.URLError):
        return
    if error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = error.strerror or error
        raise UserError(f"{dest}: cannot be written ({reason}); make room or choose another folder") from None


class _OnHttp(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https only; Python itself would follow one to ftp."""

    # Any: what urllib hands over, the new address last.
    def redirect_request(self, *args: Any) -> urllib.request.Request | None:
        """Return the next request; urllib calls this, with the new address last."""
        if not is_url(args[-1]):
            raise UserError(
                f"{args[0].full_url}: the server sends to {shown(args[-1])}, which is no http address; check "
                "the address"
            )
        return super().redirect_request(*args)


_OPENER = urllib.request.build_opener(_OnHttp)


class _Broken(OSError):
    """Say that the connection ended before the file did."""


def _receive(url: str, part: Path, size: int | None, limit: int | None = None) -> int | None:
    """Append to `part` what it lacks, in one connection."""
    have = _length(part)
    if size is not None and have >= size:
        return size  # the check that follows refuses one that is too long
    headers = {"User-Agent": "yolo-datasets/1", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    spelled = quote(url, safe=string.punctuation)  # HTTP takes ASCII only
    request = urllib.request.Request(spelled, headers=headers)  # noqa: S310 (fetch has looked at the scheme)
    try:
        response = _OPENER.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return _length_from_416(error, part, have)
        raise
    with response:
        offset, total = _range_of(response, have)
        if size is not None and total is not None and total != size:
            part.unlink(missing_ok=True)
            raise UserError(
                f"{url}: the server offers {total} bytes where {size} are expected; check the address"
            )
        with part.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.truncate()
            _check_limit(url, total, limit)
            received = offset + _copy(response, file, offset, total, part.stem, limit)
        _check_limit(url, received, limit)
    if total is not None and received < total:
        raise _Broken(f"connection broke after {received} of {total} bytes")
    return total


def _length_from_416(error: urllib.error.HTTPError, part: Path, have: int) -> int:
    """Return the length after 'Range not satisfiable', if the part is whole.

    Otherwise it belongs to another file and is removed.
    """
    match = re.search(r"/(\d+)$", error.headers.get("Content-Range", ""))
    if match and int(match[1]) == have:
        return have
    part.unlink()
    raise _Broken("the partial file does not fit, starting over")


def _range_of(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Return where an answer's body begins in the file, and the file's length if told."""
    match = re.match(r"bytes (\d+)-\d*/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status == 206 and match and int(match[1]) == have:
        return have, None if match[2] == "*" else int(match[2])
    if response.status == 206:
        raise _Broken("the server answers with another range than asked for")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _check_limit(url: str, length: int | None, limit: int | None) -> None:
    if limit is not None and length is not None and length > limit:
        raise UserError(
            f"{url}: is longer than the {limit >> 20} MiB that are accepted here; fetch it yourself"
        )


def _copy(
    source: BinaryIO, target: BinaryIO, offset: int, total: int | None, title: str, limit: int | None
) -> int:
    """Copy a body under a progress bar and return the number of bytes.

    It stops just above `limit`.

    `IncompleteRead` keeps its bytes.
    """
    copied = 0
    with tqdm(
        total=total,
        initial=offset,
        desc=title,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        dynamic_ncols=True,
    ) as bar:
        while True:
            try:
                block = source.read(_BLOCK)
            except http.client.IncompleteRead as error:
                target.write(error.partial)
                raise
            if not block:
                return copied
            target.write(block)
            copied += len(block)
            bar.update(len(block))
            if limit is not None and offset + copied > limit:
                return copied


def _check(part: Path, url: str, size: int | None, digest: str | None) -> None:
    """Compare size and digest, and remove a wrong file."""
    found = _length(part)
    if size is not None and found != size:
        part.unlink(missing_ok=True)
        raise UserError(
            f"{url}: {found} bytes came where {size} are expected; try again, or check the address"
        )
    if digest is None:
        return
    name, _, wanted = digest.partition(":")
    with part.open("rb") as file:
        came = hashlib.file_digest(file, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()
    if came != wanted.lower():
        part.unlink()
        raise UserError(f"{url}: its {name} is {came} where {wanted} is expected; try again")


_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    gzip.BadGzipFile,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # encrypted
    NotImplementedError,  # a compression that this Python lacks
    ValueError,
    ArithmeticError,  # these three: a damaged directory or header
    LookupError,
    struct.error,
    MemoryError,
)


class _Member(NamedTuple):
    """Describe one entry of an archive, and how its bytes are read."""

    name: str
    size: int
    is_folder: bool
    is_file: bool
    open: Callable[[], IO[bytes] | None]


def unpack(archive: str | Path, folder: str | Path, *, replace: bool = False) -> Path:
    """Unpack a zip or tar into a folder, merging with what is there.

    Everything is first unpacked and checked in a temporary folder, so a broken archive changes nothing.

    Args:
        archive: the file.
        folder: made when missing.
        replace: overwrite files of the same names. Only for folders that hold nothing of the user's.

    Returns:
        `folder`.

    Raises:
        UserError: not an archive, broken, or too large for the disk; a member would leave the folder, is
            neither file nor folder (links, devices), or has the name of a different file.
    """
    archive, folder = Path(archive), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{archive.name}.", suffix=".part", dir=folder))
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _extract((_zip_member(opened, info) for info in opened.infolist()), archive, temporary)
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive, tarinfo=_ShortHeader) as opened:
                _extract((_tar_member(opened, info) for info in opened), archive, temporary)
                while opened.fileobj and opened.fileobj.read(_BLOCK):
                    pass  # the checksum of a compressed stream follows the last member
        else:
            raise UserError(
                f"{archive}: neither a zip nor a tar (or cut short); delete it and fetch it again"
            )
        merge(temporary, folder, str(archive), replace=replace)
    except _BROKEN as error:
        raise UserError(f"{archive}: broken archive ({error}); delete it and fetch it again") from None
    except OSError as error:
        raise UserError(
            f"{archive}: cannot be unpacked ({error}); make room in {folder} or fetch it again"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


class _ShortHeader(tarfile.TarInfo):
    """Refuse a header that is longer than any name; tarfile reads headers into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _ShortHeader:
        """Return a member's header; tarfile calls this."""
        info = super().frombuf(buf, encoding, errors)
        if info.size > _LONGEST_HEADER and info.type not in tarfile.SUPPORTED_TYPES[:9]:
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info


def _zip_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    is_file = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
    return _Member(info.filename, info.file_size, info.is_dir(), is_file, lambda: opened.open(info))


def _tar_member(opened: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    return _Member(info.name, info.size, info.isdir(), info.isreg(), lambda: opened.extractfile(info))


def _extract(found: Iterable[_Member], archive: Path, folder: Path) -> None:
    """Check the members, then write their files below an empty folder."""
    members, needed, most = [], 0, max(_SMALL_ARCHIVE, MOST_EXPANSION * archive.stat().st_size)
    for member in found:
        members.append(member)
        needed += member.size
        if needed > most:
            raise UserError(
                f"{archive}: its files are more than {MOST_EXPANSION} times larger than itself; unpack it by "
                "hand if you trust it, and give the folder"
            )
        if leaves_folder(member.name):
            raise UserError(
                f"{archive}: member {shown(member.name)} would leave the folder; such archives are refused"
            )
        if not (member.is_folder or member.is_file):
            raise UserError(
                f"{archive}: member {shown(member.name)} is a link or a device; such archives are refused"
            )
    files = [member for member in members if not member.is_folder]
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{archive}: needs {needed >> 20} MiB in {folder.parent}, {free >> 20} are free; make room"
        )
    for member in tqdm(files, desc=f"unpacking {archive.name}", unit="file", disable=len(files) < 100):
        target = folder.joinpath(*PurePosixPath(member.name.replace("\\", "/")).parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = target.open("xb")
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"{archive}: member {shown(member.name)} is in it twice, and which of them counts is open; "
                "unpack it by hand and give the folder"
            ) from None
        with file, member.open() or io.BytesIO() as source:
            shutil.copyfileobj(source, file, _BLOCK)  # no more than the declared size comes
            written = file.tell()
        if written != member.size:
            raise UserError(
                f"{archive}: member {shown(member.name)} is not of its declared size; fetch the archive again"
            )


def merge(source: Path, target: Path, origin: str, *, replace: bool = False) -> None:
    """Move a tree into another one, folder by folder where both have them.

    Args:
        source: the folder to move; files that `target` has already, byte for byte, stay in `source`.
        target: a folder.
        origin: where `source` came from, for the message.
        replace: overwrite files of the same names.

    Raises:
        UserError: without `replace`, a file would be overwritten by a different one. Nothing was moved.
    """
    taken = None if replace else _first_taken(source, target)
    if taken:
        raise UserError(
            f"{taken}: exists already and differs from the one in {origin}, so nothing was changed; "
            "move it away and start again"
        )
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if _both_folders(entry, place):
            merge(entry, place, origin, replace=replace)
        elif replace or not os.path.lexists(place):
            os.replace(entry, place)


def _first_taken(source: Path, target: Path) -> Path | None:
    """Return the first place in `target` that holds something else than `source`."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if _both_folders(entry, place):
            taken = _first_taken(entry, place)
            if taken:
                return taken
        elif os.path.lexists(place):
            same = entry.is_file() and place.is_file() and filecmp.cmp(entry, place, shallow=False)
            if not same:
                return place
    return None


def _both_folders(entry: Path, place: Path) -> bool:
    return entry.is_dir() and place.is_dir() and not place.is_symlink()
