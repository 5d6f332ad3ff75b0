"""Photographs by networks of rtmlib, from pictures of any kind to COCO-WholeBody's json, drawn skeletons and poses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import ExifTags, Image

from posegen.adapters.controlnet import ControlNet
from posegen.backbones.stable_diffusion import StableDiffusion
from posegen.cli import main
from posegen.data.base import to_tensor
from posegen.metrics.base import INSTALL_PHOTOS
from posegen.metrics.estimators.rtmlib import RTMLib
from posegen.pipeline import PoseGuidedPipeline
from posegen.poses.drawing import PoseDrawing
from posegen.poses.reading import read_pose_file, read_poses
from posegen.poses.topology import WHOLE_BODY_133
from posegen.runner.user_requests.guides import estimator_named, people_in_picture
from posegen.runner.user_requests.prompts import guides_from
from tests.backbones.models import SD1, parts_of
from tests.metrics.estimators.bright_cells import picture

rtmlib = pytest.importorskip("rtmlib", reason=f"rtmlib is not installed: {INSTALL_PHOTOS}")
pytest.importorskip("onnx")

from tests.metrics.estimators import onnx_models as models  # noqa: E402

PARTS = {"foot": 6, "face": 68, "lefthand": 21, "righthand": 21}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    return models.simcc(folder / "whole.onnx", 133), models.detector(folder / "detector.onnx")


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def annotated(networks: tuple[Path, Path], *words: str) -> dict[str, Any]:
    files = [f"estimator.path={networks[0]}", f"estimator.detector_path={networks[1]}"]
    given = ["source=photos", "target=poses.json", "progress=none", "estimator=rtmlib", *files, *words]
    assert main(["annotate", *given]) == 0
    return json.loads(Path("poses.json").read_text())


def of(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    [image] = [each for each in content["images"] if each["file_name"] == name]
    return [person for person in content["annotations"] if person["image_id"] == image["id"]]


def whole(person: dict[str, Any]) -> np.ndarray:
    numbers = [*person["keypoints"], *(n for part in PARTS for n in person[f"{part}_kpts"])]
    return np.reshape(numbers, (133, 3))


def test_the_file_has_rtmlibs_numbers_in_cocos_wholebody_format(
    networks: tuple[Path, Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {"nobody.png": picture(0), "one.png": picture(1, (90, 61)), "ten.png": picture(10, (256, 200))}
    shown["large.png"] = picture(3, (1201, 1003))  # of more pixels than other estimators see at a time
    for name, image in shown.items():
        Image.fromarray(image).save(photographs / name)
    content = annotated(networks, "least_score=0.0", "overlays=drawn")
    assert "never seen photographs" not in capsys.readouterr().err
    tool, finder = rtmlib.RTMPose(str(networks[0]), (48, 64)), rtmlib.YOLOX(str(networks[1]), (64, 64))
    for name, image in shown.items():
        people, boxes = of(content, name), finder(image[..., ::-1])
        assert len(people) == len(boxes)
        if len(boxes):
            points, scores = tool(np.ascontiguousarray(image[..., ::-1]), bboxes=boxes)
            best = np.argsort(-scores.clip(0, 1)[:, :17].mean(1), kind="stable")
            seen = scores[best] > 0
            for person, places, labelled in zip(people, points[best], seen, strict=True):
                assert np.allclose(whole(person)[labelled, :2], places[labelled], atol=2e-3)
                assert np.array_equal(whole(person)[:, 2] > 0, labelled)
                for part, joints in PARTS.items():
                    numbers = np.reshape(person[f"{part}_kpts"], (-1, 3))
                    assert len(numbers) == joints and person[f"{part}_valid"] == bool(numbers[:, 2].any())
                    if part != "foot":
                        x, y, width, height = person[f"{part}_box"]
                        low, high = (getattr(numbers[numbers[:, 2] > 0, :2], side)(0) for side in ("min", "max"))
                        assert np.allclose([x, y, x + width, y + height], [*low, *high], atol=2e-3)
    assert len(of(content, "large.png")) >= 3 and content["categories"][0]["name"] == "person"
    read = read_pose_file(Path("poses.json"), WHOLE_BODY_133)
    assert max(len(each.keypoints) for each in read if each.keypoints is not None) == 10
    assert sum(len(each.keypoints) for each in read if each.keypoints is not None) == len(content["annotations"])
    drawn = np.asarray(Image.open("drawn/ten.png.png")).astype(int) - shown["ten.png"]
    hand = whole(of(content, "ten.png")[0])[91:, :2].round().astype(int)
    inside = hand[(hand >= 0).all(1) & (hand < (200, 256)).all(1)]
    assert len(inside) and np.abs(drawn[inside[:, 1], inside[:, 0]]).sum(1).min() > 0, "hands are drawn, too"


def test_pictures_of_every_kind_are_the_same_as_their_plain_colours(
    networks: tuple[Path, Path], photographs: Path
) -> None:
    image = Image.fromarray(picture(4, (80, 60)) // 8 * 8)
    few = image.quantize(64)
    grey = np.asarray(image.convert("L"))
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.arange(60) < 30, 255, 0)[None].repeat(80, 0).astype(np.uint8)))
    white = np.asarray(image).copy()
    white[:, 30:] = 255
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    cmyk = image.convert("CMYK")
    pairs: dict[str, tuple[Image.Image, Image.Image, str, dict[str, Any]]] = {
        "turned": (turned, image, "png", {"exif": exif}),
        "sixteen": (
            Image.fromarray(grey.astype(np.uint16) * 256 + 17),
            Image.fromarray(grey).convert("RGB"),
            "png",
            {},
        ),
        "cmyk": (cmyk, cmyk.convert("RGB"), "tif", {}),
        "palette": (few, few.convert("RGB"), "png", {}),
        "alpha": (clear, Image.fromarray(white), "png", {}),
        "grey": (image.convert("L"), image.convert("L").convert("RGB"), "png", {}),
    }
    for name, (given, plain, suffix, how) in pairs.items():
        given.save(photographs / f"{name}.{suffix}", **how)
        plain.save(photographs / f"{name}_plain.png")
    content = annotated(networks, "least_score=0.0")
    for name, (_, _, suffix, _) in pairs.items():
        ours, plain_ones = of(content, f"{name}.{suffix}"), of(content, f"{name}_plain.png")
        without = [{key: value for key, value in person.items() if "id" not in key[-3:]} for person in ours]
        assert len(ours) >= 1 and without == [
            {key: value for key, value in person.items() if "id" not in key[-3:]} for person in plain_ones
        ], name


def test_an_estimator_that_knows_no_photographs_says_so(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(picture(1)).save(photographs / "a.png")
    assert main(["annotate", "source=photos", "target=a.json", "progress=none"]) == 0
    said = capsys.readouterr().err
    assert (
        f"MannequinJudge has never seen photographs, so what it finds in them means nothing; for photographs: {INSTALL_PHOTOS}, then estimator=rtmlib"
        in said
    )


def test_files_that_do_not_fit_are_one_sentence_of_the_command(
    networks: tuple[Path, Path], photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(picture(1)).save(photographs / "a.png")
    (photographs.parent / "damaged.onnx").write_bytes(networks[0].read_bytes()[:5000])
    words = ["annotate", "source=photos", "target=b.json", "progress=none", "estimator=rtmlib"]
    for file, expected in (("damaged.onnx", "cannot be read by onnxruntime"), ("none.onnx", "no such file")):
        assert main([*words, f"estimator.path={file}"]) == 1
        said = capsys.readouterr().err
        assert file in said and expected in said and "Traceback" not in said


def test_hands_and_face_of_a_photograph_are_drawn(networks: tuple[Path, Path], tmp_path: Path) -> None:
    estimator = RTMLib(*networks)
    image = picture(2, (180, 140))
    Image.fromarray(image).save(tmp_path / "photo.png")
    [guide] = read_poses(str(tmp_path / "photo.png"))
    method = ControlNet(style="dwpose")
    method.attach(StableDiffusion.from_parts(parts_of(SD1)))
    people, hint = PoseGuidedPipeline(method).read(guide, (64, 64), estimator)
    found = people_in_picture(guide, (64, 64), estimator, WHOLE_BODY_133)
    expected = PoseDrawing("dwpose")(found, (64, 64))
    assert people.shape[1:] == (17, 3) and found.shape[1:] == (133, 3) and np.array_equal(hint.numpy(), expected)
    assert not np.array_equal(expected, PoseDrawing("dwpose", parts=["body"])(found, (64, 64)))
    poses = estimator.estimate(to_tensor(image)[None])[0].whole
    assert poses is not None
    seen = found[0, :, 2] > 0
    assert np.allclose(found[0, seen, :2], (poses.keypoints[0, seen, :2] + 0.5) * (64 / 140, 64 / 180) - 0.5, atol=1e-3)
    cfg = OmegaConf.create({
        "budget": {"threads": 1}, "backbone": {"recipe": "published"}, "canvas": None, "estimator": {
            "_target_": "posegen.metrics.estimators.rtmlib.RTMLib", "path": str(networks[0]),
            "detector_path": str(networks[1]),
        },
    })  # fmt: skip
    [sampled] = guides_from(cfg, str(tmp_path / "photo.png"), (64, 64), wanted=WHOLE_BODY_133)
    assert np.allclose(sampled.people, found, atol=1e-3)


def test_estimators_by_name() -> None:
    assert type(estimator_named("mannequin")).__name__ == "MannequinJudge"
    with pytest.raises(ValueError, match=r"estimator='rtmlab': there is none of this name; known are higherhrnet,"):
        estimator_named("rtmlab")
