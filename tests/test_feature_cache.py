"""The cache of spatial embeddings on disk: the same as memory, whatever happens to the processes, files and disks."""

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from zsmld.datasets import Scenes, build_dataset, dense_targets
from zsmld.datasets.loader import load_batches
from zsmld.features import FeatureCache, FeatureDataset, MappedEmbeddings
from zsmld.features.hashing import image_hash
from zsmld.features.shards import ShardFolder
from zsmld.images import ImageEncoder, ImageTransform

IMAGE_BYTES = 4 * 96 * 2 + 32  # test_resnet at 64 px in fp16, and the hash
WORDS = ("dog", "cat", "red car", "beach", "boat", "tree")  # of the fixture `photos`
forks = pytest.mark.skipif(sys.platform != "linux", reason="forks this process, torch and all: on Linux alone")


def make_encoder(seed: int = 0) -> ImageEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return make_encoder()


@pytest.fixture
def runs(encoder):
    """Number of images of each time that the encoder ran."""
    found: list[int] = []
    handle = encoder.register_forward_pre_hook(lambda _, arguments: found.append(len(arguments[0])))
    yield found
    handle.remove()


def cache_in(folder: Path, images_a_shard: int = 3, batch_size: int = 4, **options) -> FeatureCache:
    return FeatureCache(folder, batch_size=batch_size, shard_mebibytes=images_a_shard * IMAGE_BYTES / 2**20, **options)


def open_photos(folder: Path):
    """The 24 photos of the fixture `photos`."""
    return build_dataset("table", path=folder / "photos.csv", partition=folder / "partition.json")


def shards_of(cache: FeatureCache) -> list[Path]:
    return sorted(Path(cache.cache).glob("*/*.safetensors"))


def contents(cache: FeatureCache) -> dict[bytes, bytes]:
    """Image hash -> bytes of its embeddings, of every shard; each must be complete, and no image stand twice."""
    found: dict[bytes, bytes] = {}
    for path in shards_of(cache):
        tensors = load_file(path)
        for digest, embeddings in zip(tensors["hashes"], tensors["spatial_embeddings"], strict=True):
            key = digest.numpy().tobytes()
            assert key not in found
            found[key] = embeddings.view(torch.uint8).numpy().tobytes()
    return found


def assert_same(ours: FeatureDataset, theirs: FeatureDataset) -> None:
    """The same images with the same bits."""
    assert ours.ids == theirs.ids and ours.unreadable == theirs.unreadable and ours.vocabulary == theirs.vocabulary
    assert (ours.name, ours.split, ours.missing) == (theirs.name, theirs.split, theirs.missing)
    np.testing.assert_array_equal(dense_targets(ours), dense_targets(theirs))
    assert torch.equal(ours.spatial_embeddings.float(), theirs.spatial_embeddings.float())


# --------------------------------------------------------------------------------------------------- disk is memory


@pytest.mark.parametrize(
    ("dtype", "stored", "rounding"),
    [("fp16", torch.float16, 2**-11), ("bf16", torch.bfloat16, 2**-8), ("fp32", torch.float32, 0)],
)
def test_disk_holds_what_memory_holds_and_rounds_as_the_dtype_does(photos, encoder, tmp_path, dtype, stored, rounding):
    dataset = open_photos(photos)
    memory = FeatureCache(dtype=dtype, batch_size=5).extract(encoder, dataset, device="cpu")
    full = FeatureCache(dtype="fp32", batch_size=5).extract(encoder, dataset, device="cpu").spatial_embeddings
    for _ in range(2):  # made, and opened
        disk = cache_in(tmp_path / "cache", dtype=dtype, batch_size=5).extract(encoder, dataset, device="cpu")
        assert_same(disk, memory)
        embeddings = disk.spatial_embeddings
        assert isinstance(embeddings, MappedEmbeddings) and isinstance(memory.spatial_embeddings, torch.Tensor)
        assert embeddings.shape == tuple(memory.spatial_embeddings.shape) == (24, 4, 96)
        assert embeddings.dtype == embeddings[0].dtype == memory.spatial_embeddings.dtype == stored
        assert_close(embeddings.float(), full, rtol=rounding, atol=1e-6 if rounding else 0)
        assert disk[3]["spatial_embeddings"].dtype == torch.float32
        assert repr(disk) == repr(memory)


