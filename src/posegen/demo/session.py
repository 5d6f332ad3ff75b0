"""From a request to pictures with scores; knows no browser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from posegen.data.base import PoseData, Sample, to_tensor
from posegen.data.user_images import user_picture
from posegen.data.user_samples import Prompts
from posegen.demo.loaded_methods import DemoMethod, LoadedMethods
from posegen.demo.pose_editor import to_editor, to_keypoints
from posegen.errors import UserError
from posegen.metrics.base import Judged, Poses
from posegen.pipeline import PoseGuidedPipeline
from posegen.poses.reading import PEOPLE, PoseInput, read_poses
from posegen.runner.components import Components
from posegen.runner.images import visible
from posegen.runner.precision import device_of
from posegen.runner.user_requests.prompts import PROMPTS, sampled_poses
from posegen.train.loop import set_threads

#: Samples of the test split that may become presets, and how many do: of one person, and of each larger number.
LOOKED_AT, ALONE, TOGETHER = 200, 10, 3
NOBODY = Poses(np.zeros((0, 17, 3), np.float32), np.zeros(0, np.float32))
OnStep = Callable[[DemoMethod, int, int], None]


class Stopped(Exception):
    """Somebody pressed stop."""


@dataclass(frozen=True)
class DemoRequest:
    """A request for pictures, the same for all methods."""

    prompt: str  # the caption
    pose: Any  # value of the editor
    labels: Sequence[str]  # the methods
    seed: int = 0  # of the noise, the same for every method
    steps: int = 20  # of the sampler
    guidance: float = 2.0  # of the text
    control: float = 1.0  # factor on the methods' influence
    negative: str = ""  # caption that the guidance points away from
    source: np.ndarray | str | None = None  # a picture of a person, for methods that take one, or its file

    def check(self) -> None:
        """Raises a `UserError` where a number is out of range, the prompt is empty or no method is chosen."""
        if not self.prompt.strip():
            raise UserError("the prompt is empty; write what is to be seen, or choose a scene")
        for name, least in (("seed", 0), ("steps", 1)):
            value = getattr(self, name)
            if value != int(value) or not least <= value < 2**63:
                raise UserError(f"{name} is {value}; expected a whole number of at least {least}")
        if not self.labels:
            raise UserError("no method is chosen; tick at least one")


@dataclass(frozen=True, eq=False)
class DemoPicture:
    """One method's picture, and how its pose agrees with the one ``asked`` for."""

    label: str  # the method
    pixels: np.ndarray | None = None  # ``[H, W, 3] uint8``; None where it failed
    asked: np.ndarray = field(default_factory=lambda: NOBODY.keypoints)  # ``[P, 17, 3]`` on the picture's pixels
    found: Poses = field(default_factory=lambda: NOBODY)  # the people that the estimator sees in it
    scores: dict[str, float] = field(default_factory=dict)  # column -> percent; empty where nobody was asked for
    unknown: Sequence[str] = ()  # words of the prompt that the method's world lacks
    error: str = ""  # why there is no picture


@dataclass(frozen=True)
class Preset:
    """A prompt and pose to begin with."""

    label: str
    prompt: str
    pose: dict[str, Any]


