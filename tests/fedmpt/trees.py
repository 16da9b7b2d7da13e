"""Small data sets on disk, to the letter of the layouts in which public ones come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmpt.data.class_names import COCO_SEEN_48, COCO_UNSEEN_17, NUS_CONCEPTS

Labels = NDArray[np.int8]


def write_image(path: Path, shade: int) -> None:
    """Write an image that `shade_of` recognises; lossless whatever its suffix, which readers pass over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 0)).save(path, "PNG")


def shade_of(image: Image.Image) -> int:
    red, green, _ = image.getpixel((0, 0))  # type: ignore[misc]
    return int(red) + 256 * int(green)


def diagonal(n: int, C: int) -> Labels:
    """Row i has class i and class i + 1, each modulo C."""
    labels = np.zeros((n, C), dtype=np.int8)
    labels[np.arange(n), np.arange(n) % C] = 1
    labels[np.arange(n), (np.arange(n) + 1) % C] = 1
    return labels


def write_nus(root: Path, *, groundtruth: bool = True, concept_list: bool = True) -> Path:
    """Six training and four test images; images 2 of either split have no label."""
    lists, folder = root / "ImageList", root / "TrainTestLabels"
    if groundtruth:
        folder = root / "Groundtruth" / "TrainTestLabels"
    for path in (lists, folder, root / "ConceptsList"):
        path.mkdir(parents=True)
    if concept_list:
        text = "".join(f"{name}\r\n" for name in NUS_CONCEPTS)
        (root / "ConceptsList" / "Concepts81.txt").write_text(text, newline="")
    for part, n, first in (("Train", 6, 0), ("Test", 4, 100)):
        names = [f"actor\\{first + i:04d}_21244{i}.jpg" for i in range(n)]
        (lists / f"{part}Imagelist.txt").write_text("\r\n".join(names) + "\r\n", newline="")
        labels = diagonal(n, 81)
        labels[2] = 0
        for column, concept in enumerate(NUS_CONCEPTS):
            lines = "".join(f"{value}\n" for value in labels[:, column])
            (folder / f"Labels_{concept}_{part}.txt").write_text(lines)
        for i, name in enumerate(names):
            write_image(root / "Flickr" / name.replace("\\", "/"), first + i)
    return root


