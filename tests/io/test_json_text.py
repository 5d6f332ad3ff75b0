"""Json from anywhere is a value or one error that names the file, the fault and the fix."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posegen.errors import UserError
from posegen.io.atomic import read_json
from posegen.io.json_text import MAX_DEPTH, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
DEEP = MAX_DEPTH * 100
DAMAGED = {
    b"": "it is empty",
    b" \n": "it is empty",
    b"{": "it ends too early, in line 1, column 2",
    b'{"a": [1, 2': "it ends too early",
    b'{"a": 1} x': "extra data, line 1, column 10",
    b"[" * DEEP + b"]" * DEEP: "it nests deeper than 100 levels",
    b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1): "it nests deeper than 100 levels",
    b'[{"a": 1, "b": 2, "a": 3}]': "'a' is there twice in one object",
    b"[" + b"9" * 5000 + b"]": "it has a number of thousands of digits",
    b'{"caption": "caf\xe9"}': "it is no text in UTF-8: byte 16 is 0xe9",
    b"\x89PNG\r\n\x1a\n\0\0": "it is no text in UTF-8: byte 0 is 0x89",
    b"not json": "expecting value, line 1, column 1",
}


@pytest.mark.parametrize("content", DAMAGED)
def test_every_damage_is_one_message(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as told:
        read_json(file, "get it again")
    message = str(told.value)
    assert message.startswith(f"{file} is not a readable json file ({DAMAGED[content]}"), message
    assert message.endswith("; get it again") and "\n" not in message


def test_the_limit_of_size_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(f'"{"a" * (1 << 20)}"')
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_json(tmp_path / "a.json", limit=1 << 20)
    with pytest.raises(UserError, match=r"Is a directory\); delete it"):
        read_json(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_byte_order_marks_and_wide_encodings_are_read(encoding: str) -> None:
    assert parse_json('{"name": "é"}'.encode(encoding), "a.json") == {"name": "é"}
    assert parse_json('\N{ZERO WIDTH NO-BREAK SPACE}{"a": 1}', "a.json") == {"a": 1}


def test_numbers_that_are_not_finite_are_read_as_python_writes_them() -> None:
    found = parse_json(json.dumps([math.nan, math.inf, -math.inf]), "a.json")
    assert math.isnan(found[0]) and found[1:] == [math.inf, -math.inf]


@given(VALUES)
def test_what_python_writes_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), "a") == value


@given(st.binary(max_size=60) | st.text('[]{}",:0123456789eE+-.\\untrefalsN ', max_size=40).map(str.encode))
def test_any_bytes_are_a_value_or_a_user_error(content: bytes) -> None:
    try:
        parse_json(content, "a.json")
    except UserError as error:
        assert str(error).startswith("a.json is not a readable json file (")
