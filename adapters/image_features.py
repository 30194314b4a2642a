"""Features of video frames from a vision model of the transformers library, in a local folder.

A viewport predictor that was made with ``image_size`` takes them as ``image_features`` of an
observation, one token of its language model. The public head motion recordings come without their
videos, so the shipped checkpoint has never seen a frame and takes none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

#: Frames that are computed at once.
BATCH = 16

FrameFeatures = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class VisionModelError(ValueError):
    """A folder without a usable vision model, or frames that are none."""


def load_frame_features(folder: str | Path) -> FrameFeatures:
    """A function from frames ``(n, height, width, 3)`` in RGB to features ``(n, F)``.

    Features are the mean of the model's last hidden states over the image: any model of the library
    will do that takes ``pixel_values`` and gives hidden states, such as ViT, DeiT or DINOv2. Frames
    are resized to the model's size; nothing is cut off. Nothing is downloaded.

    Raises:
        VisionModelError: no such folder, or no vision model in it.
    """
    from transformers import AutoConfig, AutoModel

    place = Path(folder)
    if not place.is_dir():
        raise VisionModelError(f"{place}: no such folder of a vision model")
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(place, **here)
        model = AutoModel.from_pretrained(place, config=config, use_safetensors=True, **here)
    except (OSError, ValueError, KeyError) as error:
        raise VisionModelError(f"{place}: cannot be loaded: {error}") from error
    if model.main_input_name != "pixel_values" or not isinstance(
        size := getattr(config, "image_size", None), int
    ):
        raise VisionModelError(f"{place}: a model of type {config.model_type!r} takes no images")
    model.eval().requires_grad_(False)
    mean, spread = _normalisation(place)

    @torch.inference_mode()
    def features(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
            raise VisionModelError(
                f"frames must be uint8 (n, height, width, 3), are {frames.dtype} {frames.shape}"
            )
        found = []
        for first in range(0, len(frames), BATCH):
            pixels = torch.from_numpy(np.ascontiguousarray(frames[first : first + BATCH]))
            scaled = pixels.permute(0, 3, 1, 2).float() / 255  # (b, 3, height, width)
            resized = torch.nn.functional.interpolate(
                scaled, size=(size, size), mode="bilinear", antialias=True, align_corners=False
            )
            hidden = model(pixel_values=(resized - mean) / spread).last_hidden_state
            found.append(hidden.flatten(2).mean(1) if hidden.ndim == 3 else hidden.mean((2, 3)))
        return np.asarray(torch.cat(found).float().numpy())

    return features


def _normalisation(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """``(3, 1, 1)`` mean and spread of colours that the model was trained with; else 0.5."""
    path = folder / "preprocessor_config.json"
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        mean, spread = told.get("image_mean", [0.5] * 3), told.get("image_std", [0.5] * 3)
        pair = torch.tensor([mean, spread], dtype=torch.float32).view(2, 3, 1, 1)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise VisionModelError(f"{path}: no usable image_mean and image_std: {error}") from error
    return pair[0], pair[1]
