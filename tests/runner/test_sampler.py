"""One image, one picture: whatever the batch, the order and the method that came before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from posegen.data.base import PoseBatch
from posegen.errors import UserError
from posegen.runner.components import Components
from posegen.runner.generate import Generation, batch_of
from posegen.runner.images import picture, read_png
from tests.tiny import configured


@pytest.fixture(scope="module")
def components(world: list[str]) -> Components:
    with configured("train", *world, "adapter=none", "trainer.precision=32-true") as cfg:
        built = Components(cfg)
        assert built.adapter and built.sampler and built.data("test")  # while hydra knows the choices
        return built


def images(components: Components, rows: range) -> torch.Tensor:
    return components.sampler(components.adapter, batch_of(components, components.adapter, rows))


def test_an_image_does_not_depend_on_its_batch(components: Components) -> None:
    assert torch.allclose(images(components, range(4))[2:], images(components, range(2, 4)), atol=1e-4)


def test_images_differ_and_repeat(components: Components) -> None:
    first = images(components, range(2))
    assert torch.equal(first, images(components, range(2)))
    assert not torch.allclose(first[0], first[1], atol=1e-2)


def test_guidance_is_the_weighted_sum_of_the_branches(components: Components) -> None:
    """With one step, the guided latents are linear in the guidance scale."""
    from posegen.runner.sampler import Sampler

    batch: PoseBatch = batch_of(components, components.adapter, range(2))
    one, two, three = (
        Sampler(steps=1, guidance=g).latents(components.adapter, components.backbone, batch) for g in (1.0, 2.0, 3.0)
    )
    assert torch.allclose(three - two, two - one, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_skipped_steps_are_the_first(components: Components, scheduler: str) -> None:
    from posegen.runner.sampler import Sampler

    def visited(skip: int) -> list[float]:
        """The timesteps at which the U-Net is asked."""
        seen: list[float] = []
        hook = components.backbone.unet.register_forward_pre_hook(
            lambda _module, inputs: seen.append(float(inputs[1][0]))
        )
        latents = Sampler(scheduler, steps=4, skip=skip).latents(
            components.adapter, components.backbone, batch_of(components, components.adapter, range(2))
        )
        hook.remove()
        assert latents.isfinite().all()
        return seen

    assert len(visited(0)) == 4 and visited(1) == visited(0)[1:]
    with pytest.raises(ValueError, match=r"sampler.skip is 4; expected 0 or more, and less than sampler.steps \(4\)"):
        Sampler(steps=4, skip=4)


def test_pictures_that_exist_are_not_made_again(
    components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Generation(components, tmp_path, None).run()
    made = {i: read_png(picture(tmp_path / "samples", i)) for i in range(6)}
    picture(tmp_path / "samples", 5).unlink()
    before = picture(tmp_path / "samples", 0).stat().st_mtime_ns
    Generation(components, tmp_path, None).run()
    assert picture(tmp_path / "samples", 0).stat().st_mtime_ns == before
    assert np.array_equal(read_png(picture(tmp_path / "samples", 5)), made[5])


def test_a_damaged_picture_names_the_file_and_the_fix(tmp_path: Path) -> None:
    (tmp_path / "000000.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"000000\.png.*delete it"):
        read_png(tmp_path / "000000.png")


def test_images_that_are_not_finite_are_an_error_that_names_them(components: Components) -> None:
    from posegen.runner.sampler import Sampler

    batch = batch_of(components, components.adapter, range(2))
    with pytest.raises(
        UserError, match=rf"2 of 2 images .* first {batch.ids[0]}, from step 1 of 2 on; guidance is nan"
    ):
        Sampler(steps=2, guidance=float("nan"))(components.adapter, batch)

    def late(latents: torch.Tensor, _: object) -> torch.Tensor:
        calls.append(1)
        return latents if len(calls) < 2 else latents.index_fill(0, torch.tensor([1]), torch.inf)

    calls: list[int] = []
    with pytest.raises(UserError, match=rf"1 of 2 images .* first {batch.ids[1]}, from step 2 of 3 on; .*32-true"):
        Sampler(steps=3)(components.adapter, batch, late)


def test_images_that_overflow_in_the_decoder_are_not_kept(
    components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other methods generate without the sampler is looked at, too."""
    decode = components.backbone.from_latents
    monkeypatch.setattr(components.backbone, "from_latents", lambda latents: decode(latents) * torch.inf)
    with pytest.raises(UserError, match="after decoding"):
        Generation(components, tmp_path, None).run()
    monkeypatch.setattr(components.adapter, "generate", lambda batch, _: torch.full((len(batch), 3, 8, 8), torch.nan))
    with pytest.raises(UserError, match="are not finite .* as \\w+ generates them"):
        Generation(components, tmp_path, None).run()
    assert not list(tmp_path.rglob("*.png"))
