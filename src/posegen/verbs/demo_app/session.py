"""From what somebody asked for to pictures with scores; knows no browser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from posegen.data.base import Sample, to_tensor
from posegen.errors import UserError
from posegen.metrics.base import Judged, Poses
from posegen.poses.reading import PEOPLE, PoseInput, read_poses
from posegen.runner.components import Parts
from posegen.runner.images import visible
from posegen.runner.precision import device_of
from posegen.runner.user_requests.prompts import PROMPTS, imagined
from posegen.train.loop import prepare_threads
from posegen.verbs.demo_app.editor import to_editor, to_keypoints
from posegen.verbs.demo_app.loaded_methods import Method, Shelf, choose

if TYPE_CHECKING:
    from posegen.data.base import PoseData

#: Columns of the pose metric that are shown, by how their names begin.
SHOWN = ("PCK", "OKS")
#: Samples of the test split among which presets are looked for, and how many become some: of one person, and of each larger number.
LOOKED_AT, ALONE, TOGETHER = 200, 10, 3
Tell = Callable[[Method, int, int], None]


class Stopped(Exception):
    """Somebody pressed stop."""


@dataclass(frozen=True)
class Asked:
    """What somebody asked for; everything is said once for all methods.

    Attributes:
        prompt: the caption.
        pose: value of the editor.
        labels: the methods.
        seed: of the noise, the same for every method.
        steps: of the sampler.
        guidance: of the text.
        control: factor on the methods' influence.
        negative: what the guidance points away from.
        source: ``[H, W, 3] uint8`` a picture of a person, for methods that take one.
    """

    prompt: str
    pose: Any
    labels: Sequence[str]
    seed: int = 0
    steps: int = 20
    guidance: float = 2.0
    control: float = 1.0
    negative: str = ""
    source: np.ndarray | None = None

    def checked(self) -> Asked:
        """The same, if it can be made.

        Raises:
            UserError: a number is out of range, or the prompt is empty.
        """
        if not self.prompt.strip():
            raise UserError("the prompt is empty; write what is to be seen, or choose a scene")
        if self.seed != int(self.seed) or not 0 <= self.seed < 2**63:
            raise UserError(f"seed is {self.seed}; expected a whole number of at least 0")
        if self.steps != int(self.steps) or self.steps < 1:
            raise UserError(f"steps is {self.steps}; expected a whole number of at least 1")
        return self


@dataclass(frozen=True, eq=False)
class Made:
    """One method's picture.

    Attributes:
        label: the method.
        picture: ``[H, W, 3] uint8``; None where it failed.
        asked: ``[P, 17, 3]`` the pose on the picture's pixels.
        found: the people that the estimator sees in it.
        scores: shown column -> value in percent; empty where nobody was asked for.
        unknown: words of the prompt that the method's world lacks.
        error: why there is no picture.
    """

    label: str
    picture: np.ndarray | None = None
    asked: np.ndarray = field(default_factory=lambda: np.zeros((0, 17, 3), np.float32))
    found: Poses = field(default_factory=lambda: Poses(np.zeros((0, 17, 3), np.float32), np.zeros(0, np.float32)))
    scores: dict[str, float] = field(default_factory=dict)
    unknown: Sequence[str] = ()
    error: str = ""


@dataclass(frozen=True)
class Preset:
    """A prompt and pose to begin with."""

    label: str
    prompt: str
    pose: dict[str, Any]


class Studio:
    """Makes and judges pictures, one request at a time.

    Args:
        cfg: the configuration of ``posegen demo``.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.parts, self.shelf = cfg, Parts(cfg), Shelf(cfg)
        self.working, self.stop = threading.Lock(), threading.Event()

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) of the editor's canvas, on which pictures are read."""
        height, width = self.cfg.canvas or self.data.size
        return int(height), int(width)

    @cached_property
    def data(self) -> PoseData:
        return self.parts.data("test")

    @cached_property
    def estimator(self) -> Any:
        estimator: Any = self.parts.estimator
        return (
            estimator.to(device_of(self.cfg.trainer.accelerator))
            if isinstance(estimator, torch.nn.Module)
            else estimator
        )

    @cached_property
    def presets(self) -> list[Preset]:
        """Scenes of the test split, of as many different actions as there are; those of fewer people first."""
        found: dict[str, Sample] = {}
        for i in range(min(LOOKED_AT, len(self.data))):
            sample = self.data.seen(i, image=False)
            if len(sample.keypoints):
                found.setdefault(name_of(sample), sample)
        chosen: list[Preset] = []
        for count in sorted({len(sample.keypoints) for sample in found.values()}):
            own = sorted(name for name, sample in found.items() if len(sample.keypoints) == count)
            scenes = [found[name] for name in own[: ALONE if count == 1 else TOGETHER]]
            chosen += [Preset(name_of(scene), scene.prompt, to_editor(scene.keypoints, scene.size)) for scene in scenes]
        return chosen

    def make(self, asked: Asked, tell: Tell = lambda method, done, total: None) -> Iterator[Made]:
        """One picture per method, as they are ready; a method that fails says why and does not keep the others.

        Args:
            asked: what is to be made.
            tell: is called with the method, its steps that are done, and all of them.

        Raises:
            UserError: nothing of it can be made.
            Stopped: `stop` was set meanwhile.
        """
        asked.checked()
        chosen = choose(self.shelf.methods(), asked.labels)
        with self.working:
            self.stop.clear()
            for method in chosen:
                try:
                    yield self._made(asked, method, tell)
                except (ValueError, OSError) as error:
                    yield Made(method.label, error=str(error))

    def _made(self, asked: Asked, method: Method, tell: Tell) -> Made:
        def step(done: int) -> None:
            if self.stop.is_set():
                raise Stopped
            tell(method, done, int(asked.steps))

        prepare_threads(self.cfg)  # here, since it counts for the thread that computes
        tell(method, 0, int(asked.steps))
        pipe = self.shelf.pipeline(method)
        takes = "source" in pipe.adapter.needs
        if takes and asked.source is None:
            raise UserError("this method takes a person from a picture; give one below, at 'A person to draw'")
        size = pipe.size([PoseInput("pose")], None, None)
        keypoints = (
            PoseInput("pose", to_keypoints(asked.pose, self.size).astype(np.float64), size=self.size).on(size).keypoints
        )
        made = pipe(
            asked.prompt,
            keypoints if len(keypoints) else None,  # type: ignore[arg-type]
            height=size[0],
            width=size[1],
            num_inference_steps=int(asked.steps),
            guidance_scale=float(asked.guidance),
            negative_prompt=asked.negative,
            source=asked.source if takes else None,
            generator=torch.Generator().manual_seed(int(asked.seed)),
            control_scale=float(asked.control),
            on_step=step,
        )
        picture = np.array(made.images[0])
        found, scores = self.judged(asked.prompt, picture, keypoints)  # type: ignore[arg-type]
        unknown = self.unknown(asked.prompt) if pipe.backbone.recipe == self.data.name else []
        return Made(method.label, picture, keypoints.astype(np.float32), found, scores, unknown)  # type: ignore[union-attr]

    def unknown(self, prompt: str) -> list[str]:
        """Words of a prompt that no caption of the data has: a world that renders its captions knows no others."""
        return [word for word in dict.fromkeys(prompt.lower().split()) if word not in self.vocabulary]

    @cached_property
    def vocabulary(self) -> frozenset[str]:
        return frozenset(word for caption in self.data.prompts for word in caption.lower().split())

    def judged(self, prompt: str, picture: np.ndarray, keypoints: np.ndarray) -> tuple[Poses, dict[str, float]]:
        """The people whom the estimator finds in a picture, and the protocol's pose scores of them; no scores where nobody was asked for."""
        (found,) = self.look(picture[None])
        node = {
            "_target_": PROMPTS,
            "prompts": [prompt],
            "people": [keypoints.tolist()],
            "size": list(picture.shape[:2]),
        }
        sample: Sample = instantiate(node, _convert_="all")[0]
        scores: dict[str, float] = {}
        for metric in self.parts.protocol.metrics if len(keypoints) else ():
            if shown := [column for column in metric.columns if column.startswith(SHOWN)]:
                records = metric.record(Judged(sample.id, sample.keypoints, sample.areas, found))
                values = metric.compute({name: [value] for name, value in records.items()})
                scores |= {column: values[column] for column in shown}
        return found, scores

    def look(self, pictures: np.ndarray) -> list[Poses]:
        """The people in pictures ``[B, H, W, 3] uint8``."""
        images = torch.stack([to_tensor(picture) for picture in pictures]).to(device_of(self.cfg.trainer.accelerator))
        with torch.inference_mode():
            return self.estimator.estimate(images)

    def read(self, picture: np.ndarray) -> dict[str, Any]:
        """The editor with the people of a picture ``[H, W, 3] uint8``, which is fitted into the canvas.

        Raises:
            UserError: the estimator finds nobody.
        """
        with self.working:
            prepare_threads(self.cfg)
            (found,) = self.look(fitted(picture, self.size)[None])
        people = visible(found.keypoints)
        people = people[(people[..., 2] > 0).any(-1)][:PEOPLE]
        if not len(people):
            raise UserError(
                "the estimator finds nobody in this picture; its own world is what it knows best. Give another picture, or drag the joints"
            )
        return to_editor(people, self.size)

    def read_file(self, file: str) -> dict[str, Any]:
        """The editor with the people of a COCO or OpenPose file.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            pose = read_poses(file, "pose")[0].on(self.size)
        except ValueError as error:
            raise UserError(str(error)) from error
        return to_editor(pose.keypoints if pose.keypoints is not None else np.zeros((0, 17, 3)), self.size)

    def imagine(self, prompt: str, seed: int) -> dict[str, Any]:
        """The editor with the pose that the prior, GUNet unless the configuration says otherwise, invents for a prompt.

        Raises:
            UserError: there is no trained prior; names the command that trains it.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty; the pose is made from it")
        node = {"_target_": PROMPTS, "prompts": [prompt], "people": None, "size": list(self.size)}
        cfg = OmegaConf.merge(self.cfg, {"seed": int(seed)})
        with self.working:
            try:
                people = imagined(cfg, node)  # type: ignore[arg-type]
            except UserError as error:
                if "no finished cell" not in str(error):
                    raise
                raise UserError(
                    f"no pose prior is trained yet, so the pose stays as it is. Train one, and press again: {TRAIN_PRIOR}"
                ) from error
        return to_editor(np.asarray(people[0]), self.size)


TRAIN_PRIOR = "posegen train adapter=gunet backbone=mannequin_pose data=mannequin_single"


def name_of(sample: Sample) -> str:
    """What a scene is called: what its people do, where the data says so."""
    actions = sample.attributes.get("actions")
    if actions:
        return " & ".join(map(str, actions))
    return sample.prompt if len(sample.prompt) <= 60 else f"{sample.prompt[:57]}..."


def fitted(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture ``[H, W, 3] uint8`` on a canvas of ``size`` (height, width) with its aspect kept; what it leaves free continues its border."""
    height, width = picture.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    small = cv2.resize(picture, inner[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    return cv2.copyMakeBorder(
        small, top, size[0] - inner[0] - top, left, size[1] - inner[1] - left, cv2.BORDER_REPLICATE
    )
