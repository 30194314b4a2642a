"""Features of frames from a vision model in a local folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from adapters.image_features import VisionModelError, load_frame_features


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    folder = tmp_path_factory.mktemp("vision") / "vit"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_frames_become_features(vision_model: Path) -> None:
    features = load_frame_features(vision_model)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, size=(20, 24, 48, 3), dtype=np.uint8)
    found = features(frames)
    assert found.shape == (20, 16)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(features(frames), found)
    np.testing.assert_allclose(features(frames[17:18])[0], found[17], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_what_is_no_model_or_no_frame_is_refused(
    vision_model: Path, tiny_backbone: str, tmp_path: Path
) -> None:
    with pytest.raises(VisionModelError, match="no such folder"):
        load_frame_features(tmp_path / "nothing")
    with pytest.raises(VisionModelError, match="cannot be loaded"):
        load_frame_features(tmp_path)
    with pytest.raises(VisionModelError, match="takes no images"):
        load_frame_features(tiny_backbone)
    with pytest.raises(VisionModelError, match="frames must be uint8"):
        load_frame_features(vision_model)(np.zeros((1, 8, 8, 3)))  # type: ignore[arg-type]
