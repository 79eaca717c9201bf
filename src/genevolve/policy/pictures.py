"""What a policy with eyes is shown: bounded pictures, and the pixel inputs of models of the Qwen-VL kind (ours).

Such a model takes its pictures as a list of patches and `image_grid_thw`, and has one image token for each square of
merge_size x merge_size patches. The image processor is the one that works on PIL images, with or without torchvision, so
that a picture has the same patches when it is sampled and when it is trained on.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genevolve.policy.base import PolicyError
from genevolve.records import Picture

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

FORMATS = ("PNG", "JPEG")
"""What the tools keep; nothing else is decoded."""


@dataclass(frozen=True)
class Eyes:
    """How pictures are read and how large they are shown."""

    read: Callable[[str], bytes]
    """A tool result's `file` -> PNG or JPEG bytes of our own making."""
    pixels: int = 512 * 512
    """Width times height a picture is scaled down to; the model's own limits come after that."""


def image_processor(*folders: Path) -> Any:
    """Return the image processor of the first folder that has one; raises PolicyError."""
    from transformers import AutoImageProcessor

    names = ("preprocessor_config.json", "processor_config.json")
    root = next((f for f in folders if any((f / name).is_file() for name in names)), None)
    if root is None:
        raise PolicyError(f"{folders[0]} is a language model without eyes; set sampling.show_images to 0.")
    try:
        found = AutoImageProcessor.from_pretrained(root, backend="pil", local_files_only=True, trust_remote_code=False)
    except Exception as e:
        said = " ".join(str(e).split())[:200]
        raise PolicyError(f"{root}: its image processor cannot be read ({said}); set sampling.show_images to 0.") from e
    if "image_grid_thw" not in getattr(found, "model_input_names", ()) or not hasattr(found, "merge_size"):
        raise PolicyError(
            f"{root}: pictures can be shown to models of the Qwen-VL kind only; set sampling.show_images to 0."
        )
    return found


def look(processor: Any, eyes: Eyes, img_id: str, file: str, at: int = 0) -> tuple[Picture, Image.Image]:
    """Return (record, picture as it is shown); raises whatever `eyes.read` raises, and ValueError for no picture."""
    data = eyes.read(file)
    image = decode(data)
    width, height = bounded(*image.size, eyes.pixels)
    image = scaled(image, width, height)
    grid = pixel_values(processor, [image])["image_grid_thw"][0].tolist()
    tokens = math.prod(grid) // processor.merge_size**2
    digest = hashlib.sha256(data).hexdigest()
    shown = Picture(
        img_id=img_id, file=file, sha256=digest, width=width, height=height, grid=tuple(grid), at=at, tokens=tokens
    )
    return shown, image


def pixel_inputs(processor: Any, read: Callable[[str], bytes], pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """Return pixel_values [patches, D] and image_grid_thw [N, 3] of recorded pictures, as the policy saw them.

    Raises PolicyError when a picture is no longer the one that was shown.
    """
    images = []
    for picture in pictures:
        data = read(picture.file)
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            raise PolicyError(
                f"{picture.file} is not the picture that the policy was shown; sample the trajectory again."
            )
        images.append(scaled(decode(data), picture.width, picture.height))
    inputs = pixel_values(processor, images)
    if [tuple(g) for g in inputs["image_grid_thw"].tolist()] != [p.grid for p in pictures]:
        raise PolicyError("The policy's image processor cuts pictures otherwise than when the trajectory was sampled.")
    return inputs


def pixel_values(processor: Any, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """Return pixel_values [patches, D] and image_grid_thw [N, 3]."""
    found = processor(images=list(images), return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "image_grid_thw")}


def jpeg(eyes: Eyes, file: str) -> bytes:
    """Return a picture as it is shown, for a policy behind a server; raises whatever `eyes.read` raises, and ValueError."""
    image = decode(eyes.read(file))
    out = io.BytesIO()
    scaled(image, *bounded(*image.size, eyes.pixels)).save(out, "JPEG", quality=95)
    return out.getvalue()


def decode(data: bytes) -> Image.Image:
    """Return PNG or JPEG bytes as an RGB image, what is transparent on white; raises ValueError."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except Exception as e:
        raise ValueError(f"not a picture: {type(e).__name__}") from e
    if image.mode == "RGB":
        return image
    clear = image.convert("RGBA")
    white = Image.new("RGBA", clear.size, "white")
    white.alpha_composite(clear)
    return white.convert("RGB")


def bounded(width: int, height: int, pixels: int) -> tuple[int, int]:
    """Return a size of at most `pixels`, the sides' ratio kept; a smaller one is left alone."""
    shrink = min(1.0, math.sqrt(pixels / (width * height)))
    return max(1, math.floor(width * shrink)), max(1, math.floor(height * shrink))


def scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    from PIL import Image

    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
