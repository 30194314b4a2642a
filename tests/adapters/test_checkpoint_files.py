"""Checkpoint files: what is odd is refused, by file and key, and a torn checkpoint is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters import checkpoint_files
from adapters.checkpoint_files import CheckpointError, checkpoint_folder, write_checkpoint
from adapters.checkpoints import load_checkpoint
from adapters.pensieve import load_pensieve
from adapters.throughput_checkpoints import load_throughput_model

LOADERS: dict[str, Callable[[str], Any]] = {
    "abr-minilm": load_checkpoint,
    "abr-minilm-levels": load_checkpoint,
    "abr-fugu": load_throughput_model,
    "abr-pensieve": load_pensieve,
}
WEIGHTS = {
    "abr-fugu": "throughput.safetensors",
    "abr-pensieve": "policy.safetensors",
}


def edited(folder: Path, name: str, key: str, value: object) -> Path:
    """A copy of what is shipped, one key of whose configuration is another."""
    copy = Path(shutil.copytree(checkpoint_folder(f"builtin:{name}"), folder / name))
    document = json.loads((copy / "config.json").read_text())
    *above, last = key.split(".")
    place = document
    for part in above:
        place = place[part]
    place[last] = value
    (copy / "config.json").write_text(json.dumps(document))
    return copy


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("abr-minilm", "model.feature_size", 10**9, r"model\.feature_size: 1000000000 is more"),
        ("abr-minilm", "model.feature_size", 10**5, r"has shape .* the model needs \(100000,"),
        ("abr-minilm", "model.lora_rank", 10**6, r"lora_A.* the model needs \(1000000, 384\)"),
        ("abr-minilm", "model.lora_rank", 10**30, r"model\.lora_rank: 10+ is more"),
        ("abr-minilm", "model.lora_alpha", float("nan"), r"model\.lora_alpha: nan is not finite"),
        ("abr-minilm", "model.lora_alpha", float("inf"), r"model\.lora_alpha: inf is not finite"),
        ("abr-minilm", "model.levels_kbps", [], r"model\.levels_kbps must be positive and incr"),
        ("abr-minilm", "model.levels_kbps", [1.0, float("nan")], r"model\.levels_kbps\.1: nan"),
        ("abr-minilm-levels", "model.levels_kbps", [1, 3, 2], r"increase, is \[1\.0, 3\.0, 2\.0\]"),
        ("abr-minilm-levels", "model.levels_kbps", [0, 1, 2], r"levels_kbps must be positive"),
        ("abr-minilm", "model.block", 10**5, r"config\.json: model: .*block must be at"),
        ("abr-minilm", "model.width", 3, r"model\.width: unknown key; there are .*feature_size"),
        ("abr-minilm", "backbone.size", 3, r"backbone\.size: unknown key"),
        ("abr-minilm", "more", {}, r"more: unknown key"),
        ("abr-minilm", "task", "viewport", r"for task 'viewport', asked for 'abr'"),
        ("abr-fugu", "model.hidden", 10**9, r"model\.hidden: 1000000000 is more than"),
        ("abr-fugu", "model.row_hidden", 10**6, r"has shape .* the model needs \(\d+, 1000000\)"),
        ("abr-fugu", "model.bins", 10**9, r"model\.bins: 1000000000 is more than"),
        ("abr-fugu", "model.crowding", float("nan"), r"model\.crowding: nan is not finite"),
        ("abr-fugu", "more", 1, r"more: unknown key"),
        ("abr-pensieve", "levels_kbps", [1, 2, 3, 4, 5, 5], r"levels_kbps must be positive and"),
        ("abr-pensieve", "levels_kbps", [1, 2, 3, 4, 5, float("nan")], r"levels_kbps\.5: nan"),
        ("abr-pensieve", "levels_kbps", list(range(1, 50_000)), r"weight .* has shape"),
        ("abr-pensieve", "more", 1, r"more: unknown key"),
        ("abr-pensieve", "task", "viewport", r"for task 'viewport', asked for 'abr'"),
    ],
)
def test_odd_configurations_are_refused_by_file_and_key(
    tmp_path: Path, name: str, key: str, value: object, says: str
) -> None:
    copy = edited(tmp_path, name, key, value)
    with pytest.raises(CheckpointError, match=says) as caught:
        LOADERS[name](str(copy))
    file = WEIGHTS.get(name, "adapter.safetensors") if "weight" in str(caught.value) else "config"
    assert str(caught.value).startswith(str(copy / file))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
        load_checkpoint(str(tmp_path))


def test_a_checkpoint_of_another_kind_is_told() -> None:
    for load in LOADERS.values():
        for other, belongs in LOADERS.items():
            if belongs is not load:
                folder = checkpoint_folder(f"builtin:{other}")
                with pytest.raises(
                    CheckpointError, match=r"config\.json: format is .*, this reads"
                ):
                    load(str(folder))


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(CheckpointError, match=r"shipped: .*builtin:abr-fugu"):
        load_throughput_model("builtin:nothing")
    with pytest.raises(CheckpointError, match=r"shipped: builtin:abr-minilm, builtin:abr-minilm-l"):
        load_checkpoint("builtin:nothing")


class Killed(BaseException):
    """Stands for a signal."""


@pytest.mark.parametrize("after", range(4))
def test_a_writer_that_is_killed_leaves_no_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    config = load_pensieve("builtin:abr-pensieve").config
    write_checkpoint(tmp_path, "w.safetensors", {"a": torch.zeros(1)}, config, {"of": 0})
    steps = iter(range(after))
    replace, write = Path.replace, checkpoint_files.write_json

    def killed_replace(path: Path, target: Path) -> Path:
        if next(steps, None) is None:
            raise Killed
        return replace(path, target)

    def killed_write(path: Path, document: Any) -> None:
        if after == 0:
            raise Killed
        write(path, document)

    monkeypatch.setattr(Path, "replace", killed_replace)
    monkeypatch.setattr(checkpoint_files, "write_json", killed_write)
    new = {"a": torch.ones(1)}
    if after < 3:
        with pytest.raises(Killed):
            write_checkpoint(tmp_path, "w.safetensors", new, config, {"of": 1})
    else:
        write_checkpoint(tmp_path, "w.safetensors", new, config, {"of": 1})
    if (tmp_path / "config.json").exists():
        of = json.loads((tmp_path / "card.json").read_text())["of"]
        assert load_file(tmp_path / "w.safetensors")["a"].item() == of == (after == 3)
    else:
        assert after in (1, 2)
