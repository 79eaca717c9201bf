"""The text a bundle becomes for the teacher: the block titled "Current-Task Decision Guide" (paper, section 6)."""

from __future__ import annotations

from genevolve.experience.bullets import FIELD_OF, STANDARD
from genevolve.records import Bundle

TITLE = "Current-Task Decision Guide"


def render_guide(bundle: Bundle, max_bullets: int | None = 10, *, standard: bool = True) -> str:
    """Return the title line and one ` - bullet` line per piece of advice, in slot order.

    `max_bullets` keeps the block near 130 words (ten bullets of twelve or thirteen). What must go, goes from the
    `Standard:` bullets first, last one first (they say what the worst trajectory did as well), then from the end.
    `standard=False` leaves all of those out; the guide is empty where nothing remains.
    """
    guidance = bundle.decision_guidance
    rows = [text for field in FIELD_OF.values() for text in getattr(guidance, field)]
    if not standard:
        rows = [text for text in rows if not text.startswith(STANDARD)]
        if not rows:
            return ""
    if max_bullets is not None and len(rows) > max_bullets:
        by_worth = sorted(range(len(rows)), key=lambda i: (rows[i].startswith(STANDARD), i))
        rows = [rows[i] for i in sorted(by_worth[:max_bullets])]
    return "\n".join([TITLE, *(f" - {row}" for row in rows)])
