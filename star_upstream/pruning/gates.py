"""Hard-concrete gates on an encoder (Louizos, Welling, Kingma 2018, equations 10 to 12).

A gate is ``clamp(stretched sigmoid((log u - log(1 - u) + log a) / temperature), 0, 1)`` with u uniform and ``log a``
learned: 0 and 1 have a probability of their own, and the probability that it is not 0 has a closed form.

Shapes: B utterances, T frames, C channels, D width, n gates of a group.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..encoder import Encoder, EncoderConfig, EncoderOutput, Masked
from ..encoder.encoder import Layer
from ..encoder.numerics import full_precision, wide
from ..errors import StarError
from .config import GateConfig
from .size import Kept, Size


class HardConcrete(nn.Module):
    """A group of n independent gates: the channels of one convolution, the heads or FFN units of one layer, or whole
    parts.

    kind: a field of :class:`~.config.InitialKeep`, by which they start. least: so many stay open whatever happens;
    multiple: the number of open ones is a multiple of it (or all are open).
    """

    def __init__(self, count: int, config: GateConfig, kind: str, least: int = 0, multiple: int = 1):
        super().__init__()
        self.count, self.least, self.multiple = count, least, multiple
        self.low, self.high = config.stretch
        self.temperature = config.temperature
        self._offset = config.temperature * math.log(-self.low / self.high)
        keep = config.keep(kind)
        start = math.log(keep / (1.0 - keep))
        self.location_n = nn.Parameter(start + config.initial_noise * torch.randn(count))
        """log a"""

    def open_n(self, shift: float = 0.0) -> Tensor:
        """Probability that each gate is not 0 (equation 12), in fp64."""
        return torch.sigmoid(self.location_n.double() + (shift - self._offset))

    def sample_n(self) -> Tensor:
        """One draw of the gates, differentiable in their locations."""
        uniform_n = torch.rand_like(self.location_n).clamp(1e-6, 1.0 - 1e-6)
        return self._gate(torch.logit(uniform_n) + self.location_n)

    def kept(self, shift: float = 0.0) -> int:
        """How many gates stay open when they are settled: their expected number, rounded."""
        number = max(round(self.open_n(shift).sum().item()), self.least)
        return min(-(-number // self.multiple) * self.multiple, self.count)

    @torch.no_grad()
    def settled_n(self, shift: float = 0.0) -> Tensor:
        """The gates without chance: the :meth:`kept` most probable ones are open, the others 0.

        An open gate's value is the median of its distribution given that it is not 0: above 0, and 1 for a gate that
        mostly is 1.
        """
        order = torch.argsort(self.location_n, descending=True, stable=True)[: self.kept(shift)]
        location_k = self.location_n[order].double()
        half_k = 0.5 * torch.sigmoid(location_k - self._offset)
        values_n = torch.zeros_like(self.location_n)
        values_n[order] = self._gate(torch.log1p(-half_k) - torch.log(half_k) + location_k).to(values_n)
        return values_n

    def _gate(self, logit: Tensor) -> Tensor:
        return (torch.sigmoid(logit / self.temperature) * (self.high - self.low) + self.low).clamp(0.0, 1.0)


class GatedEncoder(nn.Module):
    """An encoder with gates on its channels, heads, FFN units and whole parts. The encoder is used as it is, not
    copied.

    In training mode every forward pass draws the gates once. In eval mode they are settled
    (:meth:`HardConcrete.settled_n`), and the states are those of :func:`~star_upstream.pruning.cut`'s encoder:

    - a channel's gate follows its activation; the norm after the last convolution takes its statistics over the open
      channels (DPHuBERT's code takes them over all channels, closed ones too, until the cut, which then changes what
      the norm gives, by 0.16 % of it where measured; here the cut changes nothing);
    - a head's gate scales its output, a unit's gate its activation, a part's gate what the part adds to the layer's
      input;
    - attention without an open head, and an FFN without an open unit, adds nothing, its bias included.

    Raises :class:`StarError` for an encoder in which a part with gates cannot be cut exactly.
    """

    shift: Tensor

    def __init__(self, encoder: Encoder, options: GateConfig):
        super().__init__()
        _check(encoder.config, options)
        self.encoder, self.options = encoder, options
        self.gates = nn.ModuleDict()
        config, add = encoder.config, self._add
        if options.conv_channels:
            for i, (channels, _, _) in enumerate(config.conv_layers[: None if config.projection else -1]):
                add(f"conv_{i}", channels, "conv_channels", least=1, multiple=options.round_channels)
        for i in range(config.layers):
            if options.heads and config.heads[i]:
                add(f"heads_{i}", config.heads[i], "heads")
            if options.ffn_units and config.ffn[i]:
                add(f"units_{i}", config.ffn[i], "ffn_units", multiple=options.round_units)
        # one group for all layers, so that the number of open ones is settled for all of them together
        self.attentions = [i for i in range(config.layers) if config.heads[i]]
        self.ffns = [i for i in range(config.layers) if config.ffn[i]]
        if options.attention_layers and self.attentions:
            add("attentions", len(self.attentions), "attention_layers")
        if options.ffn_layers and self.ffns:
            add("ffns", len(self.ffns), "ffn_layers")
        self.register_buffer("shift", torch.zeros(3, dtype=torch.float64))
        """Added to the locations of parts, of heads, and of channels and units where gates are settled:
        :meth:`settle`."""
        self._values: dict[str, Tensor] = {}
        self._attach()

    def _add(self, name: str, count: int, kind: str, **limits: int) -> None:
        self.gates[name] = HardConcrete(count, self.options, kind, **limits)

    @property
    def groups(self) -> dict[str, HardConcrete]:
        """The gates by group."""
        return cast(dict[str, HardConcrete], dict(self.gates.items()))

    @property
    def config(self) -> EncoderConfig:
        """The configuration of the whole encoder."""
        return self.encoder.config

    @property
    def scaled(self) -> bool:
        """Whether the cut encoder has a factor a channel before the front end's norm: no weight there can take the
        gates in."""
        return f"conv_{len(self.config.conv_layers) - 1}" in self.gates and self.config.projection_norm

    def size(self, measure: str = "parameters", seconds: float = 10.0) -> Size:
        return Size(self.config, measure, seconds, self.scaled)

    def forward(
        self,
        waveforms_BN: Tensor,
        lengths_B: Tensor | None = None,
        attention_maps: bool = False,
        masked: Masked | None = None,
    ) -> EncoderOutput:
        """As :meth:`Encoder.forward`."""
        self._values = (
            {name: gate.sample_n() for name, gate in self.groups.items()} if self.training else self.settled()
        )
        return self.encoder(waveforms_BN, lengths_B, attention_maps, masked)

    # what is left

    def settled(self) -> dict[str, Tensor]:
        """The values of all gates in eval mode, by group."""
        shifts = self.shift.tolist()
        return {name: gate.settled_n(shifts[_level(name)]) for name, gate in self.groups.items()}

    def expected(self) -> Kept:
        """Expected counts under the gates' distribution, differentiable."""
        return self._count({name: gate.open_n() for name, gate in self.groups.items()})

    def kept(self) -> Kept:
        """Counts of the cut encoder."""
        kept = self._count({name: (value_n > 0).double() for name, value_n in self.settled().items()})
        return Kept(**{name: [int(n) for n in counts] for name, counts in vars(kept).items()})

    def _count(self, open: dict[str, Tensor]) -> Kept:
        """Counts from each group's probabilities of being open (0 or 1 when settled)."""
        whole, config = Kept.whole(self.config), self.config
        convs = [open[f"conv_{i}"].sum() if f"conv_{i}" in open else n for i, n in enumerate(whole.convs)]
        parts = []
        for group, layers, counts in (("heads", self.attentions, config.heads), ("units", self.ffns, config.ffn)):
            whole_parts = open.get("attentions" if group == "heads" else "ffns")
            numbers, present = list[Any]([0] * config.layers), list[Any]([0] * config.layers)
            for place, i in enumerate(layers):
                factor = 1 if whole_parts is None else whole_parts[place]
                open_n = open.get(f"{group}_{i}")
                numbers[i] = factor * (counts[i] if open_n is None else open_n.sum())
                present[i] = factor * (1 if open_n is None else 1.0 - (1.0 - open_n).prod())
            parts += [numbers, present]
        return Kept(convs, *parts)

    @torch.no_grad()
    def settle(self, target: float, measure: str = "parameters", seconds: float = 10.0) -> float:
        """Choose ``shift`` so that the settled gates come as near to the target sparsity as they can; the sparsity
        reached.

        One number moves all gates alike, so that their order and the balance between groups stay as learned. A whole
        part or a head is a large step, so the lesser gates then move by a number of their own that makes up for it.
        Raises :class:`StarError` for a target that cannot be reached.
        """
        size = self.size(measure, seconds)

        def at(level: int, shift: float) -> float:
            self.shift[level:] = shift
            return size.sparsity(self.kept())

        if not at(0, 1e3) < target <= at(0, -1e3):
            gone = at(0, -1e3)
            self.shift.zero_()
            raise StarError(
                f"pruning.target: {target} cannot be reached: without everything that has a gate, {gone:.3f} of the "
                f"{measure} is gone"
            )
        for level in range(len(self.shift)):
            low, high = -1e3, 1e3
            for _ in range(40):
                middle = (low + high) / 2
                low, high = (middle, high) if at(level, middle) >= target else (low, middle)
            reached = at(level, min((low, high), key=lambda shift: abs(at(level, shift) - target)))
        return reached

    # how the gates act

    def _attach(self) -> None:
        front, last = self.encoder.frontend, len(self.config.conv_layers) - 1
        for i in range(last):
            if f"conv_{i}" in self.gates:
                front.convs[i + 1].register_forward_pre_hook(partial(self._scale_channels, f"conv_{i}"))
        if self.scaled and front.norm is not None:
            front.norm.register_forward_hook(partial(self._norm_open, f"conv_{last}"))
        elif f"conv_{last}" in self.gates and front.projection is not None:
            front.projection.register_forward_pre_hook(partial(self._scale, f"conv_{last}", 1))
        for layers, group, whole, repeats in (
            (self.attentions, "heads", "attentions", self.config.head_width),
            (self.ffns, "units", "ffns", 1),
        ):
            for place, i in enumerate(layers):
                layer = cast(Layer, self.encoder.layers[i])
                output = layer.ffn_out if group == "units" else layer.attention and layer.attention.output
                assert output is not None  # a layer of these has one
                if f"{group}_{i}" in self.gates:
                    output.register_forward_pre_hook(partial(self._scale, f"{group}_{i}", repeats))
                if f"{group}_{i}" in self.gates or whole in self.gates:
                    output.register_forward_hook(partial(self._scale_part, f"{group}_{i}", whole, place))

    def _scale_channels(self, name: str, module: nn.Module, inputs: tuple) -> tuple:
        (x_BCT,) = inputs
        return (x_BCT * self._values[name][:, None].to(x_BCT.dtype),)

    def _scale(self, name: str, repeats: int, module: nn.Module, inputs: tuple) -> tuple:
        (x_BTD,) = inputs
        return (x_BTD * self._values[name].repeat_interleave(repeats).to(x_BTD.dtype),)

    def _scale_part(self, name: str, whole: str, place: int, module: nn.Module, inputs: tuple, x_BTD: Tensor) -> Tensor:
        factor = self._values[whole][place] if whole in self._values else x_BTD.new_ones(())
        if name in self._values:
            factor = factor * (self._values[name] > 0).any()
        return x_BTD * factor.to(x_BTD.dtype)

    def _norm_open(self, name: str, norm: nn.LayerNorm, inputs: tuple, normed_BTC: Tensor) -> Tensor:
        """LayerNorm over the open channels of a frame; closed channels come out as 0."""
        (x_BTC,), gate_C = inputs, wide(self._values[name])
        open_C = (gate_C > 0).to(gate_C.dtype)
        count = open_C.sum().clamp(min=1.0)
        with full_precision(x_BTC.device):
            x_BTC = x_BTC.to(gate_C.dtype) * gate_C
            centred_BTC = (x_BTC - x_BTC.sum(-1, keepdim=True) / count) * open_C
            variance_BT1 = centred_BTC.square().sum(-1, keepdim=True) / count
            x_BTC = centred_BTC * torch.rsqrt(variance_BT1 + norm.eps) * wide(norm.weight) + wide(norm.bias)
            return (x_BTC * open_C).to(normed_BTC.dtype)


def _level(name: str) -> int:
    """How large a step one gate of a group is: 0 a whole part, 1 a head, 2 a channel or unit."""
    return 0 if name in ("attentions", "ffns") else 1 if name.startswith("heads") else 2


def _check(config: EncoderConfig, options: GateConfig) -> None:
    if options.conv_channels and config.conv_norm == "layer":
        raise StarError(
            "pruning.gates.conv_channels: the convolutions of this model are normalised over their channels "
            "(conv_norm: layer), so that "
            "none can be cut without changing the others; set it to false"
        )
    if (options.heads or options.attention_layers) and config.reuse_attention and any(config.reuse_attention):
        raise StarError(
            "pruning.gates: layers of this model reuse attention maps of others (reuse_attention); set heads and "
            "attention_layers to false"
        )
