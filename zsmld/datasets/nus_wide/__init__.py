"""NUS-WIDE: 269,648 photos with 1,000 user tags and 81 human-labelled concepts, in the layouts it is passed on in."""

from pathlib import Path
from typing import Literal, get_args

from zsmld.datasets.index import Index
from zsmld.datasets.nus_wide.ml_decoder import read_csv
from zsmld.datasets.nus_wide.official import read_lists
from zsmld.datasets.nus_wide.places import locate

Layout = Literal["auto", "official", "biam", "ml_decoder"]

# BiAM's lists of images, under the names of its repository and of its extraction script.
_PICKLED = {
    "train": ("img_names.pkl", "img_names_train_81.pkl"),
    "test": ("test_img_names.pkl", "img_names_test_81.pkl"),
}


def read_nus_wide(
    root: Path,
    problems: list[str],
    layout: Layout = "auto",
    images: str | Path | None = None,
    check_labels: bool = True,
    check_counts: bool = True,
) -> Index | None:
    """NUS-WIDE, 925/81: tags that are no concepts are seen, labelled by users; the concepts are unseen, by annotators.

    Which tags are seen is derived from the two lists: the 1,000 of TagList1k.txt without the 81 of Concepts81.txt,
    75 of which are tags too. Seen words stand first, in the order of TagList1k.txt, then the concepts in theirs. All
    images have both kinds of labels, so one index serves ZSL, GZSL (partition "925_81") and supervised learning of the
    concepts (partition "81").

    Layout of `root` as the official archives unpack, whatever the case of names, also below a folder `NUS-WIDE/`:

        NUS_WID_Tags/TagList1k.txt, AllTags1k.txt               1,000 tags; 269,648 lines of 1,000 digits and tabs
        ConceptsList/Concepts81.txt                             or Concepts81.txt beside the other folders
        Groundtruth/AllLabels/Labels_<concept>.txt              a digit a line, in the order of Imagelist.txt
        Groundtruth/TrainTestLabels/Labels_<concept>_Train.txt  and _Test.txt: only compared with AllLabels
        ImageList/Imagelist.txt, TrainImagelist.txt, TestImagelist.txt            lines as class\\0001_2124494179.jpg
        Flickr/<class>/0001_2124494179.jpg                      or one of the layouts of images below

    Layouts of images, of which the one with most of the listed images is used and named in the manifest, in the
    folders `Flickr/`, `images/`, `image/` or `root` itself: <class>/<number>_<Flickr id>.jpg, <number>_<Flickr id>.jpg,
    <Flickr id>.jpg, <Flickr id>_m.jpg, and Flickr's own <Flickr id>_<secret>_m.jpg, also with the row of Imagelist.txt,
    from 0, in front.

    layout="biam": the lists above, with the images of `test_img_names.pkl` (and `img_names.pkl`, for training, if it
    is there) in place of the official test and training lists. The pickles are read as plain data.

    layout="ml_decoder": `data.csv` (file path, words as [sky, clouds], "train" or "val") and `benchmark_81_v0.json`
    ({"test class": [...]}), nothing else. Its "val" images are the test images, as in that repository's training
    script. Partition "81" is left out if no training image has a concept.

    Image ids are the file names of the official list without ending, 0001_2124494179, with the class in front where
    two are alike; for ml_decoder those of the csv. Six Flickr ids stand in the official list twice, not always with
    the same entries: both rows are kept.

    Args:
        root: folder of the download.
        problems: receives everything that is wrong with it.
        layout: of the lists; "auto" takes the one that is there: ml_decoder if there is a `data.csv`, biam if there is
            a `test_img_names.pkl`, else official, also beside an `img_names.pkl`.
        images: folder of the images, if they are not in `root`.
        check_labels: TrainTestLabels, if there, must agree with AllLabels, image by image. One damaged value of the
            official archive, line 78,372 of Labels_lake_Train.txt, is known and only noted.
        check_counts: 269,648 images, 161,789 + 107,859, 1,000 tags and 81 concepts of the official names are
            expected; False for a subset. The csv of ml_decoder is only held to the names.

    Returns:
        The `Index`, or None if lists without which there are no rows are missing.

    Raises:
        ValueError: for an unknown layout.
        FileNotFoundError: if `images` does not exist. What is wrong with files becomes problems.

    Source: Chua et al., "NUS-WIDE: A Real-World Web Image Database from National University of Singapore", CIVR 2009.
    925/81: Zhang et al., "Fast Zero-Shot Image Tagging", CVPR 2016. Known damage and double ids:
    `data/nus_wide/README.md`.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout must be one of {list(get_args(Layout))}, got {layout!r}; choose one")
    folder = root if images is None else next((p for p in (Path(images), root / images) if p.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"images must be the folder of NUS-WIDE's images, not found: {images}; correct the path"
        )
    table, image_list = locate(root, "data.csv"), locate(root, "ImageList/Imagelist.txt", "Imagelist.txt")
    pickled = {
        split: file
        for split, names in _PICKLED.items()
        if (file := locate(root, *(f"{place}{name}" for place in ("", "features/") for name in names))) is not None
    }
    if layout == "auto" and table is not None and image_list is not None:
        problems.append(
            f"{root} must have the lists of one layout, it has {table.name} and {image_list.name}; pass "
            f"layout=ml_decoder or layout=official"
        )
        return None
    if layout == "auto":
        layout = "ml_decoder" if table is not None else "biam" if "test" in pickled else "official"
    if layout == "ml_decoder":
        return read_csv(root, folder, problems, check_counts)
    if layout == "biam" and "test" not in pickled:
        problems.append(
            f"{root} must have {_PICKLED['test'][0]} for layout=biam, it has not; copy it from BiAM's repository, or "
            f"pass layout=official"
        )
    return read_lists(root, folder, pickled if layout == "biam" else {}, problems, check_labels, check_counts)
