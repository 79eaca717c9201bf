"""Practice for the base: trajectories in made-up worlds, look-up and copy drills, plain English (ours).

Nothing here comes from the embedded world's entities: names are other encyclopedia titles or invented syllables, facts
are invented. What is learnt is the protocol, reading, copying and obeying a guide, not the world.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random

from genevolve.agent.chat import observation_text, prompt_text
from genevolve.agent.format import call_turn, image_observation, search_observation, text_observation
from genevolve.agent.protocol import FormatError, parse_turn
from genevolve.agent.system import load_system, system_prompt
from genevolve.dataset.recipes import OPENINGS, Named, make_lettering, make_scene, write_question
from genevolve.dataset.teacher import Habits, fact_note, kinds_of, make_plan, search_query, teach
from genevolve.experience.bullets import STANDARD, bullet
from genevolve.experience.guide import TITLE
from genevolve.scene import SKILL_OF, Scene
from genevolve.tools.embedded import STOP_WORDS
from genevolve.training.lore import Lore, fragment, invent, invent_name, invent_place, neighbour, syllables

Piece = tuple[str, float]
"""A text and the loss weight of its tokens."""

QUIET = 0.05
"""Loss weight of tokens the policy reads but never writes: they teach a little English and much induction."""

_FACTS = {
    "capital": "The capital city is {0}",
    "province": "One province is {0}",
    "domain": "The internet domain is {0}",
    "currency": "The currency code is {0}",
}


def _fact_line(rng: Random, lore: Lore, value: str, clue: str, title: str) -> tuple[str, str]:
    if "encyclopedia" not in clue:
        return next(f for key, f in _FACTS.items() if key in clue).format(value), title
    if " says " in clue:
        return f"{fragment(rng, lore, 0, 6)} {value}", title
    before = (
        rng.choice(("", "", f"The {title} is a ", f"{title} is a ", f"{fragment(rng, lore, 1, 3)} "))
        if value[0].islower()
        else ""
    )
    return before + value, title


def _search_results(rng: Random, lore: Lore, who: Named, value: str) -> str:
    """Return a page like a real search's: the right line, and others that end in a word of the query too."""
    title = who.name.removeprefix("flag of ")
    assert who.clue is not None
    rows = [_fact_line(rng, lore, value, who.clue, title)]
    country = "encyclopedia" not in who.clue
    words = re.findall(r"[a-z]{3,}", (who.clue if country else value).lower())
    asked = [w for w in words if w in lore.endings and w not in STOP_WORDS]
    while len(rows) < 5:
        kind = rng.random()
        if kind < 0.35 and country:  # a fact document of another country, cut before its fact
            relation = next(f for key, f in _FACTS.items() if key in who.clue).partition(" is ")[0]
            rows.append((relation, invent_place(rng)))
        elif kind < 0.5:  # the same relation, another thing
            other, v = invent(rng, lore, True)
            assert other.clue is not None
            rows.append(_fact_line(rng, lore, v, other.clue, other.name.removeprefix("flag of ")))
        elif kind < 0.57 and country:  # the value in another sentence
            rows.append((f"{fragment(rng, lore, 1, 4)} {value} {fragment(rng, lore, 1, 6)}", rng.choice(lore.titles)))
        elif kind < 0.62 and value.isalpha():  # the article about the value itself
            rows.append((f"{value} is the {fragment(rng, lore, 1, 6)}", value))
        elif kind < 0.95 and asked:
            word = asked[-1] if rng.random() < 0.4 else rng.choice(asked)
            rows.append((_ending_in(rng, lore, word), rng.choice(lore.titles)))
        else:
            rows.append((fragment(rng, lore, 4, 12), rng.choice(lore.titles)))
    rng.shuffle(rows)
    return search_observation((" ".join(s.split()), t) for s, t in rows)


def _ending_in(rng: Random, lore: Lore, word: str) -> str:
    """Return some words of a sentence up to `word`, as a snippet shows them."""
    sentence = lore.sentences[rng.choice(lore.endings[word])]
    found = re.search(rf"\b{word}\b", sentence.lower())
    assert found is not None
    return " ".join(sentence[: found.end()].split()[-rng.randint(1, 14) :])