class DemoSession:
    """Draws and judges pictures, one request at a time; ``cfg`` is the configuration of ``posegen demo``."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.components, self.loaded = cfg, Components(cfg), LoadedMethods(cfg)
        self.working, self.stop, self.device = threading.Lock(), threading.Event(), device_of(cfg.trainer.accelerator)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) of the editor's canvas, on which pictures are read."""
        height, width = self.cfg.canvas or self.data.size
        return int(height), int(width)

    @cached_property
    def data(self) -> PoseData:
        return self.components.data("test")

    @cached_property
    def estimator(self) -> Any:
        estimator: Any = self.components.estimator
        return estimator.to(self.device) if isinstance(estimator, torch.nn.Module) else estimator

    @cached_property
    def presets(self) -> list[Preset]:
        """Scenes of the test split with as many different actions as there are; those of fewer people first."""
        found: dict[str, Sample] = {}
        for i in range(min(LOOKED_AT, len(self.data))):
            sample = self.data.seen(i, image=False)
            if len(sample.keypoints):
                found.setdefault(scene_name(sample), sample)
        by_count = sorted((len(sample.keypoints), name) for name, sample in found.items())
        chosen: list[Preset] = []
        for count, scenes in groupby(by_count, lambda each: each[0]):
            for _, name in islice(scenes, ALONE if count == 1 else TOGETHER):
                chosen.append(Preset(name, found[name].prompt, to_editor(found[name].keypoints, found[name].size)))
        return chosen

    def draw(self, request: DemoRequest, on_step: OnStep = lambda method, done, total: None) -> Iterator[DemoPicture]:
        """One picture per method; one that fails says why. ``on_step`` gets the method, its steps done, and all."""
        request.check()
        methods = {method.label: method for method in self.loaded.methods()}
        if gone := [label for label in request.labels if label not in methods]:
            raise UserError(f"{gone[0]} is not there any more; press 'Look again' and choose anew")
        with self.working:
            self.stop.clear()
            for method in (method for label, method in methods.items() if label in request.labels):
                try:
                    yield self._drawn(request, method, on_step)
                except (ValueError, OSError) as error:
                    yield DemoPicture(method.label, error=str(error))

    def _drawn(self, request: DemoRequest, method: DemoMethod, on_step: OnStep) -> DemoPicture:
        def stepped(pipe: PoseGuidedPipeline, step: int, _timestep: Any, _tensors: Any) -> None:
            if self.stop.is_set():
                raise Stopped
            on_step(method, step + 1, pipe.num_timesteps)

        set_threads(self.cfg)  # here, since it counts for the thread that computes
        on_step(method, 0, int(request.steps))
        pipe = self.loaded.pipeline(method)
        if (takes := "source" in pipe.adapter.needs) and request.source is None:
            raise UserError("this method takes a person from a picture; give one below, at 'A person to draw'")
        size = pipe.size([PoseInput("pose")], None, None)
        pose = PoseInput("pose", to_keypoints(request.pose, self.size).astype(np.float64), size=self.size)
        keypoints: Any = pose.on(size).keypoints
        options: dict[str, Any] = {"height": size[0], "width": size[1], "num_inference_steps": int(request.steps)}
        options |= {"guidance_scale": float(request.guidance), "negative_prompt": request.negative}
        options |= {"source": request.source if takes else None, "callback_on_step_end": stepped}
        options["controlnet_conditioning_scale"] = float(request.control)
        options["generator"] = torch.Generator().manual_seed(int(request.seed))
        drawn = pipe(request.prompt, keypoints if len(keypoints) else None, **options)
        pixels = np.array(drawn.images[0])
        found, scores = self.judged(request.prompt, pixels, keypoints)
        # a world that renders its captions knows no other words than theirs
        words = dict.fromkeys(request.prompt.lower().split()) if pipe.backbone.recipe == self.data.name else ()
        unknown = [word for word in words if word not in self.vocabulary]
        return DemoPicture(method.label, pixels, keypoints.astype(np.float32), found, scores, unknown)

    @cached_property
    def vocabulary(self) -> set[str]:
        return {word for caption in self.data.prompts for word in caption.lower().split()}

    def judged(self, prompt: str, picture: np.ndarray, keypoints: np.ndarray) -> tuple[Poses, dict[str, float]]:
        """(people found in a picture, the protocol's pose scores of them); no scores where nobody was asked for."""
        found, scores = self.people_in(picture), {}
        sample = Prompts([prompt], [keypoints.tolist()], list(picture.shape[:2]))[0]  # no ${...} in it counts
        for metric in self.components.protocol.metrics if len(keypoints) else ():
            if shown := [column for column in metric.columns if column.startswith(("PCK", "OKS"))]:
                records = metric.record(Judged(sample.id, sample.keypoints, sample.areas, found))
                values = metric.compute({name: [value] for name, value in records.items()})
                scores |= {column: values[column] for column in shown}
        return found, scores

    @torch.inference_mode()
    def people_in(self, picture: np.ndarray) -> Poses:
        """The people in a picture ``[H, W, 3] uint8``."""
        return self.estimator.estimate(to_tensor(picture)[None].to(self.device))[0]

    def read_picture(self, picture: np.ndarray | str) -> dict[str, Any]:
        """The editor's value with the people of a picture ``[H, W, 3] uint8``, or of its file, which is fitted into the
        canvas."""
        pixels = user_picture(picture, "picture")
        with self.working:
            set_threads(self.cfg)
            fits = self.estimator.any_size
            people = visible(self.people_in(pixels if fits else letterboxed(pixels, self.size)).keypoints)
        if fits:
            inner, corner = place_on(self.size, pixels.shape[:2])
            people[..., :2] = (people[..., :2] + 0.5) * np.divide(inner, pixels.shape[:2])[::-1] - 0.5 + corner[::-1]
        people = people[(people[..., 2] > 0).any(-1)][:PEOPLE]
        if not len(people):
            nobody = "the estimator finds nobody in this picture; give another one, or drag the joints"
            raise UserError(". ".join(filter(None, (nobody, self.estimator.warning()))))
        return to_editor(people, self.size)

    def read_file(self, file: str) -> dict[str, Any]:
        """The editor's value with the people of a COCO or OpenPose file."""
        keypoints = read_poses(file, "pose")[0].on(self.size).keypoints
        return to_editor(NOBODY.keypoints if keypoints is None else keypoints, self.size)

    def imagine(self, prompt: str, seed: int) -> dict[str, Any]:
        """The editor's value with the pose that the configured prior, by default GUNet, generates for a prompt."""
        if not prompt.strip():
            raise UserError("the prompt is empty; the pose is generated from it")
        node = {"_target_": PROMPTS, "prompts": [prompt], "people": None, "size": list(self.size)}
        cfg = OmegaConf.merge(self.cfg, {"seed": int(seed)})
        try:
            with self.working:
                people = sampled_poses(cfg, node)  # type: ignore[arg-type]
        except UserError as error:
            if "no finished cell" not in str(error):
                raise
            train = "posegen train adapter=gunet backbone=mannequin_pose data=mannequin_single"
            text = "no pose prior is trained yet, so the pose stays as it is. Train one, and press again"
            raise UserError(f"{text}: {train}") from error
        return to_editor(np.asarray(people[0]), self.size)


def scene_name(sample: Sample) -> str:
    """The actions of a scene's people where the data has them, else its caption."""
    if actions := sample.attributes.get("actions"):
        return " & ".join(map(str, actions))
    return sample.prompt if len(sample.prompt) <= 60 else f"{sample.prompt[:57]}..."


def place_on(canvas: tuple[int, int], picture: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size of a picture of a (height, width) that is fitted into a canvas, and its upper left corner there."""
    scale = min(canvas[0] / picture[0], canvas[1] / picture[1])
    height, width = max(1, round(picture[0] * scale)), max(1, round(picture[1] * scale))
    return (height, width), ((canvas[0] - height) // 2, (canvas[1] - width) // 2)


def letterboxed(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture ``[H, W, 3] uint8`` on a canvas (height, width), with its aspect kept and its border continued."""
    inner, (top, left) = place_on(size, picture.shape[:2])
    shrinks = size[0] < picture.shape[0] or size[1] < picture.shape[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    small = cv2.resize(picture, inner[::-1], interpolation=way)
    bottom, right = size[0] - inner[0] - top, size[1] - inner[1] - left
    return cv2.copyMakeBorder(small, top, bottom, left, right, cv2.BORDER_REPLICATE)
