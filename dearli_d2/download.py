"""Downloads that are whole or absent, and a quick answer where there is no internet.

`why_unreachable` asks a host within a second and a half, before any package retries for minutes. It honours the proxies of the
environment (HTTPS_PROXY, NO_PROXY, ...), HF_ENDPOINT and HF_HUB_OFFLINE. HF_HUB_ETAG_TIMEOUT, in seconds, gives a slow network
more time.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import queue
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError
from tqdm import tqdm

from .errors import WeightsError

_PATIENCE = 1.5  # seconds
_STALLED = 30.0  # seconds without a byte
_CHUNK = 1 << 20
_BUSY = (502, 503, 504)  # statuses of a proxy, or of a server that is down
_FULL = (errno.ENOSPC, errno.EDQUOT)


# ------------------------------------------------------------------------------------------ is there a network


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an answer."""

    def redirect_request(self, *_: object) -> None:
        return None


def hub_url(repository: str, file: str) -> str:
    """Link of a file on the Hugging Face hub, or on $HF_ENDPOINT."""
    return f"{constants.ENDPOINT}/{repository}/resolve/main/{file}"


def is_hub_name(name: str) -> bool:
    """True for a name such as `owner/model` that is no folder of this machine."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def why_unreachable(url: str) -> str:
    """Reason why a URL's host does not answer; "" if it does, whatever the answer."""
    if constants.HF_HUB_OFFLINE and url.startswith(constants.ENDPOINT):
        return "HF_HUB_OFFLINE is set"
    patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _PATIENCE)
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    # a thread, since the look-up of a name has no time limit of its own
    threading.Thread(target=lambda: answers.put(_ask(url, patience)), daemon=True).start()
    try:
        return answers.get(timeout=patience)
    except queue.Empty:
        return f"no answer within {patience:g} s"


def _ask(url: str, patience: float) -> str:
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=patience):
            return ""
    except urllib.error.HTTPError as error:
        return f"the answer is {error.code} {error.reason}" if error.code in _BUSY else ""
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        # packages have certificates of their own
        return "" if isinstance(reason, ssl.SSLCertVerificationError) else _one_line(reason)


@contextmanager
def only_cache_if_offline(repository: str) -> Iterator[None]:
    """Lets packages read a repository from the hub's cache alone where the hub does not answer.

    Raises:
        WeightsError: the hub does not answer, and the cache has nothing of the repository.
    """
    reason = why_unreachable(hub_url(repository, "config.json"))
    if reason and not hub_folder(repository).is_dir():
        raise WeightsError(
            f"{repository} is not in the cache of this machine, and {constants.ENDPOINT} cannot be reached ({reason}). "
            f"Copy the folder {hub_folder(repository)} from a machine that has it, or name a folder with the model"
        )
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = bool(reason) or before
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_folder(repository: str) -> Path:
    """The folder of a repository in the hub's cache."""
    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


# ------------------------------------------------------------------------------------------ downloads


def from_hub(repository: str, files: Sequence[str]) -> Path:
    """Downloads the first of several files that a repository has, into the hub's cache, where all packages find it.

    Raises:
        WeightsError: the repository has none of the files, or does not give it.
    """
    for file in files:
        path = _file_of_hub(repository, file)
        if path is not None:
            return path
    raise WeightsError(f"{constants.ENDPOINT}/{repository} has none of the files {', '.join(files)}")


def _file_of_hub(repository: str, file: str) -> Path | None:
    """None where the repository has no such file."""
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the client's errors, and those of its network packages, share no base
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None  # the local kind stands for a lost connection
        if isinstance(error, OSError) and error.errno in _FULL:
            raise
        raise WeightsError(f"{hub_url(repository, file)} cannot be downloaded: {_one_line(error)}") from error


def download(url: str, target: Path, size: int = 0, checksums: Mapping[str, str] | None = None) -> None:
    """Downloads a file and checks it. `target` is the whole file or does not exist.

    What an interrupted download has stays beside it as `NAME.part`. The next call goes on from there, if a checksum can show that
    the parts fit; else it starts again.

    Args:
        url: of the file.
        target: file to write.
        size: of the file in bytes; 0 = not known.
        checksums: see `faults`.

    Raises:
        WeightsError: the connection ended, or the file is not the published one, of which nothing stays.
        OSError: it cannot be written.
    """
    checksums = checksums or {}
    part = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not checksums or (size and part.is_file() and part.stat().st_size > size):
        part.unlink(missing_ok=True)
    try:
        if not (size and part.is_file() and part.stat().st_size == size):
            _receive(url, part)
    except OSError as error:
        if error.errno in _FULL:
            part.unlink(missing_ok=True)
            error.filename = str(target)
        raise
    fault = faults(part, size, checksums)
    if fault:
        part.unlink()
        raise WeightsError(f"what {url} gave is not the published file: {fault}. Nothing of it was kept")
    os.replace(part, target)


def _receive(url: str, part: Path) -> None:
    """Appends to `part` what it lacks."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_STALLED)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            part.unlink()
            return _receive(url, part)
        raise WeightsError(f"{url} cannot be downloaded: {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"{url} cannot be downloaded: {_one_line(getattr(error, 'reason', error))}") from error
    with answer, part.open("ab" if answer.status == http.client.PARTIAL_CONTENT else "wb") as stream:
        have = stream.tell()
        total = have + int(answer.headers.get("Content-Length") or 0)
        with tqdm(desc=part.stem, initial=have, total=total or None, unit="B", unit_scale=True, leave=False) as bar:
            while chunk := _read(answer, url):
                stream.write(chunk)
                bar.update(len(chunk))
        if stream.tell() < total:
            raise WeightsError(f"{url}: the connection ended after {stream.tell()} of {total} bytes; {_AGAIN}")
    return None


_AGAIN = "run the same command again"


def _read(answer: BinaryIO, url: str) -> bytes:
    try:
        return answer.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"{url}: the connection broke ({_one_line(error)}); {_AGAIN}") from error


def faults(path: Path, size: int, checksums: Mapping[str, str]) -> str:
    """Reason why a file is not the published one; "" if it may be.

    Args:
        path: of the file.
        size: in bytes; 0 = not known.
        checksums: algorithm and hexadecimal digits, all of them or the first few.
    """
    if size and path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes instead of {size}"
    digests = {algorithm: hashlib.new(algorithm) for algorithm in checksums}
    if digests:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                for digest in digests.values():
                    digest.update(chunk)
    for algorithm, expected in checksums.items():
        found = digests[algorithm].hexdigest()
        if not found.startswith(expected):
            return f"its {algorithm.upper()} begins with {found[: len(expected)]} instead of {expected}"
    return ""


def host_of(url: str) -> str:
    """The host of a URL, with its port."""
    return urlsplit(url).netloc


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]} ..."