@pytest.mark.parametrize(("batch_size", "images_a_shard"), [(1, 3), (7, 1), (64, 5), (64, 100)])
def test_sizes_of_batches_and_shards_change_the_last_bits_only(photos, encoder, tmp_path, batch_size, images_a_shard):
    dataset = open_photos(photos)
    cache = cache_in(tmp_path / "cache", images_a_shard, batch_size, dtype="fp32")
    alone = FeatureCache(batch_size=1, dtype="fp32").extract(encoder, dataset, device="cpu")
    found = cache.extract(encoder, dataset, device="cpu")
    assert_close(found.spatial_embeddings.float(), alone.spatial_embeddings, atol=1e-5, rtol=1e-5)
    limit = max(cache.shard_mebibytes * 2**20, 2 * IMAGE_BYTES)
    assert all(sum(t.nbytes for t in load_file(path).values()) <= limit for path in shards_of(cache))


def test_the_order_of_images_changes_nothing(photos, encoder, tmp_path):
    dataset = open_photos(photos)
    lines = (photos / "photos.csv").read_text().splitlines()
    (photos / "photos.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    backwards = open_photos(photos)
    assert [str(i) for i in backwards.ids] == [str(i) for i in dataset.ids][::-1]
    one = cache_in(tmp_path / "one").extract(encoder, dataset, device="cpu")
    two = cache_in(tmp_path / "two").extract(encoder, backwards, device="cpu")
    assert torch.equal(one.spatial_embeddings.float(), two.spatial_embeddings.float().flip(0))
    assert contents(cache_in(tmp_path / "one")) == contents(cache_in(tmp_path / "two"))


def test_random_numbers_of_the_caller_are_not_touched(photos, encoder, tmp_path):
    """Else a head trained after a full cache would differ from one trained after an empty one."""
    before = torch.get_rng_state()
    for cache in (FeatureCache(), cache_in(tmp_path / "cache"), cache_in(tmp_path / "cache")):
        cache.extract(encoder, open_photos(photos), device="cpu")
        assert torch.equal(torch.get_rng_state(), before)


def test_the_encoder_gets_its_mode_back_even_after_an_error(photos, tmp_path):
    encoder = make_encoder().train()
    cache_in(tmp_path / "cache").extract(encoder, open_photos(photos), device="cpu")
    assert encoder.training and encoder.body.training
    (photos / "photos.csv").write_text("image,labels\n000.png,dog\n")
    with torch.no_grad():
        next(encoder.body.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="must be finite"):
        cache_in(tmp_path / "cache").extract(encoder, Scenes("test", 3), device="cpu")
    assert encoder.training and encoder.body.training


class Nothing:
    """A dataset none of whose images can be read."""

    name, split, missing = "nothing", "test", 0

    def __len__(self):
        return 3

    def __getitem__(self, row):
        raise ValueError(f"cannot decode {row}")


# ------------------------------------------------------------------------------------------------------------- reuse


def test_a_full_cache_runs_no_encoder_decodes_no_image_and_writes_nothing(photos, encoder, runs, tmp_path, monkeypatch):
    dataset = open_photos(photos)
    first = cache_in(tmp_path / "cache").extract(encoder, dataset, device="cpu")
    assert len(runs) == 6
    monkeypatch.setattr("zsmld.datasets.index.load_image", lambda path: pytest.fail(f"decoded {path}"))
    monkeypatch.setattr(ShardFolder, "write", lambda *_: pytest.fail("written"))
    assert_same(cache_in(tmp_path / "cache").extract(encoder, dataset, device="cpu"), first)
    assert_same(cache_in(tmp_path / "cache").extract(make_encoder(), open_photos(photos), device="cpu"), first)
    assert len(runs) == 6


def test_an_image_is_known_by_its_content(photos, encoder, runs, tmp_path):
    """Under another name, twice, or in another dataset it is the same; changed, under the same name, it is another."""
    cache, images = cache_in(tmp_path / "cache", batch_size=1), photos / "images"
    first = cache.extract(encoder, open_photos(photos), device="cpu")
    assert len(runs) == 24
    other = photos.parent / "others"
    (other / "images").mkdir(parents=True)
    shutil.copy(photos / "partition.json", other)
    names = {"a.png": "003.png", "b.png": "003.png", "c.png": "017.png"}
    for name, original in names.items():
        shutil.copy(images / original, other / "images" / name)
    Image.new("RGB", (40, 48), "teal").save(other / "images" / "new.png")
    (other / "photos.csv").write_text(
        "image,labels\n" + "".join(f"{name},{'|'.join(WORDS)}\n" for name in [*names, "new.png"])
    )
    second = cache.extract(encoder, open_photos(other), device="cpu")
    assert len(runs) == 25
    assert second.ids == ["a.png", "b.png", "c.png", "new.png"]
    for row, original in enumerate(names.values()):
        assert torch.equal(second.spatial_embeddings[row], first.spatial_embeddings[first.ids.index(original)])

    shutil.copy(images / "000.png", images / "005.png")  # changed, but to an image that is there
    Image.new("RGB", (40, 48), "olive").save(images / "006.png")
    third = cache.extract(encoder, open_photos(photos), device="cpu")
    assert len(runs) == 26
    changed = [i for i in range(24) if not torch.equal(third.spatial_embeddings[i], first.spatial_embeddings[i])]
    assert [third.ids[i] for i in changed] == ["005.png", "006.png"]
    assert torch.equal(third.spatial_embeddings[5], third.spatial_embeddings[0])
    assert_same(third, FeatureCache(batch_size=1).extract(encoder, open_photos(photos), device="cpu"))


def test_two_splits_share_a_cache(photos, encoder, runs, tmp_path):
    def split(name):
        options = {"partition": photos / "partition.json", "split": name, "val_fraction": 0.5}
        return build_dataset("table", path=photos / "photos.csv", **options)

    cache = cache_in(tmp_path / "cache", batch_size=1)
    parts = [cache.extract(encoder, split(name), device="cpu") for name in ("train", "val", "train")]
    assert parts[0].split == "train" and parts[1].split == "val" and len(runs) == len(parts[0]) + len(parts[1])
    assert_same(parts[0], parts[2])
    assert not set(parts[0].ids) & set(parts[1].ids)


def test_each_encoder_transform_and_dtype_has_embeddings_of_its_own(photos, encoder, tmp_path):
    dataset, cache = open_photos(photos), cache_in(tmp_path / "cache")
    first = cache.extract(encoder, dataset, device="cpu")
    other_weights = make_encoder(seed=1)
    nudged = make_encoder()
    with torch.no_grad():
        next(nudged.parameters())[0, 0, 0, 0] += 1e-4
    other_transform = make_encoder()
    other_transform.transform = ImageTransform(64, resize="crop")
    for number, changed in enumerate((other_weights, nudged, other_transform), 2):
        found = cache.extract(changed, dataset, device="cpu")
        assert_same(found, FeatureCache(batch_size=4).extract(changed, dataset, device="cpu"))
        assert len(list((tmp_path / "cache").iterdir())) == number
    cache_in(tmp_path / "cache", dtype="bf16").extract(encoder, dataset, device="cpu")
    assert len(list((tmp_path / "cache").iterdir())) == 5
    assert_same(cache.extract(make_encoder(), dataset, device="cpu"), first)
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_the_manifest_says_what_a_folder_is_of(photos, encoder, tmp_path):
    cache = cache_in(tmp_path / "cache")
    cache.extract(encoder, open_photos(photos), device="cpu")
    (path,) = (tmp_path / "cache").glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    assert manifest["format"] == 1 and manifest["dtype"] == "fp16" and manifest["spatial_embeddings"] == [4, 96]
    assert manifest["image_encoder"] == json.loads(json.dumps(encoder.config()))
    assert len(manifest["weights"]) == 64 and "torch" in manifest["versions"]
    with safe_open(shards_of(cache)[0], framework="pt") as file:  # any reader of safetensors reads a shard
        assert sorted(file.keys()) == ["hashes", "spatial_embeddings"]


def test_images_without_a_file_are_known_by_their_pixels(encoder, runs, tmp_path):
    cache = cache_in(tmp_path / "cache", batch_size=1)
    assert_same(
        cache.extract(encoder, Scenes("test", 5), device="cpu"),
        FeatureCache(batch_size=1).extract(encoder, Scenes("test", 5), device="cpu"),
    )
    runs.clear()
    cache.extract(encoder, Scenes("test", 6), device="cpu")
    assert len(runs) == 1
    palette = Image.new("P", (4, 4))
    palette.putpalette([255, 0, 0])
    recoloured = palette.copy()
    recoloured.putpalette([0, 255, 0])
    hashes = [image_hash(image) for image in (palette, recoloured, palette.convert("RGB"), palette.resize((2, 8)))]
    assert hashes[0] == hashes[2] and len(set(hashes)) == 3
    zeros = torch.zeros(3, 2, 4)
    assert len({image_hash(t) for t in (zeros, zeros.half(), zeros.view(3, 4, 2), zeros + 1, zeros.clone())}) == 4


# -------------------------------------------------------------------------------------------------- unreadable images


def test_unreadable_images_are_listed_as_in_memory_and_tried_again(photos, encoder, runs, tmp_path):
    dataset, images = open_photos(photos), photos / "images"
    (images / "000.png").write_bytes(b"no picture")
    (images / "008.png").write_bytes(b"no picture")  # the same content: tried once, listed twice
    original = (images / "013.png").read_bytes()
    (images / "013.png").write_bytes(original[:200])
    (images / "020.png").unlink()
    cache = cache_in(tmp_path / "cache")
    memory = FeatureCache(batch_size=4).extract(encoder, dataset, device="cpu")
    disk = cache.extract(encoder, dataset, device="cpu")
    assert [image_id for image_id, _ in disk.unreadable] == ["000.png", "008.png", "013.png", "020.png"]
    assert [error for _, error in disk.unreadable[2:]] == [error for _, error in memory.unreadable[2:]]
    assert disk.unreadable[0][1] == memory.unreadable[0][1] and "not found: " in disk.unreadable[3][1]
    assert disk.ids == memory.ids and len(disk) == 20
    assert torch.equal(disk.spatial_embeddings.float(), memory.spatial_embeddings.float())
    assert len(contents(cache)) == 20
    runs.clear()
    assert_same(cache.extract(encoder, dataset, device="cpu"), disk)
    assert not runs
    (images / "013.png").write_bytes(original)
    repaired = cache.extract(encoder, dataset, device="cpu")
    assert len(repaired) == 21 and len(runs) == 1 and "013.png" in repaired.ids


def test_no_readable_image_at_all_is_an_error(encoder, tmp_path):
    with pytest.raises(ValueError, match="must have readable images, none could be read; first: cannot decode 0"):
        FeatureCache(tmp_path).extract(encoder, Nothing(), device="cpu")


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_what_the_dtype_cannot_hold_is_never_kept(photos, tmp_path, where):
    encoder = make_encoder()
    with torch.no_grad():
        for parameter in encoder.body.parameters():
            parameter *= 30
    cache = FeatureCache() if where == "memory" else cache_in(tmp_path / "cache")
    message = r"must be finite in torch.float16, got NaN or infinity first for image 0\d\d\.png; use a dtype of larger"
    with pytest.raises(ValueError, match=message):
        cache.extract(encoder, open_photos(photos), device="cpu")
    assert not shards_of(cache)
    wide = FeatureCache(cache.cache, dtype="bf16").extract(encoder, open_photos(photos), device="cpu")
    assert torch.isfinite(wide.spatial_embeddings.float()).all()


# ------------------------------------------------------------------------------------------------- killed, and others


def run_in_child(work: Callable[[], None]) -> "multiprocessing.process.BaseProcess":
    """Start work in a fork of this process: no imports to wait for, and it may be killed."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def check_resumed(cache: FeatureCache, encoder, dataset, uninterrupted: FeatureDataset) -> None:
    """After kills: every shard is complete, the rest is made, and all is as if nothing had happened."""
    assert set(contents(cache)) <= {image_hash_of(path) for path in (dataset.root).iterdir()}
    assert_same(cache.extract(encoder, dataset, device="cpu"), uninterrupted)
    assert len(contents(cache)) == 24
    left = [path.name for path in Path(cache.cache).glob("*/*") if path.suffix != ".safetensors"]
    assert sorted(left) == [".lock", "manifest.json"]


def image_hash_of(path: Path) -> bytes:
    return hashlib.blake2b(path.read_bytes(), digest_size=32).digest()


@forks
@pytest.mark.parametrize("moment", ["half written", "before its rename", "after its rename"])
@pytest.mark.parametrize("number", [1, 2, 5])  # the first file is the manifest
def test_killed_at_any_write_and_resumed(photos, encoder, tmp_path, monkeypatch, moment, number):
    dataset, cache = open_photos(photos), cache_in(tmp_path / "cache")
    uninterrupted = FeatureCache(batch_size=4).extract(encoder, dataset, device="cpu")
    count, fsync, replace = [0], os.fsync, os.replace

    def die_at(this: str) -> None:
        if moment == this and count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_fsync(descriptor: int) -> None:
        count[0] += 1
        if moment == "half written" and count[0] == number:
            os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
        die_at("half written")
        fsync(descriptor)

    def dying_replace(source, target) -> None:
        die_at("before its rename")
        replace(source, target)
        die_at("after its rename")

    def work() -> None:
        os.fsync, os.replace = dying_fsync, dying_replace
        cache.extract(encoder, dataset, device="cpu")

    child = run_in_child(work)
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(shards_of(cache)) == max(0, number - 2) + (moment == "after its rename" and number > 1)
    check_resumed(cache, encoder, dataset, uninterrupted)


@forks
def test_killed_at_random_moments_and_resumed(photos, encoder, tmp_path):
    dataset, cache = open_photos(photos), cache_in(tmp_path / "cache", images_a_shard=1, batch_size=2)
    uninterrupted = FeatureCache(batch_size=2).extract(encoder, dataset, device="cpu")

    def work() -> None:
        cache.extract(encoder, dataset, device="cpu")

    started = time.perf_counter()
    run_in_child(work).join(60)
    seconds = time.perf_counter() - started
    rng = np.random.default_rng(0)
    for _ in range(2):
        shutil.rmtree(cache.cache)
        killed = 0
        while killed < 4:  # each goes on where the one before was killed
            child = run_in_child(work)
            time.sleep(rng.uniform(0, seconds))
            child.kill()
            child.join(60)
            contents(cache)
            if child.exitcode == -signal.SIGKILL:
                killed += 1
            else:  # it was done before: the first run was slow
                assert child.exitcode == 0
                seconds /= 2
                shutil.rmtree(cache.cache)
        check_resumed(cache, encoder, dataset, uninterrupted)


def test_after_a_kill_only_what_is_missing_is_encoded_in_batches_of_the_same_size(photos, encoder, runs, tmp_path):
    """Kernels are chosen by the size of a batch: MobileNetV2's last bits differ between sizes."""
    cache = cache_in(tmp_path / "cache", images_a_shard=3, batch_size=4)
    expected = FeatureCache(batch_size=4).extract(encoder, open_photos(photos), device="cpu")
    cache.extract(encoder, open_photos(photos), device="cpu")
    for path in shards_of(cache)[2:4]:
        path.unlink()
    assert set(runs) == {4}
    runs.clear()
    assert_same(cache.extract(encoder, open_photos(photos), device="cpu"), expected)
    assert runs == [4, 4]  # of which 6 were missing
    runs.clear()
    FeatureCache().extract(encoder, Scenes("test", 3), device="cpu")
    assert runs == [3]  # a small dataset is one batch, not filled up


def test_leftovers_go_unless_someone_is_writing_them(photos, encoder, tmp_path):
    fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks: leftovers stay")
    cache = cache_in(tmp_path / "cache")
    cache.extract(encoder, open_photos(photos), device="cpu")
    (folder,) = (tmp_path / "cache").iterdir()
    leftover = folder / "1.safetensors.0.tmp"
    for held in (True, False):
        leftover.write_bytes(b"half")
        shards_of(cache)[0].unlink()
        with (folder / ".lock").open("a") as lock:
            if held:
                fcntl.flock(lock, fcntl.LOCK_SH)  # as another process has it that is writing
            assert len(cache.extract(encoder, open_photos(photos), device="cpu")) == 24
        assert leftover.exists() == held


@forks
def test_processes_that_write_at_once_do_no_harm(photos, encoder, tmp_path):
    dataset, cache = open_photos(photos), cache_in(tmp_path / "cache")
    expected = FeatureCache(batch_size=4).extract(encoder, dataset, device="cpu")

    def work() -> None:
        assert_same(cache.extract(encoder, dataset, device="cpu"), expected)

    children = [run_in_child(work) for _ in range(3)]
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert_same(cache.extract(encoder, dataset, device="cpu"), expected)
    assert not list((tmp_path / "cache").glob("*/*.tmp"))


@forks
@pytest.mark.parametrize("shared", [True, False])
def test_processes_of_one_training_share_the_work(photos, encoder, runs, tmp_path, shared):
    """Also where each has a disk of its own: then each does what it cannot see."""
    dataset = open_photos(photos)
    (photos / "images" / "007.png").write_bytes(b"no picture")
    (photos / "images" / "012.png").unlink()
    expected = FeatureCache(batch_size=4).extract(encoder, dataset, device="cpu")

    def work(rank: int) -> None:
        runs.clear()
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=rank, world_size=2)
        cache = cache_in(tmp_path / ("cache" if shared else f"cache {rank}"))
        found = cache.extract(encoder, dataset, device="cpu")
        ours = len(runs)
        assert_same(found, expected)
        assert_same(cache.extract(encoder, dataset, device="cpu"), expected)
        assert ours == len(runs) == (3 if shared else 6)  # 23 files, 2 processes, batches of 4
        dist.destroy_process_group()

    children = [run_in_child(lambda rank=rank: work(rank)) for rank in range(2)]
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]