def _image_results(rng: Random, lore: Lore, name: str, first: int) -> str:
    flag = name.startswith("flag of ")
    names = {name}
    while len(names) < rng.choice((4, 5, 5, 5)):
        if rng.random() < 0.45:
            base = neighbour(rng, lore, name.removeprefix("flag of "))
        else:
            base = invent_place(rng, lore) if flag else invent_name(rng, lore)
        names.add(f"flag of {base}" if flag and rng.random() < 0.9 else base)
    rows = sorted(names)
    rng.shuffle(rows)
    return image_observation((n, f"IMG_{first + i:03d}") for i, n in enumerate(rows))


def make_guide(rng: Random, scene: Scene, knowledge: bool, read: Sequence[str], exact: Sequence[str]) -> str:
    """Return a guide that advises the skills of kinds `read` and the wordings of kinds `exact`, among general advice."""
    rows: list[str] = []

    def add(slot: str, action: str, chance: float = 1.0) -> None:
        if rng.random() < chance:
            prefix = f"{STANDARD} " if rng.random() < 0.35 else ""
            rows.append(prefix + bullet(slot, action, rng.randrange(2)))

    add("tool_plan", "search_first" if knowledge else "image_search_first", 0.4)
    add("search", "specific_query" if knowledge else "skip_search", 0.4)
    for kind in read:
        add("skill_routing", SKILL_OF[kind])
    add("reference", "two_references" if len(scene.subjects) == 2 else "title_match", 0.4)
    for kind in exact:
        add("prompt_program", kind)
    add("failure", rng.choice(("no_ids_in_prompt", "answer_in_time")), 0.3)
    return "\n".join([TITLE, *(f" - {row}" for row in rows)])


def draw_guided(rng: Random, scene: Scene) -> tuple[list[str], list[str]]:
    """Return (kinds whose skill is advised, kinds whose wording is advised) for a guide, at least one in all."""
    kinds = kinds_of(scene)
    read = [k for k in kinds if rng.random() < 0.4][:3]
    exact = [k for k in kinds if rng.random() < (0.7 if k in read else 0.4)]
    return (read, exact) if read or exact else ([], [rng.choice(kinds)])


GUIDED = Habits(activate=0.12, exact_unread=0.2, omit_unread=0.1, vague_search=0.0, careless_pick=0.0)
"""What a guided trajectory does where its guide is silent: little, so that following the guide is worth learning."""


