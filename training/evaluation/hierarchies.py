"""Where photos belong: class, basic category, superordinate category, living or not.

Taken from the first of these that is there:

    DATA/hierarchy.csv     `label,basic,superordinate`, a row for each label of images.csv, `basic` may be empty; with
                           a column `living` of yes, no or nothing, where it has one
    WordNet                data.noun and cntlist.rev of WordNet 3.0, the version whose offsets ImageNet's ids are, in
                           the folder that is given or in DATA/wordnet/; the id is `wordnet_id` of images.csv, or else
                           of the photo's THINGS concept
    THINGS                 categories of things/concepts.csv: class = concept, superordinate = a category that two
                           concepts share, no basic level

The paper's own mapping of ImageNet onto WordNet categories is not published (Muttenthaler et al. 2025, "Hierarchy",
names seven superordinate categories). Here the superordinate category is the first of `SUPERORDINATE` above the class:
the paper's seven, then some for what these leave out. The basic level is the commonest word on the way up to it, the
class itself included: basic names are the ones people use (Brown 1958; Rosch et al. 1976); how common a word is, is
how often WordNet's authors met that sense in text (cntlist.rev). Photos without a superordinate category are left out.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.evaluation.concepts import concept_data
from training.evaluation.image_sets import manifest
from training.evaluation.result import NotHere, Setting
from training.images import Images
from training.tables import read_rows

WORDNET = ("data.noun", "cntlist.rev")
LEVELS = ("same class", "same basic", "same superordinate", "different")
SUPERORDINATE = {
    "animal": ("n00015388",),
    "clothing": ("n03051540",),
    "food": ("n00021265", "n07555863"),
    "furniture": ("n03405725",),
    "musical instrument": ("n03800933",),
    "sports equipment": ("n04285146",),
    "vehicle": ("n04524313",),
    "plant": ("n00017222",),
    "weapon": ("n04565375",),
    "tool": ("n04451818",),
    "electronic equipment": ("n03278248",),
    "building": ("n02913152",),
    "container": ("n03094503",),
}
"""Names and WordNet ids; the first that is above a class is its own. The first seven are the paper's."""
ORGANISM = "n00004475"
LIVING, UNSURE = {"animal", "bird", "insect", "plant"}, {"food", "fruit", "vegetable", "dessert", "drink", "body part"}
"""THINGS categories of living things, and those of which nobody can say."""
UNKNOWN = -1


@dataclass(frozen=True)
class Hierarchy:
    """Where photos belong.

    Attributes:
        images: all photos.
        rows: [k] of those that have a place.
        classes: [k] number of the class.
        basic: [k] number of the basic category, -1 for none.
        above: [k] names of the superordinate categories.
        living: [k] 1 for living things, 0 for others, -1 where it is not known.
        source: what it is taken from, in words.
    """

    images: Images
    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    basic: NDArray[np.int64]
    above: tuple[frozenset[str], ...]
    living: NDArray[np.int64]
    source: str

    def level(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.int64]:
        """Level [p], a position in `LEVELS`, of pairs of positions i and j."""
        alike = np.array([bool(self.above[a] & self.above[b]) for a, b in zip(i.tolist(), j.tolist(), strict=True)])
        basic = (self.basic[i] == self.basic[j]) & (self.basic[i] >= 0)
        return np.select([self.classes[i] == self.classes[j], basic, alike.astype(bool)], [0, 1, 2], 3)

    def select(self, kept: NDArray[np.bool_]) -> "Hierarchy":
        """Some of the photos that have a place, [k]."""
        above = tuple(names for names, mine in zip(self.above, kept.tolist(), strict=True) if mine)
        own = {name: getattr(self, name)[kept] for name in ("rows", "classes", "basic", "living")}
        return replace(self, above=above, **own)


def judged_hierarchy(setting: Setting) -> tuple[Hierarchy, list[str]]:
    """The hierarchy of the photos that may be judged, and notes on it.

    Where models come from a split, photos of concepts that alignment was trained on are left out.
    """
    found = read_hierarchy(setting.data, setting.wordnet)
    notes = [f"hierarchy: {found.source}."]
    if setting.held_out is not None:
        photos = concept_data(setting.data).photos
        if photos.names != tuple(found.images.names):
            return found, [*notes, "photos of all concepts, those that alignment was trained on too."]
        trained = np.setdiff1d(photos.concepts, setting.held_out)
        found = found.select(~np.isin(photos.concept[found.rows], trained))
        notes.append("photos of concepts that alignment was trained on are left out.")
    if len(set(found.classes.tolist())) < 2:
        raise NotHere("fewer than two classes with a place in the hierarchy may be judged")
    return found, notes


