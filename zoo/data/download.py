"""Published files, fetched once and checked byte for byte.

Names are ours, never the server's; only https is spoken; a file appears under its name only when its sha256 is right; of several
processes that want the same file one fetches it and the others wait. Nothing downloaded is ever unpickled or run.
"""

import hashlib
import http.client
import shutil
import socket
import tarfile
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from zoo.data.base import one_line
from zoo.errors import ZooError

TIMEOUT = 30  # seconds without a byte
SLOWEST = 20_000  # bytes a second, on average; a slower server is given up
CHUNK = 1 << 18
LOOPBACK = ("127.0.0.1", "::1", "localhost")
FAULTS = (OSError, http.client.HTTPException, ValueError)  # what a server, a network or a disk can do; ours are ValueErrors
DAMAGED = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Published:
    """A file as its authors published it. `size` in bytes is also the most that is read; `urls` are tried in turn."""

    name: str
    size: int
    sha256: str
    urls: tuple[str, ...]


def provide(file: Published, folder: Path, title: str) -> Path:
    """The path of `file` in `folder`; it is downloaded where it isn't there, and checked in either case.

    Args:
        title: what the file belongs to, for messages: "MNIST".

    Raises:
        ZooError: if the file is there but isn't the published one, or can neither be found nor downloaded.
    """
    path = folder / file.name
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with lock(path):
                if not path.is_file():  # else another process was faster
                    _download(file, path)
        except FAULTS as error:
            raise ZooError(
                f"{title}: {file.name} is not in {folder} and could not be downloaded ({one_line(error)}): "
                f"put it there, or set ZOO_DATA (data.root=...) to the folder that has the data"
            ) from error
    check(file, path, title)
    return path


def check(file: Published, path: Path, title: str) -> None:
    """Raises ZooError unless `path` holds the published bytes."""
    try:
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise ZooError(f"{title}: {path} cannot be read: {one_line(error)}") from error
    if digest != file.sha256:
        raise ZooError(f"{title}: {path} is not the published file (sha256 {digest[:16]}...): move it away and it will be downloaded again")


def unpack(archive: Path, name: str) -> Path:
    """Extracts the folder `name` of a tar or zip archive to the archive's own folder, all of it or nothing.

    Raises:
        ZooError: if the archive is damaged, would write outside its folder, or has no such folder.
    """
    target, fresh = archive.parent / name, _beside(archive, "unpacked")
    try:
        with lock(archive):
            if target.is_dir():
                return target
            shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
            try:
                fresh.mkdir()
                (_extract_zip if archive.suffix == ".zip" else _extract_tar)(archive, fresh)
                if not target.is_dir():  # else another host was faster
                    (fresh / name).rename(target)
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
    except DAMAGED as error:
        raise ZooError(f"{archive} could not be unpacked: {one_line(error)}") from error
    return target


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """One process at a time on this host; the lock of a process that dies is free."""
    import fcntl  # only where something is downloaded: Windows has none

    with _beside(path, "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _beside(path: Path, kind: str) -> Path:
    """A hidden name for this host, since a lock does not reach across a network file system."""
    return path.parent / f".{path.name}.{socket.gethostname()}.{kind}"


def _download(file: Published, path: Path) -> None:
    """Every address is tried twice; the error of the last one is raised."""
    part = _beside(path, "part")
    attempts = [url for url in file.urls for _ in range(2)]
    for left, url in zip(reversed(range(len(attempts))), attempts):
        try:
            with part.open("wb") as out:
                _receive(url, file, out)
            part.replace(path)
            return
        except FAULTS:
            part.unlink(missing_ok=True)
            if not left:
                raise


def _receive(url: str, file: Published, out: BinaryIO) -> None:
    _allow(url)
    request = urllib.request.Request(url, headers={"User-Agent": "paper-zoo"})
    deadline = time.monotonic() + 2 * TIMEOUT + file.size / SLOWEST
    digest, received = hashlib.sha256(), 0
    with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response:
        while chunk := response.read1(CHUNK):
            received += len(chunk)
            if received > file.size:
                raise ValueError(f"{url} sends more than the {file.size} bytes of the published file")
            if time.monotonic() > deadline:
                raise ValueError(f"{url} is too slow: {received} of {file.size} bytes so far")
            digest.update(chunk)
            out.write(chunk)
    if received < file.size:
        raise ValueError(f"{url} ended after {received} of {file.size} bytes")
    if digest.hexdigest() != file.sha256:
        raise ValueError(f"{url} sent something else, sha256 {digest.hexdigest()[:16]}...")


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _allow(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _allow(url: str) -> None:
    """https, or http on this machine itself (tests)."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError(f"{url} is not https")


def _extract_tar(archive: Path, into: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")  # refuses names and links that lead outside


def _extract_zip(archive: Path, into: Path) -> None:
    with zipfile.ZipFile(archive) as names:
        for name in names.namelist():
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name:
                raise ValueError(f"the name {name!r} in it leads outside")
        names.extractall(into)
