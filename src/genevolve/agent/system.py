"""The system prompt: a Markdown file a user can replace, with a marker line where a guide goes."""

from __future__ import annotations

from pathlib import Path

from genevolve.agent.format import escape
from genevolve.errors import SettingsError

GUIDE_TITLE = "Current-Task Decision Guide"
MARKER = "{{guide}}"
PROMPTS = Path(__file__).parent / "prompts"
OURS = ("system", "system_embedded")
"""The prompts of that folder."""


def load_system(name: str = "system_embedded", folder: str | Path = PROMPTS) -> str:
    """Return the text of `folder/name.md`, marker included; raises FileNotFoundError naming the file."""
    path = Path(folder) / f"{name}.md"
    if not path.is_file():
        raise FileNotFoundError(f"There is no system prompt {path}.")
    return path.read_text(encoding="utf-8").strip()


def prompt_name(system: str, backend: str) -> str:
    """Return what `policy.system` names: a file, or one of OURS; where it is empty, the prompt of its `policy.backend`."""
    return system or ("system_embedded" if backend == "local" else "system")


def prompt_text(name: str) -> str:
    """Return the text behind such a name, guide mark included; raise SettingsError for a file that cannot be read."""
    if name in OURS:
        return load_system(name)
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except OSError as e:
        raise SettingsError(f"policy.system: the system prompt {name} cannot be read ({e.strerror}).") from e
    except UnicodeDecodeError as e:
        raise SettingsError(f"policy.system: the system prompt {name} is not UTF-8 text.") from e


def system_prompt(base_text: str, guide: str | None = None) -> str:
    """Return the system message: the guide block in place of the marker line, or the text without that line.

    The block stands before the tool definitions because the marker does (method.md, section 6); a text without a marker
    gets it at its end. The title is added when the guide does not begin with it.
    """
    lines = base_text.strip().splitlines()
    block = _block(guide) if guide and guide.strip() else []
    at = next((i for i, line in enumerate(lines) if line.strip() == MARKER), None)
    if at is None:
        return "\n".join(lines + block)
    return "\n".join(lines[:at] + block + lines[at + 1 :])


def _block(guide: str) -> list[str]:
    lines = [escape(line).rstrip() for line in guide.strip().splitlines()]
    return lines if lines[0].strip() == GUIDE_TITLE else [GUIDE_TITLE, *lines]
