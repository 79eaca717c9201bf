"""The program rules (method.md, section 1): what an answer must hold before it becomes a Program."""

from __future__ import annotations

import re
from collections.abc import Mapping

from genevolve.agent.protocol import MAX_REFERENCES, Answer
from genevolve.records import Program, Reference

ORDINALS = ("first", "second")

_IMG = re.compile(r"\bIMG[_ -]?[0-9]", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]{1,20}://|\bwww\.|\bdata:[a-z]+/", re.IGNORECASE)
_PATH = re.compile(
    r"(?<![\w.])(?:~|\.{1,2})?/[\w.-]+/|(?<![\w.])(?:~|\.{1,2})/\w|\b[a-z]:\\\w|"
    r"[\w-]\.(?:png|jpe?g|svg|webp|gif|bmp|tiff?|avif|heic)\b",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"\b(?:reference(?:\s+(?:image|picture))?|image|picture)\s*#?\s*[0-9]+\b|"
    r"\b(?:[0-9]+(?:st|nd|rd|th)|third|fourth|fifth|last)\s+reference\b",
    re.IGNORECASE,
)


class RuleError(ValueError):
    """An answer breaks a program rule; the message is a sentence for the model."""


def build_program(answer: Answer, files: Mapping[str, str]) -> Program:
    """Return the program of an answer; `files` maps every img_id of the trajectory to its file.

    References come out sorted by id and without doubles (an id, or a file that two ids share); "the first reference
    image" is the first of that order. Raises RuleError at the first broken rule.
    """
    if not files:
        raise RuleError("No picture was looked up yet: call image_search before the answer.")
    unknown = next((i for i, _ in answer.references if i not in files), None)
    if unknown is not None:
        raise RuleError(f"{unknown} was not shown by any image_search.")
    chosen: dict[str, tuple[str, str]] = {}
    for img_id, note in sorted(answer.references, key=lambda r: r[0]):
        chosen.setdefault(files[img_id], (img_id, note))
    if len(chosen) > MAX_REFERENCES:
        raise RuleError(f"There are more than {MAX_REFERENCES} references.")
    check_prompt(answer.gen_prompt, len(chosen))
    return Program(
        gen_prompt=answer.gen_prompt,
        reference_images=tuple(Reference(img_id=i, note=note) for i, note in chosen.values()),
        files=tuple(chosen),
    )


def check_prompt(prompt: str, references: int) -> None:
    """Raise RuleError unless `prompt` names each of its references by ordinal only, and no id, URL or path."""
    for pattern, what in ((_IMG, "an image id"), (_URL, "a URL"), (_PATH, "a path or a file name")):
        if pattern.search(prompt):
            raise RuleError(f"The gen_prompt holds {what}: name pictures only as 'the first reference image'.")
    if _NUMBERED.search(prompt):
        raise RuleError("The gen_prompt may name only 'the first reference image' and 'the second reference image'.")
    for i, ordinal in enumerate(ORDINALS):
        named = re.search(rf"\b{ordinal}\s+reference(?:\s+(?:image|picture))?\b", prompt, re.IGNORECASE) is not None
        if i < references and not named:
            raise RuleError(f"The gen_prompt does not name 'the {ordinal} reference image'.")
        if i >= references and named:
            raise RuleError(f"The gen_prompt names 'the {ordinal} reference image', but there is none.")
