"""The learned viewport predictors: small networks, and a frozen language model that adds to them.

The language model is told, as one token each: three parts of the viewer's own motion, the state
that this viewer is in, the earlier viewers who looked nearest to where this viewer did (if there
are any), features of the current frame (if there are any), and what the networks answer. What it
makes of the last token is added to their mean answer, for all steps at once. It begins by adding
nothing.

The networks are asked every question a second time with left and right swapped, and the answers are
averaged. The language model, which takes most of the time, is asked once: as if the head had last
turned the same way always. So answers are symmetric, but for an upright head at perfect rest. A
frame's features cannot be swapped; with them all are asked once, as things are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adapters.backbones import Backbone, BackboneError, add_lora, merge_lora
from adapters.inference import PASS_FAILURES
from adapters.passes import LeanPass, Row
from adapters.viewport_features import (
    AXES,
    HISTORY,
    HORIZON,
    MIRROR,
    OWN_FEATURES,
    PITCH,
    TOLD,
    ImageFeaturesError,
    ViewportInputs,
    inputs_of,
)
from adapters.viewport_model import (
    ANSWER_DEG,
    NETWORKS,
    SPREAD_DEG,
    Crowd,
    ViewportModelConfig,
)
from player.angles import wrap_deg
from player.trace import FloatArray
from player.viewport_observation import MAX_SPREAD_DEG, Viewport, ViewportObservation

ViewportInference = Literal["lean", "full"]
MOTION_TOKENS = 3
MOTION_FEATURES = 2 * (HISTORY - 1) * AXES // MOTION_TOKENS
#: Tokens that are always there: own motion, own state, the networks' answers.
CONSTANT_TOKENS = MOTION_TOKENS + 2
ANSWER_VALUES = HORIZON * AXES * 2
#: Largest difference to the library's pass, over the largest value, that our own may show.
EXACT = 1e-4
NO_BACKBONE = "none"


class NoBackbone(Backbone):
    """Stands for the language model of a predictor that has none."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.name = self.family = self.fingerprint = NO_BACKBONE
        self.hidden_size = self.max_positions = 0
        self.adapter = None

    def share(self) -> NoBackbone:
        """Itself: there is nothing to share."""
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Changes nothing."""

    def forward(self, embeddings: Tensor, allowed: Tensor) -> Tensor:
        """Refuses.

        Raises:
            BackboneError: always.
        """
        raise BackboneError("this predictor has no language model")


class Addition(nn.Module):
    """What stands in front of a language model and behind it: tokens, and what they add."""

    def __init__(self, config: ViewportModelConfig, backbone: Backbone) -> None:
        super().__init__()
        size, width = backbone.hidden_size, config.feature_size
        most = CONSTANT_TOKENS + config.nearest + bool(config.image_size)
        if most > backbone.max_positions:
            raise BackboneError(
                f"{backbone.name}: {most} tokens exceed its {backbone.max_positions} positions"
            )
        self.nearest = config.nearest
        self.motion = _encoder(MOTION_FEATURES, width, size)
        self.state = _encoder(OWN_FEATURES, width, size)
        self.viewer = _encoder(TOLD * AXES, width, size)
        self.answers = _encoder(config.members * ANSWER_VALUES, width, size)
        self.image = nn.Linear(config.image_size, size) if config.image_size else None
        self.place = nn.Parameter(0.02 * torch.randn(most, size))
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.lora_dropout)
        self.head = nn.Linear(size, ANSWER_VALUES)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, read: Tensor) -> Tensor:
        """What to add, ``(B, 20, 3, 2)``, from the last hidden state ``(B, D)``."""
        added: Tensor = self.head(self.dropout(read)).view(-1, HORIZON, AXES, 2)
        return added

    def tokens(self, own: Tensor, crowd: Crowd, answers: Tensor, image: Tensor | None) -> Tensor:
        """``(B, T, D)``; see the module.

        Args:
            own: ``(B, 58)`` features.
            crowd: U earlier viewers of each row, none in all rows or some in all.
            answers: ``(members, B, 20, 3, 2)`` of the networks.
            image: ``(B, F)``, if it is told.
        """
        batch = len(own)
        halves = own[:, : MOTION_TOKENS * MOTION_FEATURES].view(batch, 2, MOTION_TOKENS, -1)
        motion = self.motion(halves.transpose(1, 2).flatten(2))  # (B, 3, D)
        parts = [motion, self.state(own)[:, None]]
        places = [self.place[: CONSTANT_TOKENS - 1]]
        first = CONSTANT_TOKENS - 1  # place of the farthest viewer
        if crowd.distance.shape[1]:
            parts.append(self._viewers(crowd))  # (B, nearest, D)
            places.append(self.place[first : first + self.nearest])
        if image is not None and self.image is not None:
            parts.append(self.image(image)[:, None])
            places.append(self.place[first + self.nearest :][:1])
        parts.append(self.answers(answers.transpose(0, 1).flatten(1))[:, None])  # (B, 1, D)
        places.append(self.place[-1:])
        tokens: Tensor = self.norm(torch.cat(parts, dim=1) + torch.cat(places))
        return tokens

    def _viewers(self, crowd: Crowd) -> Tensor:
        """``(B, nearest, D)``, the nearest last; 0 where there are fewer."""
        far = crowd.distance.masked_fill(crowd.absent, torch.inf)
        count = min(self.nearest, far.shape[1])
        distance, index = far.topk(count, dim=1, largest=False)  # (B, K)
        gathered = crowd.features.gather(
            1, index[..., None].expand(-1, -1, crowd.features.shape[2])
        )
        viewers = self.viewer(gathered) * distance.isfinite()[..., None]  # (B, K, D)
        return F.pad(viewers.flip(1), (0, 0, self.nearest - count, 0))


class ViewportPolicy(nn.Module):
    """Foretells where viewers will look. A function of its input in evaluation mode.

    Attributes:
        config: its shape.
        backbone: the language model, or what stands for it.
        inference: how answers of the language model are computed.
    """

    def __init__(self, config: ViewportModelConfig, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        make = NETWORKS[config.network]
        self.networks = nn.ModuleList(make(config) for _ in range(config.members))
        self.addition: Addition | None = None
        self.backbone: Backbone = NoBackbone()
        if backbone is not None:
            self.addition = Addition(config, backbone)
            self.backbone = backbone.share()
            add_lora(
                self.backbone,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                dropout=config.lora_dropout,
            )
        elif config.image_size:
            raise ValueError("image_size needs a language model, which is told of the frame")
        self.inference: ViewportInference = "full"
        self._lean: LeanPass | None = None
        self._at_once: Callable[[Tensor, Crowd], Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.networks.parameters()).device

    def forward(self, inputs: ViewportInputs) -> tuple[Tensor, Tensor]:
        """Answers as they are learned, not mirrored.

        Returns:
            ``(members, B, 20, 3, 2)`` of each network, and ``(B, 20, 3, 2)`` the answer.
        """
        own, crowd = inputs.own(), Crowd.of(inputs)
        answers = self._networks(own, crowd)
        return answers, answers.mean(dim=0) + self._added(own, crowd, answers, inputs.image)

    def answer(self, inputs: ViewportInputs) -> Tensor:
        """``(B, 20, 3, 2)`` location and log scale, the same from left and right."""
        if not self.config.is_symmetric or inputs.image is not None:
            answer: Tensor = self(inputs)[1]
            return answer
        count, is_swapped = len(inputs), inputs.turns_back()
        told = inputs.mirrored(is_swapped)
        other = told.mirrored()
        both = ViewportInputs(
            torch.cat([told.turns, other.turns]),
            torch.cat([told.level, other.level]),
            torch.cat([told.others, other.others]),
            torch.cat([told.absent, told.absent]),
        )
        own, crowd = both.own(), Crowd.of(both)
        answers = self._networks(own, crowd)  # (members, 2 B, 20, 3, 2)
        straight, swapped = answers.mean(dim=0).chunk(2)
        sign = swapped.new_tensor([[axis, 1.0] for axis in MIRROR])  # (3, 2)
        mean = (straight + swapped * sign) / 2
        mean = mean + self._added(own[:count], crowd.first(count), answers[:, :count], None)
        return torch.where(is_swapped[:, None, None, None], mean * sign, mean)

    def _networks(self, own: Tensor, crowd: Crowd) -> Tensor:
        if self._at_once is not None and crowd.distance.shape[1]:
            return self._at_once(own, crowd)
        return torch.stack([network(own, crowd) for network in self.networks])

    def _added(
        self, own: Tensor, crowd: Crowd, answers: Tensor, image: Tensor | None
    ) -> Tensor | float:
        """``(B, 20, 3, 2)`` what the language model adds."""
        if self.addition is None:
            return 0.0
        tokens = self.addition.tokens(own, crowd, answers, image)  # (B, T, D)
        read = self._last_full(tokens) if self._lean is None else _run_lean(self._lean, tokens)
        added: Tensor = self.addition(read)
        return added

    def train(self, mode: bool = True) -> ViewportPolicy:
        """Switches dropout; what is frozen has none."""
        super().train(mode)
        if mode:
            self.networks.train(any(one.requires_grad for one in self.networks.parameters()))
            self.inference, self._lean = "full", None  # our own pass keeps the updates of before
            self._at_once = None
        return self

    def _last_full(self, tokens: Tensor) -> Tensor:
        count = tokens.shape[1]
        allowed = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()
        hidden: Tensor = self.backbone(tokens, allowed)  # (B, T, D)
        return hidden[:, -1]

    @torch.inference_mode()
    def foretell(self, inputs: ViewportInputs) -> tuple[FloatArray, FloatArray]:
        """Displacements from the last pose and their spreads, ``(B, 20, 3)`` degrees each.

        Spreads never shrink with time.
        """
        parts: list[Tensor] = [torch.empty(0)] * len(inputs)
        alone = inputs.absent.all(dim=1)
        for is_alone in (True, False):
            index = (alone == is_alone).nonzero()[:, 0]
            if not len(index):
                continue
            asked = inputs.rows(index)
            if is_alone:
                none = asked.others[:, :0], asked.absent[:, :0]
                asked = ViewportInputs(asked.turns, asked.level, *none, asked.image)
            for row, one in zip(index.tolist(), self.answer(asked.to(self.device)), strict=True):
                parts[row] = one
        answers = torch.stack(parts).double().cpu().numpy()
        moved = answers[..., 0] * ANSWER_DEG
        spreads = SPREAD_DEG * np.exp(np.clip(answers[..., 1], -20.0, 20.0))
        return moved, np.minimum(np.maximum.accumulate(spreads, axis=1), MAX_SPREAD_DEG)

    def decide(self, observation: ViewportObservation) -> tuple[Viewport, ...]:
        """Returns one viewport per step; see :meth:`decide_many`."""
        return self.decide_many([observation])[0]

    def decide_many(
        self, observations: Sequence[ViewportObservation], *, caution: float = 1.0
    ) -> list[tuple[Viewport, ...]]:
        """Returns one viewport per step for each observation.

        Args:
            observations: of one session or of many.
            caution: the spreads that are told over those that are expected.

        Raises:
            HorizonError: more than 20 steps are asked for.
            ImageFeaturesError: features of another length than the model takes.
        """
        decided: list[tuple[Viewport, ...]] = [()] * len(observations)
        alike: dict[bool, list[int]] = {}
        for index, one in enumerate(observations):
            alike.setdefault(self._tells_image(one), []).append(index)
        for tells_image, indices in alike.items():
            asked = [observations[index] for index in indices]
            inputs = inputs_of(asked)
            if not tells_image:
                inputs = ViewportInputs(inputs.turns, inputs.level, inputs.others, inputs.absent)
            told = zip(indices, asked, *self.foretell(inputs), strict=True)
            for index, one, moved, spreads in told:
                told_deg = np.minimum(caution * spreads, MAX_SPREAD_DEG)
                decided[index] = _viewports(one, moved, told_deg)
        return decided

    def _tells_image(self, observation: ViewportObservation) -> bool:
        """Whether its image features are told; a model that was made without takes none."""
        found, wanted = len(observation.image_features), self.config.image_size
        if not found or not wanted:
            return False
        if found != wanted:
            raise ImageFeaturesError(
                "image_features", f"the checkpoint takes {wanted} values, here are {found}"
            )
        return True

    def freeze(self, inference: ViewportInference | Literal["auto"] = "full") -> ViewportPolicy:
        """Makes the model ready to answer: updates folded in, no dropout, no gradients.

        Raises:
            BackboneError: this way does not work with the backbone.
        """
        self.eval()
        if self.addition is not None:
            merge_lora(self.backbone)
        self.requires_grad_(False)
        if self.config.network == "crowd":
            self._at_once = _at_once(self.networks)
        if self.addition is None or inference == "full":
            return self
        try:
            self._lean = self._proven(LeanPass(self.backbone), self.addition.place.shape[0])
            self.inference = "lean"
        except PASS_FAILURES as error:
            if inference == "lean":
                raise BackboneError(
                    f"inference 'lean' does not work: {error}; use 'auto' or 'full'"
                ) from error
        return self

    @torch.inference_mode()
    def _proven(self, run: LeanPass, most: int) -> LeanPass:
        """The pass, if it gives what the library does, for the fewest and the most tokens."""
        for count in (CONSTANT_TOKENS, most):
            generator = torch.Generator().manual_seed(count)
            tokens = torch.randn(2, count, self.backbone.hidden_size, generator=generator)
            tokens = tokens.to(self.device)
            full = self._last_full(tokens)
            largest = float((_run_lean(run, tokens) - full).abs().max() / full.abs().max())
            if not largest <= EXACT:  # true for NaN
                raise BackboneError(
                    f"{self.backbone.name}: differs from the library's pass by {largest:.1e}"
                )
        return run

    def adapter_state(self) -> dict[str, Tensor]:
        """The weights that training changes: networks, encoders, head and low-rank updates."""
        frozen = "backbone."
        return {
            key: value
            for key, value in self.state_dict().items()
            if not key.startswith(frozen) or "lora_" in key
        }


def _viewports(
    observation: ViewportObservation, moved: FloatArray, spreads: FloatArray
) -> tuple[Viewport, ...]:
    poses = np.array(observation.history[-1]) + moved[: observation.horizon]  # (h, 3)
    inside = wrap_deg(poses)
    inside[:, PITCH] = np.clip(poses[:, PITCH], -90.0, 90.0)
    rows = np.concatenate([inside, spreads[: observation.horizon]], axis=1)
    return tuple(Viewport(*row) for row in rows.tolist())


def _at_once(networks: nn.ModuleList) -> Callable[[Tensor, Crowd], Tensor]:
    """Asks networks of one shape together, which takes half the time of one after the other."""
    weights = torch.func.stack_module_state(list(networks))
    shape = copy.deepcopy(networks[0]).to("meta")

    def ask(own: Tensor, crowd: Crowd) -> Tensor:
        def one(*its: Any) -> Any:
            return torch.func.functional_call(shape, its, (own, crowd))

        answers: Tensor = torch.vmap(one)(*weights)
        return answers

    return ask


def _run_lean(run: LeanPass, tokens: Tensor) -> Tensor:
    """``(B, D)`` last hidden states of ``(B, T, D)``."""
    batch, count, _ = tokens.shape
    layers, two, heads, width = run.memory_shape
    memory = tokens.new_empty(batch, layers, two, heads, count, width)
    places = torch.arange(count, device=tokens.device).repeat(batch)
    return run(tokens.flatten(0, 1), places, [Row(one, 0, count) for one in memory])


def _encoder(features: int, width: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, size))
