"""Small networks that foretell head motion: one that also attends to earlier viewers, and a GRU.

Both answer, for 20 steps and three angles, a displacement from the last pose and the logarithm of
how far off it may be (the scale of a Laplace distribution), and both begin as "no motion": their
last layers start at zero.

Of earlier viewers, :class:`CrowdNetwork` pools where they went in eight heads of attention. Whom a
head attends to depends on both viewers' motion and on how far apart they have looked; beside all
viewers stands nobody, who says nothing, so that being without earlier viewers is no special case.
How far to follow what was pooled is said per step by gates: the answer is bilinear in them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adapters.viewport_features import (
    AXES,
    COMPARED,
    HORIZON,
    OWN_FEATURES,
    PITCH,
    ROLL,
    TOLD,
    YAW,
    ViewportInputs,
)

#: Degrees of an answer of 1, and of a scale whose logarithm is 0.
ANSWER_DEG, SPREAD_DEG = 10.0, 5.0
#: Of earlier viewers' poses: told as asinh(angle / this).
OTHERS_DEG = 5.0
#: Distance of two viewers: that in yaw plus so much of that in pitch.
PITCH_SHARE = 0.7
#: Units in which pooled values are given.
YAW_MOTION_DEG, SMALL_DEG = 30.0, 10.0
HALF_RADIAN = 0.5
#: Per head and step: angle and certainty of the yaw, pitch, motion in yaw and pitch, roll.
POOLED = 6
#: What gates multiply: all but the certainty.
GATED = POOLED - 1
#: Last of the own features: roll, pitch and two paces.
LEVELS = 4
GRU_FEATURES = 2 * AXES + LEVELS


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewportModelConfig:
    """Shape of a model; written into the checkpoint.

    Attributes:
        network: ``crowd`` attends to earlier viewers, ``gru`` knows the viewer's own motion only.
        members: networks whose answers are averaged.
        hidden_size: of a network's layers.
        layers: their number.
        heads: of the attention to earlier viewers.
        viewer_size: width of what is made of one earlier viewer.
        is_symmetric: average with the mirrored answer to the mirrored question.
        feature_size: width of the projections to the language model's tokens.
        nearest: earlier viewers that the language model is told of one by one.
        image_size: image features that it is told; 0: none.
        lora_rank: rank of its updates.
        lora_alpha: their scale times the rank.
        dropout: of the networks, in training only.
        lora_dropout: of the updates and in front of the head, likewise.
    """

    network: Literal["crowd", "gru"] = "crowd"
    members: int = 3
    hidden_size: int = 384
    layers: int = 3
    heads: int = 8
    viewer_size: int = 64
    is_symmetric: bool = True
    feature_size: int = 64
    nearest: int = 6
    image_size: int = 0
    lora_rank: int = 8
    lora_alpha: float = 16.0
    dropout: float = 0.1
    lora_dropout: float = 0.05

    def __post_init__(self) -> None:
        for name in (
            *("members", "hidden_size", "layers", "heads", "viewer_size", "feature_size"),
            *("nearest", "lora_rank"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        if self.image_size < 0:
            raise ValueError(f"image_size must not be negative, is {self.image_size}")
        for name in ("dropout", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1")


@dataclass(frozen=True, slots=True, eq=False)
class Crowd:
    """Earlier viewers as all members of a model see them.

    Attributes:
        features: ``(B, U, 72)``.
        distance: ``(B, U)`` how far apart they and this viewer have looked, degrees.
        values: ``(B, U, 6, 20)`` what is pooled.
        absent: ``(B, U)``.
    """

    features: Tensor
    distance: Tensor
    values: Tensor
    absent: Tensor

    @classmethod
    def of(cls, inputs: ViewportInputs) -> Crowd:
        """Prepares what is pooled."""
        others = inputs.others  # (B, U, 24, 3)
        against, onwards = others[:, :, : len(COMPARED)], others[:, :, len(COMPARED) :]
        apart = against.abs().mean(2)  # (B, U, 3)
        moved = wrapped(onwards - against[:, :, -1:])  # (B, U, 20, 3)
        yaw = torch.deg2rad(onwards[..., YAW])
        values = [
            torch.sin(yaw),
            torch.cos(yaw),
            onwards[..., PITCH] / SMALL_DEG,
            moved[..., YAW] / YAW_MOTION_DEG,
            moved[..., PITCH] / SMALL_DEG,
            onwards[..., ROLL] / SMALL_DEG,
        ]
        return cls(
            features=torch.asinh(others / OTHERS_DEG).flatten(2),
            distance=apart[..., YAW] + PITCH_SHARE * apart[..., PITCH],
            values=torch.stack(values, dim=2),
            absent=inputs.absent,
        )

    def first(self, count: int) -> Crowd:
        """That of the first questions."""
        return Crowd(
            self.features[:count],
            self.distance[:count],
            self.values[:count],
            self.absent[:count],
        )


class CrowdNetwork(nn.Module):
    """Own motion and earlier viewers to ``(B, 20, 3, 2)``; see the module."""

    def __init__(self, config: ViewportModelConfig) -> None:
        super().__init__()
        self.heads, size, hidden = config.heads, config.viewer_size, config.hidden_size
        self.own = nn.Linear(OWN_FEATURES, size)
        self.viewer = nn.Linear(TOLD * AXES, size)
        self.meeting = nn.Linear(size, size)
        self.score = nn.Linear(size, self.heads)
        self.reach = nn.Parameter(torch.linspace(2.0, 4.5, self.heads))  # log degrees
        self.nobody = nn.Parameter(torch.full((self.heads,), -2.0))
        self.summary = nn.Linear(size, size)
        width = OWN_FEATURES + self.heads * (POOLED * HORIZON + 1) + size
        layers: list[nn.Module] = []
        for _ in range(config.layers):
            layers += [nn.Linear(width, hidden), nn.GELU(), nn.Dropout(config.dropout)]
            width = hidden
        self.body = nn.Sequential(*layers)
        self.answer = _zeroed(nn.Linear(hidden, HORIZON * AXES * 2))
        self.gates = _zeroed(nn.Linear(hidden, self.heads * GATED * HORIZON))

    def forward(self, own: Tensor, crowd: Crowd) -> Tensor:
        """Returns location and log scale, from ``(B, 58)`` and what there is of U viewers."""
        pooled, told = self._pool(own, crowd)
        hidden = self.body(torch.cat([own, pooled.flatten(1), told], dim=1))  # (B, H)
        answer: Tensor = self.answer(hidden).view(-1, HORIZON, AXES, 2)
        return answer + F.pad(self._followed(hidden, pooled)[..., None], (0, 1))

    def _pool(self, own: Tensor, crowd: Crowd) -> tuple[Tensor, Tensor]:
        """``(B, heads, 6, 20)`` of the attention, and ``(B, heads + size)`` of the whole crowd."""
        batch, viewers = crowd.distance.shape
        if viewers == 0:
            pooled = own.new_zeros(batch, self.heads, POOLED, HORIZON)
            return pooled, own.new_zeros(batch, self.heads + self.summary.out_features)
        met = F.gelu(self.viewer(crowd.features))  # (B, U, S)
        met = F.gelu(self.meeting(met + self.own(own)[:, None]))
        scores = self.score(met) - crowd.distance[..., None] / self.reach.exp()  # (B, U, heads)
        scores = scores.masked_fill(crowd.absent[..., None], -torch.inf)
        with_nobody = torch.cat([scores, self.nobody.expand(batch, 1, -1)], dim=1)
        weights = with_nobody.softmax(dim=1)[:, :-1]  # (B, U, heads)
        flat = torch.bmm(weights.transpose(1, 2), crowd.values.flatten(2))  # (B, heads, 120)
        sine, cosine, *others = flat.view(batch, self.heads, POOLED, HORIZON).unbind(2)
        angle = torch.atan2(sine, cosine + 1e-6) / HALF_RADIAN  # of nobody: 0
        pooled = torch.stack([angle, sine.square() + cosine.square(), *others], dim=2)
        presence = (~crowd.absent)[..., None].float()  # (B, U, 1)
        count = presence.sum(1)
        mean = (met * presence).sum(1) / count.clamp(min=1)
        summary = self.summary(mean) * (count > 0)
        agreement = (with_nobody.logsumexp(1) - self.nobody) / AXES  # of nobody: 0
        return pooled, torch.cat([agreement, summary], dim=1)

    def _followed(self, hidden: Tensor, pooled: Tensor) -> Tensor:
        """``(B, 20, 3)`` what the gates let through."""
        gates = self.gates(hidden).view(-1, self.heads, GATED, HORIZON)
        gated = gates * pooled[:, :, [0, 2, 3, 4, 5]]
        yaw, pitch, yaw_motion, pitch_motion, roll = gated.sum(1).unbind(1)  # (B, 20) each
        in_yaw = math.degrees(HALF_RADIAN) / ANSWER_DEG * yaw
        moved = YAW_MOTION_DEG / ANSWER_DEG * yaw_motion
        return torch.stack([roll, pitch + pitch_motion, in_yaw + moved], dim=-1)


class GruNetwork(nn.Module):
    """Own motion to ``(B, 20, 3, 2)``: two layers of gated recurrent units (Cho et al., 2014)."""

    def __init__(self, config: ViewportModelConfig) -> None:
        super().__init__()
        self.recurrent = nn.GRU(
            GRU_FEATURES,
            config.hidden_size,
            num_layers=config.layers,
            batch_first=True,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.answer = _zeroed(nn.Linear(config.hidden_size, HORIZON * AXES * 2))

    def forward(self, own: Tensor, crowd: Crowd) -> Tensor:
        """Returns location and log scale, from ``(B, 58)``; earlier viewers are ignored."""
        motion, level = own[:, :-LEVELS], own[:, -LEVELS:]
        steps = motion.view(len(own), 2, -1, AXES).transpose(1, 2).flatten(2)  # (B, 9, 6)
        told = torch.cat([steps, level[:, None].expand(-1, steps.shape[1], -1)], dim=2)
        hidden, _ = self.recurrent(told)  # (B, 9, H)
        answer: Tensor = self.answer(hidden[:, -1]).view(-1, HORIZON, AXES, 2)
        return answer


NETWORKS: dict[str, type[CrowdNetwork] | type[GruNetwork]] = {
    "crowd": CrowdNetwork,
    "gru": GruNetwork,
}
#: Shape of the baseline.
GRU_MODEL = ViewportModelConfig(network="gru", members=1, hidden_size=96, layers=2)


def answer_loss(answers: Tensor, moved_deg: Tensor, spread_weight: float) -> Tensor:
    """``()`` mean absolute error, and the likelihood of the errors under the spreads.

    Args:
        answers: ``(…, B, 20, 3, 2)``.
        moved_deg: ``(B, 20, 3)`` displacements that came.
        spread_weight: of the likelihood, which does not move the locations.
    """
    location, log_scale = answers.unbind(-1)
    error = wrapped(location * ANSWER_DEG - moved_deg).abs()
    likelihood = error.detach() / (SPREAD_DEG * log_scale.exp()) + log_scale
    return error.mean() + spread_weight * likelihood.mean()


def wrapped(degrees: Tensor) -> Tensor:
    """The same directions within ±180."""
    return torch.remainder(degrees + 180.0, 360.0) - 180.0


def _zeroed(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
