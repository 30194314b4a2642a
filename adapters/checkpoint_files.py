"""Checkpoint files of every task: safetensors, ``config.json`` and ``card.json``. No pickle.

What a file holds is checked against the dataclass and the model that it is read for: an error names
the file and the key or weight. A checkpoint without ``config.json`` is none, and that file comes
last, so whoever is killed while writing leaves no mixture.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

BUILTIN = "builtin:"
CONFIG_FILE = "config.json"
CARD_FILE = "card.json"
#: No size of a model is larger; others are refused before memory is asked for.
MAX_SIZE = 2**20

ConfigT = TypeVar("ConfigT")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or made for something else; names file and key."""


def builtin_checkpoints(weights_file: str = "*") -> tuple[str, ...]:
    """Names of the checkpoints that are shipped; only those with such a file if one is named."""
    shipped = Path(str(files("adapters") / "shipped"))
    found = {path.parent.name for path in shipped.glob(f"*/{weights_file}")}
    return tuple(sorted(f"{BUILTIN}{name}" for name in found))


def checkpoint_folder(spec: str, weights_file: str = "*") -> Path:
    """Folder of a checkpoint named ``builtin:NAME`` or by its path.

    Args:
        spec: the name.
        weights_file: what it must have if it is shipped; by default any will do.

    Raises:
        CheckpointError: there is none.
    """
    shipped = builtin_checkpoints(weights_file)
    known = ", ".join(shipped) or "-"
    if spec.startswith(BUILTIN):
        if spec not in shipped:
            raise CheckpointError(f"unknown checkpoint {spec!r}; shipped: {known}")
        return Path(str(files("adapters") / "shipped" / spec.removeprefix(BUILTIN)))
    folder = Path(spec)
    if not folder.is_dir():
        raise CheckpointError(
            f"{spec}: no such folder; a checkpoint is a folder with {CONFIG_FILE}, "
            f"{CARD_FILE} and weights, or one of {known}"
        )
    return folder


def write_checkpoint(
    folder: Path, weights_file: str, weights: Mapping[str, Tensor], config: Any, card: Any
) -> None:
    """Writes a checkpoint, whole or not at all; the folder is made.

    Args:
        folder: where to.
        weights_file: name of the file of weights.
        weights: by name.
        config: dataclass that becomes ``config.json``.
        card: JSON values that tell where the weights come from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fresh = {name: folder / f"{name}.new" for name in (weights_file, CARD_FILE, CONFIG_FILE)}
    write_weights(fresh[weights_file], weights)
    write_json(fresh[CARD_FILE], card)
    write_json(fresh[CONFIG_FILE], dataclasses.asdict(config))
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    for name, path in fresh.items():
        path.replace(folder / name)


def read_config(
    folder: Path, kind: type[ConfigT], *, file_format: str, task: str | None = None
) -> ConfigT:
    """Reads ``config.json`` into a dataclass.

    Args:
        folder: of the checkpoint.
        kind: the dataclass; has every key that the file may have.
        file_format: what the key ``format`` must say.
        task: what the key ``task`` must say; None if there is no such key.

    Raises:
        CheckpointError: missing, malformed, for something else, an unknown key, a number that is
            not finite or a whole one beyond ``MAX_SIZE``.
    """
    path = folder / CONFIG_FILE
    document = _read_object(path)
    if document.get("format") != file_format:
        raise CheckpointError(
            f"{path}: format is {document.get('format')!r}, this reads {file_format!r}"
        )
    if task is not None and document.get("task") != task:
        raise CheckpointError(
            f"{path}: checkpoint is for task {document.get('task')!r}, asked for {task!r}"
        )
    for key, value in _leaves(document):
        if isinstance(value, float) and not math.isfinite(value):
            raise CheckpointError(f"{path}: {key}: {value} is not finite")
        if isinstance(value, int) and abs(value) > MAX_SIZE:
            raise CheckpointError(f"{path}: {key}: {value} is more than {MAX_SIZE}")
    try:
        config = pydantic.TypeAdapter(kind).validate_python(document)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise CheckpointError(f"{path}: {where}: {first['msg']}") from error
    known = dict(_leaves(dataclasses.asdict(config)))  # type: ignore[call-overload]
    for key, _ in _leaves(document):
        if key not in known:
            raise CheckpointError(f"{path}: {key}: unknown key; there are {', '.join(known)}")
    return config


def require_increasing(levels_kbps: Sequence[float]) -> None:
    """Refuses what is no ladder.

    Raises:
        ValueError: it is empty, or does not increase from above 0.
    """
    # Written so that NaN is refused, too.
    if not levels_kbps or not all(a < b for a, b in itertools.pairwise((0.0, *levels_kbps))):
        raise ValueError(f"levels_kbps must be positive and increase, is {list(levels_kbps)}")


def read_matching(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reads weights for a model.

    Args:
        path: a safetensors file.
        expected: weights of the model, by name. They may be on the device ``meta``: a model of
            absurd size is then refused before it takes memory.

    Returns:
        The weights, of the expected types.

    Raises:
        CheckpointError: the file is missing or damaged, or a weight is missing, unknown, of another
            shape or not finite.
    """
    weights = read_weights(path)
    for key in sorted(set(weights) ^ set(expected)):
        problem = "is missing" if key in expected else "does not belong to the model"
        raise CheckpointError(f"{path}: weight {key!r} {problem}")
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{path}: weight {key!r} has shape {tuple(value.shape)}, the model needs "
                f"{tuple(expected[key].shape)}"
            )
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: weight {key!r} has a value that is not finite")
    return {key: value.to(expected[key].dtype) for key, value in weights.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file, wherever the weights are."""
    save_file({key: one.detach().cpu().contiguous() for key, one in weights.items()}, path)


def write_json(path: Path, document: Any) -> None:
    """Writes a document for machines and people."""
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one for any other JSON value."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    return document if isinstance(document, dict) else {}


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """What a document holds beside objects and lists, each with its place: ``model.block``."""
    if isinstance(value, dict | list | tuple) and value:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            yield from _leaves(part, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