def read_hierarchy(data: Path, wordnet: Path | None = None) -> Hierarchy:
    """The hierarchy of a data folder, as the module docstring says.

    Args:
        data: folder.
        wordnet: folder of WordNet's files, which goes before DATA/wordnet; a given hierarchy.csv goes before both.

    Raises:
        NotHere: no hierarchy.csv, no WordNet ids and no THINGS concepts.
        ValueError: a label stands twice, or the files are not WordNet's.
    """
    if (data / "hierarchy.csv").is_file():
        return _given(data)
    folder = wordnet or (data / "wordnet" if (data / "wordnet").is_dir() else None)
    return _things(data) if folder is None else _from_wordnet(data, folder)


def _given(data: Path) -> Hierarchy:
    file = data / "hierarchy.csv"
    images, _, label = manifest(data / "images.csv")
    lines = read_rows(file, ("label", "basic", "superordinate"))
    table = {row["label"]: row for row in lines}
    if len(table) < len(lines):
        raise ValueError(f"{file}: {len(lines) - len(table)} labels stand twice.")
    try:
        living = {row["label"]: row["living"].strip().lower() for row in read_rows(file, ("label", "living"))}
    except ValueError:
        living = {}
    if odd := sorted({one for one in living.values() if one not in ("yes", "no", "")}):
        raise ValueError(f"{file}: living is {odd[0]!r}; expected yes, no or nothing.")
    rows = np.array([i for i, one in enumerate(label) if one in table], np.int64)
    own = [table[label[i]] for i in rows]
    return Hierarchy(
        images,
        rows,
        np.unique([row["label"] for row in own], return_inverse=True)[1],
        _numbers([row["basic"] for row in own]),
        tuple(frozenset({row["superordinate"]} - {""}) for row in own),
        np.array([{"yes": 1, "no": 0}.get(living.get(row["label"], ""), UNKNOWN) for row in own], np.int64),
        "hierarchy.csv",
    )


def _numbers(names: list[str]) -> NDArray[np.int64]:
    """A number for each name, -1 for an empty one."""
    number = {name: i for i, name in enumerate(sorted(set(names) - {""}))}
    return np.array([number.get(name, -1) for name in names], np.int64)


def _things(data: Path) -> Hierarchy:
    found = concept_data(data)
    concept = found.photos.concept
    above = {int(c): frozenset(found.categories[c] - {""}) for c in found.photos.concepts}
    rows = np.array([i for i, c in enumerate(concept.tolist()) if c >= 0 and above[c]], np.int64)
    if not len(rows):
        raise NotHere(f"{data} has no hierarchy.csv, no wordnet/, and no concept with a category")
    names = tuple(above[c] for c in concept[rows].tolist())
    living = [1 if own & LIVING else UNKNOWN if own & UNSURE else 0 for own in names]
    none = np.full(len(rows), -1)
    return Hierarchy(
        found.photos, rows, concept[rows], none, names, np.array(living), "THINGS categories, no basic level"
    )


# --- WordNet --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nouns:
    """WordNet's nouns, by id (n and the offset).

    Attributes:
        above: ids of the hypernyms, instances' included.
        name: first word.
        count: how often the commonest of its words was met in this sense.
    """

    above: dict[str, tuple[str, ...]]
    name: dict[str, str]
    count: dict[str, int]

    def ancestors(self, one: str) -> dict[str, int]:
        """Every synset above one, itself included, with the steps to it, nearest first."""
        steps, front = {one: 0}, [one]
        while front:
            following = []
            for synset in front:
                for higher in self.above.get(synset, ()):
                    if higher not in steps:
                        steps[higher] = steps[synset] + 1
                        following.append(higher)
            front = following
        return steps

    def superordinate(self, one: str) -> str:
        """Name of the first of `SUPERORDINATE` that is above; empty for none."""
        steps = self.ancestors(one)
        return next((name for name, ids in SUPERORDINATE.items() if any(i in steps for i in ids)), "")

    def basic(self, one: str) -> str:
        """Id of the commonest synset from the class up to below its superordinate category; empty for none.

        Of equally common ones, the nearest.
        """
        ids = SUPERORDINATE.get(self.superordinate(one), ())
        between = {
            synset: n
            for synset, n in self.ancestors(one).items()
            if synset not in ids and any(i in self.ancestors(synset) for i in ids)
        }
        best = max(between, key=lambda synset: (self.count[synset], -between[synset]), default="")
        return best if best and self.count[best] else ""