# ------------------------------------------------------------------------------------------------------------- damage


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def reshape(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors | {"spatial_embeddings": tensors["spatial_embeddings"].flatten(1)}, path)


def lose_a_row(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors | {"hashes": tensors["hashes"][1:].clone()}, path)


def lose_the_hashes(path: Path) -> None:
    save_file({"spatial_embeddings": load_file(path)["spatial_embeddings"]}, path)


def change_the_dtype(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors | {"spatial_embeddings": tensors["spatial_embeddings"].bfloat16()}, path)


@pytest.mark.parametrize(
    "damage", [truncate, lengthen, empty, zero, reshape, lose_a_row, lose_the_hashes, change_the_dtype]
)
def test_a_damaged_shard_is_set_aside_and_made_again(photos, encoder, runs, tmp_path, damage):
    cache, dataset = cache_in(tmp_path / "cache"), open_photos(photos)
    cache.extract(encoder, dataset, device="cpu")
    expected = FeatureCache(batch_size=4).extract(encoder, dataset, device="cpu")
    path = shards_of(cache)[3]
    damage(path)
    runs.clear()
    with pytest.warns(UserWarning, match=rf"{path.name} must be a complete shard, it is damaged: .*; its images are"):
        found = cache.extract(encoder, dataset, device="cpu")
    assert_same(found, expected)
    assert len(runs) == 1 and len(contents(cache)) == 24
    assert [p.name for p in path.parent.glob("*.damaged")] == [f"{path.name}.damaged"]
    assert_same(cache.extract(encoder, dataset, device="cpu"), expected)  # and no second warning


