"""The scene a request describes, in a closed vocabulary (ours; the embedded world only).

A recipe fills a `Scene`; the request says it in English; the judge checks pixels against it; the ground-truth image is
the gold program of it, rendered. The policy and the generator never see a `Scene`: the policy reads the request, the
generator reads the program.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Position = Literal["left", "right", "upper", "lower"]
Colour = Literal["red", "blue", "green", "yellow", "purple", "orange"]
Light = Literal["warm sunset", "cool moonlight", "bright daylight", "pink dawn"]
Material = Literal["wooden", "marble", "sandy", "grassy"]
Pattern = Literal["stripes", "dots", "rays", "confetti"]
TextPlace = Literal["top", "bottom"]

SKILLS = (
    "spatial_layout",
    "aesthetic_drawing",
    "text_rendering",
    "creative_drawing",
    "anatomy_body_coherence",
    "attribute_binding",
    "physical_material_consistency",
    "quantity_counting",
)
"""The eight generation skills of the public release."""

SKILL_OF = {
    "position": "spatial_layout",
    "light": "aesthetic_drawing",
    "text": "text_rendering",
    "pattern": "creative_drawing",
    "whole": "anatomy_body_coherence",
    "colour": "attribute_binding",
    "material": "physical_material_consistency",
    "count": "quantity_counting",
}
"""The skill whose guidance covers a kind of requirement. `whole` (the subject shown whole and unaltered) is implied by
every request: it is what "draw that very thing" means."""

NUMBERS = ("zero", "one", "two", "three", "four")


class Subject(BaseModel):
    """One thing in the scene, `count` copies of it, laid out in one half of the picture (or anywhere: None)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    entity: str = Field(description="entity id in the embedded world, e.g. 'flag:bhutan' or 'object:giraffe'")
    count: int | None = Field(default=None, ge=1, le=4, description="None: the request does not say; one is drawn")
    position: Position | None = None
    colour: Colour | None = Field(default=None, description="colour of the plate under each copy")


class Scene(BaseModel):
    """What the picture must show. None means: the request leaves it open and the judge does not look at it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    subjects: tuple[Subject, ...] = Field(min_length=1, max_length=2)
    text: str | None = Field(default=None, max_length=24, description="exact lettering, upper case words")
    text_place: TextPlace | None = None
    light: Light | None = None
    material: Material | None = None
    pattern: Pattern | None = None

    def requirements(self) -> tuple[tuple[str, int | None, str], ...]:
        """Return (kind, subject index or None, value) for all the scene asks for, in reading order, `whole` excluded."""
        out: list[tuple[str, int | None, str]] = []
        for i, s in enumerate(self.subjects):
            if s.count is not None:
                out.append(("count", i, NUMBERS[s.count]))
            if s.position is not None:
                out.append(("position", i, s.position))
            if s.colour is not None:
                out.append(("colour", i, s.colour))
        if self.text is not None:
            out.append(("text", None, self.text))
        for kind in ("light", "material", "pattern"):
            value = getattr(self, kind)
            if value is not None:
                out.append((kind, None, value))
        return tuple(out)
