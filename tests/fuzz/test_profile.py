"""Any file as a profile: it loads, or the message says what is wrong."""

from __future__ import annotations

from helpers.fuzz import examples
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.config.profile import DTYPES, load_profile
from chatterbox_opt.errors import ProfileError

WORDS = [
    *("description", "dtype", "compute", "t3", "flow", "none", "int8", "float32", "!!int", "!x"),
    *("&a", "*a", "<<", ": ", "- ", "? ", "[", "]", "{", "}", ",", "|", ">", "'", '"', "~", "%"),
    *(
        "1e999",
        "2001-99-99",
        ".inf",
        "#",
        "@",
        "`",
        "---",
        "...",
        "\n",
        "\n  ",
        " ",
        "\0",
        "\t",
        "é",
    ),
]
TEXTS = st.lists(st.sampled_from(WORDS)).map("".join)
CONTENTS = TEXTS.map(str.encode) | st.text().map(lambda t: t.encode("utf-8", "surrogatepass"))


@examples(40)
@given(content=CONTENTS | st.binary())
def test_any_file_is_a_profile_or_our_error(tmp_path, content):
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    try:
        profile = load_profile(str(path))
    except ProfileError as error:
        assert len(str(error)) < 1000
        assert "\n" not in str(error)
    else:
        assert profile.compute in ("", *DTYPES)
