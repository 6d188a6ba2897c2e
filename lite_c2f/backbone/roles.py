"""Roles on one base: policy, critic, reward model and reference, each with its own adapter active.

A role is entered as a context, and forward and backward both belong inside it:

    with roles.use("policy", train=True):
        hidden = roles.hidden(tokens)
        loss(hidden).backward()

With gradient checkpointing, a backward under another adapter recomputes the forward with that one: gradients vanish or
land on the wrong adapter while their norms look fine. So a hidden state remembers its role, and a backward pass in
another role raises.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lite_c2f.backbone.copies import sampling_copies
from lite_c2f.backbone.heads import ScalarHead
from lite_c2f.backbone.lm_head import LanguageHead
from lite_c2f.config.settings import Lora

REFERENCE = "reference"


def lora_config(lora: Lora, task_type: str) -> LoraConfig:
    """The LoRA of every role; dropout is off, because PPO's ratios would be noise otherwise."""
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=0.0,
        use_rslora=lora.rslora,
        target_modules=targets,
        task_type=task_type,
    )


class Roles:
    """The roles on one frozen causal language model.

    adapters: names of the adapters, e.g. ("policy", "critic", "reward"). The role "reference" is the bare base.
    shares: roles with a head but no adapter of their own, mapped to the role whose adapter they use, e.g.
    {"critic": "policy"}.
    checkpointing: recompute activations in the backward pass of `train=True` contexts.
    """

    def __init__(
        self,
        base: Any,
        lora: Lora,
        adapters: tuple[str, ...],
        *,
        shares: Mapping[str, str] | None = None,
        checkpointing: bool = False,
    ) -> None:
        first, *others = adapters
        self.model = PeftModel(base, lora_config(lora, "CAUSAL_LM"), adapter_name=first)
        for name in others:
            self.model.add_adapter(name, lora_config(lora, "CAUSAL_LM"))
        self.adapters, self.shares = adapters, dict(shares or {})
        self.heads: dict[str, ScalarHead] = {}
        self.checkpointing = checkpointing
        self._role: str | None = None
        self._training = False
        self._layers = [module for module in self.model.modules() if isinstance(module, LoraLayer)]
        self._parameters = {
            name: [weight for key, weight in self.model.named_parameters() if key.endswith(f".{name}.weight")]
            for name in adapters
        }
        self.model.requires_grad_(False)
        for name in adapters:  # bfloat16 would leave 75% of lora_A unchanged at lr 1e-5
            for parameter in self.adapter_parameters(name):
                parameter.data = parameter.data.float()
        if self.dtype != torch.float32:  # autocast makes their products half: an input cast to float32 would come back
            for layer in self._layers:
                layer.cast_input_dtype_enabled = False
        self.model.eval()

    @property
    def device(self) -> torch.device:
        """Device of the base."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the base's arithmetic."""
        base: Any = self.model.get_base_model()
        return base.get_input_embeddings().weight.dtype

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states that heads read."""
        base: Any = self.model.get_base_model()
        return base.get_input_embeddings().weight.shape[1]

    @property
    def decoder(self) -> Any:
        """The transformer without its language-model head, LoRA layers in place."""
        base: Any = self.model.get_base_model()
        return base.get_decoder()

    @property
    def lm_head(self) -> LanguageHead:
        """The base's language-model head."""
        return LanguageHead.of(self.model)

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """LoRA weights of a role's own adapter; none where it shares another role's."""
        return self._parameters.get(name, [])

    def trainable(self, name: str) -> list[nn.Parameter]:
        """Parameters of a role's optimiser: its own adapter, if it has one, and its head."""
        head = self.heads.get(name)
        return self.adapter_parameters(name) + (list(head.parameters()) if head else [])

    def learners(self, role: str) -> tuple[str, ...]:
        """Roles that receive gradients when this one trains: itself, and those that share its adapter."""
        return (role, *(name for name, adapter in self.shares.items() if adapter == role))

    def add_head(self, name: str, head: ScalarHead) -> None:
        """Give a role its scalar head, frozen until the role trains."""
        self.heads[name] = head.to(self.device).requires_grad_(False)

    @contextlib.contextmanager
    def use(self, role: str, *, train: bool = False) -> Iterator[None]:
        """Activate `role` inside the block; the previous role is restored at its end, also after an error.

        train: its adapter and head receive gradients, with the heads that share the adapter, and activations are
        checkpointed; a role that shares an adapter trains its head alone. Without `train` no graph is built.
        """
        if role not in (*self.adapters, *self.shares, REFERENCE):
            raise ValueError(f"no role '{role}': there are {', '.join((*self.adapters, *self.shares, REFERENCE))}")
        if train and role == REFERENCE:
            raise ValueError("the reference is the frozen base: it cannot train")
        before, trained_before = self._role, self._training
        try:
            self._enter(role, train)
            with torch.set_grad_enabled(train), self._autocast():
                yield
        finally:
            self._enter(before, trained_before)

    @contextlib.contextmanager
    def sampling(self, role: str) -> Iterator[None]:
        """Activate `role` inside the block for sampling alone, with `sampling_copies` and without autocast."""
        with self.use(role), torch.autocast(self.device.type, enabled=False), sampling_copies(self.model):
            yield

    def hidden(self, tokens: Tensor) -> Tensor:
        """Final hidden states (B, T, H) of right-padded rows (B, T).

        No attention mask: under causal attention no token sees the padding after it, and SDPA keeps its fast path.
        """
        if self._role is None:
            raise RuntimeError("hidden() outside a role: use `with roles.use(role):`")
        states = self.decoder(input_ids=tokens, use_cache=False).last_hidden_state
        if states.requires_grad:
            role = self._role
            states.register_hook(lambda _: self._check_backward(role))
        return states

    def value(self, tokens: Tensor) -> Tensor:
        """The active role's head on every hidden state: (B, T) float32."""
        if self._role not in self.heads:
            raise RuntimeError(f"role '{self._role}' has no scalar head")
        return self.heads[self._role](self.hidden(tokens))

    def _check_backward(self, role: str) -> None:
        if self._role != role or not self._training:
            raise RuntimeError(
                f"backward of '{role}' while '{self._role}' is active: keep forward and backward in one role context"
            )

    def _enter(self, role: str | None, train: bool) -> None:
        """Activate a role. PEFT's own methods change `requires_grad`, so it is set again by name."""
        if any(layer.merged for layer in self._layers):
            raise RuntimeError("an adapter was merged into the 4-bit base, which drifts 6% per cycle: reload the model")
        self._role, self._training = role, train
        bare = role is None or role == REFERENCE
        for layer in self._layers:
            layer.enable_adapters(not bare)
            if role is not None and not bare:
                layer.set_adapter([self.shares.get(role, role)])
        learners = self.learners(role) if train and role is not None else ()
        for name in (*self.adapters, *self.shares):
            for parameter in self.trainable(name):
                parameter.requires_grad_(name in learners)
        self._set_checkpointing(train and self.checkpointing)

    def _set_checkpointing(self, on: bool) -> None:
        """Checkpointing acts only in training mode, and disables the KV cache there: so both change together."""
        if self.model.training == on:
            return
        base: Any = self.model.get_base_model()
        if on:
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            base.gradient_checkpointing_disable()
        self.model.train(on)

    def _autocast(self) -> contextlib.AbstractContextManager:
        """float32 adapters over a half-precision base on a GPU; nothing to do on a float32 CPU model."""
        dtype = self.dtype
        if dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)
