"""A folder is there whole or not at all."""

from pathlib import Path

from kdrun.runs.folders import remove_folder, remove_leftovers, replace_folder


def fill(folder: Path, text: str) -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text(text)
    return folder


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for text in ("one", "two"):
        replace_folder(fill(tmp_path / ".student.tmp", text), tmp_path / "student")
        assert (tmp_path / "student" / "inner" / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_folder_is_removed_and_leftovers_are_but_nothing_else(tmp_path: Path) -> None:
    remove_folder(fill(tmp_path / "gone", ""))
    for name in (".a.tmp", ".b.old", ".c", "d.tmp"):
        fill(tmp_path / name, "")
    (tmp_path / ".run.json.7.tmp").write_text("{")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c", "d.tmp"]