def write_named(path: Path, classes: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> None:
    """Write a list with named labels, a label repeated for every instance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [[name, [label for label in labels for _ in range(2)]] for name, labels in rows]
    path.write_text(json.dumps({"images": images, "classes": list(classes)}))


TAGS = tuple(f"tag_{i:03d}" for i in range(925))


def write_nus_named(root: Path, *, train_name: str = "train_925_filtered.json") -> Path:
    for i in range(3):
        write_image(root / "Flickr" / "actor" / f"{i:04d}.jpg", i)
    write_image(root / "Flickr" / "zoo" / "0000.jpg", 200)  # the same name in another folder
    foreign = "/home/somebody/NUS/Flickr/actor"
    folder = root / "annotations"
    write_named(folder / train_name, TAGS, [(f"{foreign}/0000.jpg", ["tag_001", "tag_924"])])
    write_named(
        folder / "test_81_filtered.json", NUS_CONCEPTS, [(f"{foreign}/0001.jpg", ["zebra"])]
    )
    write_named(
        folder / "test_1006_filtered.json",
        TAGS + NUS_CONCEPTS,
        [(f"{foreign}/0001.jpg", ["zebra", "tag_000"]), (f"{foreign}/0002.jpg", ["airport"])],
    )
    return root


def write_nus_arrays(root: Path) -> tuple[str, ...]:
    """Write the 925/81 split as arrays over 1,006 names with concepts among the tags; return the names."""
    names = TAGS[:500] + NUS_CONCEPTS + TAGS[500:]
    folder = root / "annotations" / "zsl"
    folder.mkdir(parents=True)
    (root / "annotations" / "Tag_all").mkdir()
    (root / "annotations" / "Tag_all" / "all_labels.txt").write_text("\n".join(names) + "\n")
    (folder / "cls_id.pickle").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    for part, suffix, first in (
        ("train", "all", 0),
        ("val", "all", 10),
        ("val_gzsl", "", 20),
    ):
        small = "_small" if part == "val_gzsl" else ""
        labels = np.zeros((2, 1006), dtype=np.int64)
        labels[0, [names.index("tag_000"), names.index("zebra")]] = 1
        labels[1, [names.index("tag_924"), names.index("airport")]] = 1
        middle = f"{suffix}_labels" if suffix else "labels"
        np.save(folder / f"formatted_{part}_{middle}_filtered{small}.npy", labels)
        images = np.array([f"{first + i:04d}.jpg " for i in range(2)])
        np.save(folder / f"formatted_{part}_images_filtered{small}.npy", images)
        for i in range(2):
            write_image(root / "images" / f"{first + i:04d}.jpg", first + i)
    return names


def write_coco_named(root: Path) -> Path:
    for folder, name, shade in (
        ("train2014", "COCO_train2014_000000000009.jpg", 9),
        ("val2014", "COCO_val2014_000000000042.jpg", 42),
        ("val2014", "COCO_val2014_000000000073.jpg", 73),
    ):
        write_image(root / folder / name, shade)
    lists = root / "annotations"
    both = COCO_SEEN_48 + COCO_UNSEEN_17
    train = [("/disk2/coco/train2014/COCO_train2014_000000000009.jpg", ["person", "zebra"])]
    cat = ("/disk2/coco/val2014/COCO_val2014_000000000042.jpg", ["cat"])
    mixed = ("/disk2/coco/val2014/COCO_val2014_000000000073.jpg", ["dog", "person"])
    write_named(lists / "train_48_filtered.json", COCO_SEEN_48, train)
    write_named(lists / "test_17_filtered.json", COCO_UNSEEN_17, [cat])
    write_named(lists / "test_65_filtered.json", both, [cat, mixed])
    return root


def write_coco_instances(root: Path, *, folder: str = "annotations") -> Path:
    """The 48/17 split as instances files: category ids of their own, images without annotations."""
    sources = (
        ("train2014_seen", COCO_SEEN_48, "train2014", [["person", "zebra"], []]),
        ("val2014_unseen", COCO_UNSEEN_17, "val2014", [["cat"], []]),
        ("val2014_gzsi", COCO_SEEN_48 + COCO_UNSEEN_17, "val2014", [["cat"], ["dog", "person"]]),
    )
    (root / folder).mkdir(parents=True)
    for name, classes, images, shown in sources:
        ids = {item: number for number, item in enumerate(sorted(classes), start=1)}
        first = 9 if images == "train2014" else 42
        content = {
            "images": [
                {"id": first + i, "file_name": f"COCO_{images}_{first + i:012d}.jpg"}
                for i in range(2)
            ],
            "categories": [{"id": number, "name": item} for item, number in ids.items()],
            "annotations": [
                {"id": 1, "image_id": first + i, "category_id": ids[item], "iscrowd": 0}
                for i, names in enumerate(shown)
                for item in names
            ],
        }
        (root / folder / f"instances_{name}_48_17.json").write_text(json.dumps(content))
        for i in range(2):
            write_image(root / images / f"COCO_{images}_{first + i:012d}.jpg", first + i)
    return root


MULTISCENE_COLUMNS = tuple(
    "Apron BaseballField BasketballField Beach Bridge Cemetery Commercial Farmland Woodland "  # noqa: SIM905
    "GolfCourse Greenhouse Helipad LakeorPond OilFiled Orchard ParkingLot Park Pier Port Quarry "
    "Railway Residential River Roundabout Runway SoccerField SolarPannel SparseShrub Stadium "
    "StorageTank TennisCourt TrainStation WastewaterPlant WindTrubine Works Sea".split()
)


def write_multiscene(root: Path) -> Path:
    for table, n, first in (("Tra.csv", 4, 0), ("Test.csv", 3, 50)):
        rows = [",".join(["", *MULTISCENE_COLUMNS])]
        for i, labels in enumerate(diagonal(n, 36).tolist()):
            rows.append(",".join([f"img_{first + i}", *map(str, labels)]))
            write_image(root / "images" / f"img_{first + i}.jpg", first + i)
        (root / table).write_text("\n".join(rows) + "\n")
    return root


MLRSNET_LABELS = tuple(
    (  # noqa: SIM905
        "airplane;airport;bare soil;baseball diamond;basketball court;beach;bridge;buildings;cars;"
        "chaparral;cloud;containers;crosswalk;dense residential area;desert;dock;factory;field;"
        "football field;forest;freeway;golf course;grass;greenhouse;gully;habor;intersection;island;"
        "lake;mobile home;mountain;overpass;park;parking lot;parkway;pavement;railway;"
        "railway station;river;road;roundabout;runway;sand;sea;ships;snow;snowberg;"
        "sparse residential area;stadium;swimming pool;tanks;tennis court;terrace;track;trail;"
        "transmission tower;trees;water;wetland;wind turbine"
    ).split(";")
)


def write_mlrsnet(root: Path, *, labels: str = "Labels", n: int = 10) -> Path:
    """Three categories of n images; two are spelt differently in folder, table and images."""
    spellings = (  # folder, table, image
        ("airport", "airport", "airport"),
        ("harbor_port", "harbor&port", "harbor&port"),
        ("swimmimg_pool", "swimming_pool", "swimming_pool"),
    )
    for number, (folder, table, image) in enumerate(spellings):
        rows = [",".join(["image", *MLRSNET_LABELS])]
        for i in range(n):
            present = [int(c in (number, 10 + i)) for c in range(60)]
            rows.append(",".join([f"{image}_{i + 1:05d}.jpg", *map(str, present)]))
            write_image(root / "Images" / folder / f"{folder}_{i + 1:05d}.jpg", 50 * number + i)
        (root / labels).mkdir(parents=True, exist_ok=True)
        (root / labels / f"{table}.csv").write_text("\n".join(rows) + "\n")
    return root


def write_table(folder: Path, classes: tuple[str, ...], images: list[Path]) -> Path:
    """Write ``labels.csv`` for images of a folder: the first trains, each has one class in turn; return the folder."""
    lines = [",".join(("image", "split", *classes))]
    for number, path in enumerate(images):
        labels = [str(int(number % len(classes) == column)) for column in range(len(classes))]
        lines.append(",".join((path.name, "train" if number == 0 else "test", *labels)))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder
