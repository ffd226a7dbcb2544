"""The site's pages are the repository's own Markdown files, where they are: nothing is copied, and links work in both.

A hook of mkdocs. A link to a folder goes to the page that describes it, a link to any other file to that file.
"""

import os
import re
from itertools import zip_longest
from pathlib import Path

from markdown import Markdown
from markdown.extensions import Extension
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_PARTS = ("configs", "flows", "pipeline", "prefloop", "reward_models", "tests")
# Outside code blocks, in which nothing is a link.
_FENCED = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
_TABLE_ROW = re.compile(r"^ *\|.*\|$", re.M)
_CODE = re.compile(r"`[^`]*`")


class ListsOfTwo(Extension):
    """Lists nest at two spaces, as on code hosts; Python-Markdown's own default is four."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Python-Markdown's name
        """Set the width before any block is parsed."""
        md.tab_length = 2


def pages() -> list[Path]:
    """Return all Markdown files of the repository that are for readers."""
    found = [*ROOT.glob("*.md"), *(page for part in _PARTS for page in (ROOT / part).rglob("*.md"))]
    return sorted(page for page in found if "fixtures" not in page.parts)


def slug(heading: str, separator: str) -> str:
    """Return a heading's anchor as code hosts make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", separator)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Parse Markdown as code hosts do."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    config.markdown_extensions.append(ListsOfTwo())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and the files that they link to."""
    for page in pages():
        _add(files, config, page)
    for page in pages():
        for path, _ in _LINK.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
            target = (page.parent / path).resolve()
            if target.is_file():
                _add(files, config, target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to folders to their pages, and write table cells as Python-Markdown reads them."""
    here = ROOT / page.file.src_uri

    def linked(found: re.Match[str]) -> str:
        target = (here.parent / found[1]).resolve()
        if not target.is_dir():
            return found[0]
        described, anchor = _page_of(target)
        return f"]({_relative(described, here)}{anchor})"

    def cell(row: re.Match[str]) -> str:
        return _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0])

    def outside(text: str) -> str:
        return _TABLE_ROW.sub(cell, _LINK.sub(linked, text))

    code = _FENCED.findall(markdown)
    texts = [outside(text) for text in _FENCED.split(markdown)]
    return "".join(part for pair in zip_longest(texts, code, fillvalue="") for part in pair)


def _page_of(folder: Path) -> tuple[Path, str]:
    """Return the page that describes a folder: its README, else the list of files of the nearest one above."""
    own = folder / "README.md"
    if own.is_file():
        return own, ""
    above = next(parent / "README.md" for parent in folder.parents if (parent / "README.md").is_file())
    return above, "#what-is-where"


def _relative(target: Path, page: Path) -> str:
    return Path(os.path.relpath(target, page.parent)).as_posix()


def _add(files: Files, config: MkDocsConfig, path: Path) -> None:
    uri = path.relative_to(ROOT).as_posix()
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(path)))
