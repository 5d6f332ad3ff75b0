"""Files of prompts as people have them: text, json, json lines and csv; what cannot be used is one message."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from posegen.runner.user_requests.prompt_files import read_prompt_file

KEYPOINTS = [[float(i), 2.0 * i, 2.0] for i in range(17)]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize(
    "content",
    [
        "a dancer\na boxer, smiling\n",
        "\ufeffa dancer\r\n\r\n  a boxer, smiling  ",
        "a dancer\ra boxer, smiling\r",
        "a dancer\n\n\na boxer, smiling\n\n".encode("utf-16"),
    ],
)
def test_a_text_has_one_prompt_per_line(tmp_path: Path, content: str | bytes) -> None:
    rows = read_prompt_file(written(tmp_path, "prompts.txt", content))
    assert [row.prompt for row in rows] == ["a dancer", "a boxer, smiling"]
    assert all(row.name is None and row.poses is None and not row.source for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'id,caption,poses\nfirst,"a dancer, red",pose.json\nb/2.png,2024,\n'),
        ("p.csv", '\ufeffID;Text;Poses\r\nfirst;"a dancer, red";pose.json\r\nb/2.png;2024;\r\n'),
        ("p.tsv", "id\tprompt\tposes\nfirst\ta dancer, red\tpose.json\nb/2.png\t2024\t\n"),
        ("p.json", json.dumps([{"id": "first", "prompt": "a dancer, red", "poses": "pose.json"}, {"id": "b/2.png", "text": "2024"}])),
        ("p.json", json.dumps({"first": {"prompt": "a dancer, red", "poses": "pose.json"}, "b/2.png": "2024"})),
        ("p.jsonl", '{"id": "first", "prompt": "a dancer, red", "poses": "pose.json"}\n\n{"id": "b/2.png", "caption": "2024"}\n'),
    ],
)  # fmt: skip
def test_rows_have_names_and_poses(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / "pose.json").write_text("[]")
    first, second = read_prompt_file(written(tmp_path, name, content))
    assert (first.prompt, first.name, first.poses) == ("a dancer, red", "first", tmp_path / "pose.json")
    assert (second.prompt, second.name, second.poses) == ("2024", "b_2", None)


def test_keypoints_stand_in_the_file(tmp_path: Path) -> None:
    flat = [number for joint in KEYPOINTS for number in joint]
    entries = [{"prompt": "x", "keypoints": each} for each in (KEYPOINTS, [KEYPOINTS] * 2, flat)]
    rows = read_prompt_file(written(tmp_path, "p.json", json.dumps(entries)))
    assert [np.shape(row.poses) for row in rows] == [(1, 17, 3), (2, 17, 3), (1, 17, 3)]
    [row] = read_prompt_file(written(tmp_path, "p.csv", f'prompt,poses\nx,"{json.dumps(KEYPOINTS)}"\n'))
    assert np.array_equal(row.poses, [KEYPOINTS])  # type: ignore[arg-type]


def test_one_object_and_a_list_of_texts(tmp_path: Path) -> None:
    [row] = read_prompt_file(written(tmp_path, "p.jsonl", '{"prompt": "a dancer", "source": ["a.png", "b.png"]}\n'))
    assert (row.prompt, row.source) == ("a dancer", ("a.png", "b.png"))
    rows = read_prompt_file(written(tmp_path, "p.json", '["a dancer", "a boxer"]'))
    assert [row.prompt for row in rows] == ["a dancer", "a boxer"]


@pytest.mark.parametrize(
    ("id", "name"),
    [
        (7, "7"),
        ("con", "_con"),
        ("a:b", "a_b"),
        (" a. ", "a"),
        ("e\u0301.jpg", "\xe9"),
        ("v1.5", "v1.5"),
        ("../x", "_x"),
    ],
)
def test_an_id_names_a_picture_on_every_system(tmp_path: Path, id: str | int, name: str) -> None:
    [row] = read_prompt_file(written(tmp_path, "p.json", json.dumps([{"id": id, "prompt": "x"}])))
    assert row.name == name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", r"p.txt holds no prompt; expected a text with one prompt per line"),
        ("p.txt", "\n \r\n", "holds no prompt"),
        ("p.csv", "", "its first line names no column prompt"),
        ("p.csv", "id,prompt\n", "holds no prompt"),
        ("p.json", "[]", "holds no prompt"),
        ("p.json", "", "it is empty"),
        ("p.txt", "a café".encode("latin-1"), "p.txt: it is no text in UTF-8: byte 5 is 0xe9; an editor can save it"),
        ("p.txt", b"\x89PNG\r\n\x1a\n\x00\x00", "no text in UTF-8"),
        ("p.csv", "id,name\n1,x\n", "its first line names no column prompt"),
        ("p.csv", "id,prompt\n1,a dancer, red\n", "line 2 has 3 values for 2 columns; put a prompt with a comma between"),
        ("p.csv", "id,prompt\n1,x\n\n1,y\n", "line 2 and line 4 both name their picture 1; change one id"),
        ("p.json", '[{"id": "A.png", "prompt": "x"}, {"id": "a", "prompt": "y"}]', "entry 1 and entry 2 both name"),
        ("p.jsonl", '{"id": 1, "prompt": "x"}\n{"id": 1, "prompt": "y"}\n', "line 1 and line 2 both name"),
        ("p.jsonl", '{"id": 1, "prompt": "x"}\n{"id": 2,\n', "line 2 is not a readable json file"),
        ("p.json", '{"a": "x", "a": "y"}', "'a' is there twice in one object"),
        ("p.json", '[{"id": 1}]', "entry 1 has the prompt None; expected a text"),
        ("p.json", '[{"prompt": 5}]', "entry 1 has the prompt 5; expected a text"),
        ("p.json", '[{"prompt": "x", "text": "y"}]', "entry 1 has prompt and text; they mean the same"),
        ("p.json", '[["x"]]', "no text and no object"),
        ("p.json", '[{"prompt": "x", "id": "??"}, {"prompt": "y", "id": "**"}]', "both name their picture __"),
        ("p.json", '[{"prompt": "x", "id": ". ."}]', "expected 1 to 200 bytes that can name a file"),
        ("p.json", '[{"prompt": "x", "keypoints": [1, 2]}]', r"expected a file, or COCO keypoints \[17, 3\]"),
        ("p.json", '[{"prompt": "x", "source": 5}]', "has the source '5'; expected a file"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_said(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompt_file(written(tmp_path, name, content))


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        read_prompt_file(tmp_path)
    with pytest.raises(ValueError, match=r"nowhere\.csv: is missing"):
        read_prompt_file(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match=r"nowhere\.json is missing"):
        read_prompt_file(tmp_path / "nowhere.json")


def test_a_key_that_nothing_reads_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="poes is passed over; known are prompt, caption, text, id, poses"):
        read_prompt_file(written(tmp_path, "p.csv", "prompt,poes\nx,y\n"))
