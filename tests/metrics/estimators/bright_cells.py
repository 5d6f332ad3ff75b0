"""Pictures in which the small networks of `onnx_models` find people."""

import numpy as np


def picture(people: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray:
    """A picture ``[H, W, 3] uint8`` RGB in which so many of 16 cells are bright."""
    image = np.random.default_rng(seed).integers(0, 100, (*size, 3), dtype=np.uint8)
    image[..., 0] //= 2  # red and blue differ
    for cell in range(people):
        rows, columns = (
            slice(i * side // 4, (i + 1) * side // 4) for i, side in zip(divmod(cell, 4), size, strict=True)
        )
        image[rows, columns] = 255 - image[rows, columns] // 4
    return image
