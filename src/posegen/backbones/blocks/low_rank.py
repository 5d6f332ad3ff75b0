"""Low-rank weights on the layers of a network (Hu et al. 2022, LoRA), in peft's layers, beside the network itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from posegen.errors import UserError

ADAPTER_NAME = "pose"  # in peft's layers


def require_peft(method: str) -> None:
    """Raises a UserError where the package peft is missing."""
    if find_spec("peft") is None:
        raise UserError(f"adapter={method} needs the package peft; pip install 'posegen[lora]'")


class LowRank(nn.Module):
    """The weights of LoRA layers, under the names that diffusers' ``load_lora_weights`` reads below the network's.

    peft puts its layers into a `twin` of the network. The network itself keeps its layers and their names, whatever is
    copied from it or loaded into it; `follow` has it compute with the low-rank weights as well.

    Args:
        network: frozen; no sub-module of this one.
        targets: which layers, by their names or the ends of these, as in peft.
        rank: of the products that are added to the weights; ``ranks``: another one by a layer's name.
        alpha: the products are multiplied by ``alpha / rank``, whatever the rank of a layer.
        left_out: layers that are none of the targets, a regular expression for their names.

    Raises a UserError where no layer has such a name.
    """

    def __init__(
        self,
        network: nn.Module,
        targets: Sequence[str],
        rank: int,
        alpha: float,
        ranks: Mapping[str, int] | None = None,
        left_out: str | None = None,
    ) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        super().__init__()
        alphas = {name: alpha * r / rank for name, r in (ranks or {}).items()}
        where = {"target_modules": list(targets), "exclude_modules": left_out, "init_lora_weights": "gaussian"}
        sizes = {"r": rank, "lora_alpha": alpha, "rank_pattern": dict(ranks or {}), "alpha_pattern": alphas}
        config = LoraConfig(**where, **sizes)  # type: ignore[arg-type]
        try:
            inner = inject_adapter_in_model(config, twin(network), ADAPTER_NAME)
        except ValueError as error:
            names = "names of the network's layers, or their ends, for instance to_q"
            raise UserError(f"adapter.targets={list(targets)} fits no layer ({error}); expected {names}") from error
        layers: dict[str, Any] = {n: m for n, m in inner.named_modules() if isinstance(m, LoraLayer)}
        self.__dict__.update(network=network, inner=inner, layers=layers)
        for name, layer in layers.items():
            place = self
            for part in name.split("."):
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]  # type: ignore[assignment]
            place.lora_A, place.lora_B = layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
        self.float().requires_grad_(True)

    def follow(self) -> None:
        """The network itself computes with the low-rank weights from now on."""
        for name, layer in self.__dict__["layers"].items():
            self.__dict__["network"].get_submodule(name).register_forward_hook(partial(with_product, layer))


def with_product(layer: Any, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The output of a layer, and that of the low-rank product for the same input."""
    down, up = layer.lora_A[ADAPTER_NAME], layer.lora_B[ADAPTER_NAME]
    product = up(down(inputs[0].to(down.weight.dtype))) * layer.scaling[ADAPTER_NAME]
    return output + product.to(output.dtype)


def twin(module: nn.Module) -> Any:
    """The same module with the same parameters and buffers, which stay the same wherever they are moved; modules can be
    put into it that are not put into the other."""
    made = copy(module)
    made._modules = {name: part and twin(part) for name, part in module._modules.items()}
    return made
