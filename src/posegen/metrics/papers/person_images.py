"""How four papers on pose-guided person image synthesis evaluate: the same names for numbers that do not compare.

Read in the programs of GFLA, PIDM, PCDMs and CFLD; DNAF published none and names FID and LPIPS at 256x176. In all, FID
compares all generated test pictures with all *training* pictures, in torchvision's Inception v3 for ImageNet, and
LPIPS, SSIM and PSNR a picture with its target. They differ in sizes, in who resizes, in the files that pictures go
through, in what is dropped, and in SSIM's window and range. Not taken over: PCDMs' scripts keep, of four pictures, the
one of the highest SSIM *with the target*.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal, get_args

import cv2
import numpy as np
import torch
from annotated_types import Interval
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from posegen.data.base import Sample, to_uint8
from posegen.metrics.base import Column, Estimator, Judged, Metric, Notes, Observer, Records, Values, count_images
from posegen.metrics.feature_networks import FeatureNetwork, fill_from_file, verified
from posegen.metrics.math.frechet import frechet_first_order
from posegen.metrics.math.statistics import mean_of_known
from posegen.metrics.papers.quality import as_tensor, through_jpeg
from posegen.metrics.perceptual import ALEXNET, Lpips
from posegen.metrics.pixel_similarity import psnr, target_picture
from posegen.metrics.quality import QualityProtocol, features_of, too_few
from posegen.ranges import AtLeastOne, Positive, Width

Resizing = Literal["none", "pil_bicubic", "cv2_bilinear", "cv2_bicubic", "torch_bicubic"]
WINDOW = 51  # of the SSIM with equal weights
#: torchvision's change of [0, 1] that was normalised with ImageNet's mean and deviation; all four apply it to others.
SCALE, SHIFT = (0.229 / 0.5, 0.224 / 0.5, 0.225 / 0.5), ((0.485 - 0.5) / 0.5, (0.456 - 0.5) / 0.5, (0.406 - 0.5) / 0.5)


class ImageNetInception(FeatureNetwork):
    """The 2048 pooled features of torchvision's Inception v3 for ImageNet, of pictures of any size in 0 to 255.

    They are resized to 299 bilinearly, without antialiasing, and get torchvision's change of values for normalised
    pictures, as in all four programs. ``path`` is ``inception_v3_google-0cc3c7bd.pth``; None: off."""

    def __init__(self, path: str | None) -> None:
        self.path, self.configured = path, path is not None

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        return imagenet_inception(str(self.path))

    def forward(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images / 255, (299, 299), mode="bilinear", align_corners=False)
        scale, shift = (images.new_tensor(values).view(3, 1, 1) for values in (SCALE, SHIFT))
        return self.network(resized * scale + shift)


@cache
def imagenet_inception(path: str) -> nn.Module:
    """The network of a file, read once for all papers that use it."""
    from torchvision.models import Inception3

    key = "protocol.imagenet_inception"
    file = verified(path, None, key, "inception_v3_google-0cc3c7bd.pth, torchvision's Inception v3")
    network = fill_from_file(Inception3(aux_logits=False, init_weights=False), file, key, ignored=("AuxLogits.",))
    network.dropout, network.fc = nn.Identity(), nn.Identity()
    return network


def resized(pictures: np.ndarray, size: tuple[int, int], way: Resizing) -> np.ndarray:
    """``[B, H, W, 3] uint8`` in another size, with the filter of one library; pictures of that size are left alone.

    Pillow and torch filter high frequencies out of smaller pictures, OpenCV does not."""
    if way == "none" or pictures.shape[1:3] == size:
        return pictures
    if way == "pil_bicubic":
        return np.stack([np.asarray(Image.fromarray(p).resize(size[::-1], Image.Resampling.BICUBIC)) for p in pictures])
    if way == "torch_bicubic":
        made = F.interpolate(as_tensor(pictures), size, mode="bicubic", align_corners=False, antialias=True)
        return made.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    by = cv2.INTER_LINEAR if way == "cv2_bilinear" else cv2.INTER_CUBIC
    return np.stack([cv2.resize(p, size[::-1], interpolation=by) for p in pictures])


def ssim_uniform(made: np.ndarray, target: np.ndarray, window: int = WINDOW) -> float:
    """SSIM of two ``[H, W, 3] uint8`` with a flat window and sample covariances (``ssim``); NaN if too small."""
    from skimage.metrics import structural_similarity

    if min(made.shape[:2]) < window:
        return float("nan")
    return float(structural_similarity(target / 255, made / 255, win_size=window, data_range=1.0, channel_axis=-1))


def ssim_gaussian(made: np.ndarray, target: np.ndarray, sigma: float, data_range: float | None = None) -> float:
    """SSIM of two ``[H, W, 3] uint8`` with Gaussian weights, the ``ssim_256`` of these programs; by default its
    range is theirs: from the darkest to the brightest value of the *generated* picture."""
    from skimage.metrics import structural_similarity

    spread = float(made.max()) - float(made.min()) if data_range is None else data_range
    options: dict[str, Any] = {"gaussian_weights": True, "use_sample_covariance": False, "channel_axis": -1}
    options |= {"sigma": sigma, "data_range": max(spread, 1.0)}
    return float(structural_similarity(target.astype(float), made.astype(float), **options))


def relative_error(made: np.ndarray, target: np.ndarray) -> float:
    """The sum of differences over the sum of both, which these programs call MAE."""
    a, b = made.astype(float) / 255, target.astype(float) / 255
    return float(np.abs(a - b).sum() / max((a + b).sum(), 1e-12))


class PersonPaper(Observer):
    """Notes what a paper's script looks at: ``<paper>_features`` and, compared with the target, ``_lpips``, ``_ssim``,
    ``_ssim_256``, ``_psnr``, ``_l1`` and ``_mae``.

    Pictures are resized to ``size`` (height, width), by ``resize`` for FID and LPIPS, by ``resize_ssim`` for the rest.
    Generated ones go through a JPEG file of quality ``jpeg``, unless it is None. ``sigma`` is of the Gaussian window of
    ``ssim_256``, ``lpips_range`` what pictures are given to LPIPS in; it expects ``-1..1``."""

    compares = True

    def __init__(
        self,
        paper: str,
        inception: FeatureNetwork,
        lpips: Lpips,
        size: tuple[Width, Width],
        resize: Resizing = "none",
        resize_ssim: Resizing = "none",
        jpeg: Annotated[int, Interval(ge=1, le=100)] | None = None,
        sigma: Positive = 1.5,
        lpips_range: Literal["-1..1", "0..1"] = "-1..1",
    ) -> None:
        for name, way in (("resize", resize), ("resize_ssim", resize_ssim)):
            if way not in get_args(Resizing):
                raise ValueError(f"{name} of {paper} is {way!r}; expected one of {', '.join(get_args(Resizing))}")
        self.paper, self.inception, self.lpips, self.size = paper, inception, lpips, (int(size[0]), int(size[1]))
        self.resize, self.resize_ssim, self.jpeg = resize, resize_ssim, jpeg
        self.sigma, self.lpips_range = sigma, lpips_range

    def check(self) -> None:
        self.inception.check()
        self.lpips.check()

    def observe(self, images: Tensor, samples: Sequence[Sample], estimator: Estimator, real: bool) -> Notes:
        made = to_uint8(images)
        if self.jpeg is not None and not real:
            made = np.stack([through_jpeg(picture, self.jpeg) for picture in made])

        def seen(pictures: np.ndarray) -> Tensor:
            return as_tensor(resized(pictures, self.size, self.resize)).to(images.device)

        found: dict[str, Any] = {"features": self.inception.features(seen(made))} if self.inception.configured else {}
        if not real:  # pictures of a reference are compared as a set alone
            targets = np.stack([target_picture(sample) for sample in samples])
            found |= self._likeness(made, targets)
            if self.lpips.configured:
                pair = [seen(p) / 255 for p in (made, targets)]
                pair = pair if self.lpips_range == "0..1" else [2 * p - 1 for p in pair]
                found["lpips"] = [float(value) for value in self.lpips.distances(*pair)]
        return [{f"{self.paper}_{name}": values[i] for name, values in found.items()} for i in range(len(samples))]

    def _likeness(self, made: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        made, targets = (resized(p, self.size, self.resize_ssim) for p in (made, targets))
        pairs = list(zip(made, targets, strict=True))
        ssims = {"ssim": [ssim_uniform(a, b) for a, b in pairs]}
        ssims["ssim_256"] = [ssim_gaussian(a, b, self.sigma) for a, b in pairs]
        l1 = [float(np.abs(a.astype(float) - b).mean() / 255) for a, b in pairs]
        mae = [relative_error(a, b) for a, b in pairs]
        return {**ssims, "psnr": [float(value) for value in psnr(made, targets)], "l1": l1, "mae": mae}


class PersonPaperMetric(Metric):
    """The columns of one paper: ``<paper>_FID``, ``_LPIPS``, ``_SSIM``, ``_SSIM_256``, ``_PSNR``, ``_L1``, ``_MAE``.

    ``batch`` and ``lpips_batch`` are the images of a batch of FID and of LPIPS. With ``drop_last`` the incomplete last
    batch of both sets does not count, as in the programs of GFLA, PIDM and PCDMs. ``allow_rank_deficient`` gives FID of
    sets with no more images than the 2048 dimensions, too."""

    def __init__(
        self,
        paper: str,
        batch: AtLeastOne = 64,
        lpips_batch: AtLeastOne = 64,
        drop_last: bool = True,
        allow_rank_deficient: bool = False,
    ) -> None:
        self.paper, self.batch, self.lpips_batch = paper, batch, lpips_batch
        self.drop_last, self.allow = drop_last, allow_rank_deficient
        means, lower = ("LPIPS", "SSIM", "SSIM_256", "PSNR", "L1", "MAE"), ("LPIPS", "L1", "MAE")
        self.means = {f"{paper}_{name}": f"{paper}_{name.lower()}" for name in means}
        dropped = f"; the last incomplete batch of {batch} is dropped, as there" if drop_last else ""
        remark = f"as in the program of {paper}, against the reference pictures; interval to first order{dropped}"
        self.fid, self.features = Column(f"{paper}_FID", "lower", 0, "quality", 1, remark=remark), f"{paper}_features"
        self.columns = (
            self.fid,
            *(Column(f"{paper}_{name}", "lower" if name in lower else "higher", None, "likeness") for name in means),
        )

    def absent(self, records: Records) -> dict[str, str]:
        reasons: dict[str, str] = {}
        if self.features not in records:
            fix = "set protocol.imagenet_inception=PATH of inception_v3_google-0cc3c7bd.pth"
            reasons[self.fid] = f"the network is not configured: {fix}"
        elif not self.allow:
            images, dimensions = len(self._kept(count_images(records), self.batch)), len(records[self.features][0])
            reasons |= {self.fid: too_few(images, dimensions)} if images <= dimensions else {}
        if f"{self.paper}_lpips" not in records:
            reasons[f"{self.paper}_LPIPS"] = f"the network is not configured: set protocol.alexnet=PATH of {ALEXNET}"
        return reasons

    def record(self, judged: Judged) -> dict[str, Any]:
        return {name: value for name, value in judged.observed.items() if name.startswith(f"{self.paper}_")}

    def resampled(self, records: Records, weights: np.ndarray, reference: Records | None = None) -> Values:
        nothing = np.full(len(weights), np.nan)
        values: Values = {self.fid: nothing}
        if reference is not None and self.features in records and self.features in reference:
            rows, real = (self._kept(count_images(r), self.batch) for r in (records, reference))
            sets = features_of(records, self.features, rows), features_of(reference, self.features, real)
            if min(len(rows), len(real)) > (1 if self.allow else sets[0].shape[-1]):
                values[self.fid] = frechet_first_order(*sets, weights[:, rows])
        for column, name in self.means.items():
            values[column] = mean_of_known(records[name], weights) if name in records else nothing
        kept = self._kept(count_images(records), self.lpips_batch)
        if (lpips := f"{self.paper}_lpips") in records:
            values[f"{self.paper}_LPIPS"] = mean_of_known([records[lpips][i] for i in kept], weights[:, kept])
        return values

    def _kept(self, count: int, batch: int) -> range:
        """The images that count; of a set that is no batch long, all."""
        return range(count - count % batch if self.drop_last and count >= batch else count)


class PersonProtocol(QualityProtocol):
    """As `QualityProtocol`, for the columns of papers on person images."""

    note = (
        "Columns that begin with a paper's name follow its program and compare with no other; judge columns are in the "
        "features of the judge and are no FID."
    )
