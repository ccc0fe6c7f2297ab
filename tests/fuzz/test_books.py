"""Any book: its items, or an error in one line that names the file; nothing else, and soon."""

from __future__ import annotations

from helpers.books import DOCUMENT, archive, epub, package, repacked
from helpers.fuzz import damage, examples
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt import Sampling
from chatterbox_opt.audio.tags import MAX_TITLE
from chatterbox_opt.batch import job_file
from chatterbox_opt.batch.job_file import ReadOptions
from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.printable import MESSAGE_CHARACTERS, message_line

TAGS = st.sampled_from(
    ["p", "div", "h1", "h2", "a", "sup", "span", "img", "br", "hr", "ol", "ul", "li", "table", "tr", "td", "th", "pre", "code", "nav", "aside", "svg", "title", "head", "body", "html", "ruby", "rt", "section", "script", "style", "math", "q", "b", "meta"]
)  # fmt: skip
ATTRIBUTES = st.sampled_from([
    "", " hidden", " href='#a'", " href=x", " epub:type='noteref'", " epub:type='footnote'", " epub:type='toc'",
    " role='doc-pagebreak'", " alt='A map'", " start='9'", " start='-1'", " start='9e9'", " style='display:none'",
    " name=author content=x", " a='", ' b="',
])  # fmt: skip
HTML = st.lists(
    st.builds("<{}{}{}>".format, TAGS, ATTRIBUTES, st.sampled_from(["", "/"]))
    | st.builds("</{}>".format, TAGS)
    | st.text(max_size=5)
    | st.sampled_from(["1", "[2]", "*", "x y", "&nbsp;", "&shy;", "&#0;", "&#xD800;", "&lol;", "<!--", "-->", "<![CDATA[",
                       "]]>", "<!DOCTYPE html [<!ENTITY lol 'x'>]>", "<?xml version='1.0' encoding='", "utf-16'?>",
                       "koi8-r'?>", "\0", "\ufeff", "\ud800", "\x1b"]),
    max_size=40,
).map("".join)  # fmt: skip
BOOK = epub(["<h1>One</h1><p>Text.</p>", "<p>More<a href='#n'>[1]</a>.</p>"])
STORED = repacked(BOOK)
PATHS = st.sampled_from(
    ["a", "../a", "/a", "b c", "%2e%2e/x", "http://x", "//[", "", ".", "\\a", "#f", "c.png"]
)
PACKAGES = st.builds(
    package, st.lists(PATHS, max_size=3), st.text(max_size=9), st.text(max_size=9),
    st.sampled_from(["", '<item id="d0"/>', '<item properties="nav cover-image" href="../x"/>', "<a", "&x;"]),
)  # fmt: skip


def check(content: bytes, name: str = "a.epub", **options) -> None:
    try:
        job = job_file.read(name, content, Sampling(), options=ReadOptions(**options))
    except InputError as error:
        message = message_line(str(error))  # as the command prints it
        assert name in message and len(message) <= MESSAGE_CHARACTERS + 3
        return
    assert job.items
    for item in job.items:
        assert item.text == " ".join(item.text.split()) != ""
        assert len(item.chapter.encode()) <= MAX_TITLE


@st.composite
def damaged(draw):
    return damage(draw, BOOK if draw(st.booleans()) else STORED)


@examples(60)
@given(damaged())
def test_any_damage_to_a_book(content):
    check(content)


@examples(40)
@given(HTML, st.booleans())
def test_any_html(text, alt_texts):
    check(text.encode("utf-8", "surrogatepass"), "a.html", alt_texts=alt_texts)


@examples(40)
@given(PACKAGES, HTML, HTML)
def test_any_package_of_any_documents(opf, first, second):
    encode = lambda text: text.encode("utf-8", "surrogatepass")
    files = {"OEBPS/content.opf": opf, "OEBPS/a": DOCUMENT.format(first), "OEBPS/b c": second}
    check(archive({name: encode(text) for name, text in files.items()}))
