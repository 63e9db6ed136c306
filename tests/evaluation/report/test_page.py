"""The page in a browser: it opens, draws everything, tells and copies recipes, asks no network and reports no error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from samples import HOSTILE, SAMPLES, recipe

from eutectic.evaluation.report import write_report

PHONE = {"width": 390, "height": 844}


@pytest.fixture
def open_(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``open_(sample, **context)``: a sample's page, drawn. No request but for the file, nothing on the console."""
    contexts, faults, requests = [], [], []

    def show(name: str, **settings: Any) -> Any:
        path = tmp_path / f"{name}.html"
        write_report(SAMPLES[name](), path)
        context = chromium.new_context(reduced_motion="reduce", **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn === 'yes'")
        return page

    yield show
    for context in contexts:
        context.close()
    assert faults == []
    assert len(requests) == len(contexts) and all(url.startswith("file:") for url in requests)


def titles(page: Any) -> list[str]:
    return page.locator("h2").all_inner_texts()


def overflowing(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > innerWidth")


def point_at(page: Any, element: Any) -> None:
    """Move the pointer there and wait for the tooltip; scrolling, which hides it, comes first."""
    element.scroll_into_view_if_needed()
    page.wait_for_timeout(100)
    element.hover()
    page.locator("#tip").wait_for()


def test_everything_is_drawn(open_: Callable[..., Any]) -> None:
    page = open_("mergebench")
    assert titles(page) == [
        "Warnings", "Leaderboard", "Claims", "Quality against cost", "Forgetting", "Paired tests",
        "Deltas of the experts", "Provenance",
    ]  # fmt: skip
    assert page.title() == "Sixteen ways to merge six experts of handwritten digits"
    assert page.locator(".board tbody tr:not(.head)").count() == 27
    assert page.locator(".board .part").all_inner_texts() == [
        "Merged without dataranked by their score", "Merged with unlabelled dataranked by their score",
        "Merged with labelled dataranked by their score", "Baselinesfor comparison", "Single expertsfor comparison",
    ]  # fmt: skip
    first = page.locator(".board tbody tr.first").first
    assert re.split(r"\s+", first.inner_text().strip())[:3] == ["1", "TSV-Merge", "90.9"]
    assert page.locator("#cost figure").count() == 4 and page.locator("#cost .front").count() == 4
    assert page.locator("#forgetting rect.bar").count() == 25
    assert page.locator("#deltas rect.heat").count() == 6 * 14
    assert page.locator("#deltas .matrix td").count() == 2 * (36 + 1)
    assert page.locator(".verdict").all_inner_texts() == ["✓ held", "✓ held", "✗ refuted", "○ open"]
    assert page.locator(".board .tag").inner_text() == "edge"
    assert page.locator(".board .rank", has_text="≈2").count() == 1
    assert not overflowing(page)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_sample_opens_on_a_phone_in_either_light(open_: Callable[..., Any], name: str, scheme: str) -> None:
    page = open_(name, viewport=PHONE, color_scheme=scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert not overflowing(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_timeout(150)  # drawn again, to the new width
    assert not overflowing(page)
    for text in page.locator("svg").all_text_contents():
        assert "NaN" not in text and "undefined" not in text
    for part in ("x", "y", "width", "height", "d", "points", "cx", "cy", "x1", "x2", "y1", "y2"):
        found = page.evaluate(f"[...document.querySelectorAll('svg [{part}]')].map((e) => e.getAttribute('{part}'))")
        assert not [value for value in found if re.search("NaN|undefined|Infinity|null", value)], part
    assert "undefined" not in page.locator("main").inner_text() and "NaN " not in page.locator("main").inner_text()


def test_pointing_shows_the_recipe_and_a_click_copies_it(open_: Callable[..., Any]) -> None:
    page = open_("mergebench", permissions=["clipboard-read", "clipboard-write"])
    point = page.locator('#cost .point[data-row="tsv"]').last
    assert page.locator("#tip").is_hidden()
    point_at(page, point)
    told = page.locator("#tip").inner_text()
    assert told.startswith("TSV-Merge\nScore 90.9%, 95%: 89.8 to 92.1\nTime to merge: 4.10 s\nlambda = 0.83\n")
    assert "merge_method: task_arithmetic" in told and told.endswith("Click copies the recipe.")
    point.click()
    page.locator("#toast.shown").wait_for()
    assert page.locator("#toast").inner_text() == "Recipe of TSV-Merge copied"
    assert yaml.safe_load(page.evaluate("navigator.clipboard.readText()")) == recipe("tsv", 0.83)
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_the_keyboard_reaches_what_the_pointer_does(open_: Callable[..., Any]) -> None:
    page = open_("mergebench", permissions=["clipboard-read", "clipboard-write"])
    page.locator('#cost .point[data-row="ties"]').last.focus()
    assert page.locator("#tip strong").inner_text() == "TIES"
    page.keyboard.press("Enter")
    page.locator("#toast.shown").wait_for()
    assert yaml.safe_load(page.evaluate("navigator.clipboard.readText()"))["merge_method"] == "ties"


def test_where_the_clipboard_is_closed_the_older_way_copies(open_: Callable[..., Any]) -> None:
    page = open_("mergebench", permissions=["clipboard-read"])
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.get_by_role("button", name="Copy the recipe of TIES").first.click()
    page.locator("#toast.shown").wait_for()
    assert page.locator("#toast").inner_text() == "Recipe of TIES copied"


def test_a_click_on_a_heading_sorts_within_the_sections(open_: Callable[..., Any]) -> None:
    page = open_("mergebench")
    heading = page.locator(".board thead th", has_text="flip")
    heading.locator("button").click()
    names = page.locator(".board tbody").first.locator("th.name").all_inner_texts()
    values = [float(t) for t in page.locator(".board tbody").first.locator("td.cell:nth-child(4)").all_inner_texts()]
    assert heading.get_attribute("aria-sort") == "descending" and len(names) == 12
    assert values == sorted(values, reverse=True)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"


def test_the_button_changes_the_light(open_: Callable[..., Any]) -> None:
    page = open_("single", color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"  # the reader's choice stays


def test_holes_are_shown_with_their_reasons(open_: Callable[..., Any]) -> None:
    page = open_("holes")
    assert "Missing scores" in titles(page)
    rows = page.locator("#holes tbody tr")
    assert rows.count() == 9 and "out of memory at merge: 9.2 GB needed" in rows.nth(3).inner_text()
    assert page.locator(".board .hole").count() == 9
    point_at(page, page.locator(".board .hole span").first)
    assert "429" in page.locator("#tip").inner_text()
    assert page.locator(".board .empty").all_inner_texts() == ["no score"] * 4


def test_strangers_names_stay_text(open_: Callable[..., Any]) -> None:
    page = open_("hostile", permissions=["clipboard-read", "clipboard-write"])
    assert page.title() != "owned" and HOSTILE in page.title()
    assert page.locator("h1").inner_text().startswith(HOSTILE) and page.locator("img").count() == 0
    shown = page.locator("#report").inner_text()
    assert "\u202e" not in shown and "\\u202e\\u0007\\u2028&amp;𝔘ñ" in shown
    page.get_by_role("button", name="Copy the recipe of </script>").first.click()
    page.locator("#toast.shown").wait_for()
    copied = yaml.safe_load(page.evaluate("navigator.clipboard.readText()"))
    assert copied["models"][0]["model"].startswith(f"{HOSTILE}\u202e\u0007")  # what is copied is what was merged


def test_curves_have_a_legend_and_a_table(open_: Callable[..., Any]) -> None:
    page = open_("in-the-wild")
    figure = page.locator("#curves figure").first
    assert figure.locator("path.line").count() == 2 * 5  # each with its swatch
    figure.locator("summary").click()
    assert figure.locator("tbody tr").count() == 5 * 11
    point_at(page, figure.locator(".point").nth(3))
    assert page.locator("#tip strong").inner_text() == "Task arithmetic, tuned"


def test_it_prints_on_paper(open_: Callable[..., Any], tmp_path: Path) -> None:
    page = open_("mergebench", color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden() and page.locator("#theme").is_hidden()
    assert page.locator(".board thead", has_text="multi-task score").get_by_text("flip").is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_without_scripts_there_is_a_table(open_: Callable[..., Any], chromium: Any, tmp_path: Path) -> None:
    write_report(SAMPLES["holes"](), tmp_path / "plain.html")
    page = chromium.new_context(java_script_enabled=False).new_page()
    page.goto((tmp_path / "plain.html").as_uri())
    assert (
        page.locator("noscript tr").count() == 28
        and page.locator("noscript td", has_text=re.compile("^missing$")).count() == 9
    )
    page.context.close()