# ---------------------------------------------------------------------------------------------------------- full disk


@pytest.mark.parametrize(("number", "code"), [(1, errno.ENOSPC), (2, errno.EDQUOT), (4, errno.ENOSPC)])
def test_a_full_disk_stops_with_where_and_how_much_and_loses_nothing(
    photos, encoder, runs, tmp_path, monkeypatch, number, code
):
    dataset, cache, count, fsync = open_photos(photos), cache_in(tmp_path / "cache"), [0], os.fsync
    expected = FeatureCache(batch_size=4).extract(encoder, dataset, device="cpu")

    def full(descriptor: int) -> None:
        count[0] += 1
        if count[0] >= number:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="cache must have room for") as caught:
            cache.extract(encoder, dataset, device="cpu")
    saved = 3 * max(0, number - 2)  # the first file is the manifest
    (folder,) = (tmp_path / "cache").iterdir()
    message = str(caught.value)
    assert caught.value.errno == code and f"{folder} has " in message and os.strerror(code) in message
    assert f"{(24 - saved) * IMAGE_BYTES:,} more bytes ({24 - saved} images)" in message
    assert message.endswith("make room there and run it again, what was saved stays and is used")
    assert len(contents(cache)) == saved and not list(folder.glob("*.tmp"))
    runs.clear()
    assert_same(cache.extract(encoder, dataset, device="cpu"), expected)
    assert len(runs) == -(-(24 - saved) // 4)


def test_a_disk_that_is_too_small_is_refused_before_the_encoder_runs(photos, encoder, runs, tmp_path, monkeypatch):
    cache, dataset = cache_in(tmp_path / "cache"), open_photos(photos)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=24 * IMAGE_BYTES - 1))
    with pytest.raises(OSError, match=rf"room for {24 * IMAGE_BYTES:,} more bytes \(24 images\), .* has 19,199 free"):
        cache.extract(encoder, dataset, device="cpu")
    assert not runs and not (tmp_path / "cache").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=24 * IMAGE_BYTES))
    cache.extract(encoder, dataset, device="cpu")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert len(cache.extract(encoder, dataset, device="cpu")) == 24  # nothing is missing


