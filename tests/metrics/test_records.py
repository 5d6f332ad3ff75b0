import pickle
import zipfile

import numpy as np
import pytest

from posegen.metrics.records import read_records, write_records

RECORDS = {
    "id": ["mannequin/test/000000", 'odd, "name"', "007"],
    "people": [1.0, 2.0, float("nan")],
    "third": [0.1 + 0.2, 1 / 3, 1e-300],
    "scenario": ["1", "crowd", ""],
    "oks": [np.ones((2, 1)), np.zeros((0, 3)), np.arange(6.0).reshape(3, 2)],
    "features": [np.arange(4, dtype=np.float32) + i for i in range(3)],
}


def test_round_trip(tmp_path):
    write_records(tmp_path, RECORDS)
    found = read_records(tmp_path)
    assert found.keys() == RECORDS.keys()
    for name in ("id", "third", "scenario"):
        assert found[name] == RECORDS[name], name
    assert np.isnan(found["people"][2]) and found["people"][:2] == [1, 2]
    for name in ("oks", "features"):
        for ours, theirs in zip(found[name], RECORDS[name], strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and np.array_equal(ours, theirs)


def test_equal_records_give_equal_bytes(tmp_path, monkeypatch):
    write_records(tmp_path / "a", RECORDS)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 0, 0, 0, 0, 0, 0))
    write_records(tmp_path / "b", RECORDS)
    for name in ("records.csv", "features.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["features.npz", "records.csv"], (
        "temporary files are left"
    )


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    write_records(tmp_path, RECORDS)
    before = (tmp_path / "features.npz").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path, RECORDS | {"features": [np.zeros(4)] * 3})
    assert (tmp_path / "features.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_damage_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="records.csv is missing"):
        read_records(tmp_path)
    write_records(tmp_path, RECORDS)
    archive = tmp_path / "features.npz"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"features.npz cannot be read"):
        read_records(tmp_path)
    write_records(tmp_path, RECORDS)
    table = tmp_path / "records.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match="3 entries for 2 images"):
        read_records(tmp_path)


def test_never_unpickles(tmp_path):
    write_records(tmp_path, RECORDS)
    with zipfile.ZipFile(tmp_path / "features.npz", "a") as archive:
        header = (
            b"\x93NUMPY\x01\x00"
            + (118).to_bytes(2, "little")
            + b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117)
            + b"\n"
        )
        archive.writestr("evil.npy", header + pickle.dumps([print]))
    with pytest.raises(ValueError, match="allow_pickle"):
        read_records(tmp_path)


def test_refuses_what_is_no_set_of_records(tmp_path):
    with pytest.raises(ValueError, match="no 'id'"):
        write_records(tmp_path, {"people": [1.0]})
    with pytest.raises(ValueError, match="different lengths"):
        write_records(tmp_path, {"id": ["a", "b"], "people": [1.0]})
