"""Several models of one lineage in one forward pass, each row under its own model and its own ratio of the residue.

A row of model m at ratio r computes `W_m x + r * scaling * B A x` in every adapted layer. So the four actors are rows
of one batch: base 0 and Coarse 1 on the base's weights, baseline 0 and Fine any ratio on the instruct model's.
A row may have another residue of the lineage than the models' own, such as that of an earlier update or another run,
with another rank and in other layers. Attention, masks, rotary angles and the residues' products are computed once for
all rows; only products with the models' weights are computed per model, on that model's rows. Our own.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, cast

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from lite_c2f.backbone.copies import dequantized, has_room
from lite_c2f.backbone.forward import hidden_states
from lite_c2f.backbone.lm_head import LanguageHead, scale_and_softcap
from lite_c2f.backbone.model_kind import attention_of


class Residue(NamedTuple):
    """Adapter of one layer: its delta is `b @ a`."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r), multiplied by the adapter's scaling


Residues = Mapping[str, Residue]  # by the decoder's layer name; layers without one are not changed


class RowAssignment:
    """Assignment of the rows of the next forward pass to models and residues; the rows are sorted by model."""

    def __init__(self) -> None:
        self.counts: list[int] = []  # rows of each model
        # Each residue that rows use, and the ratios (rows, 1, 1) of it, 0 in all other rows.
        self.shares: list[tuple[Residues, Tensor]] = []

    def assign(
        self,
        models: Sequence[int],
        ratios: Sequence[float],
        residues: Sequence[Residues],
        count: int,
        device: torch.device,
    ) -> None:
        """models: the number of each row's model, ascending, of `count` models; ratios, residues: one per row."""
        self.counts = [models.count(number) for number in range(count)]
        used = {id(residue): residue for residue, ratio in zip(residues, ratios, strict=True) if ratio}
        self.shares = []
        for residue in used.values():
            shares = [ratio if other is residue else 0.0 for other, ratio in zip(residues, ratios, strict=True)]
            # Not in the models' type: bfloat16 would round a ratio of 1.05 to 1.047.
            self.shares.append((residue, torch.tensor(shares, dtype=torch.float32, device=device)[:, None, None]))


