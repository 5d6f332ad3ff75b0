"""How a method computes: where, in which precision, memory layout and compilation. None of it names a method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from accelerate import cpu_offload_with_hook
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from posegen.errors import UserError

#: Lightning's names of the precisions that sampling and `posegen profile` know, too.
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
#: What is compiled: larger pieces take minutes, and hooks on them, which inject features, would be frozen into code.
REPEATED = ("BasicTransformerBlock", "JointTransformerBlock", "FluxTransformerBlock", "FluxSingleTransformerBlock")
#: What may be computed again. The wide activations in feed-forward layers take most of a transformer block's memory and
#: cost little to compute; whole blocks, diffusers' kind, save most and cost another forward pass.
CHECKPOINTING = ("none", "feedforward", "blocks")
WIDE = ("GEGLU",)
WAYS = ("channels_last", "compile", "checkpointing", "packed", "attention")  # keys of ``compute``


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a precision in Lightning's names, one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        expected = ", ".join(PRECISIONS)
        raise UserError(f"trainer.precision={precision} is not known to sampling; expected one of {expected}")
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextmanager
def casting_once() -> Iterator[None]:
    """Within the context, all those of `autocast` cast a weight that could train once; it must not change meanwhile."""
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


def arrange(
    network: nn.Module,
    channels_last: bool = False,
    compile: bool = False,
    checkpointing: str = "none",
    packed: bool = False,
    attention: Literal["auto", "fp32"] = "auto",
) -> None:
    """Applies what ``compute`` says about the way of computing to a backbone or an adapter.

    Args:
        channels_last: lay feature maps out pixel by pixel, which convolutions on tensor cores and in oneDNN prefer.
        checkpointing: what the backward pass computes again instead of keeping it: one of `CHECKPOINTING`.
        packed: convolutions whose weights do not train keep them in oneDNN's order, too, see `convolved`.
        attention: ``fp32`` computes attention in single precision in training, whatever the rest does, see `attended`.
    """
    if checkpointing not in CHECKPOINTING:
        raise UserError(f"compute.checkpointing={checkpointing} is unknown; expected one of {', '.join(CHECKPOINTING)}")
    if packed and not torch.backends.mkldnn.is_available():
        raise UserError(
            "compute.packed=true needs a torch with oneDNN, and this one has none; use compute.packed=false"
        )
    if channels_last:
        network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if compile and type(module).__name__ in REPEATED:
            module.compile()
        if checkpointing == "blocks" and getattr(module, "_supports_gradient_checkpointing", False):
            module.enable_gradient_checkpointing()
        if checkpointing == "blocks" and hasattr(module, "set_grad_checkpointing"):  # timm's name for it
            module.set_grad_checkpointing()
        if checkpointing == "feedforward" and type(module).__name__ in WIDE:
            module.forward = partial(recomputed, module)
        if packed and type(module) is nn.Conv2d and module.padding_mode == "zeros":
            module.forward = partial(convolved, module)
        if attention == "fp32" and type(module).__name__ in ("Attention", "FluxAttention"):
            module.forward = partial(attended, module)


def keep_cast(network: nn.Module, precision: str) -> None:
    """Keeps the weights of convolutions and linear layers in the type that autocast computes in, if none train.

    The numbers are the same, since autocast would cast the same weights in every pass: it remembers casts of weights
    that train alone. Weights of normalisations stay as they are; autocast computes those in single precision. So does a
    network of which a part trains, because it is saved with that part.
    """
    dtype = PRECISIONS.get(precision)
    frozen = not any(p.requires_grad for p in network.parameters())
    for module in network.modules() if frozen and dtype is not None else ():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)


def attended(module: nn.Module, *inputs: Any, **more: Any) -> Any:
    """``module(*inputs)``; where something trains, attention weighs and sums in single precision.

    On CPUs the backward pass of attention in bf16 multiplies piece by piece, and takes longer than in single precision,
    several times as long where maps are small."""
    with SingleAttention() if torch.is_grad_enabled() else nullcontext():
        return type(module).forward(module, *inputs, **more)


class SingleAttention(TorchFunctionMode):
    """Within the context, torch's attention computes in single precision and returns the type that it was given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        inputs, options = tree_map_only(Tensor, single, (args, kwargs or {}))
        with torch.autocast(args[0].device.type, enabled=False):
            return func(*inputs, **options).to(args[0].dtype)


