"""The step of one session with shapes that never change, so that a GPU can replay it as a graph.

One decision of one session reads every weight once and computes little with it, so on a GPU the
time goes into starting a thousand small kernels. A CUDA graph starts them all at once, but it does
the same on the same memory whenever it is replayed. Hence keys and values lie in memory of fixed
length here, all of which is attended to, under a mask; and what differs between decisions (tokens,
their positions, their slots in the memory) is written into tensors that stay. There is one graph
per number of new tokens: seven or eight of a step, more when the window moves on and is filled
anew. See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

Whose memory it is changes from call to call: what is known of a row is copied in, what is new is
copied out (a hundredth of the bytes that the weights have). So nothing is kept here between calls,
and the cache of ``adapters.inference`` keeps its rule.

Everything but :class:`CudaCapture` runs on a CPU as well, step by step instead of as a graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adapters.backbones import Backbone, BackboneError
from adapters.lean import LEAN_FAMILIES, LeanModel
from adapters.passes import LeanPass, Pass, Row, parts
from adapters.products import Product
from adapters.tokens import Token
from player.observation import HISTORY_LIMIT

#: Slots come in multiples of so many: fused attention wants rows of a mask to begin at multiples of
#: 16 values.
SLOTS = 16
#: Positions of the longest window that a configuration allows.
POSITIONS = HISTORY_LIMIT * len(Token)
#: Runs before a capture, which let the libraries allocate and choose what they need.
WARM_UPS = 2

#: A process may capture one graph at a time.
_CAPTURING = threading.Lock()

#: Work on tensors that stay where they are.
Run = Callable[[], None]
#: Makes something that does the same work again, from something that does it.
Capture = Callable[[Run], Run]


def uncaptured(run: Run) -> Run:
    """A :data:`Capture` that captures nothing: the work is done step by step each time."""
    return run


class CudaCapture:
    """A :data:`Capture` as CUDA graphs, which share the memory for what they compute in between.

    They may, as only one runs at a time and none reads what another one left there: their inputs
    and results lie outside.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Runs the work, then captures it; the inputs must be such as it can run on."""
        graph = torch.cuda.CUDAGraph()
        with _CAPTURING, torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(self._stream)
            # Other threads may use the GPU meanwhile: only what this one does must be capturable.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                run()
        replay: Run = graph.replay
        return replay


def capture_for(device: torch.device) -> Capture:
    """Graphs on a GPU, nothing elsewhere."""
    return CudaCapture(device) if device.type == "cuda" else uncaptured


class Step(Protocol):
    """A forward pass over new tokens of one sequence, in memory of fixed length."""

    def __call__(self, tokens: Tensor, positions: Tensor, slots: Tensor, held: Tensor) -> Tensor:
        """Computes the new tokens and writes their keys and values.

        Args:
            tokens: ``(Q, D)`` embeddings, in the weights' type.
            positions: ``(Q,)`` their places in the model's sequence.
            slots: ``(Q,)`` their places in the memory, one behind the other; each token looks at
                its own slot and at those before.
            held: ``(layers, 2, G, W, d)`` keys and values; slots to come hold finite numbers.

        Returns:
            ``(1, D)`` last hidden state of the last token.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where the inputs and the result of so many new tokens lie.

    Attributes:
        tokens: ``(Q, D)``.
        positions: ``(Q,)``.
        slots: ``(Q,)``.
        hidden: ``(1, D)`` float32, the result.
        replay: makes the one of the others.
    """

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    hidden: Tensor
    replay: Run


class StaticWindow:
    """Memory of fixed length for one row at a time, and the captured steps over it."""

    def __init__(self, step: Step, backbone: Backbone, capture: Capture | None) -> None:
        """Makes one without memory: the first row tells how long it has to be."""
        self._step = step
        self._hidden_size, self._dtype = backbone.hidden_size, backbone.dtype
        self.device = next(backbone.parameters()).device
        self._capture = capture_for(self.device) if capture is None else capture
        self._held: Tensor | None = None  # (layers, 2, G, W, d)
        self._places: dict[int, _Place] = {}

    @property
    def captured(self) -> tuple[int, ...]:
        """Numbers of new tokens for which there is a captured step, the first made first."""
        return tuple(self._places)

    def __call__(self, tokens: Tensor, positions: Tensor, row: Row) -> Tensor:
        """Runs the new tokens of a row, as a :class:`Pass` does; ``(1, D)``."""
        held = self._held
        if held is None or held.shape[3] < row.memory.shape[3]:
            held = self._held = self._memory(*row.memory.shape)
            self._places.clear()  # their steps go on other memory
        held[:, :, :, : row.known] = row.memory[:, :, :, : row.known]
        held[:, :, :, row.known :] = 0  # what is hidden has weight 0, but 0 times NaN is NaN
        slots = torch.arange(row.known, row.total, device=self.device)
        place = self._places.get(row.new)
        if place is None:
            place = self._places[row.new] = self._place(tokens, positions, slots, held)
        place.tokens.copy_(tokens)
        place.positions.copy_(positions)
        place.slots.copy_(slots)
        place.replay()
        row.memory[:, :, :, row.known : row.total] = held[:, :, :, row.known : row.total]
        return place.hidden.clone()

    def _memory(self, layers: int, two: int, heads: int, window: int, width: int) -> Tensor:
        shape = layers, two, heads, -(-window // SLOTS) * SLOTS, width
        with torch.inference_mode(mode=False):
            return torch.zeros(shape, dtype=self._dtype, device=self.device)

    def _place(self, tokens: Tensor, positions: Tensor, slots: Tensor, held: Tensor) -> _Place:
        """Captures the step on copies of these inputs."""
        with torch.inference_mode(mode=False), torch.no_grad():
            inputs = tokens.to(self._dtype, copy=True), positions.clone(), slots.clone()
            hidden = torch.zeros(1, self._hidden_size, device=self.device)

            def run() -> None:
                hidden.copy_(self._step(*inputs, held))

            return _Place(*inputs, hidden, self._capture(run))


class GraphedLeanPass(LeanPass):
    """The lean pass; one row goes through a captured step, several are packed as ever.

    All frozen weights are used where they lie, also those of query, key and value: fusing them
    would take a quarter of a large model's memory again.
    """

    def __init__(self, backbone: Backbone, *, capture: Capture | None = None) -> None:
        """Takes the weights of a backbone, and its updates as they are now, merged or not.

        Args:
            backbone: whose frozen weights are used where they lie.
            capture: None: as the device has it, see :func:`capture_for`.

        Raises:
            BackboneError: it is of a family, or a variant, that has no lean pass.
        """
        family: Callable[[Any, Any], LeanModel] | None = LEAN_FAMILIES.get(backbone.family)
        if family is None:
            raise BackboneError(
                f"{backbone.name}: no lean pass for the family {backbone.family!r}; there is one "
                f"for {', '.join(LEAN_FAMILIES)}"
            )
        with torch.inference_mode(mode=False), torch.no_grad():
            self.model = model = family(backbone.model, _Modules(backbone.adapter or "default"))
        self.dtype = backbone.dtype
        self.memory_shape = (len(model.layers), 2, model.key_heads, model.head_size)
        self.single = StaticWindow(self.step, backbone, capture)
        self._turns: tuple[Tensor, Tensor] | None = None
        if model.rotate is not None:
            self._turns = _turns(model, min(POSITIONS, backbone.max_positions), self.single.device)

    def __call__(self, tokens: Tensor, positions: Tensor, rows: Sequence[Row]) -> Tensor:
        """See :class:`Pass`."""
        if len(rows) > 1:
            return super().__call__(tokens, positions, rows)
        return self.single(tokens, positions, rows[0])

    def step(self, tokens: Tensor, positions: Tensor, slots: Tensor, held: Tensor) -> Tensor:
        """See :class:`Step`."""
        model = self.model
        hidden = tokens
        if model.places is not None:
            hidden = hidden + model.places[positions]  # (Q, D)
        turns = None
        if self._turns is not None:
            turns = self._turns[0][positions, None], self._turns[1][positions, None]  # (Q, 1, d)
        # The queries that share keys lie behind each other, as if they were tokens.
        mask = _mask(slots, held.shape[3], hidden.dtype).repeat(model.heads // model.key_heads, 1)
        hidden = _normed(model.enter, hidden)
        for index, layer in enumerate(model.layers):
            is_last = index == len(model.layers) - 1
            entered = _normed(layer.before_attention, hidden)
            mixed = self._seen(layer.qkv(entered), turns, slots, held[index], mask, is_last)
            if is_last:  # of whose outputs only one is read
                hidden = hidden[-1:]
            hidden = _normed(layer.after_attention, layer.out(mixed) + hidden)
            entered = _normed(layer.before_feed, hidden)
            if layer.gate is None:
                fed = model.activation(layer.up(entered))  # (Q, F), at last (1, F)
            else:
                fed = model.activation(layer.gate(entered)) * layer.up(entered)
            hidden = _normed(layer.after_feed, layer.down(fed) + hidden)
        return _normed(model.leave, hidden)  # (1, D)

    def _seen(
        self,
        qkv: Tensor,
        turns: tuple[Tensor, Tensor] | None,
        slots: Tensor,
        held: Tensor,
        mask: Tensor,
        only_last: bool,
    ) -> Tensor:
        """What ``(Q, (H + 2 G) d)`` new tokens see: ``(Q, H d)``, or ``(1, H d)`` of the last.

        The mask is ``(H / G Q, W)``, for the queries of each group behind each other.
        """
        model = self.model
        heads, groups, width = model.heads, model.key_heads, model.head_size
        shared = heads // groups
        vectors = qkv.view(-1, heads + 2 * groups, width)
        turning, values = vectors[:, :-groups], vectors[:, -groups:]
        if turns is not None:
            turning = _turned(turning, *turns)
        asking, keys = turning[:, :heads], turning[:, heads:]  # (Q, H, d), (Q, G, d)
        held[0].index_copy_(1, slots, keys.transpose(0, 1))  # (G, W, d)
        held[1].index_copy_(1, slots, values.transpose(0, 1))
        if only_last:
            asking, mask = asking[-1:], mask[-1:].expand(shared, -1)
        count = len(asking)
        queries = asking.reshape(count, groups, shared, width).permute(1, 2, 0, 3)
        seen = F.scaled_dot_product_attention(
            queries.reshape(1, groups, shared * count, width),
            held[:1],  # (1, G, W, d)
            held[1:],
            mask,
            scale=model.scale,
        )  # (1, G, shared Q, d)
        apart = seen.view(groups, shared, count, width).permute(2, 0, 1, 3)
        return apart.reshape(count, heads * width)


class GraphedLibraryPass:
    """The library's forward pass as a captured step, for the families of decoders.

    Rows go one by one. Not with the library's ``StaticCache``, which counts tokens layer by layer
    and treats sliding windows apart; our mask and our slots say all that.
    """

    def __init__(self, backbone: Backbone, *, capture: Capture | None = None) -> None:
        """Asks the model for one token, to learn the shape of its keys.

        Raises:
            BackboneError: it keeps no keys, as an encoder.
        """
        from transformers import DynamicCache

        self.model: Any = backbone.model
        self.single = StaticWindow(self.step, backbone, capture)
        device = self.single.device
        cache: Any = DynamicCache()
        self._forward(
            torch.zeros(1, backbone.hidden_size, dtype=backbone.dtype, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
            torch.zeros(1, 1, dtype=backbone.dtype, device=device),
            cache,
        )
        if not cache.layers:
            raise BackboneError(
                f"{backbone.name}: the library keeps no keys for the family {backbone.family!r}"
            )
        _, heads, _, width = cache.layers[0].keys.shape
        self.memory_shape = (len(cache.layers), 2, heads, width)

    def __call__(self, tokens: Tensor, positions: Tensor, rows: Sequence[Row]) -> Tensor:
        """See :class:`Pass`."""
        return torch.cat(
            [self.single(tokens[part], positions[part], row) for row, part in parts(rows)]
        )

    def step(self, tokens: Tensor, positions: Tensor, slots: Tensor, held: Tensor) -> Tensor:
        """See :class:`Step`."""
        mask = _mask(slots, held.shape[3], tokens.dtype)  # (Q, W)
        return self._forward(tokens, positions, mask, _Slots(held, slots))[-1:]

    def _forward(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        hidden: Tensor = self.model(
            inputs_embeds=tokens[None],
            attention_mask=mask[None, None],  # (1, 1, Q, W)
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden[0]  # (Q, D)


def graphed_pass(backbone: Backbone) -> Pass:
    """The captured step of a backbone: our own pass where there is one, else the library's.

    Raises:
        BackboneError: there is neither.
    """
    made = GraphedLeanPass if backbone.family in LEAN_FAMILIES else GraphedLibraryPass
    return made(backbone)


class _Slots:
    """Stands in for the library's cache: writes at given slots, gives the memory as a whole."""

    def __init__(self, held: Tensor, slots: Tensor) -> None:
        self._held, self._slots = held, slots

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Takes ``(1, G, Q, d)`` keys and values, returns ``(1, G, W, d)`` of each."""
        held = self._held[layer_idx]
        held[0].index_copy_(1, self._slots, keys[0])
        held[1].index_copy_(1, self._slots, values[0])
        return held[:1], held[1:]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing that the library would have to know: positions and mask are given."""
        return 0


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """Several projections of the same input, with their updates.

    Attributes:
        modules: the frozen ones.
        update: low-rank factors ``(in, R)`` and ``(R, out)`` of all of them, in the weights' type:
            the sum with what the weights give is rounded to it anyway.
    """

    modules: tuple[nn.Module, ...]
    update: tuple[Tensor, Tensor] | None

    def __call__(self, inputs: Tensor) -> Tensor:
        """See ``adapters.products.Product``."""
        made = [module(inputs) for module in self.modules]
        product: Tensor = made[0] if len(made) == 1 else torch.cat(made, dim=1)
        if self.update is None:
            return product
        down, up = self.update
        return torch.addmm(product, inputs @ down, up)


