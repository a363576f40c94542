# SPDX-License-Identifier: Apache-2.0
"""Tensors to and from a folder by torch.distributed.checkpoint, read back without trusting a pickle.

Importing this module costs a second or two (torch.distributed.checkpoint): import it inside functions.
"""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

# Without a process group one process is what is meant, on its saving thread too: torch need not wonder aloud.
warnings.filterwarnings("ignore", message=".*assuming the intent is to (save|load) in a single process.*")

# What a metadata file of tensors consists of: torch's own records, and nothing that can run code.
_ALLOWED_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_ALLOWED_NAMES = {
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}
_ALLOWED_RECORDS = {
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
    "_StorageInfo",
}


class CheckpointIOError(RuntimeError):
    """A checkpoint could not be written or read; the message has every failing rank's reason. All ranks raise it."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        record = module in _ALLOWED_MODULES and name in _ALLOWED_RECORDS
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if record or is_dtype or (module, name) in _ALLOWED_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a checkpoint's metadata may not contain {module}.{name}")


class SafeReader(dcp.FileSystemReader):
    """A FileSystemReader for tensors only, whose metadata can hold nothing but torch's checkpoint records.

    Raises:
        pickle.UnpicklingError: the metadata names any other class; so does that of an entry which is no tensor.
        ValueError: an entry whose file lies outside the folder.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read `.metadata`, or this rank's part of it."""
        path = Path(self._get_metadata_path(kwargs.get("rank")))
        with path.open("rb") as stream:
            metadata = _read_metadata(stream, path)
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _read_metadata(stream: IO[bytes], path: Path) -> Metadata:
    metadata = _MetadataUnpickler(stream).load()
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{path}: not a checkpoint's metadata")
    for info in (metadata.storage_data or {}).values():
        relative = PurePosixPath(info.relative_path)
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"{path}: file {info.relative_path!r} lies outside the checkpoint")
    return metadata


def tensor_names(folder: Path) -> set[str]:
    """Names of the tensors that a checkpoint folder holds."""
    return set(SafeReader(folder).read_metadata().state_dict_metadata)


def data_files(folder: Path) -> set[str]:
    """The files that a checkpoint's tensors are in, by name."""
    return {info.relative_path for info in (SafeReader(folder).read_metadata().storage_data or {}).values()}


def save_tensors(tensors: dict[str, Tensor], folder: Path, group: dist.ProcessGroup | None) -> None:
    """Write tensors (DTensors: each rank its shards) into `folder`, flushed to disk. Collective."""
    with _telling():
        dcp.save(dict(tensors), storage_writer=_writer(folder), process_group=group, no_dist=group is None)


def save_tensors_async(tensors: dict[str, Tensor], folder: Path, group: dist.ProcessGroup | None) -> Future[Any]:
    """As `save_tensors`, on a thread, after copying the tensors to host memory; `group` must be its own gloo group."""
    with _telling():
        answer = dcp.async_save(
            dict(tensors), storage_writer=_writer(folder), process_group=group, no_dist=group is None
        )
    return answer if isinstance(answer, Future) else answer.upload_completion


def wait(saving: Future[Any]) -> None:
    """Until an asynchronous save has ended."""
    with _telling():
        saving.result()


def load_tensors(tensors: dict[str, Tensor], folder: Path, group: dist.ProcessGroup | None) -> None:
    """Fill `tensors` in place from `folder`, whatever world size wrote it. Collective."""
    with _telling():
        dcp.load(dict(tensors), storage_reader=SafeReader(folder), process_group=group, no_dist=group is None)


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names, whole, on the CPU. Not collective."""
    entries = SafeReader(folder).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    load_tensors(tensors, folder, None)
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Turn torch's failure (no Exception at all, but a BaseException of many lines) into one line."""
    try:
        yield
    except CheckpointException as error:
        reasons = sorted({" ".join(str(failure).split())[:300] for failure, _ in error.failures.values()})
        raise CheckpointIOError("; ".join(reasons)) from None


def _writer(folder: Path) -> dcp.FileSystemWriter:
    return dcp.FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
