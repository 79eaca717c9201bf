"""R_text: references, ordinals, exact and loose wording, skills, bins and caps."""

from genevolve.judge.base import ProgramJob
from genevolve.judge.sufficiency import SufficiencyJudge, quarter
from genevolve.records import Program, Reference
from genevolve.scene import Scene, Subject

from .parts import request

FILES = {"a.svg": "object:giraffe", "b.svg": "flag:bhutan"}
JUDGE = SufficiencyJudge(FILES)
SCENE = Scene(
    subjects=(Subject(entity="object:giraffe", count=3, position="left", colour="red"),),
    text="OPEN DAY",
    text_place="top",
)
GOLD = (
    "The first reference image, shown whole and unaltered, exactly three separate copies, placed entirely in the left half,"
    " each on its own solid red plate. The exact text 'OPEN DAY' in large bold letters on a plain banner at the top."
)
SKILLS = ("quantity_counting", "spatial_layout", "attribute_binding", "text_rendering", "anatomy_body_coherence")


def score(prompt: str, *files: str, skills: tuple[str, ...] = SKILLS, scene: Scene = SCENE) -> float | None:
    references = tuple(Reference(img_id=f"IMG_{i:03d}") for i, _ in enumerate(files, 1))
    program = Program(gen_prompt=prompt, reference_images=references, files=files)
    return JUDGE.score([ProgramJob(request(scene), program, skills)])[0]


def test_the_gold_program_is_sufficient() -> None:
    assert score(GOLD, "a.svg") == 1.0


def test_skills_weigh_little() -> None:
    assert score(GOLD, "a.svg", skills=()) == 1.0
    loose = GOLD.replace("exactly three separate copies", "three of them").replace("shown whole and unaltered, ", "")
    assert score(loose, "a.svg") == 0.75


def test_without_the_right_reference_a_quarter_is_the_most() -> None:
    assert score(GOLD, "b.svg") == 0.25
    assert score(GOLD, "unknown.svg") == 0.25
    assert score(GOLD) == 0.25


def test_a_wrong_loose_or_missing_requirement_keeps_it_off_the_top() -> None:
    for change in (
        ("three separate", "two separate"),
        ("exactly three separate copies", "three of them"),
        ("left half", "right half"),
        (", each on its own solid red plate", ""),
        ("OPEN DAY", "OPEN DAYS"),
        ("at the top", "at the bottom"),
    ):
        assert change[0] in GOLD
        assert score(GOLD.replace(*change), "a.svg") == 0.75, change


def test_a_bare_reference_stands_in_the_middle() -> None:
    assert score("The first reference image.", "a.svg", skills=()) == 0.5
    assert score("A giraffe.", "a.svg", skills=()) == 0.25


def test_requirements_bound_to_the_other_subject_do_not_count() -> None:
    two = Scene(subjects=(Subject(entity="object:giraffe", colour="red"), Subject(entity="flag:bhutan", colour="blue")))
    right = (
        "The first reference image, shown whole and unaltered, each on its own solid red plate. "
        "The second reference image, shown whole and unaltered, each on its own solid blue plate."
    )
    swapped = right.replace("solid red", "solid x").replace("solid blue", "solid red").replace("solid x", "solid blue")
    skills = ("attribute_binding", "anatomy_body_coherence")
    assert score(right, "a.svg", "b.svg", skills=skills, scene=two) == 1.0
    assert (
        score(right, "b.svg", "a.svg", skills=skills, scene=two) == 0.75
    )  # right files, plates bound the wrong way round
    assert score(swapped, "b.svg", "a.svg", skills=skills, scene=two) == 1.0  # ordinals may go either way
    assert score(right, "a.svg", "a.svg", skills=skills, scene=two) == 0.5


def test_no_program_is_zero_and_no_scene_is_missing() -> None:
    program = Program(gen_prompt=GOLD, reference_images=())
    jobs = [ProgramJob(request(SCENE), None), ProgramJob(request(None), None), ProgramJob(request(None), program)]
    assert JUDGE.score(jobs) == [0.0, None, None]
    assert [bool(r) for r in JUDGE.reasons] == [False, True, True]
    assert JUDGE.notes == [{}, {}, {}]


def test_quarters() -> None:
    assert [quarter(x) for x in (0, 0.12, 0.125, 0.13, 0.375, 0.88, 1)] == [0, 0, 0, 0.25, 0.25, 1, 1]