def test_a_cache_that_is_a_file_is_refused(photos, encoder):
    with pytest.raises(FileExistsError, match=r"cache must be a folder or 'memory', .*photos.csv is a file; choose"):
        FeatureCache(photos / "photos.csv").extract(encoder, open_photos(photos))


# ------------------------------------------------------------------------------------------------- what one gets of it


@pytest.fixture
def disk(photos, encoder, tmp_path) -> FeatureDataset:
    return cache_in(tmp_path / "cache").extract(encoder, open_photos(photos), device="cpu")


@pytest.fixture
def memory(photos, encoder) -> FeatureDataset:
    return FeatureCache(batch_size=4).extract(encoder, open_photos(photos), device="cpu")


def test_rows_are_selected_without_being_read(disk, memory):
    mask = np.arange(24) % 3 == 0
    for rows in ([5], [23, 0, 5, 5, -1], mask, np.array([], np.int64)):
        selected = disk.select(rows, split="val")
        assert isinstance(selected.spatial_embeddings, MappedEmbeddings) and not selected.spatial_embeddings._maps
        assert_same(selected, memory.select(rows, split="val"))
    assert_same(disk.select(mask).select([1, 0]), memory.select([3, 0]))
    ours, theirs = disk.batch([4, 23, 4]), memory.batch([4, 23, 4])
    assert torch.equal(ours["spatial_embeddings"], theirs["spatial_embeddings"]) and ours["ids"] == theirs["ids"]
    np.testing.assert_array_equal(ours["targets"], theirs["targets"])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_gives_what_it_gives_from_memory(disk, memory, num_workers):
    order = [3, 23, 0, 7, 3, 11, 20]
    disk[3]  # a map that is open already goes into the workers
    ours, theirs = (list(load_batches(d, None, 3, order, num_workers=num_workers)) for d in (disk, memory))
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs, strict=True):
        assert a.ids == b.ids and torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)
        assert a.inputs.dtype == torch.float32


