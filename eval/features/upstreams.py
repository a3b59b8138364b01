"""The names that ``--upstream`` takes, and one way to run what is behind them.

Shapes: L layers (hidden states), N samples, T frames, D channels.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from star_upstream import compat, extras
from star_upstream.audio import RATE
from star_upstream.encoder import Encoder
from star_upstream.encoder.size import profile, without_training
from star_upstream.errors import StarError, first_line, nearest
from star_upstream.formats import sources
from star_upstream.say import say
from star_upstream.training import precision

SHORTEST, SURELY = 400, 800
"""Samples to which shorter waveforms are zero-padded. The published runs pad none, and so fail below the 25 ms that
most upstreams need for a frame; what an upstream has no finite states for even so is padded to 50 ms, as s3prl's
S3PRLUpstream does to all."""
OFF = 5
"""s3prl's Featurizer refuses an upstream whose number of frames is so far from samples / stride, or further."""


class Upstream:
    """A frozen model that gives every utterance its hidden states, those of s3prl at batch size one.

    How many frames an utterance has is the rule of the published runs (Featurizer in s3prl/upstream/interfaces.py,
    v0.4.18): the first round(N / stride) of what the upstream gives, and where it gives fewer, as most do, those:
    HuBERT 49 of a second.

    ``padded``: the model gives an utterance the same states alone and in a zero-padded batch, and has
    ``frames(samples)``, its own number of frames. Any other is only ever given batches of one length, so that padding
    cannot change a feature.
    """

    def __init__(self, name: str, expert: Any, digest: str, padded: bool = False, device: str | torch.device = "cpu"):
        self.name, self.digest, self.padded, self.device = name, digest, padded, torch.device(device)
        self.method = ""
        """What a report finds the published rows of the same method by."""
        self._given: dict[int, int] = {}
        self.expert = expert.to(self.device).eval().requires_grad_(False)
        encoder = getattr(expert, "encoder", None)
        own = encoder.config if isinstance(encoder, Encoder) else None
        self.parameters = sum(p.numel() for p in expert.parameters()) if own is None else without_training(own)
        """As the papers count: without heads that only a distillation needs."""
        self.batch_seconds = 40.0
        """Most padded audio of a batch; halved where the device's memory is too small for it."""
        half = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        self.in_fp32: dict[str, float] = {}
        """Modules that deviate from fp32 in reduced precision and are computed in fp32, and by how much they do."""
        self.autocast = torch.bfloat16 if half and self.parameters else None  # FBANK has nothing to gain
        try:
            stride = expert.get_downsample_rates("hidden_states")
        except AttributeError:
            raise StarError(f"{name}: not an upstream (no get_downsample_rates)") from None
        strides = set(stride) if isinstance(stride, (list, tuple)) else {stride}
        if not all(isinstance(s, (int, float)) and s >= 1 and s == int(s) for s in strides):
            raise StarError(f"{name}: get_downsample_rates gives {stride}; a stride is a whole number of samples")
        if len(strides) != 1:
            raise StarError(
                f"{name}: its layers have several strides {sorted(strides)}; a weighted sum over layers needs one"
            )
        self.stride = int(strides.pop())
        states_LTD = self.encode([np.zeros(RATE, dtype=np.float32)])[0]
        self.layers, self.width = states_LTD.shape[0], states_LTD.shape[2]

    @property
    def batching(self) -> str:
        return (
            "zero-padded, length-bucketed (padding does not change its states)"
            if self.padded
            else "batches of one length"
        )

    @property
    def precision(self) -> str:
        if self.autocast is None:
            return "fp32"
        moved = f", fp32 in {', '.join(sorted(self.in_fp32))}" if self.in_fp32 else ""
        return f"{str(self.autocast).removeprefix('torch.')} autocast{moved}"

    def settle(self, waves: Sequence[np.ndarray]) -> None:
        """In reduced precision: compare with fp32 on these waveforms, and compute in fp32 what deviates
        (:mod:`star_upstream.training.precision`); an upstream that cannot be compared module by module goes to fp32 as
        a whole where its states deviate."""
        if self.autocast is None:
            return
        chosen, self.autocast = self.autocast, None
        right = self.encode(waves)
        self.autocast = chosen
        if self.padded:  # our encoder
            inputs = [torch.from_numpy(wave).to(self.device) for wave in waves]
            found = precision.settle({"encoder": self.expert.encoder}, lambda: self.expert(inputs), chosen, self.device)
            self.in_fp32.update(found.moved)
            for line in found.told():
                say(f"{self.name}: {line}")
        error = precision.deviation(self.encode(waves), right)
        if not error <= precision.TOLERANCE[chosen]:
            say(f"{self.name}: its states are off by {error:.2g} of their size in {self.precision}; encoded in fp32")
            self.autocast = None

    @property
    def macs_g(self) -> float | None:
        """1e9 multiply-accumulates over the papers' 32 utterances; None for a model that is not one of star_upstream's
        encoders."""
        encoder = getattr(self.expert, "encoder", None)
        return profile(encoder.config)["macs_g"] if isinstance(encoder, Encoder) else None

    def counted(self, samples: int) -> int:
        """Frames that s3prl counts for ``samples``, whatever the model gives; at least one."""
        return max(1, round(samples / self.stride))

    def kept(self, samples: int, given: int, longest: int | None = None) -> int:
        """Frames of an utterance in a batch for which the model gives ``given``, and whose longest utterance has
        ``longest`` samples (None: it is alone). Raises :class:`StarError` where s3prl would refuse the model for it."""
        expected = self.counted(longest or samples)
        if abs(given - expected) >= OFF or not given:
            raise StarError(
                f"{self.name}: gave {given} frames where its stride {self.stride} means {expected}; s3prl takes "
                f"{OFF - 1} more or fewer"
            )
        return min(self.counted(samples), given)

    def frames(self, samples: int) -> int:
        """Frames of an utterance of ``samples`` samples that is encoded alone."""
        if self.padded:
            return self.kept(samples, self._own(max(samples, SHORTEST)))
        if samples not in self._given:
            self._given[samples] = self.encode([np.zeros(samples, dtype=np.float32)])[0].shape[1]
        return self._given[samples]

    def _own(self, samples: int) -> int:
        """Frames that a model with padding invariance gives; it pads what is shorter than a frame."""
        return max(1, int(self.expert.frames(samples)))

    @torch.no_grad()
    def encode(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        """Each waveform's hidden states as if it were alone, L x T x D in fp32 on the CPU, T = :meth:`frames`.

        A model without padding invariance must be given waveforms of one length.
        """
        if not self.padded and len({max(SHORTEST, len(w)) for w in waves}) > 1:
            raise ValueError("this upstream takes batches of one length only")
        states, lengths = self.run(waves)
        out = []
        for i, (length, wave) in enumerate(zip(lengths, waves)):
            own = self._own(length) if self.padded else states[0].shape[1]
            frames = self.kept(len(wave), own)
            out.append(torch.stack([state_BTD[i, :frames].float().cpu() for state_BTD in states]))
        return out

    def run(self, waves: Sequence[np.ndarray], together: bool = False) -> tuple[Sequence[Tensor], list[int]]:
        """What the model gives for them, each B x T x D, and the samples that it was given of each: short ones are
        padded, or where they are a batch of s3prl's (``together``) all of a short batch alike."""
        longest = max(map(len, waves))
        for shortest in (SHORTEST, SURELY):
            added = [max(0, shortest - (longest if together else len(wave))) for wave in waves]
            inputs = [torch.from_numpy(np.pad(w, (0, n))).float().to(self.device) for w, n in zip(waves, added)]
            last = longest >= SURELY or shortest == SURELY
            try:
                with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                    states = self._states(inputs)
            except StarError:
                raise
            except Exception:
                if last:
                    raise
                continue
            if last or all(x_BTD.shape[1] and finite(x_BTD) for x_BTD in states):
                break
        return states, [len(x_N) for x_N in inputs]

    def _states(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        try:
            states = self.expert(inputs)["hidden_states"]
        except (KeyError, TypeError) as error:
            raise StarError(
                f"{self.name}: not an upstream: forward([waveform]) must give {{'hidden_states': [...]}} ({error})"
            ) from None
        if not len(states):
            raise StarError(f"{self.name}: gives no hidden states")
        if len({s.shape[1] for s in states}) != 1:
            raise StarError(f"{self.name}: its layers have several lengths; a weighted sum over layers needs one")
        if len({s.shape[-1] for s in states}) != 1:
            raise StarError(f"{self.name}: its layers have several widths; a weighted sum over layers needs one")
        return states


def finite(x: Tensor) -> bool:
    """Whether no value of ``x`` is NaN or infinite: its ends say it, ten times as fast as asking each."""
    if not x.numel():
        return True
    low, high = x.aminmax()
    return math.isfinite(low) and math.isfinite(high)


def load(source: str, device: str | torch.device = "cpu") -> Upstream:
    """The upstream behind ``source``: ``module:function``, a name of s3prl (fbank, hubert_base, ...), or whatever
    ``star_upstream.load`` knows (its names, a checkpoint of any known format, a transformers folder), or a file of
    ``star export``.

    Raises :class:`StarError` when there is none; nothing is ever used in its place.
    """
    compat.apply()
    if source.endswith(".onnx") and Path(source).is_file():
        extras.need("export", "onnxruntime")
        from star_upstream.export.upstream import ExportedUpstream

        exported = ExportedUpstream(source)
        upstream = Upstream(source, exported, exported.digest, True, device)
        upstream.parameters = without_training(exported.config)  # torch knows of none in it
        return upstream
    if not Path(source).exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source):
        expert, identity = _from_function(source)
        return Upstream(source, expert, fingerprint(expert, identity), False, device)
    if not Path(source).exists() and source in _s3prl_names():
        expert = _from_s3prl(source)
        upstream = Upstream(source, expert, fingerprint(expert, f"s3prl {source}"), False, device)
        upstream.method = source
        return upstream
    expert = _from_star(source)
    upstream = Upstream(source, expert, expert.digest, not expert.encoder.reference_padding, device)
    upstream.method = sources.method(source)
    return upstream


def fingerprint(expert: Any, identity: str) -> str:
    """sha256 over what decides the model's output: ``identity``, class, configuration (where it is plain) and
    weights."""
    sha = hashlib.sha256(f"{identity}\n{type(expert).__module__}.{type(expert).__qualname__}\n".encode())
    config = json.dumps(getattr(expert, "config", None), sort_keys=True, default=repr)
    sha.update(re.sub(r" at 0x[0-9a-f]+", "", config).encode())
    for name, tensor in sorted(expert.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _from_function(source: str) -> tuple[nn.Module, str]:
    module_name, function_name = source.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise StarError(
            f"upstream {source}: cannot import {module_name} ({error}); is its folder on PYTHONPATH?"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise StarError(
            f"upstream {source}: {module_name} has no function {function_name!r}{nearest(function_name, dir(module))}"
        )
    try:
        expert = function()
    except Exception as error:
        raise StarError(
            f"upstream {source}: calling it without arguments failed ({type(error).__name__}: {first_line(error)})"
        ) from error
    if not isinstance(expert, nn.Module):
        raise StarError(f"upstream {source}: the function must return a torch module, got {type(expert).__name__}")
    file = inspect.getsourcefile(module)
    return expert, hashlib.sha256(Path(file).read_bytes() if file else source.encode()).hexdigest()


def _s3prl_names() -> list[str]:
    from s3prl import hub

    return [name for name in hub.options() if not name.endswith(("_local", "_url", "_custom"))]


def _from_s3prl(name: str) -> nn.Module:
    from s3prl.nn import S3PRLUpstream

    try:
        with unseeded():
            return S3PRLUpstream(name).upstream
    except Exception as error:
        raise StarError(f"upstream {name}: s3prl cannot load it ({first_line(error)})") from error


def _from_star(source: str) -> Any:
    from star_upstream.formats import upstream

    try:
        return upstream.load(source)
    except StarError as error:
        close = [] if Path(source).exists() else get_close_matches(source, _s3prl_names(), n=1)
        raise StarError(f"{error}" + (f" (s3prl has {close[0]!r})" if close else "")) from None


@contextlib.contextmanager
def unseeded() -> Iterator[None]:
    """What runs inside may seed the global generators, as s3prl does; they are put back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)
