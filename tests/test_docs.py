"""What the documentation tells a user to type is there: commands, their options, settings, benchmarks, and links."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main

from genevolve.cli import app
from genevolve.profiles import load

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OURS = re.compile(r"genevolve ([a-z][a-z-]*)((?:\\\n|[^\n`#;|])*)")
WORD = re.compile(r"(?<![\w-])(--[a-z][a-z-]*)")
SETTING = re.compile(r"--set ([a-z_]+)\.([a-z_]+)=")


def typed(page: Path) -> list[tuple[str, str]]:
    """Return (command, its line) of what stands as code on a page; prose about the package is none."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.S | re.M)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```\n.*?^```", "", text, flags=re.S | re.M))
    return [(m[1], m[2]) for code in (*blocks, *inline) for m in OURS.finditer(code)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_and_options_exist(page: Path) -> None:
    for name, rest in typed(page):
        assert name in COMMANDS, f"{page.name}: genevolve {name}"
        known = {word for p in COMMANDS[name].params for word in (*p.opts, *p.secondary_opts)} | {"--help"}
        for word in WORD.findall(rest):
            assert word in known, f"{page.name}: genevolve {name} {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_and_benchmarks_exist(page: Path) -> None:
    text, settings = page.read_text(encoding="utf-8"), load("paper", path=PROJECT / "params.yaml")
    for section, field in set(SETTING.findall(text)) - {("section", "key")}:
        assert field in type(getattr(settings, section)).model_fields, f"{page.name}: {section}.{field}"
    for name in re.findall(r"python -m benchmarks\.(\w+)", text):
        assert (PROJECT / "benchmarks" / f"{name}.py").is_file(), f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", h).lower()).replace(" ", "-") for h in heads
    }


def test_the_rubric_comes_out_of_the_releases_file_as_the_page_says(tmp_path: Path) -> None:
    scripts = tmp_path / "GenEvolve" / "scripts"
    scripts.mkdir(parents=True)
    body = 'raise RuntimeError("it was run")\nOTHER, MORE = 1, 2\nSYSTEM_PROMPT = r"""You judge – {strictly} \\d."""\n'
    (scripts / "evaluate_images.py").write_text(body, encoding="utf-8")
    page = (PROJECT / "docs" / "judge.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^(python -c .*) > (\S+)$", page, re.M)
    done = subprocess.run(command[0], shell=True, cwd=tmp_path, check=True, capture_output=True)
    assert done.stdout.decode() == "You judge – {strictly} \\d.\n"


SERVICES = {"POLICY", "JUDGE", "SUMMARISER", "TEACHER", "WRITER", "AUDITOR", "RENDER", "GEMINI"}
"""Each is read by `Endpoint.from_environment`."""
FIELDS = ("URL", "KEY", "CONCURRENCY", "RATE", "TPM", "USD_IN", "USD_OUT", "USD_CALL")
INTERNAL = {"COMMAND", "BUDGET", "DEBUG", "HOME", "MLFLOW_RUN", "PROBE", "RESTORE_ONLY", "SERVE", "TELL_LATER"}
"""What a process tells those that it starts, or what an option says as well."""
UNNAMED = {
    *(f"SUMMARISER_{f}" for f in ("CONCURRENCY", "RATE", "TPM", "USD_CALL")),  # "and its fellows"
    *(f"GEMINI_{f}" for f in ("TPM", "USD_IN", "USD_OUT")),  # a picture has a price a call
}


def test_every_variable_on_a_page_is_read_and_every_one_that_is_read_stands_on_a_page() -> None:
    text = "\n".join(p.read_text(encoding="utf-8") for d in ("src", "flows") for p in (PROJECT / d).rglob("*.py"))
    read = set(re.findall(r"GENEVOLVE_([A-Z][A-Z_]*[A-Z])\b", text)) - {"NAME_KEY", "NAME_URL"}
    read |= {f"{s}_{f}" for s in SERVICES for f in FIELDS}
    named: set[str] = set()
    for line in (line for page in PAGES for line in page.read_text(encoding="utf-8").splitlines()):
        full = set(re.findall(r"GENEVOLVE_([A-Z][A-Z_]*[A-Z])\b", line))
        assert full <= read, f"read nowhere: {sorted(full - read)}"
        services = {s for s in SERVICES if f"GENEVOLVE_{s}_" in line} | (
            {"SERPER"} if "GENEVOLVE_SERPER_" in line else set()
        )
        short = set(re.findall(r"`_([A-Z_]+)`", line))
        if "take `URL`" in line:
            short |= set(FIELDS)
        named |= full | {f"{s}_{f}" for s in services for f in short}
    missing = read - named - INTERNAL - UNNAMED
    assert not missing, f"on no page: {sorted(missing)}"
