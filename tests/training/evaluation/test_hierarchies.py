"""WordNet as a hierarchy: files in its own format, made here, and what they say of photos."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.training.evaluation.worlds import tiny_setting
from tests.training.tiny import write_rows
from training.evaluation.hierarchies import LEVELS, judged_hierarchy, read_hierarchy, read_nouns
from training.run import read_data

WORDS = {  # id: (word, count, hypernyms)
    "00004475": ("organism", 9, ()),
    "00015388": ("animal", 40, ("00004475",)),
    "02084071": ("dog", 42, ("00015388",)),
    "02084732": ("pooch", 0, ("02084071",)),
    "02085620": ("chihuahua", 1, ("02084071",)),
    "02121620": ("cat", 18, ("00015388",)),
    "04524313": ("vehicle", 8, ()),
    "03094503": ("container", 30, ()),
    "02958343": ("car", 71, ("04524313", "03094503")),
    "09999999": ("idea", 5, ()),
}


def write_wordnet(folder: Path) -> Path:
    folder.mkdir(parents=True)
    lines = ["  1 This is the licence."]
    for offset, (word, _, above) in WORDS.items():
        pointers = "".join(f"@ {one} n 0000 " for one in above)
        lines.append(f"{offset} 05 n 01 {word} 0 {len(above):03d} {pointers}| a gloss with | a bar")
    (folder / "data.noun").write_text("\n".join(lines) + "\n")
    counts = [f"{word}%1:05:00:: 1 {n}" for word, n, _ in WORDS.values() if n]
    (folder / "cntlist.rev").write_text("\n".join(counts) + "\n")
    return folder


def write_manifest(folder: Path, ids: list[str]) -> None:
    rows = [["path", "label", "wordnet_id"]]
    for i, one in enumerate(ids):
        Image.new("RGB", (4, 4)).save(folder / f"{i}.png")
        rows.append([f"{i}.png", one, one])
    write_rows(folder / "images.csv", rows)


def test_basic_is_the_commonest_word_below_the_category_and_the_first_category_counts(tmp_path: Path) -> None:
    nouns = read_nouns(write_wordnet(tmp_path / "wn"))
    assert (nouns.superordinate("n02085620"), nouns.basic("n02085620")) == ("animal", "n02084071")
    assert (nouns.superordinate("n02958343"), nouns.basic("n02958343")) == ("vehicle", "n02958343")
    assert (nouns.superordinate("n09999999"), nouns.basic("n09999999")) == ("", "")


def test_photos_have_the_levels_of_their_synsets_and_life(tmp_path: Path) -> None:
    write_wordnet(tmp_path / "wordnet")
    write_manifest(tmp_path, ["n02085620", "n02085620", "n02084732", "n02121620", "n02958343", "n09999999", ""])
    found = read_hierarchy(tmp_path)
    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    levels = found.level(np.zeros(4, np.int64), np.array([1, 2, 3, 4]))
    assert [LEVELS[k] for k in levels] == list(LEVELS)
    assert found.living.tolist() == [1, 1, 1, 1, 0]
    assert "1 photos of synsets outside its categories are left out, and 1 without a synset" in found.source


def test_files_that_are_not_wordnets_are_refused_by_line(tmp_path: Path) -> None:
    folder = write_wordnet(tmp_path / "wn")
    with (folder / "data.noun").open("a") as stream:
        stream.write("no such line\n")
    with pytest.raises(ValueError, match=r"data\.noun, line 12 is no line"):
        read_nouns(folder)
    (folder / "data.noun").write_text("00004475 05 n 01 organism 0 000 | of another version\n")
    read_nouns.cache_clear()
    with pytest.raises(ValueError, match=r"is not WordNet 3\.0"):
        read_nouns(folder)
    with pytest.raises(ValueError, match=r"has no data\.noun, cntlist\.rev"):
        read_nouns(tmp_path)


def test_photos_of_concepts_that_were_trained_on_are_left_out(tmp_path: Path) -> None:
    from dataclasses import replace

    setting = tiny_setting(tmp_path, one=0.0)
    held_out = np.array([0, 1, 2, 5])
    found, notes = judged_hierarchy(replace(setting, held_out=held_out))
    concept = read_data(setting.data).photos.concept
    assert set(concept[found.rows].tolist()) == set(held_out.tolist())
    assert len(found.rows) == len(found.classes) == len(found.above) == len(found.living)
    assert any("left out" in note for note in notes)
    assert set(found.living.tolist()) == {0, 1}  # animals and vehicles
