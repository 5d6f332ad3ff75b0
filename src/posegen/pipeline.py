"""`PoseGuidedPipeline`: any trained or converted method, used like a pipeline of diffusers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import USE_PEFT_BACKEND, scale_lora_layers, unscale_lora_layers
from huggingface_hub import CommitInfo
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.backbones.text import Text
from posegen.config import resolvers  # noqa: F401  (registers what ${...} may ask for)
from posegen.data.base import to_uint8
from posegen.errors import UserError
from posegen.io.atomic import read_json, replacing, write_json
from posegen.io.weights import not_finite
from posegen.metrics.base import Estimator
from posegen.poses.reading import PoseInput, checked_people, is_shown
from posegen.poses.topology import COCO_17, COCO_JOINTS
from posegen.runner import method_folder as methods
from posegen.runner.backbone_lookup import BASE, backbone_of
from posegen.runner.precision import arrange, unpack
from posegen.runner.received.classes import constructed
from posegen.runner.sampler import Sampler
from posegen.runner.sharing.card import model_card, record_of
from posegen.runner.sharing.repository import local_folder, upload, without_pickles
from posegen.runner.user_requests.guides import default_estimator, estimator_named, people_in_picture
from posegen.runner.user_requests.pipeline_arguments import (
    TextInput,
    finite_number,
    image_size,
    initial_noise,
    number_between,
    people_in_sources,
    prompts_with_poses,
    seeds,
    sizes_of_images,
    whole_number,
)
from posegen.runner.user_requests.pipeline_sampler import CallOptions, NoisyBatch, PipelineSampler, attention_arguments

#: How a method is sampled where its folder does not say, as in diffusers' pipelines.
STEPS = 50
SAMPLER_SETTINGS = ("scheduler", "steps", "guidance", "eta", "negative_prompt", "skip", "long_prompts")
Output = Literal["pil", "np", "pt", "latent"]


class PoseGuidedPipeline(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """Generates images from prompts and poses with one method on its backbone.

    Example::

        pipe = PoseGuidedPipeline.from_pretrained("weights/controlnet", backbone="weights/sd15").to("cuda")
        image = pipe("a dancer on a beach", "pose.json", generator=torch.Generator().manual_seed(0)).images[0]

    It is a ``DiffusionPipeline``: ``to``, ``components``, offloading, progress bar and LoRA work as in diffusers.

    The same generator gives the same image on every device and in every batch: each image draws one seed from it.

    Args:
        adapter: a method, attached to its backbone.
        sampler: settings of `Sampler`, unless a call says otherwise.
        scheduler: a scheduler of diffusers; by default the sampler's, with the noise process of the backbone.
        own_unet: the U-Net is not the backbone's own although the method does not train it.

    Attributes:
        record: how the method was trained or converted, and where the pipeline was fetched, where that is known.
        scheduler: may be replaced, as in diffusers: ``UniPCMultistepScheduler.from_config(pipe.scheduler.config)``.
        unet or transformer, vae, text_encoder, tokenizer, ...: the parts of the backbone, may be replaced, too.
    """

    _exclude_from_cpu_offload = ["adapter"]  # runs in every step beside the U-Net, and not by its forward
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    def __init__(
        self, adapter: Adapter, sampler: Mapping[str, Any] | None = None, scheduler: Any = None, own_unet: bool = False
    ) -> None:
        super().__init__()
        known = {key: value for key, value in (sampler or {}).items() if key in SAMPLER_SETTINGS}
        self.own_unet, self.changed = own_unet, set[str]()
        body, parts = adapter.backbone, adapter.backbone.components
        self.sampler = Sampler(**{"scheduler": None, "steps": STEPS, "guidance": body.usual_guidance, **known})
        self.model_cpu_offload_seq = "->".join((*(n for n in parts if n.startswith("text")), body.network_name, "vae"))
        self.register_modules(
            adapter=adapter.eval(),
            scheduler=scheduler if scheduler is not None else self.sampler.unset(body),
            **{name: getattr(body, place) for name, place in parts.items()},
        )
        self.record: dict[str, Any] = {}
        self._guidance_scale, self._interrupt, self._num_timesteps = self.sampler.guidance, False, 0

    @classmethod
    def _get_signature_keys(cls, obj: Any) -> tuple[list[str], list[str]]:
        """diffusers asks this for the names of the components, and of the other arguments."""
        parts = obj.backbone.components if isinstance(obj, cls) else ()
        return ["adapter", "scheduler", *parts], ["own_unet", "sampler"]

    def __getattr__(self, name: str) -> Any:
        """The parts of the backbone, under diffusers' names for them."""
        adapter: Any = self.__dict__.get("adapter")
        if adapter is not None and (place := adapter.backbone.components.get(name)):
            return getattr(adapter.backbone, place)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        adapter: Any = self.__dict__.get("adapter")
        place = adapter.backbone.components.get(name) if adapter is not None else None
        if place is None:
            super().__setattr__(name, value)
        elif (before := getattr(adapter.backbone, place)) is not value:
            setattr(adapter.backbone, place, value)
            if getattr(value, "_orig_mod", None) is not before:  # what torch.compile returns is the same part
                self.changed.add(name)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | Path | Mapping[str, Any] | Backbone | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **parts: Any,
    ) -> PoseGuidedPipeline:
        """The pipeline of a cell, of a method folder (``posegen convert``), or of a folder by `save_pretrained`.

        Args:
            folder: its path, or a repository ``owner/name`` of the Hugging Face Hub, if no folder has this name.
            backbone: folder or file of the backbone, or ``hub:owner/name``, or arguments of its class, or a new
                instance; needed where neither the folder nor posegen has it.
            dtype: precision of the networks, by default single; the steps of the sampler are in single precision.
            torch_dtype: the same by its older name.
            revision: branch, tag or commit of the repository.
            subfolder: where in the folder or repository the pipeline is.
            token, cache_dir, local_files_only: as in diffusers.
            parts: ``scheduler``, ``vae`` or another part by diffusers' name, to use in the place of the saved.

        Raises:
            UserError: the folder or the backbone cannot be used or fetched, or they do not belong together.
        """
        access: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        method, origin = local_folder(folder, backbone is None, revision, subfolder, **access)
        about = methods.read_about(method)
        if (sample := methods.adapter_class(about["class"], method).sample) != "image":
            fix = "this pipeline makes images; name the folder of an image method"
            raise UserError(f"{method} holds a method that generates a {sample}, and {fix}")
        body = backbone if isinstance(backbone, Backbone) else backbone_of(method, about, backbone)
        names = ("scheduler", *sorted(body.components))
        if unknown := sorted(parts.keys() - names):
            raise UserError(f"from_pretrained got {unknown[0]}, which is no part; expected {', '.join(names)}")
        adapter, scheduler = methods.load_method(method, body), saved_scheduler(method / "scheduler")
        settings = {name: value for name, value in (about.get("sampler") or {}).items() if name in SAMPLER_SETTINGS}
        constructed(Sampler, {"steps": STEPS, **settings}, method / "posegen.json", "sampler")
        for network in (adapter, body):
            network.to(dtype or torch_dtype or torch.float32)
        pipe = cls(adapter, settings, scheduler, methods.network_file(method, adapter.backbone).is_file())
        pipe.record = record_of(method, about, origin)
        for name, part in parts.items():
            setattr(pipe, name, part)
        return pipe.to(device)

    @property
    def backbone(self) -> Backbone:
        return self.adapter.backbone

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def effective_guidance(self) -> float:
        """The guidance of the coming step; as in diffusers, values below 1 are none."""
        return max(self._guidance_scale, 1.0)

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended the sampling, by ``pipe._interrupt = True``."""
        return self._interrupt

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers; refuses weights that are too large for half precision."""
        super().to(*args, **kwargs)
        networks = {name: part for name, part in self.components.items() if isinstance(part, torch.nn.Module)}
        states = {name: part.state_dict() for name, part in networks.items() if part.dtype == torch.float16}
        if bad := [f"{name}.{key}" for name, state in states.items() for key in not_finite(state)]:
            fix = "load it again with dtype=torch.bfloat16 or float32"
            raise UserError(f"{len(bad)} tensors are too large for torch.float16, for instance {bad[0]}; {fix}")
        return self

    def arrange(self, channels_last: bool = False, compile: bool = False, packed: bool = False) -> None:
        """Changes the way of computing, not what is computed, from the next call on.

        Args:
            channels_last: lay feature maps out pixel by pixel, for tensor cores and CPUs with bf16.
            compile: ``torch.compile`` for the repeated blocks, as ``compile_repeated_blocks`` of diffusers.
            packed: on a CPU, keep the weights of convolutions in the order that it computes with, too.
        """
        for network in (self.adapter, self.backbone):
            arrange(network, channels_last, compile, packed=packed)

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers: LoRA of the U-Net and the text tower; a method's trainable copies stay as they are."""
        if not USE_PEFT_BACKEND:
            raise UserError("load_lora_weights needs the package peft; pip install 'posegen[lora]'")
        if not isinstance(self.backbone, StableDiffusion) or self.backbone.pooled_dim is not None:
            family = type(self.backbone).__name__
            raise UserError(f"load_lora_weights reads LoRA of Stable Diffusion 1 and 2, this backbone is {family}")
        super().load_lora_weights(*args, **kwargs)

    def fuse_lora(self, components: Sequence[str] = ("unet", "text_encoder"), **kwargs: Any) -> None:
        """As in diffusers."""
        super().fuse_lora(list(components), **kwargs)
        unpack(self.unet)
        self.changed |= {name for name in components if getattr(getattr(self, name), "peft_config", None)}

    def unfuse_lora(self, components: Sequence[str] = ("unet", "text_encoder"), **kwargs: Any) -> None:
        """As in diffusers."""
        super().unfuse_lora(list(components), **kwargs)
        unpack(self.unet)
        self.changed -= set(components)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        poses: Any = None,
        source: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: Output = "pil",
        return_dict: bool = True,
        estimator: Estimator | str | None = None,
        *,
        image: Any = None,
        topology: str | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float | None = None,
        guidance_rescale: float = 0.0,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        clip_skip: int | None = None,
        long_prompts: Literal["cut", "chunk"] | None = None,
        controlnet_conditioning_scale: float = 1.0,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Generates images.

        Args:
            prompt: one prompt, or one per pose.
            poses: one pose, or one per prompt; see `posegen.poses.reading.read_poses`. Coordinates are pixels of the
                image, or of the canvas that a file names, which is then scaled to the image. A mostly black picture is
                used as a drawn skeleton, resized to the image; ``estimator`` reads the poses of any other. None draws
                nobody, and methods without a pose input ignore poses.
            source: picture of the person to paint, for methods that take appearance from one (a file, a PIL image, or
                an array ``[H, W, 3] uint8``), resized to the image. A list is several pictures of that person, a list
                of lists has one list per prompt.
            height, width: by default those of the poses' canvas, else what the backbone was trained on.
            num_inference_steps, guidance_scale: by default the method's; a guidance of 1 or less is none.
            negative_prompt: what the guidance points away from; one, or one per prompt.
            generator: one for all images, or one per image.
            latents: ``[B, c, h, w]`` initial noise of unit variance, instead of what the generator gives.
            output_type: ``pil``, or in [0, 1] ``np`` ``[B, H, W, 3]`` or ``pt`` ``[B, 3, H, W]``, or ``latent``
                ``[B, c, h, w]``.
            estimator: finds people in pictures, or its name as in ``estimator=rtmlib``, which knows photographs; by
                default the judge of the mannequin world on its backbone.
            image: ``poses`` by the name that diffusers' ControlNet pipelines have for it.
            topology: the skeleton of ``poses`` where they do not tell, a name in `posegen.poses.topology.TOPOLOGIES`.
            timesteps, sigmas: the steps, instead of a number of them, for schedulers that take them.
            eta: noise added per step, for schedulers that take it (0: deterministic); by default the method's.
            guidance_rescale: how far the guided prediction is scaled back to the spread of the one with text, from 0
                to 1 (Lin et al. 2024, section 3.4).
            prompt_embeds, negative_prompt_embeds: ``[prompts, L, D]`` text states instead of prompts.
            pooled_prompt_embeds, negative_pooled_prompt_embeds: ``[prompts, P]`` beside them, where the backbone reads
                such vectors.
            clip_skip: how many of the last layers of the text tower the prompts leave out.
            long_prompts: ``cut`` leaves out what the text tower does not read (77 tokens, of CLIP); ``chunk`` encodes
                it in pieces, and shorter prompts of the call get empty ones. By default the method's, ``cut``.
            controlnet_conditioning_scale: factor on what the method adds to the U-Net, 1 as trained; see
                `posegen.backbones.base.Injection.scaled`.
            control_guidance_start, control_guidance_end: the part of the steps, from 0 to 1, in which the method acts.
            cross_attention_kwargs: arguments of the U-Net's attention processors; ``scale`` is the strength of LoRA.
            original_size, crops_coords_top_left, target_size: (height, width) or (top, left) that a Stable Diffusion XL
                takes the images for; by default the size of the images, cut nowhere.
            callback_on_step_end: is called with the pipeline, the number of the step, its timestep and a dictionary of
                tensors; what it returns replaces them. ``pipe._interrupt = True`` ends the sampling, and so does
                whatever it raises.
            callback_on_step_end_tensor_inputs: names of those tensors: ``latents``, ``prompt_embeds``
                (``[negative, positive]`` with guidance), ``negative_prompt_embeds``, and ``pooled_prompt_embeds`` where
                the backbone reads such vectors.

        Returns:
            diffusers' ``ImagePipelineOutput`` with ``images``, or ``(images,)`` without ``return_dict``.

        Raises:
            ValueError: an argument cannot be used; raised before anything is computed.
        """
        options = CallOptions.read(
            self,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            eta=eta,
            guidance_rescale=guidance_rescale,
            controlnet_conditioning_scale=controlnet_conditioning_scale,
            control_guidance_start=control_guidance_start,
            control_guidance_end=control_guidance_end,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        guidance = finite_number("guidance_scale", self.sampler.guidance if guidance_scale is None else guidance_scale)
        num_images_per_prompt = whole_number("num_images_per_prompt", num_images_per_prompt)
        layers = self.text_encoder.config.num_hidden_layers
        clip_skip = int(number_between("clip_skip", clip_skip or 0, 0, layers - 1))
        if output_type not in (kinds := ("pil", "np", "pt", "latent")):
            raise UserError(f"output_type is {output_type!r}; expected one of {', '.join(kinds)}")
        long_prompts = self.sampler.long_prompts if long_prompts is None else long_prompts
        if long_prompts not in ("cut", "chunk"):
            raise UserError(f"long_prompts is {long_prompts!r}; expected cut or chunk")
        if image is not None and poses is not None:
            raise UserError("image and poses are two names of one argument; give one of them")
        widths = self.backbone.geometry.text_dim, self.backbone.pooled_dim
        positive = TextInput.read("prompt", prompt, prompt_embeds, pooled_prompt_embeds, *widths)
        if "words" in self.adapter.places and (positive.states is not None or clip_skip):
            fix = "give prompt instead of prompt_embeds, and no clip_skip"
            raise UserError(f"{type(self.adapter).__name__} adds words to the prompt and encodes it itself; {fix}")
        wanted = COCO_17 if self.adapter.hint is None else self.adapter.hint.topology
        positive, guides = prompts_with_poses(positive, poses if image is None else image, wanted, topology)
        usual = self.sampler.negative_prompt if negative_prompt_embeds is None else None
        negative_prompt = usual if negative_prompt is None else negative_prompt
        negative_states = negative_prompt_embeds, negative_pooled_prompt_embeds
        negative = TextInput.read("negative_prompt", negative_prompt, *negative_states, *widths)
        negative = negative.for_images(len(positive))
        size = self.size(guides, height, width)
        framed = {"original_size": original_size, "crops_coords_top_left": crops_coords_top_left}
        sizes = sizes_of_images(self.backbone, size, **framed, target_size=target_size)
        sources = people_in_sources(self.adapter, source, len(positive), size)
        people, hints = zip(*(self.read(guide, size, estimator) for guide in guides), strict=True)
        rows = [i for i in range(len(positive)) for _ in range(num_images_per_prompt)]
        noise = initial_noise(self.backbone, latents, len(rows), size)
        ids = [f"pipeline/{seed}" for seed in seeds(generator, len(rows))]
        chunks = self.backbone.chunks([*positive.prompts, *negative.prompts]) if long_prompts == "chunk" else 1
        cut = [] if long_prompts == "chunk" else [positive.prompts, negative.prompts]
        if note := next(filter(None, map(self.backbone.cut_note, cut)), None):
            warnings.warn(note, stacklevel=3)  # of the caller, behind torch's decorator
        self._guidance_scale, self._interrupt, device = guidance, False, self._execution_device
        attention = dict(cross_attention_kwargs or {})
        text = self.encode(positive, chunks, clip_skip, attention)
        negative_text = self.encode(negative, chunks, 0, attention)
        if text.tokens.shape[1] != negative_text.tokens.shape[1]:
            lengths = f"{text.tokens.shape[1]} and {negative_text.tokens.shape[1]} tokens"
            raise UserError(f"{positive.name} and {negative.name} have {lengths}; expected the same length")
        hint = None if self.adapter.hint is None else torch.stack([hints[i] for i in rows]).to(device, self.dtype)
        batch = NoisyBatch(
            ids=ids,
            prompts=[positive.prompts[i] for i in rows],
            keypoints=[people[i] for i in rows],
            size=size,
            hint=hint,
            source=None if sources is None else sources[rows].to(device, self.dtype),
            text=text[rows],
            negative_text=negative_text[rows],
            sizes=None if sizes is None else sizes.expand(len(rows), -1),
            noise=noise,
        )
        sampler = PipelineSampler(self, options, self.sampler.skip)
        with attention_arguments(self.backbone.network, attention):
            if output_type == "latent":
                made = sampler.latents(self.adapter, self.backbone, batch)
            else:
                made = self.adapter.generate(batch, sampler)
        self.maybe_free_model_hooks()
        return packed(made, output_type, return_dict)

    def encode(self, given: TextInput, chunks: int, clip_skip: int, attention: Mapping[str, Any]) -> Text:
        """The text states of one argument, a row per image."""
        if given.states is not None:
            return Text(given.states, given.pooled).to(self._execution_device, self.dtype)
        scale = attention.get("scale") if USE_PEFT_BACKEND else None
        if scale is not None:
            scale_lora_layers(self.text_encoder, scale)
        try:
            return self.backbone.encode_text(given.prompts, chunks, clip_skip)
        finally:
            if scale is not None:
                unscale_lora_layers(self.text_encoder, scale)

    def size(self, guides: Sequence[PoseInput], height: int | None, width: int | None) -> tuple[int, int]:
        """(height, width) of the images: as asked for, as the poses' canvas, or as the backbone's training images."""
        return image_size(self.backbone, guides, height, width)

    def read(
        self, guide: PoseInput, size: tuple[int, int], estimator: Estimator | str | None
    ) -> tuple[np.ndarray, Tensor]:
        """(people ``[P, 17, 3]``, hint ``[C, H, W]``) of one image; the hint is empty where the method reads none."""
        drawing, nobody = self.adapter.hint, np.zeros((0, 17, 3), np.float32)
        hint = guide.drawn_for(size, drawing.range if drawing is not None else (0.0, 1.0))
        if hint is not None:
            return nobody, torch.from_numpy(hint)
        people = guide.on(size).keypoints
        if guide.picture is not None:
            estimator = estimator_named(estimator) if isinstance(estimator, str) else estimator
            estimator = estimator or default_estimator(guide.name, self.backbone.recipe)
            wanted = COCO_17 if drawing is None else drawing.topology
            people = people_in_picture(guide, size, estimator, wanted)
        threshold = drawing.threshold if drawing is not None else 0.0
        depth = guide.depth if people is None or guide.depth is None else guide.depth[is_shown(people, threshold)]
        people = nobody if people is None else checked_people(people, size, guide.name, threshold)
        hint = torch.empty(0) if drawing is None else torch.from_numpy(drawing(people, size, depth))
        return people[:, :COCO_JOINTS], hint

    def save_pretrained(self, folder: str | Path, push_to_hub: bool = False, **settings: Any) -> None:
        """Writes a folder that `from_pretrained` needs nothing else for: method, scheduler and backbone.

        Args:
            push_to_hub: publish the pipeline, too, with ``settings`` as in `push_to_hub`; ``repo_id`` is by default the
                folder's name.

        Raises:
            UserError: something else is in the folder, or the backbone was not read from files.
        """
        if settings and not push_to_hub:
            raise UserError(f"save_pretrained got {', '.join(settings)}, which only push_to_hub=True reads")
        self._write(methods.writable(Path(folder).expanduser()))
        if push_to_hub:
            self.push_to_hub(settings.pop("repo_id", Path(folder).name), **settings)

    def push_to_hub(
        self, repo_id: str, commit_message: str | None = None, *, results: str = "", **settings: Any
    ) -> CommitInfo:
        """Publishes the pipeline with a model card; returns the commit.

        A backbone that comes from the Hub is named with its commit and not uploaded again; pickles are not uploaded.

        Args:
            repo_id: ``owner/name``; made where it does not exist.
            results: the row of a table, in Markdown, for the card (``posegen publish`` fills it in).
            settings: ``private``, ``token``, ``create_pr``, ``revision`` and ``subfolder``, as in diffusers.

        Raises:
            UserError: the Hub refuses, or cannot be reached; says what to do.
        """
        with TemporaryDirectory() as place:
            folder = Path(place) / "pipeline"
            self._write(folder, backbone=not self.backbone.weights.hub)
            without_pickles(folder)
            card = model_card(folder, repo_id, self.adapter, self.backbone.weights, self.record, results)
            return upload(folder, repo_id, card, commit_message=commit_message or "Upload pipeline", **settings)

    def _write(self, folder: Path, backbone: bool = True) -> None:
        """Writes the pipeline to a folder; without its ``backbone``, `from_pretrained` fetches that, or asks for it."""
        networks = self.backbone.network, self.text_encoder
        if any(getattr(network, "peft_config", None) for network in networks):
            raise UserError("LoRA is not saved along; first fuse_lora() and unload_lora_weights(), or only the second")
        if others := sorted(self.changed - {self.backbone.network_name}):
            only = "only a changed U-Net or transformer is saved along"
            raise UserError(f"{others[0]} is not the backbone's any more, and {only}")
        settings = {**vars(self.sampler), "scheduler": type(self.scheduler).__name__}
        del settings["batch"]
        facts = {**self.record, "sampler": settings}
        with replacing(folder) as temporary:
            own = self.own_unet or self.backbone.network_name in self.changed
            methods.save_method(temporary, self.adapter, self.backbone, own_unet=own, **facts)
            self.scheduler.save_pretrained(temporary / "scheduler")
            if not backbone:
                return
            try:
                arguments = self.backbone.save_source(temporary / BASE)
            except TypeError as error:
                raise UserError(str(error)) from error
            body = {"class": methods.full_name(self.backbone), "kwargs": arguments}
            write_json(temporary / "posegen.json", {**read_json(temporary / "posegen.json"), "pipeline": body})


def packed(made: Tensor, output: Output, return_dict: bool) -> Any:
    """Images ``[B, 3, H, W]`` in [-1, 1], or latents, as the caller wants them."""
    from diffusers import ImagePipelineOutput
    from PIL import Image

    images: Any = made
    if output == "pil":
        images = [Image.fromarray(image) for image in to_uint8(made)]
    elif output != "latent":
        images = (made.float() / 2 + 0.5).clamp(0, 1)
        images = images.permute(0, 2, 3, 1).cpu().numpy() if output == "np" else images
    return ImagePipelineOutput(images=images) if return_dict else (images,)


def saved_scheduler(folder: Path) -> Any:
    """The scheduler that `PoseGuidedPipeline.save_pretrained` wrote, None without one; must be one of diffusers."""
    import diffusers

    if not (file := folder / "scheduler_config.json").is_file():
        return None
    config = read_json(file, "save the pipeline again")
    name = config.get("_class_name") if isinstance(config, dict) else None
    cls = getattr(diffusers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise UserError(f"{file} names the class {name}, which is no scheduler of diffusers; nothing was run")
    return cls.from_config(config)  # type: ignore[attr-defined]