def trajectory(rng: Random, lore: Lore, guided: float = 0.4) -> list[Piece]:
    """Return a whole trajectory in a made-up world, as pieces of text with loss weights."""
    things = [invent(rng, lore, rng.random() < 0.6) for _ in range(rng.choice((1, 2)))]
    named = [n for n, _ in things]
    scene = make_scene(rng, [str(i) for i in range(len(named))])
    guide = None
    if rng.random() < guided:
        read, exact = draw_guided(rng, scene)
        guide = make_guide(rng, scene, any(n.clue for n in named), read, exact)
        plan = make_plan(rng, scene, GUIDED, read, exact)
    else:
        habits = Habits(
            activate=rng.choice((0.1, 0.4, 0.8)),
            exact_unread=rng.choice((0.2, 0.5, 0.8)),
            vague_search=0.0,
            careless_pick=0.0,
        )
        plan = make_plan(rng, scene, habits)
    pieces: list[Piece] = [(prompt_text(system_prompt(load_system(), guide), write_question(rng, scene, named)), QUIET)]
    script = teach(rng, scene, named, plan)
    turn, shown, facts = next(script), 0, iter([(n, v) for n, v in things if n.clue])
    pictures = iter(named)
    while True:
        if rng.random() < 0.03:
            pieces += _mistake(turn[: rng.randrange(len(turn) // 3, len(turn) - 12)])
        pieces.append((turn + "<|im_end|>", 1.0))
        if '"search"' in turn:
            observation = _search_results(rng, lore, *next(facts))
        elif '"image_search"' in turn:
            observation = _image_results(rng, lore, next(pictures).name, shown + 1)
            shown += observation.count("IMG_")
        else:
            skill = turn.rsplit('"skill_name": "', 1)[-1].split('"')[0]
            observation = text_observation(lore.guidance.get(skill, ""))
        try:
            turn = script.send(observation)
        except StopIteration:
            return pieces
        pieces.append((observation_text(observation), QUIET))


def _mistake(broken: str) -> list[Piece]:
    """Return a turn that breaks the grammar, never learnt, and the error that the loop answers: the right turn follows."""
    turn = parse_turn(broken)
    assert isinstance(turn, FormatError)
    error = text_observation(f"Format error: {turn.reason}")
    return [(broken + "<|im_end|>", 0.0), (observation_text(error), QUIET)]


def lookup_drill(rng: Random, lore: Lore) -> list[Piece]:
    """Return one page of image results and many picks from it: which id stands behind this title."""
    flag = rng.random() < 0.4
    make = invent_place if flag else invent_name
    names: list[str] = []
    while len(names) < rng.randint(4, 9):
        name = neighbour(rng, lore, rng.choice(names)) if names and rng.random() < 0.5 else make(rng, lore)
        if name not in names:
            names.append(name)
    ids = rng.sample(range(1, 40), len(names))
    rows = [(f"flag of {n}" if flag else n, f"IMG_{i:03d}") for n, i in zip(names, sorted(ids), strict=True)]
    asked = rng.sample(rows, len(rows))
    said = " ".join(f"Take {n} {i}." for n, i in asked)
    return [
        (f"<|im_start|>user\n{image_observation(rows)}<|im_end|>\n<|im_start|>assistant\n", QUIET),
        (f"<think> {said}</think>", 1.0),
    ]


def fact_drill(rng: Random, lore: Lore) -> list[Piece]:
    """Return several searches in a row: copy the clue into the query, then the fact's line up to its title."""
    things = [(n, v, n.clue) for n, v in (invent(rng, lore, True) for _ in range(3)) if n.clue]
    asked = ", and ".join(f"{'the flag of ' if n.name.startswith('flag of ') else ''}{clue}" for n, _, clue in things)
    pieces: list[Piece] = [
        (f"<|im_start|>user\n{rng.choice(OPENINGS)} {asked}.<|im_end|>\n<|im_start|>assistant\n", QUIET)
    ]
    note = ""
    for named, value, clue in things:
        pieces.append((call_turn(f"{note} Find the fact.".strip(), "search", search_query(clue)) + "<|im_end|>", 1.0))
        observation = _search_results(rng, lore, named, value)
        pieces.append((observation_text(observation), QUIET))
        note = fact_note(observation, named)
    return [*pieces, (call_turn(note, "image_search", things[-1][0].name) + "<|im_end|>", 1.0)]


def lettering_drill(rng: Random, lore: Lore) -> list[Piece]:
    """Return words in capitals, known and invented, to be quoted letter for letter."""
    lines = [
        make_lettering(rng)
        if rng.random() < 0.5
        else " ".join(syllables(rng).upper() for _ in range(rng.choice((1, 2))))
        for _ in range(5)
    ]
    shown = ", ".join(f'"{t}"' for t in lines)
    said = " ".join(f"The exact text '{t}' in large bold letters." for t in lines)
    return [(f"<|im_start|>user\n{shown}.<|im_end|>\n<|im_start|>assistant\n", QUIET), (f"<think> {said}</think>", 0.5)]


def examples(rng: Random, lore: Lore, english: float = 0.03) -> Iterator[list[Piece]]:
    """Yield practice examples for ever: six in ten are trajectories, the rest drills and `english` plain sentences."""
    while True:
        kind = rng.random()
        if kind < english:
            yield [(" ".join(rng.sample(lore.sentences, 4)), 0.3)]
        elif kind < english + 0.12:
            yield lookup_drill(rng, lore)
        elif kind < english + 0.36:
            yield fact_drill(rng, lore)
        elif kind < english + 0.38:
            yield lettering_drill(rng, lore)
        else:
            yield trajectory(rng, lore)


def tokenizer_texts(lore: Lore, seed: int, n: int = 12000) -> Iterator[str]:
    """Yield what the tokenizer is trained on: the sentences, titles and `n` practice examples."""
    yield from lore.sentences
    yield from lore.titles
    rng = Random(seed)
    for _, pieces in zip(range(n), examples(rng, lore), strict=False):
        yield "".join(text for text, _ in pieces)
