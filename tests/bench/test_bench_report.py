"""The report on disk: one self-contained page, right numbers, hostile text and broken pictures harmless."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from genevolve.bench.page import turns
from genevolve.bench.pictures import inline, line_chart
from genevolve.bench.report import BenchReport, Side, Yield, build_report
from genevolve.bench.score import bench_rows, shown_pair
from genevolve.records import Message, Program

from .parts import make_request, make_score, make_trajectory, paint

EVIL = "<script>alert(1)</script>\"><img src=x onerror=alert(2)> {{ 7*7 }} 'ü"


@pytest.fixture
def report(tmp_path: Path) -> BenchReport:
    requests = [make_request(i, **({"question": EVIL} if i == 1 else {})) for i in range(10)]
    for r in requests:
        paint(tmp_path / "data" / f"gt/{r.id}.png", "green")
        paint(tmp_path / "before" / f"{r.id}.png", "red")
        paint(tmp_path / "after" / f"{r.id}.png", "blue", 800)
    (tmp_path / "world/images").mkdir(parents=True)
    (tmp_path / "world/images/giraffe.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "after/q003.png").write_bytes(b"\x89PNG broken")
    before = [make_trajectory(r, make_score(v=0.5)) for r in requests]
    after = [make_trajectory(r, make_score(v=0 if i == 3 else 1)) for i, r in enumerate(requests)]
    evil_program = Program(gen_prompt=EVIL, reference_images=(), files=())
    after[1] = make_trajectory(requests[1], make_score(), program=evil_program, image="../../secret.png")
    before[2] = make_trajectory(requests[2], None, program=None, termination="rounds", failure=EVIL, image=None)
    return build_report(
        Side("cold start", bench_rows(requests, before), tmp_path / "before"),
        Side("evolved", bench_rows(requests, after), tmp_path / "after"),
        title=f"Bench {EVIL}",
        dataset=tmp_path / "data",
        world=tmp_path / "world",
        meta={"seed": "7", "commit": "<b>x</b>"},
        curves={f"validation {EVIL}": [(0, 0.3), (1, 0.4), (2, float("nan"))], "nothing": []},
        yields=[Yield("audit", 100, 69), Yield("empty", 0, 0)],
        resamples=200,
        cases=4,
    )


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_self_contained_and_hostile_text_stays_text(report: BenchReport, tmp_path: Path) -> None:
    html = report.write(tmp_path / "out")["report.html"].read_text(encoding="utf-8")
    page = Page()
    page.feed(html)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "link", "form"} & set(tags)
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), tag
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:image/").startswith("data:image/")
    assert "default-src 'none'" in html
    assert "alert(1)" in html  # shown, as text
    assert "{{ 7*7 }}" in html  # and not run by the template
    assert html.count("<svg") == 1  # the curve without points draws nothing
    assert "69.0%" in html


def test_cards_show_the_best_gains_then_the_worst_losses(report: BenchReport, tmp_path: Path) -> None:
    changes = report.changes()
    assert changes[0] == ("q002", pytest.approx(1.0))  # from no program at all
    assert changes[-1] == ("q003", pytest.approx(-0.2))
    html = report.write(tmp_path / "out")["report.html"].read_text(encoding="utf-8")
    gains, losses = html.split("Best gains</h2>")[1].split("Worst losses</h2>")
    assert gains.count('<article class="case">') == 4
    assert losses.count('<article class="case">') == 1
    assert "q003" in losses
    assert "The picture cannot be read" in losses or "The picture is damaged" in losses
    assert "leads out of its folder" in gains
    assert gains.count("data:image/svg+xml;base64,") >= 4


def test_json_and_csv_agree_with_the_page(report: BenchReport, tmp_path: Path) -> None:
    paths = report.write(tmp_path / "out")
    data = json.loads(paths["report.json"].read_text(encoding="utf-8"))
    assert (data["n"], data["before"], data["after"]) == (10, pytest.approx(0.72), pytest.approx(0.96))
    assert data["diff"] == pytest.approx(data["after"] - data["before"])
    assert data["ci"][0] <= data["diff"] <= data["ci"][1]
    assert set(data["halves"]) == {"gate", "report"}
    assert data["summaries"]["before"]["all"]["invalid_programs"] == 1
    with paths["requests.csv"].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 20
    assert rows[1]["question"] == EVIL
    failed = next(r for r in rows if r["id"] == "q002" and r["policy"] == "before")
    assert (failed["valid"], failed["overall"]) == ("0", "")
    assert not list((tmp_path / "out").glob(".*"))


def test_written_twice_it_is_the_same_bytes(report: BenchReport, tmp_path: Path) -> None:
    first, second = report.write(tmp_path / "a"), report.write(tmp_path / "b")
    assert all(first[k].read_bytes() == second[k].read_bytes() for k in first)


def test_a_cell_that_a_spreadsheet_would_run_is_defused(tmp_path: Path) -> None:
    requests = [make_request(0, question="=HYPERLINK(1)"), make_request(1)]
    side = Side("p", bench_rows(requests, [make_trajectory(r, make_score()) for r in requests]))
    text = build_report(side, side, resamples=100).write(tmp_path)["requests.csv"].read_text()
    assert "'=HYPERLINK(1)" in text
    html = (tmp_path / "report.html").read_text()
    assert "No request improved." in html
    assert "No request got worse." in html


def test_large_pictures_shrink_and_missing_ones_are_said(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", "red", 2000)
    assert len(inline(tmp_path, "a.png").uri) < 20_000
    assert "cannot be read" in inline(tmp_path, "none.png").problem
    assert inline(None, "a.png").problem == "No picture."
    assert "out of its folder" in inline(tmp_path, "/etc/hostname").problem


def test_turns_are_readable_and_a_malformed_one_stays_as_written() -> None:
    request = make_request(0)
    read = turns(make_trajectory(request, None).messages)
    assert [(t.label, t.text) for t in read] == [
        ("image_search", "giraffe"),
        ("Observation", "- giraffe IMG_002"),
        ("answer", "The first reference image.\nIMG_002"),
    ]
    assert read[0].think == "find it"
    broken = turns([Message(role="assistant", content="<tool_call>{nope</tool_call>")])
    assert (broken[0].label, broken[0].text) == ("unreadable turn", "<tool_call>{nope</tool_call>")


def test_a_chart_has_finite_coordinates_for_one_point_and_a_flat_line() -> None:
    for points in ([(3.0, 0.5)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, 1.0), (5.0, float("inf")), (9.0, 2.0)]):
        svg = line_chart(points, "x")
        assert svg.count("<circle") == sum(y != float("inf") for _, y in points)
        assert not re.search(r"nan|inf", svg)


def test_a_card_shows_two_rollouts_that_differ_as_the_means_do(tmp_path: Path) -> None:
    requests = [make_request(i) for i in range(2)]

    def side(name: str, values: list[float]) -> Side:
        played = [
            make_trajectory(r, make_score(v=v), id=f"{r.id}-{n}", rollout=n, image=None)
            for r in requests
            for n, v in enumerate(values)
        ]
        return Side(name, bench_rows(requests, played))

    before, after = side("cold start", [1, 0, 1]), side("evolved", [1, 1, 0.5])
    html = build_report(before, after, resamples=50).write(tmp_path)["report.html"].read_text(encoding="utf-8")
    assert "Each request was played 3 times" in html
    assert "mean of all rollouts 0.87, then 0.93" in html


def test_the_rollouts_that_are_shown() -> None:
    assert shown_pair([1, 0.6, 1], [1, 1, 0.8]) == (0, 0), "nothing nearer to +.07"
    assert shown_pair([1, 0], [1, 1]) == (1, 0), "of equally near ones that which differs"
    assert shown_pair([0.9, 0.1, 0.8], [0.6]) == (2, 0)
    assert shown_pair([None, 0.4], [None, None]) == (1, 0)
    assert shown_pair([None, 0.4, 0.4], [None, 0.4]) == (1, 1)
