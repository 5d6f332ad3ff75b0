"""`PoseGuidedPipeline`: any trained or converted method, used like a pipeline of diffusers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone
from posegen.config import resolvers  # noqa: F401  (registers what ${...} may ask for)
from posegen.data.base import to_tensor, to_uint8
from posegen.data.user_images import pictures_per_image, stretch_to
from posegen.errors import UserError
from posegen.io.atomic import read_json, replacing, write_json
from posegen.io.weights import not_finite
from posegen.metrics.base import Estimator
from posegen.poses.reading import PoseInput, checked_people, read_poses
from posegen.runner import method_folder as methods
from posegen.runner.backbone_lookup import BASE, backbone_of
from posegen.runner.pipeline_sampler import NoisyBatch, PipelineSampler
from posegen.runner.received.classes import constructed
from posegen.runner.sampler import Sampler
from posegen.runner.user_requests.guides import default_estimator, people_in_picture

#: How a method is sampled where its folder does not say, as in diffusers' pipelines.
STEPS, GUIDANCE = 50, 7.5
SAMPLER_SETTINGS = ("scheduler", "steps", "guidance", "eta", "negative_prompt", "skip")
Output = Literal["pil", "np", "pt", "latent"]


class PoseGuidedPipeline:
    """Generates images from prompts and poses with one method on its backbone.

    Example::

        pipe = PoseGuidedPipeline.from_pretrained("weights/controlnet", backbone="weights/sd15", device="cuda")
        image = pipe("a dancer on a beach", "pose.json", generator=torch.Generator().manual_seed(0)).images[0]

    The same generator gives the same image on every device and in every batch: each image draws one seed from it.

    Args:
        adapter: a method, attached to its backbone.
        sampler: settings of `Sampler`, unless a call says otherwise.
        scheduler: a scheduler of diffusers; by default the sampler's, with the noise process of the backbone.
        own_unet: the U-Net is not the backbone's own although the method does not train it.

    Attributes:
        scheduler: may be replaced, as in diffusers: ``UniPCMultistepScheduler.from_config(pipe.scheduler.config)``.
    """

    def __init__(
        self, adapter: Adapter, sampler: Mapping[str, Any] | None = None, scheduler: Any = None, own_unet: bool = False
    ) -> None:
        known = {key: value for key, value in (sampler or {}).items() if key in SAMPLER_SETTINGS}
        self.adapter, self.own_unet = adapter.eval(), own_unet
        self.sampler = Sampler(**{"steps": STEPS, "guidance": GUIDANCE, **known})
        self.scheduler = scheduler if scheduler is not None else self.sampler.unset(self.backbone)
        self.bar: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | Path | Mapping[str, Any] | Backbone | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> PoseGuidedPipeline:
        """The pipeline of a cell, of a method folder (``posegen convert``), or of a folder by `save_pretrained`.

        Args:
            backbone: folder or file of the backbone, or arguments of its class, or a new instance; needed where neither
                the folder nor posegen has it.
            dtype: precision of the networks; the steps of the sampler are in single precision.

        Raises:
            UserError: the folder or the backbone cannot be used, or they do not belong together.
        """
        method = methods.method_folder(Path(folder).expanduser())
        about = methods.read_about(method)
        if (sample := methods.adapter_class(about["class"], method).sample) != "image":
            fix = "this pipeline makes images; name the folder of an image method"
            raise UserError(f"{method} holds a method that generates a {sample}, and {fix}")
        body = backbone if isinstance(backbone, Backbone) else backbone_of(method, about, backbone)
        adapter, scheduler = methods.load_method(method, body), saved_scheduler(method / "scheduler")
        settings = {name: value for name, value in (about.get("sampler") or {}).items() if name in SAMPLER_SETTINGS}
        constructed(Sampler, {"steps": STEPS, **settings}, method / "posegen.json", "sampler")
        return cls(adapter, settings, scheduler, (method / methods.UNET).is_file()).to(device, dtype)

    @property
    def backbone(self) -> Backbone:
        return self.adapter.backbone

    @property
    def device(self) -> torch.device:
        return next(self.backbone.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.backbone.unet.parameters()).dtype

    def to(self, device: torch.device | str | torch.dtype | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves everything to a device, a precision, or both; refuses weights that are too large for it."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        modules = [module.to(device=device, dtype=dtype) for module in (self.adapter, self.backbone)]
        bad = [name for module in modules for name in not_finite(module.state_dict())] if dtype == torch.float16 else ()
        if bad:
            fix = "load it again with dtype=torch.bfloat16 or float32"
            raise UserError(f"{len(bad)} tensors are too large for torch.float16, for instance {bad[0]}; {fix}")
        return self

    def set_progress_bar_config(self, **settings: Any) -> None:
        """Arguments of the ``tqdm`` bar; ``disable=True`` shows none."""
        self.bar = settings

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        poses: Any = None,
        *,
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
        estimator: Estimator | None = None,
        control_scale: float = 1.0,
        on_step: Callable[[int], None] | None = None,
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
            num_inference_steps, guidance_scale: by default the method's; guidance 1 is none.
            negative_prompt: what the guidance points away from; one, or one per prompt.
            generator: one for all images, or one per image.
            latents: ``[B, c, h, w]`` initial noise of unit variance, instead of what the generator gives.
            output_type: ``pil``, or in [0, 1] ``np`` ``[B, H, W, 3]`` or ``pt`` ``[B, 3, H, W]``, or ``latent``
                ``[B, c, h, w]``.
            estimator: finds people in pictures; by default the judge of the mannequin world on its backbone.
            control_scale: factor on what the method adds to the U-Net, 1 as trained; see
                `posegen.backbones.base.Injection.scaled`.
            on_step: is called with the number of finished steps; what it raises ends the sampling.

        Returns:
            diffusers' ``ImagePipelineOutput`` with ``images``, or ``(images,)`` without ``return_dict``.

        Raises:
            ValueError: an argument cannot be used; raised before anything is computed.
        """
        steps = whole_number(
            "num_inference_steps", self.sampler.steps if num_inference_steps is None else num_inference_steps
        )
        guidance = finite_number("guidance_scale", self.sampler.guidance if guidance_scale is None else guidance_scale)
        num_images_per_prompt = whole_number("num_images_per_prompt", num_images_per_prompt)
        if finite_number("control_scale", control_scale) < 0:
            expected = "a number of at least 0, 1 for the strength that the method was trained with"
            raise UserError(f"control_scale is {control_scale!r}; expected {expected}")
        if output_type not in (kinds := ("pil", "np", "pt", "latent")):
            raise UserError(f"output_type is {output_type!r}; expected one of {', '.join(kinds)}")
        prompts, guides = prompts_with_poses(prompt, poses)
        negative = self.sampler.negative_prompt if negative_prompt is None else negative_prompt
        negatives = [negative] * len(prompts) if isinstance(negative, str) else texts_of("negative_prompt", negative)
        if len(negatives) != len(prompts):
            texts = f"{len(negatives)} texts for {len(prompts)} prompts"
            raise UserError(f"negative_prompt has {texts}; give one, or as many")
        size = self.size(guides, height, width)
        sources = self.sources(source, len(prompts), size)
        people, hints = zip(*(self.read(guide, size, estimator) for guide in guides), strict=True)
        if note := self.backbone.cut_note(prompts) or self.backbone.cut_note(negatives):
            warnings.warn(note, stacklevel=3)  # of the caller, behind torch's decorator
        rows = [i for i in range(len(prompts)) for _ in range(num_images_per_prompt)]
        noise = self.noise(latents, len(rows), size)
        hint = None if self.adapter.hint is None else torch.stack([hints[i] for i in rows]).to(self.device, self.dtype)
        batch = NoisyBatch(
            ids=[f"pipeline/{seed}" for seed in seeds(generator, len(rows))],
            prompts=[prompts[i] for i in rows],
            keypoints=[people[i] for i in rows],
            size=size,
            hint=hint,
            source=None if sources is None else sources[rows].to(self.device, self.dtype),
            text=self.backbone.encode_text(prompts)[rows],
            negative_text=self.backbone.encode_text(negatives)[rows],
            noise=noise,
        )
        sampler = PipelineSampler(
            self.scheduler, steps, guidance, self.sampler.eta, self.sampler.skip, self.bar, control_scale, on_step
        )
        if output_type == "latent":
            return packed(sampler.latents(self.adapter, self.backbone, batch), output_type, return_dict)
        return packed(self.adapter.generate(batch, sampler), output_type, return_dict)

    def size(self, guides: Sequence[PoseInput], height: int | None, width: int | None) -> tuple[int, int]:
        """(height, width) of the images: as asked for, as the poses' canvas, or as the backbone's training images."""
        canvases = {guide.size for guide in guides if guide.size is not None}
        if len(canvases) > 1 and (height is None or width is None):
            sizes = f"different sizes (height, width): {sorted(canvases)}"
            raise UserError(f"the poses live on canvases of {sizes}; set height and width")
        geometry = self.backbone.geometry
        usual = next(iter(canvases), self.backbone.usual_size)
        asked = zip(("height", "width"), (height, width), usual, strict=True)
        size = tuple(own if side is None else whole_number(name, side, -np.inf) for name, side, own in asked)
        step = geometry.latent_factor * 2 ** (geometry.levels - 1)
        if any(side < step or side % step for side in size):
            around = ({max(step, s // step * step), -(-s // step) * step or step} for s in size)
            high, wide = (" or ".join(map(str, sorted(sides))) for sides in around)
            problem = f"height={size[0]}, width={size[1]}: this backbone makes sides that are multiples of {step}"
            raise UserError(f"{problem}; nearest: height={high}, width={wide}")
        return size  # type: ignore[return-value]

    def read(self, guide: PoseInput, size: tuple[int, int], estimator: Estimator | None) -> tuple[np.ndarray, Tensor]:
        """(people ``[P, 17, 3]``, hint ``[C, H, W]``) of one image; the hint is empty where the method reads none."""
        drawing, nobody = self.adapter.hint, np.zeros((0, 17, 3), np.float32)
        hint = guide.drawn_for(size, drawing.range if drawing is not None else (0.0, 1.0))
        if hint is not None:
            return nobody, torch.from_numpy(hint)
        people = guide.on(size).keypoints
        if guide.picture is not None:
            people = people_in_picture(guide, size, estimator or default_estimator(guide.name, self.backbone.recipe))
        threshold = drawing.threshold if drawing is not None else 0.0
        people = nobody if people is None else checked_people(people, size, guide.name, threshold)
        return people, torch.from_numpy(drawing(people, size)) if drawing is not None else torch.empty(0)

    def sources(self, source: Any, prompts: int, size: tuple[int, int]) -> Tensor | None:
        """Source pictures ``[prompts, 3, H, W]`` or ``[prompts, S, 3, H, W]``; None if the method reads none."""
        name = type(self.adapter).__name__
        if "source" not in self.adapter.reads:
            if source is not None:
                fix = "leave it out, or use a method that does, such as DNAF"
                raise UserError(f"source: {name} reads no picture of a person; {fix}")
            return None
        if source is None:
            raise UserError(f"{name} takes a person from a picture, and there is none; add source=PICTURE")
        given = ([to_tensor(stretch_to(each, size)) for each in them] for them in pictures_per_image(source, prompts))
        stacked = torch.stack([torch.stack(pictures) for pictures in given])
        return stacked.squeeze(1) if stacked.shape[1] == 1 else stacked

    def noise(self, latents: Tensor | None, images: int, size: tuple[int, int]) -> Tensor | None:
        """The given initial noise; refuses a wrong shape."""
        shape = (images, *self.backbone.latent_shape(size))
        if latents is not None and tuple(latents.shape) != shape:
            wanted = f"{images} images of {size[1]} x {size[0]} pixels start from {list(shape)}"
            raise UserError(f"latents has the shape {list(latents.shape)}; {wanted}")
        return None if latents is None else latents.float()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a folder that `from_pretrained` needs nothing else for: method, scheduler and backbone.

        Raises:
            UserError: something else is in the folder, or the backbone was not read from files.
        """
        settings = {**vars(self.sampler), "scheduler": type(self.scheduler).__name__}
        del settings["batch"]
        with replacing(methods.writable(Path(folder).expanduser())) as temporary:
            methods.save_method(temporary, self.adapter, self.backbone, own_unet=self.own_unet, sampler=settings)
            self.scheduler.save_pretrained(temporary / "scheduler")
            try:
                arguments = self.backbone.save_source(temporary / BASE)
            except TypeError as error:
                raise UserError(str(error)) from error
            body = {"class": methods.full_name(self.backbone), "kwargs": arguments}
            write_json(temporary / "posegen.json", {**read_json(temporary / "posegen.json"), "pipeline": body})


def whole_number(name: str, value: Any, least: float = 1) -> int:
    """The same number as Python's, whichever library it is from."""
    expected = f"a whole number{'' if least < 1 else f' of at least {least}'}"
    if (number := finite_number(name, value, expected)) < least or number != int(number):
        raise UserError(f"{name} is {value!r}; expected {expected}")
    return int(number)


def finite_number(name: str, value: Any, expected: str = "a finite number") -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(float(value)):
        raise UserError(f"{name} is {value!r}; expected {expected}")
    return float(value)


def texts_of(name: str, given: Any) -> list[str]:
    """A text, or a list of texts, as a list."""
    texts = list(given) if isinstance(given, list | tuple) else [given]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} is {given!r}; expected a text or a list of texts")
    return texts


def prompts_with_poses(prompt: str | Sequence[str], poses: Any) -> tuple[list[str], list[PoseInput]]:
    """As many prompts as poses; where one is alone, it goes with all of the others."""
    prompts = texts_of("prompt", prompt)
    guides = [PoseInput("poses")] if poses is None else read_poses(poses)
    count = max(len(prompts), len(guides))
    if {len(prompts), len(guides)} - {1, count}:
        fix = "give one of either for all of the other, or as many of both"
        raise UserError(f"{len(prompts)} prompts and poses of {len(guides)} images; {fix}")
    return prompts * (count // len(prompts)), guides * (count // len(guides))


def seeds(generator: torch.Generator | Sequence[torch.Generator] | None, count: int) -> list[int]:
    """A number per image from one generator, from one each, or from torch's own."""
    generators: list[Any] = list(generator) if isinstance(generator, list | tuple) else [generator] * count
    if len(generators) != count:
        raise UserError(f"generator has {len(generators)} entries for {count} images; give one, or as many")
    if wrong := [each for each in generators if not isinstance(each, torch.Generator | None)]:
        raise UserError(f"generator is {wrong[0]!r}; expected one of torch: torch.Generator().manual_seed(0)")
    return [int(torch.randint(2**62, (), generator=g, device=g.device if g is not None else None)) for g in generators]


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
