"""The site: built without a warning from the pages as they are, with the same links and the same blocks."""

import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.support.places import ROOT
from tests.support.readme import PAGES

COUNTED = ("h1", "h2", "h3", "table", "tr", "pre", "li", "strong", "em")
BUILD = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]


class Read(HTMLParser):
    """Links, anchors and, of a page's own article, how many elements of a kind there are, and their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.counts = Counter[str]()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.links += [str(given[name]) for name in ("href", "src") if given.get(name)]
        self.anchors |= {given["id"]} if given.get("id") else set()  # type: ignore[arg-type]
        self.counts[tag] += tag in COUNTED

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*BUILD, str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = re.compile(r"INFO +- +(Cleaning|Building|Documentation)")
    assert [line for line in done.stderr.splitlines() if not expected.match(line)] == []
    return folder


def built(site: Path, page: Path) -> Path:
    place = page.relative_to(ROOT)
    return site / (place.parent if place.stem == "README" else place.with_suffix("")) / "index.html"


def article(page: Path) -> str:
    return re.findall(r"<article.*?</article>", page.read_text(), re.S)[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_the_blocks_that_code_hosts_show(site: Path, page: Path) -> None:
    there = Read(article(built(site, page)))
    here = Read(MarkdownIt("commonmark").enable("table").render(PAGES[page]))
    assert {tag: there.counts[tag] for tag in COUNTED} == {tag: here.counts[tag] for tag in COUNTED}
    assert there.words.count("`") == here.words.count("`") and "\\|" not in there.words
    assert re.sub(r"[\s¶]", "", there.words) == re.sub(r"\s", "", here.words)


def test_links_lead_to_files_and_anchors_of_the_site(site: Path) -> None:
    pages = {page: Read(page.read_text()) for page in site.rglob("*.html")}
    assert len(pages) > 15
    followed = 0
    for page, read in pages.items():
        for link in read.links:
            path, anchor = urldefrag(link)
            # Of the page for addresses that are not there, all links start at the site's root.
            if re.match(r"\w+:", path) or page.name == "404.html":
                continue
            target = (page.parent / unquote(path)).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (page, link)
            assert not anchor or target.suffix != ".html" or unquote(anchor) in pages[target].anchors, (page, link)
            followed += 1
    assert followed > 500


def test_every_page_is_in_the_menu(site: Path) -> None:
    def files(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        inner = entry.values() if isinstance(entry, dict) else entry
        return [file for one in inner for file in files(one)]  # type: ignore[attr-defined]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert {str(page.relative_to(ROOT)) for page in PAGES} <= set(files(nav))


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    text = "".join(page.read_text() for page in site.rglob("*.html"))
    assert re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"?https?:[^>]*", text) == []
