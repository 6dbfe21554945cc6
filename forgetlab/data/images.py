"""Image files as tensors of bytes, decoded once and kept on disk (`forgetlab.cache`)."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from forgetlab.cache import kept
from forgetlab.data.table import TOLD
from forgetlab.plugins.options import OptionError

Mode = Literal["RGB", "L"]

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")

GREY = ("1", "L", "LA")  # Pillow's modes


def decoded(names: Sequence[str], content: Callable[[int], bytes], size: int, mode: Mode) -> Tensor:
    """(N, C, size, size) bytes of the images whose files' contents ``content`` gives, in the order of their names.

    Raises:
        OptionError: images that cannot be read, by their names.
    """
    import PIL

    digest = hashlib.sha256()
    for i in range(len(names)):
        digest.update(hashlib.sha256(content(i)).digest())
    key = {"content": digest.hexdigest(), "size": size, "mode": mode, "pillow": PIL.__version__}
    return kept("images", key, lambda: {"x": _decoded(names, content, size, mode)})["x"]


def _decoded(names: Sequence[str], content: Callable[[int], bytes], size: int, mode: Mode) -> Tensor:
    from PIL import Image

    x = torch.empty(len(names), len(mode), size, size, dtype=torch.uint8)
    broken = []
    for i, name in enumerate(names):
        try:
            with Image.open(io.BytesIO(content(i))) as image:
                x[i] = as_bytes(image, size, mode)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # as Pillow's decoders raise
            why = "is no image" if isinstance(error, Image.UnidentifiedImageError) else f"is broken: {error}"
            broken.append(f"{name} {why}")
    if broken:
        more = f"; and {len(broken) - TOLD} more" if len(broken) > TOLD else ""
        raise OptionError("; ".join(broken[:TOLD]) + more, "path")
    return x


def as_bytes(image: Any, size: int | None, mode: Mode | None) -> Tensor:
    """(C, H, W) of a Pillow image, upright; with a size, its shorter side is made that long and the middle cut out.

    Without a mode, grey stays grey and anything else becomes RGB.

    Raises:
        ValueError: more than 8 bits a value.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its values have more than 8 bits (Pillow's mode {image.mode}); save it with 8")
    image = ImageOps.exif_transpose(image)
    if "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert(mode or ("L" if image.mode in GREY else "RGB"))
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))  # (H, W) or (H, W, 3)
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
