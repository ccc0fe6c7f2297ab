"""Tags in square brackets, such as [laugh]: sounds for models that know them, words for others.

Responsible for finding them, and for noticing those that a model does not know. Not responsible
for their tokens (tokenizers/) or for how they are spoken.
"""

from __future__ import annotations

import re
from collections.abc import Collection

SOUNDS = (  # of Turbo and Nano; what a tokenizer has decides
    *("[clear throat]", "[sigh]", "[shush]", "[cough]", "[groan]", "[sniff]", "[gasp]"),
    *("[chuckle]", "[laugh]"),
)
_TAG = re.compile(r"\[[a-z]+(?: [a-z]+){0,2}\]")
_NAMED = 5  # tags that a warning names


def unknown_tags(text: str, tags: Collection[str]) -> list[str]:
    """The tags of a text that its model will not make a sound of, each once.

    Args:
        tags: that the model knows. Without any, only well-known sounds are taken for tags: square
            brackets with other words may be a part of the text.
    """
    found = dict.fromkeys(_TAG.findall(text))
    return [tag for tag in found if (tag not in tags if tags else tag in SOUNDS)]


def without_sounds(text: str) -> str:
    """The text with a blank in place of each tag of ``SOUNDS``."""
    return _TAG.sub(lambda tag: " " if tag[0] in SOUNDS else tag[0], text)


def warning(text: str, tags: Collection[str]) -> str:
    """One line about a text's tags that its model does not know, or ""."""
    unknown = unknown_tags(text, tags)
    if not unknown:
        return ""
    more = len(unknown) - _NAMED
    names = ", ".join(unknown[:_NAMED]) + f" and {more} more" * (more > 0)
    if tags:
        known = ", ".join(sorted(tags))
        return f"this model does not know {names} and may read it aloud; its tags are {known}"
    return f"this model has no tags and may read {names} aloud: leave it out, or use --model turbo"