class PerModelLinear(nn.Module):
    """One layer of all models: each model's layer gets its own rows; each residue in use is added to all rows at once.

    A residue adds exactly 0 to rows of another one: their outputs have the bits that they have without it.
    """

    def __init__(self, assignment: RowAssignment, layers: Sequence[Callable[[Tensor], Tensor]], name: str) -> None:
        """name: of the layer in `Residues`."""
        super().__init__()
        self.assignment, self.name = assignment, name
        self.layers = list(layers)  # a plain list: the modules belong to their models

    def forward(self, states: Tensor, *more: Any, **named: Any) -> Tensor:
        """Outputs of all rows. states: rows (n, ...), flattened tokens (n * T, ...) as in OPT, or one row for all.

        Other arguments are split by model in the same way.
        """
        states = self._expanded(states)
        others = [self._split(value) for value in (*more, *named.values())]
        parts = zip(self.layers, self._split(states), *others, strict=True)
        outputs = [
            layer(part, *arguments[: len(more)], **dict(zip(named, arguments[len(more) :], strict=True)))
            for layer, part, *arguments in parts
            if len(part)
        ]
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        for residues, ratios in self.assignment.shares:
            residue = residues.get(self.name)
            if residue is None:
                continue
            if states.ndim == 2:
                ratios = ratios.flatten().repeat_interleave(len(states) // len(ratios))[:, None]
            low = functional.linear(states, residue.a)
            out = out + functional.linear((low * ratios).to(low.dtype), residue.b)
        return out

    def _expanded(self, value: Tensor) -> Tensor:
        rows = sum(self.assignment.counts)
        return value.expand(rows, *value.shape[1:]) if len(value) == 1 else value

    def _split(self, value: Any) -> Sequence[Any]:
        """One value per model: its rows of a tensor; any other value unchanged."""
        counts = self.assignment.counts
        if not isinstance(value, Tensor) or not value.ndim:
            return [value] * len(counts)
        value = self._expanded(value)
        tokens = len(value) // sum(counts)  # per row, where a dimension holds flattened tokens
        return value.split([count * tokens for count in counts])


class MultiModel:
    """Several models as one decoder, which computes the rows of all models together.

    models: causal language models of one lineage (`backbone.pair.check_pair`); their LoRA layers are bypassed.

    residue: their own, as `residue_of` reads it. The models are not changed, and share their weights with this one; on
    a CPU with enough memory 4-bit weights are unpacked once, because that is most of a step there.
    """

    def __init__(self, models: Sequence[Any], residue: Residues) -> None:
        self.models = [model.get_base_model() if hasattr(model, "get_base_model") else model for model in models]
        first = self.models[0]
        decoders = [model.get_decoder() for model in self.models]
        heads = [model.get_output_embeddings() for model in self.models]
        self.config, self.device = first.config, first.device
        self.dtype = heads[0].weight.dtype
        self.assignment = RowAssignment()
        self.decoder = _skeleton(self.config)
        modules: list[nn.Module] = [module for decoder in decoders for module in decoder.modules()]
        linear = [module for module in modules if isinstance(module, bnb.nn.Linear4bit)]
        dense = self.device.type == "cpu" and has_room(linear)
        self._shapes: dict[str, tuple[int, ...]] = {}  # (out, in) of each linear layer, by name
        for name, module in list(self.decoder.named_modules()):
            if any(True for _ in module.parameters(recurse=False)):
                layers = [_forward_of(decoder.get_submodule(name), dense) for decoder in decoders]
                self._shapes[name] = _shape_of(module)
                _replace(self.decoder, name, PerModelLinear(self.assignment, layers, name))
            elif any(True for _ in module.buffers(recurse=False)):  # rotary angles, the same in a lineage
                _replace(self.decoder, name, decoders[0].get_submodule(name))
        self.residue = self.ready(residue)
        self.head = LanguageHead(PerModelLinear(self.assignment, heads, ""), *scale_and_softcap(self.config))
        self.decoder.eval()

    def ready(self, residue: Residues) -> Residues:
        """A residue on the models' device and in their type, for `hidden`. Safe in any thread.

        Raises ValueError for one of another lineage: of a layer that the models do not have, or of other sizes.
        """
        for name, (a, b) in residue.items():
            if name not in self._shapes:
                raise ValueError(f"the residue names a layer that the models do not have: {name}")
            if (b.shape[0], a.shape[1]) != self._shapes[name] or a.shape[0] != b.shape[1]:
                got = f"{tuple(b.shape)} by {tuple(a.shape)}"
                raise ValueError(f"the residue of layer {name} is {got}, and the layer {self._shapes[name]}")
        return {
            name: Residue(*(part.detach().to(self.device, self.dtype) for part in parts))
            for name, parts in residue.items()
        }

    def hidden(
        self,
        tokens: Tensor,
        models: Sequence[int],
        ratios: Sequence[float],
        cache: Any,
        *,
        residues: Sequence[Residues | None] | None = None,
        mask: Any = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (n, T, H) of tokens (n, T); models: each row's, ascending; ratios: each row's.

        residues: each row's, as `ready` returned it; None, for a row or for all: the models' own.
        """
        own = [self.residue if residue is None else residue for residue in residues or [None] * len(models)]
        self.assignment.assign(list(models), ratios, own, len(self.models), self.device)
        return hidden_states(self.decoder, tokens, cache, mask=mask, positions=positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, V) float32 of hidden states (n, H), for the rows of the last call of `hidden`."""
        return self.head(hidden)


def residue_of(model: Any, name: str) -> dict[str, Residue]:
    """The adapter `name` of a PEFT model, by layer of the decoder."""
    decoder = model.get_base_model().get_decoder()
    residue = {}
    for path, layer in decoder.named_modules():
        if isinstance(layer, LoraLayer):
            a, b = (cast(Tensor, part[name].weight) for part in (layer.lora_A, layer.lora_B))
            residue[path] = Residue(a, b * layer.scaling[name])
    return residue


def _skeleton(config: Any) -> Any:
    """The decoder's modules without weights, on the meta device."""
    plain = deepcopy(config)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        plain.__dict__.pop(name, None)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            plain, attn_implementation=attention_of(AutoModelForCausalLM, plain)
        ).get_decoder()


def _shape_of(layer: nn.Module) -> tuple[int, ...]:
    """(out, in) of a linear layer; () of any other."""
    weight = getattr(layer, "weight", None)
    if weight is None or weight.ndim != 2 or isinstance(layer, nn.Embedding):
        return ()
    return tuple(weight.shape) if isinstance(layer, nn.Linear) else tuple(weight.shape[::-1])  # GPT-2's Conv1D


def _forward_of(layer: Any, dense: bool) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, LoraLayer):
        layer = layer.get_base_layer()
    if not (dense and isinstance(layer, bnb.nn.Linear4bit)):
        return layer
    weight, bias = dequantized(layer), layer.bias
    return lambda states: functional.linear(states, weight, bias)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