def test_it_can_be_pickled_and_its_embeddings_stay_on_disk(disk):
    disk.spatial_embeddings.float()
    content = pickle.dumps(disk)
    assert len(content) < 24 * IMAGE_BYTES / 2
    assert_same(pickle.loads(content), disk)


@pytest.mark.skipif(sys.platform != "linux", reason="reads from /proc what is resident")
def test_opening_reads_no_embeddings(tmp_path):
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    folder, size = ShardFolder(tmp_path / "shards", (64, 1024), torch.float16), 512
    hashes = [number.to_bytes(32, "big") for number in range(size)]
    folder.add(hashes, torch.ones(size, 64, 1024, dtype=torch.float16))  # 64 MiB
    before = resident()
    embeddings = ShardFolder(tmp_path / "shards", (64, 1024), torch.float16).embeddings(hashes)
    assert embeddings[300].sum() == 64 * 1024 and len(embeddings[torch.arange(9)]) == 9
    assert resident() - before < 16


def test_an_index_out_of_range_is_refused(disk):
    for row in (24, -25):
        with pytest.raises(IndexError):
            disk[row]
        with pytest.raises(IndexError):
            disk.spatial_embeddings[row]
    assert torch.equal(disk[-1]["spatial_embeddings"], disk[23]["spatial_embeddings"])
    assert repr(disk.spatial_embeddings) == "MappedEmbeddings((24, 4, 96), torch.float16, 8 shards)"


def test_options_are_refused_all_at_once():
    with pytest.raises(ValueError, match=r"^FeatureCache options must make sense, got: ") as caught:
        FeatureCache("", "int8", 0, float("nan"))
    for problem in (
        "cache must be a folder or 'memory', got ''",
        "dtype must be 'fp16', 'bf16' or 'fp32', got 'int8'",
        "batch_size must be ≥ 1, got 0",
        "shard_mebibytes must be positive, got nan",
    ):
        assert problem in str(caught.value)
    assert FeatureCache() == FeatureCache("memory", "fp16", 64, 64.0)