def single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


class PackedWeights(NamedTuple):
    """Weights of a convolution in the order in which oneDNN computes with them, and what they were packed for."""

    made_for: tuple[Any, ...]
    weights: Tensor


def convolved(module: nn.Conv2d, x: Tensor) -> Tensor:
    """``module(x)`` with weights in oneDNN's order, where nothing trains, on a CPU.

    Otherwise oneDNN sorts the weights in every pass, which takes longer than the convolution where maps are small. The
    sorted weights take as much memory again, until `unpack`."""
    weight, options = module.weight, (module.padding, module.stride, module.dilation, module.groups)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    computable = {weight.dtype, dtype} <= {torch.float32, torch.bfloat16}
    if x.device.type != "cpu" or trains or not computable or weight.is_inference():
        return nn.Conv2d.forward(module, x)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    made_for = (weight.data_ptr(), weight._version, dtype, x.shape)
    packed: PackedWeights | None = vars(module).get("packed")
    if packed is None or packed.made_for != made_for:
        sorted_ = torch.ops.mkldnn._reorder_convolution_weight(weight.detach().to(dtype), *options, x.shape)
        packed = vars(module)["packed"] = PackedWeights(made_for, sorted_)
    bias = None if module.bias is None else module.bias.to(dtype)
    return torch.ops.mkldnn._convolution_pointwise(x, packed.weights, bias, *options, "none", [], "")


def unpack(network: nn.Module) -> None:
    """Forgets the sorted weights, where the others were changed unseen by torch, as fusing LoRA does."""
    for module in network.modules():
        vars(module).pop("packed", None)


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """``module(*inputs)``, of which the backward pass keeps the inputs alone."""
    forward = type(module).forward
    if not torch.is_grad_enabled():
        return forward(module, *inputs)
    return checkpoint(forward, module, *inputs, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def keeping(*modules: nn.Module) -> Iterator[None]:
    """Within the context, nothing of feed-forward layers is computed twice."""
    changed = [module for module in modules if getattr(vars(module).get("forward"), "func", None) is recomputed]
    for module in changed:
        del module.forward
    try:
        yield
    finally:
        for module in changed:
            module.forward = partial(recomputed, module)


def arranged(network: nn.Module, compute: Mapping[str, Any]) -> None:
    """`arrange` by the keys of the ``compute`` group."""
    arrange(network, **{key: compute[key] for key in WAYS if key in compute})


def waiting_parts(parts: Iterable[nn.Module], device: torch.device) -> list[Any]:
    """accelerate's hooks, with which parts wait in the CPU's memory until somebody runs them; their ``offload`` sends
    them back. None where the device has no memory of its own."""
    if device.type in ("cpu", "mps"):
        return []
    return [cpu_offload_with_hook(part, device)[1] for part in parts]


def networks(adapter: nn.Module, backbone: Any) -> Iterator[nn.Module]:
    """All modules that a step runs: those of the U-Net and of the adapter."""
    yield from backbone.network.modules()
    yield from adapter.modules()


def device_of(accelerator: str) -> torch.device:
    """The device that Lightning's ``accelerator`` means."""
    gpus = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    present = [kind for kind, available in gpus.items() if available()]
    wanted = {"auto": [*present, "cpu"][0], "gpu": [*present, "gpu"][0]}.get(accelerator, accelerator)
    if wanted not in ("cpu", *present):
        expected = "auto, cpu, or gpu where there is one"
        raise UserError(f"trainer.accelerator={accelerator} is not on this machine; expected {expected}")
    return torch.device(wanted)
