"""Where images come from: every source gives the same bytes, under names that a person can find."""

import csv
import io
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import webdataset

from contract.pixels import PixelSpec, load_pixels
from tests.training.tiny import write_photo, write_rows
from training.images import (
    MISSING,
    FileImages,
    UnreadableImage,
    digest_of,
    load_image,
    open_images,
)
from training.loading import PixelLoader

SPEC = PixelSpec(height=8, width=8, resize="squash", dtype="uint8")


def photos_of(folder: Path, names: tuple[str, ...]) -> list[bytes]:
    for seed, name in enumerate(names):
        write_photo(folder / name, (0.2 * seed, 0.5, 0.5), seed)
    return [(folder / name).read_bytes() for name in names]


def test_a_folder_is_read_by_sorted_path_and_only_its_images(tmp_path: Path) -> None:
    given = photos_of(tmp_path, ("n02/b.PNG", "n01/deep/a.png", "n01/z.png"))
    for other in ("n01/readme.txt", "n01/.hidden.png", ".cache/a.png"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("no image")
    images = open_images(str(tmp_path))
    assert list(images.names) == ["n01/deep/a.png", "n01/z.png", "n02/b.PNG"]
    assert [images.read(row) for row in range(3)] == [given[1], given[2], given[0]]
    assert images.labels == ("n01", "n01", "n02")
    assert images.sizes.tolist() == [len(images.read(row)) for row in range(3)]


def test_links_to_folders_are_followed_and_loose_files_mean_no_labels(tmp_path: Path) -> None:
    photos_of(tmp_path / "elsewhere", ("a.png",))
    photos_of(tmp_path / "data", ("loose.png",))
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    images = open_images(f"folder:{tmp_path / 'data'}")
    assert list(images.names) == ["linked/a.png", "loose.png"]
    assert images.labels is None


def test_a_manifest_is_read_in_its_order_with_its_labels(tmp_path: Path) -> None:
    given = photos_of(tmp_path, ("x/b.png", "a.png"))
    file = write_rows(tmp_path / "list.csv", [["label", "path"], ["dog", "x/b.png"], ["cat", "a.png"]])
    for images in (open_images(str(file)), open_images(f"csv:{file}")):
        assert [images.read(row) for row in range(2)] == given
        assert images.labels == ("dog", "cat")
    with file.open("a", newline="") as stream:
        csv.writer(stream).writerow(["fox", "gone.png"])
    assert open_images(str(file)).sizes[2] == MISSING


def test_a_manifest_without_paths_and_a_source_that_is_not_there_are_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "list.csv", [["file"], ["a.png"]])
    with pytest.raises(ValueError, match=r"list\.csv lacks the columns \['path'\]"):
        open_images(str(file))
    for source, said in {
        f"{tmp_path}/none": "is no folder and no CSV file",
        f"folder:{tmp_path}/none": "none is no folder",
        f"csv:{tmp_path}/none.csv": r"no manifest at .*none\.csv",
        str(tmp_path): "has no images",
    }.items():
        with pytest.raises(ValueError, match=said):
            open_images(source)


