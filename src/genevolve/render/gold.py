"""The gold program of a scene: every requirement in the exact wording the generator obeys (the skills' wording)."""

from __future__ import annotations

from collections.abc import Sequence

from genevolve.scene import NUMBERS, Scene, Subject

ORDINALS = ("first", "second")


def gold_prompt(scene: Scene, names: Sequence[str] = ()) -> str:
    """Return the program text of a scene, subjects in order as first and second reference image.

    `names` (one per subject, optional) are put beside the ordinals for a human reader; the generator ignores them.
    """
    out = []
    for i, subject in enumerate(scene.subjects):
        name = f" of the {names[i]}" if i < len(names) and names[i] else ""
        out.append(", ".join([f"The {ORDINALS[i]} reference image{name}", *subject_clauses(subject)]) + ".")
    if scene.text is not None:
        out.append(
            f"The exact text '{scene.text}' in large bold letters on a plain banner at the {scene.text_place or 'top'}."
        )
    if scene.light is not None:
        out.append(f"{scene.light.capitalize()} light fills the whole background.")
    if scene.material is not None:
        out.append(f"A {scene.material} ground with soft contact shadows below.")
    if scene.pattern is not None:
        out.append(f"A backdrop pattern of even {scene.pattern}.")
    return " ".join(out)


def subject_clauses(subject: Subject) -> list[str]:
    """Return the exact clauses of one subject, in the order the grammar gives them."""
    out = ["shown whole and unaltered"]
    if subject.count is not None:
        out.append(
            f"exactly {NUMBERS[subject.count]} separate {'copy' if subject.count == 1 else 'copies'}".replace(
                "one separate", "one"
            )
        )
    if subject.position is not None:
        out.append(f"placed entirely in the {subject.position} half")
    if subject.colour is not None:
        out.append(f"each on its own solid {subject.colour} plate")
    return out