class _Modules:
    """Products by a model's own modules, so that no weight is copied."""

    def __init__(self, adapter: str) -> None:
        self._adapter = adapter

    def shared(self, module: Any) -> Product:
        """A module without updates."""
        product: Product = getattr(module, "base_layer", module)
        return product

    def fused(self, *modules: Any) -> Product:
        """Several projections of the same input as one, with their updates."""
        plain = tuple(getattr(one, "base_layer", one) for one in modules)
        dtype = next(plain[0].parameters()).dtype
        waiting = [self._has_update(one) for one in modules]
        if not any(waiting):
            return Together(plain, None)
        downs, ups = [], []
        for module, its, waits in zip(modules, plain, waiting, strict=True):
            if not waits:
                ups.append(torch.zeros(0, _outputs(its)))
                continue
            name = self._adapter
            downs.append(module.lora_A[name].weight.detach().float().t() * module.scaling[name])
            ups.append(module.lora_B[name].weight.detach().float().t().cpu())
        up: Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
        down = torch.cat(downs, dim=1)
        update = down.to(dtype).contiguous(), up.to(down.device, dtype).contiguous()
        return Together(plain, update)

    def _has_update(self, module: Any) -> bool:
        """Whether a module has an update of the adapter that is not in its weights."""
        if self._adapter not in getattr(module, "lora_A", {}):
            return False
        merged = getattr(module, "merged_adapters", [])
        if merged and merged != [self._adapter]:
            raise BackboneError(
                f"the updates of {', '.join(merged)} are merged; no pass for {self._adapter!r}"
            )
        return not merged


def _outputs(module: Any) -> int:
    """Width of what a linear layer gives, in whichever way the library has it."""
    width: int = module.out_features if hasattr(module, "out_features") else module.nf
    return width


def _mask(slots: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """``(Q, W)`` to add to scores: 0 up to a token's own slot, behind it minus infinity."""
    every = torch.arange(window, device=slots.device)
    mask = torch.zeros(len(slots), window, dtype=dtype, device=slots.device)
    return mask.masked_fill_(every > slots[:, None], -torch.inf)


def _normed(norm: Callable[[Tensor], Tensor] | None, hidden: Tensor) -> Tensor:
    return hidden if norm is None else norm(hidden)


def _turns(model: LeanModel, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(P, d)`` of all positions; the sines as :func:`_turned` wants them."""
    assert model.rotate is not None
    with torch.inference_mode(mode=False), torch.no_grad():
        cosines, sines = model.rotate(torch.arange(positions, device=device))
        first, second = sines.chunk(2, dim=-1)
        return cosines.contiguous(), torch.cat([-first, second], dim=-1)


def _turned(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021): halves change places, one of them with a minus."""
    crossed = vectors.roll(vectors.shape[-1] // 2, -1)
    return torch.addcmul(vectors * cosines, crossed, sines)