@pytest.fixture
def hub(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A data set with embedded images, saved with two splits."""
    given = photos_of(tmp_path / "files", ("a.png", "b.png", "c.png"))
    cells = [{"bytes": data, "path": f"{name}.png"} for data, name in zip(given, "abc", strict=True)]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = datasets.Dataset.from_dict({"image": cells, "label": [1, 0, 1]}, features=kinds)
    datasets.DatasetDict({"train": rows, "test": rows.select([2])}).save_to_disk(tmp_path / "saved")
    return tmp_path, given


def test_a_data_set_on_disk_gives_its_stored_bytes(hub: tuple[Path, list[bytes]]) -> None:
    folder, given = hub
    images = open_images(f"hf:{folder / 'saved'}:train")
    assert [images.read(row) for row in range(3)] == given
    assert images.names == ("a.png", "b.png", "c.png")
    assert images.labels == ("dog", "cat", "dog")
    assert images.sizes.tolist() == [len(data) for data in given]
    assert len(open_images(f"hf:{folder / 'saved'}:test")) == 1


def test_splits_and_columns_that_are_not_there_are_listed(hub: tuple[Path, list[bytes]]) -> None:
    saved = hub[0] / "saved"
    for source in (f"hf:{saved}", f"hf:{saved}:val"):
        with pytest.raises(ValueError, match=r"has the splits \['test', 'train'\]"):
            open_images(source)
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(hub[0] / "text")
    with pytest.raises(ValueError, match=r"has no image column; its columns are \['text'\]"):
        open_images(f"hf:{hub[0] / 'text'}")
    with pytest.raises(ValueError, match="cannot be opened"):
        open_images(f"hf:{hub[0] / 'nothing'}")


def test_a_folder_that_the_hub_library_reads_gives_its_files_and_names_one_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    given = photos_of(tmp_path / "data", ("cat/a.png", "dog/b.png", "dog/gone.png"))
    source = f"hf:{tmp_path / 'data'}"
    assert open_images(source).sizes.tolist() == [len(data) for data in given]
    (tmp_path / "data/dog/gone.png").unlink()
    rows = datasets.load_dataset(str(tmp_path / "data"), split="train")
    assert [open_images(source).read(row) for row in range(len(rows))] == given[:2]
    images = open_images(source)
    assert images.names == ("cat/a.png", "dog/b.png")
    assert images.labels == ("cat", "dog")
    (tmp_path / "data/dog/b.png").unlink()
    assert images.sizes[1] == len(given[1])  # as it was when the source was opened
    with pytest.raises(UnreadableImage, match=r"row 1 \(dog/b\.png\): no such file"):
        load_image(images, 1, SPEC)


def test_webdataset_shards_give_the_bytes_that_their_library_wrote(tmp_path: Path) -> None:
    given = photos_of(tmp_path / "files", tuple(f"{i}.png" for i in range(5)))
    with webdataset.ShardWriter(str(tmp_path / "s-%06d.tar"), maxcount=2, verbose=0) as writer:
        for i, data in enumerate(given):
            writer.write({"__key__": f"photo{i}", "png": data, "cls": i})
    images = open_images(f"wds:{tmp_path}/s-{{000000..000002}}.tar")
    assert images.names == tuple(f"photo{i}.png" for i in range(5))
    assert [images.read(row) for row in (4, 0, 3, 1, 2)] == [given[row] for row in (4, 0, 3, 1, 2)]
    assert images.where(3).endswith("s-000001.tar, photo3.png")


def test_broken_and_missing_shards_are_named(tmp_path: Path) -> None:
    data = photos_of(tmp_path / "files", ("a.png",))[0]
    for name, mode in (("whole.tar", "w"), ("packed.tar", "w:gz"), ("cut.tar", "w")):
        with tarfile.open(tmp_path / name, mode) as tar:
            for member in ("a.png", "b.png"):
                head = tarfile.TarInfo(member)
                head.size = len(data)
                tar.addfile(head, io.BytesIO(data))
    whole = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: 512 + len(data) // 2])
    for name in ("packed.tar", "cut.tar"):
        with pytest.raises(ValueError, match=rf"{name} is no whole, uncompressed tar file"):
            open_images(f"wds:{tmp_path}/whole.tar::{tmp_path}/{name}")
    with pytest.raises(ValueError, match=r"1 of 2 shards do not exist, the first is .*none\.tar"):
        open_images(f"wds:{tmp_path}/whole.tar::{tmp_path}/none.tar")


def test_the_digest_depends_on_names_order_and_sizes(tmp_path: Path) -> None:
    photos_of(tmp_path, ("a.png", "b.png"))
    digests = [digest_of(FileImages(tmp_path, names)) for names in (("a.png", "b.png"), ("b.png", "a.png"))]
    write_photo(tmp_path / "a.png", (1, 1, 1), seed=9)
    digests.append(digest_of(FileImages(tmp_path, ("a.png", "b.png"))))
    assert len(set(digests)) == 3
    assert digests[2] == digest_of(FileImages(tmp_path, ("a.png", "b.png"), labels=("x", "y")))


def test_a_photo_that_a_server_would_refuse_for_its_size_is_embedded(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (3, 5), (10, 20, 30)).save(tmp_path / "small.png")
    images = FileImages(tmp_path, ("small.png",))
    assert load_image(images, 0, SPEC)[:, 0, 0].tolist() == [10, 20, 30]
    with pytest.raises(ValueError, match="no side may be shorter"):
        load_pixels(images.read(0), SPEC)


def test_the_loader_keeps_what_fits_and_names_what_does_not_decode(tmp_path: Path) -> None:
    photos_of(tmp_path, ("a.png", "b.png"))
    images = FileImages(tmp_path, ("a.png", "b.png"))
    load = PixelLoader(images, SPEC, memory=8 * 8 * 3)  # room for one
    first = load(np.array([0, 1]))
    assert first.shape == (2, 3, 8, 8)
    assert np.array_equal(first[1], load_image(images, 1, SPEC))
    for name in images.names:
        (tmp_path / name).write_bytes(b"harmed")
    kept = [row for row in (0, 1) if _loads(load, row)]
    assert len(kept) == 1


def _loads(load: PixelLoader, row: int) -> bool:
    try:
        load(np.array([row]))
    except UnreadableImage as error:
        assert ("a.png", "b.png")[row] in str(error)
        return False
    return True
