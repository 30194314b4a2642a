"""The learned scheduler: a small graph network, and a frozen language model that adds to it.

The graph network of ``adapters.decima`` embeds stages, jobs and the cluster and gives every stage
that may be chosen a score, and its job a limit of executors. The language model is told, as one
token each, the jobs with the least work left, the stages that this network finds best, the best one
last, and the cluster. Its hidden state at the last token says what the situation is; the head reads
it once for every stage, beside that stage's own numbers, and adds to score and limit. So there may
be any number of stages, and of executors: a limit is a share of the cluster. The addition begins
as nothing: before training the model decides as the graph network does.

Scores and limits are then used as ``adapters.decima`` does, idle guard included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adapters.backbones import Backbone, BackboneError, add_lora, merge_lora
from adapters.decima import (
    Candidates,
    DecimaConfig,
    DecimaNetwork,
    DecimaPolicy,
    Ratings,
    weight_shapes,
)
from adapters.inference import PASS_FAILURES
from adapters.passes import LeanPass, Row
from adapters.scheduling_features import (
    SchedulingInputs,
    Told,
    candidate_size,
    cluster_size,
    job_size,
    tell,
)
from cluster_sim.observation import Assignment, ClusterView

SchedulingInference = Literal["lean", "full"]
ANSWERS = 2  # of a stage: score, logarithm of its job's limit
#: Largest difference to the library's pass, over the largest value, that our own may show.
EXACT = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulingModelConfig:
    """Shape of a model; written into the checkpoint.

    Attributes:
        embedding_size: of the graph network.
        hidden_size: likewise.
        idle_guard: see :class:`adapters.decima.DecimaConfig`.
        feature_size: width of the projections to the language model's tokens.
        head_size: width of the head.
        most_jobs: jobs that become tokens, those with the least work.
        most_candidates: stages that become tokens, those that the graph network finds best.
        lora_rank: rank of the language model's updates.
        lora_alpha: their scale times the rank.
        lora_dropout: of the updates and in front of the head, in training only.
    """

    embedding_size: int = 8
    hidden_size: int = 16
    idle_guard: float = 0.2
    feature_size: int = 64
    head_size: int = 128
    most_jobs: int = 8
    most_candidates: int = 12
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in (
            *("embedding_size", "hidden_size", "feature_size", "head_size"),
            *("most_jobs", "most_candidates", "lora_rank"),
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, is {getattr(self, name)}")
        if not 0 <= self.idle_guard <= 1:
            raise ValueError(f"idle_guard must be 0 to 1, is {self.idle_guard}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be at least 0 and below 1, is {self.lora_dropout}")

    @property
    def base(self) -> DecimaConfig:
        """Shape of the graph network."""
        return DecimaConfig(
            embedding_size=self.embedding_size,
            hidden_size=self.hidden_size,
            idle_guard=self.idle_guard,
        )


class GraphWeights(nn.Module):
    """The weights of the graph network, which the language model leaves as they are."""

    def __init__(self, config: DecimaConfig) -> None:
        super().__init__()
        self._names = {name: name.replace(".", "_") for name in weight_shapes(config)}
        for name, shape in weight_shapes(config).items():
            self.register_buffer(self._names[name], torch.zeros(shape))

    def take(self, network: DecimaNetwork) -> None:
        """Takes over a network, in half precision, as checkpoints keep it."""
        for name, key in self._names.items():
            held: Tensor = getattr(self, key)
            held.copy_(torch.from_numpy(network.weights[name]).half())

    def network(self) -> DecimaNetwork:
        """The network."""
        return DecimaNetwork(
            {
                name: getattr(self, key).detach().float().cpu().numpy().copy()
                for name, key in self._names.items()
            }
        )


class SchedulingPolicy(nn.Module):
    """Scores and limits for stages. A function of its input in evaluation mode.

    Attributes:
        config: its shape.
        backbone: the language model.
        graph: weights of the graph network.
        inference: how the language model is run.
    """

    def __init__(
        self,
        config: SchedulingModelConfig,
        backbone: Backbone,
        base: DecimaNetwork | None = None,
    ) -> None:
        """Makes a model that adds nothing yet.

        Args:
            config: its shape.
            backbone: the frozen language model.
            base: the graph network; None: one that is to be loaded.

        Raises:
            BackboneError: it has too few positions for the tokens.
        """
        super().__init__()
        size, width, embedding = backbone.hidden_size, config.feature_size, config.embedding_size
        most = config.most_jobs + config.most_candidates + 1
        if most > backbone.max_positions:
            raise BackboneError(
                f"{backbone.name}: {most} tokens exceed its {backbone.max_positions} positions"
            )
        self.config = config
        self.most_tokens = most
        self.graph = GraphWeights(config.base)
        if base is not None:
            self.graph.take(base)
        self.backbone = backbone.share()
        add_lora(
            self.backbone,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
        )
        self.job = _encoder(job_size(embedding), width, size)
        self.candidate = _encoder(candidate_size(embedding), width, size)
        self.cluster = _encoder(cluster_size(embedding), width, size)
        self.norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.lora_dropout)
        self.own = nn.Linear(candidate_size(embedding), config.head_size)
        self.situation = nn.Linear(size, config.head_size)
        self.middle = nn.Linear(config.head_size, config.head_size)
        self.head = nn.Linear(config.head_size, ANSWERS)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.inference: SchedulingInference = "full"
        self._lean: LeanPass | None = None
        self._base: DecimaPolicy | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.weight.device

    @property
    def base(self) -> DecimaPolicy:
        """The graph network as a scheduler of its own; made once its weights are there."""
        if self._base is None:
            self._base = DecimaPolicy(self.config.base, self.graph.network())
        return self._base

    def forward(self, inputs: SchedulingInputs) -> tuple[Tensor, Tensor]:
        """``(B, C)`` scores and logarithms of limits."""
        read = self.dropout(self._read(inputs))  # (B, D)
        inner = F.gelu(self.own(inputs.candidates) + self.situation(read)[:, None])  # (B, C, H)
        added = self.head(F.gelu(self.middle(inner)))  # (B, C, 2)
        return inputs.scores + added[..., 0], inputs.log_limits + added[..., 1]

    def tokens(self, inputs: SchedulingInputs) -> Tensor:
        """``(B, T, D)``."""
        parts = torch.cat(
            [
                self.job(inputs.jobs),  # (B, J, D)
                self.candidate(inputs.candidates),  # (B, C, D)
                self.cluster(inputs.cluster)[:, None],  # (B, 1, D)
            ],
            dim=1,
        )
        size = parts.shape[2]
        told = parts.gather(1, inputs.places[..., None].expand(-1, -1, size))  # (B, T, D)
        tokens: Tensor = self.norm(told)
        return tokens

    def _read(self, inputs: SchedulingInputs) -> Tensor:
        """``(B, D)`` last hidden states at the last tokens."""
        tokens = self.tokens(inputs)
        if self._lean is not None:
            return _run_lean(self._lean, tokens, inputs.lengths)
        return self._read_full(tokens, inputs.lengths)

    def _read_full(self, tokens: Tensor, lengths: tuple[int, ...]) -> Tensor:
        count = tokens.shape[1]
        allowed = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril()
        hidden: Tensor = self.backbone(tokens, allowed)  # (B, T, D)
        ends = torch.tensor(lengths, device=tokens.device) - 1
        return hidden[torch.arange(len(lengths), device=tokens.device), ends]

    def tell(self, view: ClusterView) -> Told | None:
        """What the model is told of a decision; None if no stage may be chosen."""
        candidates, base = self._base_of(view)
        return self._tell(view, candidates, base) if candidates.stages else None

    @torch.inference_mode()
    def rate(self, view: ClusterView) -> Ratings:
        """Scores and limits of all stages that may be chosen; jobs in order of number."""
        candidates, base = self._base_of(view)
        if not candidates.stages:
            return base
        answers = self(SchedulingInputs.of([self._tell(view, candidates, base)]).to(self.device))
        scores, log_limits = (one[0].cpu().numpy() for one in answers)
        return Ratings.of(candidates, scores, log_limits, executors=view.executors)

    def _base_of(self, view: ClusterView) -> tuple[Candidates, Ratings]:
        candidates = self.base.candidates(view)
        scores, log_limits = self.base.answer(candidates)
        return candidates, Ratings.of(candidates, scores, log_limits, executors=view.executors)

    def _tell(self, view: ClusterView, candidates: Candidates, base: Ratings) -> Told:
        return tell(
            view,
            candidates,
            base,
            most_jobs=self.config.most_jobs,
            most_candidates=self.config.most_candidates,
        )

    def decide(self, view: ClusterView) -> Assignment:
        """Returns the stage and how many executors it gets."""
        return self.rate(view).decide(view, self.config.idle_guard)

    def train(self, mode: bool = True) -> SchedulingPolicy:
        """Switches dropout; the frozen model has none."""
        super().train(mode)
        if mode:
            self.inference, self._lean = "full", None  # our own pass keeps the updates of before
        return self

    def freeze(self, inference: SchedulingInference | Literal["auto"] = "full") -> SchedulingPolicy:
        """Makes the model ready to answer: updates folded in, no dropout, no gradients.

        Raises:
            BackboneError: this way does not work with the backbone.
        """
        self.eval()
        merge_lora(self.backbone)
        self.requires_grad_(False)
        if inference == "full":
            return self
        try:
            self._lean = self._proven(LeanPass(self.backbone))
            self.inference = "lean"
        except PASS_FAILURES as error:
            if inference == "lean":
                raise BackboneError(
                    f"inference 'lean' does not work: {error}; use 'auto' or 'full'"
                ) from error
        return self

    def frozen_copy(self) -> SchedulingPolicy:
        """A model as this one is now, ready to answer fast; this one may go on learning."""
        copy = SchedulingPolicy(self.config, self.backbone)
        copy.load_state_dict(self.adapter_state(), strict=False)
        return copy.to(self.device).freeze("auto")

    @torch.inference_mode()
    def _proven(self, run: LeanPass) -> LeanPass:
        """The pass, if it gives what the library does, for few tokens and for the most."""
        generator = torch.Generator().manual_seed(0)
        lengths = (3, self.most_tokens)
        tokens = torch.randn(2, max(lengths), self.backbone.hidden_size, generator=generator)
        tokens = tokens.to(self.device)
        full = self._read_full(tokens, lengths)
        largest = float((_run_lean(run, tokens, lengths) - full).abs().max() / full.abs().max())
        if not largest <= EXACT:  # true for NaN
            raise BackboneError(
                f"{self.backbone.name}: differs from the library's pass by {largest:.1e}"
            )
        return run

    def adapter_state(self) -> dict[str, Tensor]:
        """Graph network, encoders, head and low-rank updates."""
        frozen = "backbone."
        return {
            key: value
            for key, value in self.state_dict().items()
            if not key.startswith(frozen) or "lora_" in key
        }


def _run_lean(run: LeanPass, tokens: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """``(B, D)`` last hidden states of ``(B, T, D)`` at the end of each row."""
    layers, two, heads, width = run.memory_shape
    rows = [Row(tokens.new_empty(layers, two, heads, count, width), 0, count) for count in lengths]
    packed = torch.cat([row[:count] for row, count in zip(tokens, lengths, strict=True)])
    places = torch.cat([torch.arange(count, device=tokens.device) for count in lengths])
    return run(packed, places, rows)


def _encoder(features: int, width: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, size))
