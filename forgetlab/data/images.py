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


def decoded(
    names: Sequence[str], content: Callable[[int], bytes], size: int, mode: Mode, resize: int | None = None
) -> Tensor:
    """(N, C, size, size) bytes of the images whose files' contents ``content`` gives, in the order of their names.

    ``resize``: see `as_bytes`.

    Raises:
        OptionError: images that cannot be read, by their names, or ``resize`` below ``size``.
    """
    import PIL

    refuse_small_resize(size, resize)

    digest = hashlib.sha256()
    for i in range(len(names)):
        digest.update(hashlib.sha256(content(i)).digest())
    key = {"content": digest.hexdigest(), "size": size, "mode": mode, "pillow": PIL.__version__}
    if resize is not None:
        key["resize"] = resize
    return kept("images", key, lambda: {"x": _decoded(names, content, size, mode, resize)})["x"]


def refuse_small_resize(size: int | None, resize: int | None) -> None:
    """
    Raises:
        OptionError: there is no ``size`` to cut out, or images would be smaller than it.
    """
    if resize is not None and (size is None or resize < size):
        raise OptionError("say which 'size' is cut out of the middle, at most as many pixels as 'resize'", "resize")


def _decoded(
    names: Sequence[str], content: Callable[[int], bytes], size: int, mode: Mode, resize: int | None
) -> Tensor:
    from PIL import Image

    x = torch.empty(len(names), len(mode), size, size, dtype=torch.uint8)
    broken = []
    for i, name in enumerate(names):
        try:
            with Image.open(io.BytesIO(content(i))) as image:
                x[i] = as_bytes(image, size, mode, resize)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # as Pillow's decoders raise
            why = "is no image" if isinstance(error, Image.UnidentifiedImageError) else f"is broken: {error}"
            broken.append(f"{name} {why}")
    if broken:
        more = f"; and {len(broken) - TOLD} more" if len(broken) > TOLD else ""
        raise OptionError("; ".join(broken[:TOLD]) + more, "path")
    return x


def as_bytes(image: Any, size: int | None, mode: Mode | None, resize: int | None = None) -> Tensor:
    """(C, H, W) of a Pillow image, upright; with a size, its shorter side is made that long and the middle cut out.

    With ``resize`` the shorter side is made that long instead, so that more is cut off (256 before 224 is common).
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
    if size is not None and resize is not None:
        scaled = [round(side * resize / min(image.size)) for side in image.size]
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = ((side - size) // 2 for side in scaled)
        image = image.crop((left, top, left + size, top + size))
    elif size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))  # (H, W) or (H, W, 3)
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