@cache
def read_nouns(folder: Path) -> Nouns:
    """Nouns of WordNet's data.noun, and their counts of cntlist.rev.

    Raises:
        ValueError: no such file, or a line that is none of WordNet's; it is named.
    """
    if absent := [name for name in WORDNET if not (folder / name).is_file()]:
        raise ValueError(f"{folder} has no {', '.join(absent)}; expected the files of WordNet 3.0.")
    met = _counts(folder / "cntlist.rev")
    nouns = Nouns({}, {}, {})
    file = folder / "data.noun"
    for number, line in enumerate(file.read_text(encoding="latin-1").splitlines()):
        if line.startswith("  "):  # the licence
            continue
        try:
            _read_noun(line, nouns, met)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{file}, line {number + 1} is no line of WordNet's data.noun.") from error
    if "dog" not in nouns.name.get("n02084071", ""):
        raise ValueError(f"{file} is not WordNet 3.0's: offset 02084071 is no dog, and ImageNet's ids are of 3.0.")
    return nouns


def _counts(file: Path) -> dict[str, int]:
    """Occurrences by sense key."""
    out = {}
    for number, line in enumerate(file.read_text(encoding="latin-1").splitlines()):
        parts = line.split()
        if len(parts) != 3 or not parts[2].isdecimal():
            raise ValueError(f"{file}, line {number + 1}: {line[:60]!r}; expected a sense key and two numbers.")
        out[parts[0]] = int(parts[2])
    return out


def _read_noun(line: str, nouns: Nouns, met: dict[str, int]) -> None:
    fields = line.partition("|")[0].split()
    one, file_number, words = f"n{int(fields[0]):08d}", fields[1], int(fields[3], 16)
    lemmas = [(fields[4 + 2 * i], int(fields[5 + 2 * i], 16)) for i in range(words)]
    at = 4 + 2 * words
    pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(fields[at]))]
    nouns.above[one] = tuple(f"n{target}" for kind, target, part, _ in pointers if kind in ("@", "@i") and part == "n")
    nouns.name[one] = lemmas[0][0]
    nouns.count[one] = max(met.get(f"{word.lower()}%1:{file_number}:{i:02d}::", 0) for word, i in lemmas)


def _from_wordnet(data: Path, folder: Path) -> Hierarchy:
    nouns = read_nouns(folder)
    images, _, _ = manifest(data / "images.csv")
    ids = _ids(data, len(images))
    rows, classes, basic, above, living = [], [], [], [], []
    known = sorted({one for one in ids if one in nouns.name})
    over = {one: name for one in known if (name := nouns.superordinate(one))}
    common = {one: nouns.basic(one) for one in over}
    alive = {one: 1 if ORGANISM in nouns.ancestors(one) else UNKNOWN if over[one] == "food" else 0 for one in over}
    for i, one in enumerate(ids):
        if one in over:
            rows.append(i)
            classes.append(one)
            basic.append(common[one])
            above.append(frozenset({over[one]}))
            living.append(alive[one])
    if not rows:
        raise NotHere(f"{data}/images.csv has no wordnet_id, and no concept with one, below the categories known here")
    numbers = np.unique(classes, return_inverse=True)[1]
    lost = sum(1 for one in ids if one) - len(rows)
    source = f"WordNet 3.0, {len(set(classes))} synsets; {lost} photos of synsets outside its categories are left out"
    if nameless := sum(1 for one in ids if not one):
        source += f", and {nameless} without a synset"
    return Hierarchy(images, np.array(rows), numbers, _numbers(basic), tuple(above), np.array(living, np.int64), source)


def _ids(data: Path, n: int) -> list[str]:
    """WordNet id of each photo, of the manifest or else of its concept; empty for none."""
    try:
        own = [row["wordnet_id"] for row in read_rows(data / "images.csv", ("wordnet_id",))]
    except ValueError:
        own = [""] * n
    try:
        concepts = [row["wordnet_id"] for row in read_rows(data / "things/concepts.csv", ("wordnet_id",))]
        number = concept_data(data).photos.concept
    except (ValueError, FileNotFoundError):
        return own
    return [one or (concepts[c] if c >= 0 else "") for one, c in zip(own, number.tolist(), strict=True)]
