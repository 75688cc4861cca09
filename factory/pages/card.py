"""A card as HTML: anybody's Markdown, without anything that runs, tracks or leaves the page."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

from factory.artifacts.front_matter import front_matter
from factory.errors import FactoryError
from factory.hub.environment import PUBLIC
from factory.reports.page.svg import text_of

LIMIT = 200_000  # characters of a card
_OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:|//|#", re.IGNORECASE)
_TAGS = set(nh3.ALLOWED_TAGS) - {"map", "area"}
_ATTRIBUTES = {
    "a": {"href", "title"}, "img": {"src", "alt", "title", "width", "height"},
    "th": {"align"}, "td": {"align"}, "code": {"class"}, "details": {"open"},
}  # fmt: skip


def render(
    text: str,
    blobs: str,
    files: str,
    known: Callable[[str], bool],
    here: Callable[[str], str | None] = lambda path: None,
) -> Markup:
    """Return the body of a card. Paths in it lead to pages of files below `blobs`, pictures to
    `files`; what is not `known` leads nowhere. Links to paths of this hub or the public one lead to
    the pages that are `here` for them. Pictures from elsewhere would tell who reads, and are left
    out."""
    try:
        _, body = front_matter(text[:LIMIT])
    except FactoryError:
        body = text[:LIMIT]
    html = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .render(text_of(body.expandtabs(4)))
    )

    def kept(tag: str, attribute: str, value: str) -> str | None:
        if attribute not in ("href", "src"):
            return value
        path = value.removeprefix(PUBLIC)
        if attribute == "href" and path.startswith("/") and (page := here(path[1:])):
            return page
        if _OUTSIDE.match(value.strip()):
            return value if attribute == "href" else None
        path = posixpath.normpath(value.partition("#")[0].partition("?")[0])
        if path.startswith(("/", "..")) or not known(path):
            return None
        return f"{blobs if attribute == 'href' else files}/{path}"

    return Markup(
        nh3.clean(
            html,
            tags=_TAGS,
            attributes=_ATTRIBUTES,
            attribute_filter=kept,
            url_schemes={"http", "https", "mailto"},
            link_rel="noopener noreferrer nofollow",
        )
    )
