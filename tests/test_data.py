"""Data sets: order, augmentation, windows, sweeps, and what happens to malformed input. The list of the latter was written before the code:

configuration: normalise, augment, tokenizer, order unknown; augment a text instead of a list; pad 0 with pad_crop; valid negative, below
the number of classes, above what is left; window 0, longer than the text; eval_columns 0; batch_size 0, more columns than tokens; splits
that are two, negative, without training part, of another sum; bpe without vocab_size or below 256; no path; resident with a
validation split and valid; mean of two numbers; pixel_mean or pad_crop for images that are streamed, resized_crop for resident ones.
files: missing without a network; MNIST cut off, not gzip, not idx, images without their labels; CIFAR-10 cut off, a label of 10, another
md5, a pickle that calls something; a text that is missing, a folder, not UTF-8, empty; images: no train folder, no test folder, no
class folders, an empty class, other classes, a file that is no image, an image cut off; PTB with another file; a tokenizer cut off.
texts to encode: a character and a word that the vocabulary lacks.
workers: raises on one item, is killed, hangs.
"""

import gzip
import hashlib
import itertools
import os
import pickle
import pickletools
import signal
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import zoo.data
from zoo.data import download, pixels, text
from zoo.data.base import Columns, Shuffled, ShuffledWindows
from zoo.data.folders import read_image
from zoo.data.hashing import GAMMA, ORDER, bits, uniform
from zoo.data.loader import batches, stream, sweep
from zoo.data.pixels import Images, Normaliser, crop, unpickle_arrays
from zoo.data.text import IGNORED, Stream
from zoo.data.tokenizers import BytePairs, Characters, Words
from zoo.errors import ConfigError, ZooError
from zoo.signature import parameters

CPU = torch.device("cpu")
ALL = slice(None)
CONFIGS = Path(__file__).parents[1] / "configs" / "data"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args):
        raise OSError("no network in tests")

    monkeypatch.setattr(download, "_receive", refuse)


def message(call, kind=ZooError) -> str:
    """The text of the error that `call` raises: one sentence."""
    with pytest.raises(kind) as error:
        call()
    said = str(error.value)
    assert "\n" not in said and len(said) < 500
    return said


# --- hashing


def splitmix(state: int, value: int) -> int:
    word = 2**64 - 1
    z = (state + GAMMA * (value + 1)) & word
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & word
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & word
    return z ^ (z >> 31)


def test_hash_equals_plain_integer_arithmetic():
    assert splitmix(0, 0) == 0xE220A8397B1DCDAF  # the first output of splitmix64 seeded with 0
    seed, epochs, indices = 2**31 - 1, torch.tensor([0, 3, 10**9]), torch.tensor([5, 0, 2**40])
    found = bits(seed, epochs, indices, 4, ORDER)
    for row, (epoch, index) in zip(found.tolist(), zip(epochs.tolist(), indices.tolist())):
        state = splitmix(splitmix(splitmix(splitmix(0, ORDER), seed), epoch), index)
        assert [x % 2**64 for x in row] == [splitmix(state, slot) for slot in range(4)]


def test_hash_looks_random_along_every_argument():
    n = 20_000
    zero, count = torch.zeros(n, dtype=torch.int64), torch.arange(n)
    streams = {
        "index": uniform(0, zero, count, 3),
        "epoch": uniform(0, count, zero, 3),
        "slot": uniform(0, zero[:1], zero[:1], n).T,
        "seed": torch.cat([uniform(seed, zero[:1], zero[:1], 3) for seed in range(500)]),
    }
    for name, numbers in streams.items():
        assert numbers.dtype == torch.double and (numbers >= 0).all() and (numbers < 1).all()
        for column in numbers.unbind(1):
            m = len(column)
            assert abs(column.mean() - 0.5) < 4 * (1 / 12 / m) ** 0.5, name
            counts = torch.histc(column, 64, 0, 1)
            chi_square = ((counts - m / 64).square() / (m / 64)).sum()  # 63 degrees of freedom, standard deviation 11.2
            assert 63 - 45 < chi_square < 63 + 45, name
            neighbours = torch.stack([column[:-1], column[1:]])
            assert abs(torch.corrcoef(neighbours)[0, 1]) < 4 / m**0.5, name
    corr = torch.corrcoef(streams["index"].T) - torch.eye(3)
    assert corr.abs().max() < 4 / n**0.5
    assert len(streams["index"].unique()) == 3 * n


def test_each_input_bit_changes_half_of_the_output_bits():
    base = torch.arange(500) * 7919
    for argument in range(2):
        for bit in range(0, 62, 4):
            inputs = [base.clone(), base.clone()]
            inputs[argument] ^= 1 << bit
            changed = bits(1, *inputs, 1) ^ bits(1, base, base, 1)
            share = sum(((changed >> shift) & 1).double().mean() for shift in range(64)) / 64
            assert abs(share - 0.5) < 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_nothing_differs_and_nothing_waits():
    epochs, indices = torch.arange(1000) % 7, torch.arange(1000)
    assert uniform(3, epochs.cuda(), indices.cuda(), 3).cpu().equal(uniform(3, epochs, indices, 3))
    addresses = [plan.batch(2) for plan in (digits().train.plan(50), manual(window=32).train.plan(8))]
    for make, address in zip((digits, lambda: manual(window=32)), addresses):
        here, there = make().train, make().train.to(torch.device("cuda"))
        there.fetch(address)
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch = there.fetch(address)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for name, value in here.fetch(address).items():
            torch.testing.assert_close(batch[name].cpu(), value)


# --- order


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_item_exactly_once_an_epoch(ranks):
    for items, size in itertools.product(range(1, 18), range(1, 6)):
        plan = Shuffled(items, size * ranks, seed=1)
        assert plan.batches_per_epoch == items / (size * ranks)
        seen: dict[int, list[int]] = {}
        for number in range(-(-3 * items // (size * ranks))):
            for rank in range(ranks):
                rows = {name: value[rank * size : (rank + 1) * size] for name, value in plan.batch(number).items()}
                assert len(rows["index"]) == size
                for epoch, index in zip(rows["epoch"].tolist(), rows["index"].tolist()):
                    seen.setdefault(epoch, []).append(index)
        assert [sorted(seen[epoch]) for epoch in range(3)] == 3 * [list(range(items))]


def test_order_is_a_function_of_seed_and_number():
    fresh = lambda seed, number: Shuffled(1000, 64, seed).batch(number)
    plan = Shuffled(1000, 64, seed=5)
    for number in (0, 15, 400, 3):  # 15 straddles two epochs
        assert all(plan.batch(number)[name].equal(fresh(5, number)[name]) for name in ("index", "epoch"))
    assert not fresh(5, 0)["index"].equal(fresh(6, 0)["index"])
    assert not plan.order(0).equal(plan.order(1))
    position = torch.corrcoef(torch.stack([plan.order(0).double(), torch.arange(1000.0).double()]))[0, 1]
    assert abs(position) < 0.13


def test_order_and_augmentation_are_independent():
    plan = Shuffled(4000, 1, seed=0)
    order = plan.order(0)
    place = torch.empty(4000, dtype=torch.double)
    place[order] = torch.arange(4000).double()
    numbers = uniform(0, torch.zeros(4000, dtype=torch.int64), torch.arange(4000), 3)
    assert torch.corrcoef(torch.cat([place[None], numbers.T]))[0, 1:].abs().max() < 0.06


# --- images in memory


def digits(**keys) -> zoo.data.Data:
    return zoo.data.digits(**{"seed": 0, "augment": ["pad_crop", "flip"], "normalise": "standard", **keys})


def test_digits_are_split_as_scikit_learn_splits_them():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = zoo.data.digits(seed=0)
    x, x_test, y, y_test = train_test_split(*load_digits(return_X_y=True), test_size=360, stratify=load_digits().target, random_state=0)
    assert (len(data.train), data.valid, len(data.test)) == (1437, None, 360)
    assert data.facts == {"num_classes": 10, "image_size": 8, "channels": 1}
    for split, pixels_, labels in ((data.train, x, y), (data.test, x_test, y_test)):
        batch = split.fetch({"index": torch.arange(len(split))})
        np.testing.assert_allclose(batch["image"].flatten(1).numpy() * 255, np.round(pixels_ * 255 / 16), atol=1e-4)
        assert batch["image"].dtype == torch.float32 and batch["label"].tolist() == labels.tolist()


def test_validation_items_are_stratified_and_the_same_for_every_seed():
    one, two = digits(valid=100), digits(valid=100, seed=9)
    assert (len(one.train), len(one.valid), len(one.test)) == (1337, 100, 360)
    assert one.valid.images.equal(two.valid.images) and one.train.images.equal(two.train.images)
    assert one.valid.labels.bincount().tolist() == [10] * 10
    everything = torch.cat([one.train.images, one.valid.images]).flatten(1).tolist()
    assert sorted(everything) == sorted(digits().train.images.flatten(1).tolist())


def test_normalisations():
    data = {name: zoo.data.digits(seed=0, normalise=name, valid=20) for name in ("unit", "symmetric", "standard", "pixel_mean")}
    image = {name: d.train.fetch({"index": torch.arange(len(d.train))})["image"].double() for name, d in data.items()}
    assert image["unit"].min() == 0 and image["unit"].max() == 1
    torch.testing.assert_close(image["symmetric"], 2 * image["unit"] - 1)
    assert abs(image["standard"].mean()) < 1e-6 and abs(image["standard"].std(correction=0) - 1) < 1e-6
    torch.testing.assert_close(image["pixel_mean"], image["unit"] - image["unit"].mean(0))
    held = data["standard"].valid.fetch({"index": torch.arange(20)})["image"]
    assert abs(held.mean()) > 1e-4  # their own mean was not used


def test_batches_take_the_default_dtype():
    data = digits()
    torch.set_default_dtype(torch.double)
    try:
        assert data.train.fetch(data.train.plan(4).batch(0))["image"].dtype == torch.double
    finally:
        torch.set_default_dtype(torch.float32)


def test_crop_is_what_padding_and_cutting_give():
    images = torch.rand(6, 2, 5, 7)
    top, left, flip = torch.tensor([0, 1, 2, 3, 4, 2]), torch.tensor([4, 3, 2, 1, 0, 2]), torch.tensor([0, 1, 0, 1, 0, 0]).bool()
    padded = torch.nn.functional.pad(images, [2] * 4)
    for i, image in enumerate(crop(images, top, left, flip, 2)):
        expected = padded[i, :, top[i] : top[i] + 5, left[i] : left[i] + 7]
        assert image.equal(expected.flip(-1) if flip[i] else expected)
    assert crop(images, top, left, flip, 2)[5].equal(images[5])


def augmented(split: Images, index: Tensor, epoch: Tensor) -> Tensor:
    return split.fetch({"index": index, "epoch": epoch})["image"]


def test_augmentation_depends_on_seed_epoch_and_item_alone():
    split = digits(pad=2).train
    index, epoch = torch.arange(40), torch.arange(40) // 10
    whole = augmented(split, index, epoch)
    shuffled = torch.randperm(40)
    assert augmented(split, index[shuffled], epoch[shuffled]).equal(whole[shuffled])
    assert torch.cat([augmented(split, index[i : i + 1], epoch[i : i + 1]) for i in range(40)]).equal(whole)
    assert not augmented(split, index, epoch + 1).equal(whole)
    assert not augmented(digits(pad=2, seed=1).train, index, epoch).equal(whole)


def test_augmentation_takes_every_place_and_both_sides_equally():
    picture = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)  # every place and side gives another crop
    split = Images(picture.repeat(9000, 1, 1, 1), torch.zeros(9000), Normaliser.of("unit", picture), ["pad_crop", "flip"], pad=1)
    crops = augmented(split, torch.arange(9000), torch.zeros(9000, dtype=torch.int64)).flatten(1)
    kinds, counts = crops.unique(dim=0, return_counts=True)
    assert len(kinds) == 18 and counts.min() > 400 and counts.max() < 600
    only_flip = Images(split.images, split.labels, split.normaliser, ["flip"], pad=1)
    assert len(augmented(only_flip, torch.arange(100), torch.zeros(100, dtype=torch.int64)).flatten(1).unique(dim=0)) == 2


def test_evaluation_is_not_augmented_and_sweeps_every_item_once():
    data = digits(valid=50)
    plain = zoo.data.digits(seed=0, normalise="standard", valid=50)
    for ranks, size in itertools.product((1, 2, 3), (1, 7, 64)):
        seen = []
        for rank in range(ranks):
            for sequence, step, batch in sweep(data.valid, size, CPU, rank, ranks):
                assert sequence % ranks == rank and step == 0 and len(batch["index"]) <= size
                assert batch["image"].equal(plain.valid.fetch({"index": batch["index"]})["image"])
                seen += batch["index"].tolist()
        assert sorted(seen) == list(range(50))


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"normalise": "imagenet"}, "data.normalise must be one of unit, symmetric, standard, pixel_mean, not 'imagenet'"),
        ({"augment": ["mixup"]}, "data.augment must be one of pad_crop, flip, not 'mixup'"),
        ({"augment": "flip"}, r"data.augment must be a list such as [flip], not 'flip'"),
        ({"augment": ["pad_crop"], "pad": 0}, "data.pad must be a whole number from 1, not 0"),
        ({"pad": -1}, "data.pad must be a whole number from"),
        ({"pad": 1.5}, "data.pad must be a whole number from"),
        ({"valid": -1}, "data.valid must be a whole number from 0, not -1"),
        ({"valid": 9}, "data.valid must be 0, or from 10 to 1427 of the 1437 items, not 9"),
        ({"valid": 1428}, "data.valid must be 0, or from 10 to 1427"),
    ],
)
def test_wrong_image_keys_are_named(keys, said):
    assert said in message(lambda: digits(**keys), ConfigError)


@pytest.mark.parametrize("size", [0, -1, 2.0, "8", None, True])
def test_wrong_batch_sizes_are_named(size):
    split = Stream(torch.arange(100), 4)
    for wants_it in (split.plan, split.sweeps, lambda size: Shuffled(5, size, 0), lambda size: pixels.image_sweeps(5, size)):
        assert "data.batch_size must be a whole number from 1" in message(lambda: wants_it(size), ConfigError)  # noqa: B023


# --- MNIST and CIFAR-10, in their files


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def mnist_root(tmp_path, monkeypatch):
    """A small MNIST, packed, with the checksums to go with it."""
    folder, generator = tmp_path / "MNIST" / "raw", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        put_mnist(monkeypatch, folder / f"{part}-images-idx3-ubyte.gz", idx(generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)))
        put_mnist(monkeypatch, folder / f"{part}-labels-idx1-ubyte.gz", idx(labels))
    return tmp_path


def put_mnist(monkeypatch, path, content):
    packed = gzip.compress(content)
    path.write_bytes(packed)
    monkeypatch.setitem(pixels.MNIST, path.name, (len(packed), hashlib.sha256(packed).hexdigest()))


def test_mnist_is_read_from_packed_files_without_writing(mnist_root):
    files = lambda: {p: p.read_bytes() for p in mnist_root.rglob("*") if p.is_file()}
    before = files()
    data = zoo.data.mnist(seed=0, root=str(mnist_root), valid=10)
    assert (len(data.train), len(data.valid), len(data.test)) == (30, 10, 20) and files() == before
    assert data.facts == {"num_classes": 10, "image_size": 28, "channels": 1} and data.classes[3] == "3"
    for path in list(before):  # now the unpacked ones
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    again = zoo.data.mnist(seed=0, root=str(mnist_root), valid=10)
    assert again.train.images.equal(data.train.images) and again.test.labels.equal(data.test.labels)


def test_damaged_mnist_files_are_named(mnist_root, monkeypatch):
    read = lambda: zoo.data.mnist(seed=0, root=str(mnist_root))
    path = mnist_root / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    assert f"{path} is not the published file" in message(read)
    unpacked, labels = path.with_suffix(""), gzip.decompress(good)
    for damage in (b"", labels[:6], labels[:-1], b"junk" + labels, labels + b"x"):
        unpacked.write_bytes(damage)
        assert f"{unpacked} is damaged" in message(read)
    for wrong in (np.zeros(39, np.uint8), np.full(40, 10, np.uint8), np.zeros((40, 1), np.uint8)):
        unpacked.write_bytes(idx(wrong))
        assert "do not belong together" in message(read)
    unpacked.unlink()
    for content in (good[:-5], b"not gzip at all"):  # damage that the authors themselves published, if need be
        path.write_bytes(content)
        monkeypatch.setitem(pixels.MNIST, path.name, (len(content), hashlib.sha256(content).hexdigest()))
        assert f"{path} is damaged" in message(read)


def test_a_root_that_is_not_given_is_named():
    for target in (zoo.data.mnist, zoo.data.cifar10, zoo.data.ptb, zoo.data.tiny_shakespeare):
        assert "data.root must be the folder of the data, not None" in message(lambda: target(seed=0, root=None), ConfigError)  # noqa: B023


def test_a_missing_set_says_where_it_was_looked_for_and_what_to_do(tmp_path):
    for target, title, folder in (
        (zoo.data.mnist, "MNIST", "MNIST/raw"),
        (zoo.data.fashion_mnist, "Fashion-MNIST", "FashionMNIST/raw"),
        (zoo.data.cifar10, "CIFAR-10", ""),
        (zoo.data.tiny_shakespeare, "tiny Shakespeare", "tinyshakespeare"),
        (zoo.data.ptb, "Penn Treebank", "ptb"),
    ):
        said = message(lambda: target(seed=0, root=str(tmp_path)))  # noqa: B023
        assert said.startswith(f"{title}: ") and f"is not in {tmp_path / folder} and could not be downloaded" in said
        assert "no network in tests" in said and "ZOO_DATA (data.root=...)" in said


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """A small CIFAR-10 in both versions, with the checksums to go with it."""
    monkeypatch.setattr(pixels, "CIFAR10_ITEMS", 20)
    generator = np.random.default_rng(0)
    for folder in ("cifar-10-batches-bin", "cifar-10-batches-py"):
        (tmp_path / folder).mkdir()
    for name in pixels.CIFAR10_PYTHON:
        images, labels = generator.integers(0, 256, (20, 3072), dtype=np.uint8), np.arange(20, dtype=np.uint8) % 10
        (tmp_path / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], images], 1).tobytes())
        content = {b"data": images, b"labels": labels.tolist(), b"batch_label": b"x"}
        put_pickle(monkeypatch, tmp_path / "cifar-10-batches-py" / name, content)
    return tmp_path


def put_pickle(monkeypatch, path, content):
    """As Python 2 and the numpy of its days wrote it: bytes and texts are the same opcode."""
    data = bytearray(pickle.dumps(content, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    for opcode, _, position in list(pickletools.genops(bytes(data))):
        data[position] = {"SHORT_BINBYTES": ord("U"), "BINBYTES": ord("T"), "BINUNICODE": ord("T")}.get(opcode.name, data[position])
    data[1] = 2
    path.write_bytes(data)
    monkeypatch.setitem(pixels.CIFAR10_PYTHON, path.name, hashlib.md5(data).hexdigest())


def test_both_versions_of_cifar10_give_the_same(cifar_root):
    read = lambda: zoo.data.cifar10(seed=0, root=str(cifar_root), valid=10)
    one = read()
    for path in (cifar_root / "cifar-10-batches-bin").iterdir():
        path.unlink()
    (cifar_root / "cifar-10-batches-bin").rmdir()
    two = read()
    assert (len(one.train), len(one.valid), len(one.test)) == (90, 10, 20)
    assert one.facts == {"num_classes": 10, "image_size": 32, "channels": 3} and one.classes[9] == "truck"
    for a, b in ((one.train, two.train), (one.valid, two.valid), (one.test, two.test)):
        assert a.images.equal(b.images) and a.labels.equal(b.labels)


def test_damaged_cifar10_files_are_named(cifar_root, monkeypatch):
    read = lambda: zoo.data.cifar10(seed=0, root=str(cifar_root), valid=10)
    path = cifar_root / "cifar-10-batches-bin" / "data_batch_3.bin"
    records = path.read_bytes()
    for damage in (b"", records[:-1], records[:-3073], records + records):
        path.write_bytes(damage)
        assert f"{path} is missing or damaged" in message(read)
    path.write_bytes(b"\x0a" + records[1:])
    assert f"{path} is damaged" in message(read) and "up to 10" in message(read)
    path.unlink()
    assert f"{path} is missing or damaged" in message(read)
    (cifar_root / "cifar-10-batches-bin").rename(cifar_root / "elsewhere")
    path = cifar_root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert f"{path} cannot be used (its md5 is not the published one)" in message(read)


def test_a_pickle_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/marker",)

    for protocol in range(6):
        with pytest.raises(pickle.UnpicklingError, match="has no place in a file of arrays"):
            unpickle_arrays(pickle.dumps({b"data": Evil()}, protocol))
    for name in (b"builtins\neval", b"numpy\nload", b"numpy.core.multiarray\nscalar", b"numpy\nndarray.tofile"):
        with pytest.raises(pickle.UnpicklingError):
            unpickle_arrays(b"c" + name + b"\n.")
    assert not (tmp_path / "marker").exists()


# --- images in folders


def picture(path: Path, size=(20, 16), colour=(200, 100, 50), mode="RGB"):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 50, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise + np.array(colour, np.uint8)).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("cat", (200, 0, 0)), ("dog", (0, 0, 200))):
        for i in range(6):
            picture(tmp_path / "set" / "train" / name / "deeper" / f"{i}{'x' * i}.JPEG", colour=colour)
        for i in range(3):
            picture(tmp_path / "set" / "test" / name / f"{i}.png", colour=colour)
    return tmp_path / "set"


def images(folder, **keys) -> zoo.data.Data:
    return zoo.data.images(
        **{"seed": 0, "root": str(folder.parent), "folder": folder.name, "image_size": 12, "augment": ["resized_crop", "flip"], **keys}
    )


def test_images_of_folders(folder):
    data = images(folder, valid=2)
    assert (len(data.train), len(data.valid), len(data.test)) == (10, 2, 6)
    assert data.classes == ["cat", "dog"] and data.facts == {"num_classes": 2, "image_size": 12, "channels": 3}
    batch = data.test.fetch({"index": torch.arange(6)})
    assert batch["image"].shape == (6, 3, 12, 12) and batch["image"].dtype == torch.float32
    assert batch["label"].tolist() == [0, 0, 0, 1, 1, 1]
    red = batch["image"] * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    assert (red[:3, 0].mean() > 0.7) and (red[3:, 0].mean() < 0.2)
    assert data.test.fetch({"index": torch.tensor([2])})["image"].equal(batch["image"][2:3])
    unit = images(folder, normalise="unit").test.fetch({"index": torch.arange(6)})["image"]
    torch.testing.assert_close(red, unit)


def test_evaluation_is_torchvisions_resize_and_centre_crop(folder):
    from torchvision.transforms import v2

    path = folder / "test" / "dog" / "1.png"
    expected = v2.Compose([v2.Resize(14), v2.CenterCrop(12), v2.PILToTensor()])(read_image(str(path)))
    found = images(folder, normalise="unit").test.fetch({"index": torch.tensor([4])})["image"][0]
    torch.testing.assert_close(found, expected / 255)


def test_a_validation_folder_and_tiny_imagenets_annotations(folder):
    (folder / "val" / "images").mkdir(parents=True)
    for i in range(4):
        picture(folder / "val" / "images" / f"val_{i}.JPEG")
    lines = [f"val_{i}.JPEG\t{'cat' if i < 3 else 'dog'}\t0\t0\t9\t9\n" for i in range(4)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    data = images(folder)
    assert (len(data.train), len(data.valid), len(data.test)) == (12, 4, 6) and data.valid.labels.tolist() == [0, 0, 0, 1]
    assert "data.valid must be 0" in message(lambda: images(folder, valid=2), ConfigError)
    assert len(images(folder, resident=True, augment=None).valid) == 4
    (folder / "test").rename(folder / "unused")
    data = images(folder)
    assert (data.valid, len(data.test)) == (None, 4)


def test_resident_images_equal_the_streamed_ones(folder):
    for keys in ({"valid": 0}, {"valid": 4}):
        one = images(folder, resize=12, normalise="unit", **keys)
        two = images(folder, resident=True, augment=["flip"], normalise="unit", **keys)
        for a, b in ((one.train, two.train), (one.valid, two.valid), (one.test, two.test)):
            if a is not None:
                everything = {"index": torch.arange(len(a))}
                assert a.fetch(everything)["image"].equal(b.fetch(everything)["image"])
        assert one.facts == two.facts and one.classes == two.classes


def test_other_kinds_of_images_become_rgb(folder):
    for name, mode in (("grey.png", "L"), ("palette.png", "P"), ("alpha.png", "RGBA"), ("print.jpg", "CMYK"), ("two.tif", "1")):
        picture(folder / "test" / "cat" / name, mode=mode)
    picture(folder / "test" / "cat" / "small.png", size=(1, 1))
    assert images(folder).test.fetch({"index": torch.arange(12)})["image"].shape == (12, 3, 12, 12)


@pytest.mark.parametrize("damage", ["cut", "junk", "empty", "gone", "folder"])
def test_a_corrupt_image_is_named(folder, damage):
    data, path = images(folder), folder / "train" / "cat" / "deeper" / "1x.JPEG"
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes({"cut": content[: len(content) // 2], "junk": os.urandom(300), "empty": b""}[damage])
    said = message(lambda: data.train.fetch({"index": torch.arange(12), "epoch": torch.zeros(12, dtype=torch.int64)}))
    assert said.startswith(f"{path} cannot be read as an image")


def test_wrong_image_folders_are_named(folder):
    root = folder.parent
    assert f"{root / 'none' / 'train'}" in message(lambda: images(root / "none"))
    (root / "bare" / "train").mkdir(parents=True)
    assert "holds no folders of images" in message(lambda: images(root / "bare"))
    (root / "bare" / "train" / "cat").mkdir()
    assert f"{root / 'bare' / 'train' / 'cat'} holds no images" in message(lambda: images(root / "bare"))
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    assert "the class 'dog' is missing in" in message(lambda: images(folder))
    (folder / "test" / "wolf").rename(folder / "test" / "dog")
    picture(folder / "test" / "ant" / "0.png")
    assert "the class 'ant' is not among the training images, but in" in message(lambda: images(folder))
    (folder / "test").rename(folder / "unused")
    assert "neither a folder test nor a folder val" in message(lambda: images(folder))


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"image_size": 0}, "data.image_size must be a whole number from 1"),
        ({"resize": 11}, "data.resize must be a whole number from 12, not 11"),
        ({"augment": ["pad_crop"]}, "data.augment must be one of resized_crop, flip, not 'pad_crop'"),
        ({"augment": ["resized_crop"], "resident": True}, "data.augment must be one of pad_crop, flip, not 'resized_crop'"),
        ({"normalise": "pixel_mean"}, "needs all images at hand: data.resident=true"),
        ({"normalise": "none"}, "data.normalise must be one of"),
        ({"mean": [0.5, 0.5]}, "data.mean and data.std must be three numbers each"),
        ({"std": [0.5, 0.5, 0]}, "data.mean and data.std must be three numbers each"),
    ],
)
def test_wrong_folder_keys_are_named(folder, keys, said):
    assert said in message(lambda: images(folder, **keys), ConfigError)


# --- workers


def test_workers_and_ranks_change_nothing(folder):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    reference = None
    for workers, ranks in ((0, 1), (1, 1), (2, 1), (2, 2)):
        split = images(folder, workers=workers).train
        plan = split.plan(4)
        readers = [stream(split, plan, 2, slice(rank * 4 // ranks, (rank + 1) * 4 // ranks), CPU) for rank in range(ranks)]
        found = []
        for _ in range(4):
            parts = [next(reader) for reader in readers]
            found.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        reference = reference or found
        for a, b in zip(found, reference):
            assert all(a[name].equal(b[name]) for name in ("image", "label", "index"))
    assert torch.get_rng_state().equal(state)  # neither the loader nor the transforms draw from the run's generator
    straight = list(itertools.islice(stream(split, plan, 0, ALL, CPU), 4))
    assert straight[2]["image"].equal(reference[0]["image"])  # starting at 2 is skipping 2
    repeated = split.fetch({"index": torch.zeros(20, dtype=torch.int64), "epoch": torch.arange(20)})["image"]
    assert len(repeated.flatten(1).unique(dim=0)) == 20  # each epoch has crops of its own


def test_workers_sweep_every_item_once(folder):
    split = images(folder, workers=2).test
    seen = [index for rank in range(2) for _, _, batch in sweep(split, 2, CPU, rank, 2) for index in batch["index"].tolist()]
    assert sorted(seen) == list(range(6))


class Faulty:
    """A split whose worker does something else at item 17."""

    workers = 1

    def __init__(self, act):
        self.act = act

    def to(self, device):
        return self

    def load(self, address):
        if 17 in address["index"]:
            self.act()
        return address

    def finish(self, batch):
        return batch


def crash():
    raise KeyError("a bug")


def broken_image():
    raise ZooError("img.png cannot be read as an image")


@pytest.mark.parametrize(
    "act, said",
    [
        (broken_image, "img.png cannot be read as an image"),
        (crash, "items 16, 17 could not be loaded: KeyError: 'a bug'"),
        # the items are 16 and 17, or such as were sent but not yet read
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "no batch from the loader's workers while items 1"),
        (lambda: time.sleep(1000), "no batch from the loader's workers while items 16, 17 were awaited: DataLoader timed out after 1"),
    ],
    ids=["image", "bug", "killed", "hangs"],
)
def test_a_worker_that_fails_is_one_sentence_with_the_item(monkeypatch, act, said):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # how long torch waits for a worker before it ends it
    began = time.monotonic()
    addresses = [{"index": index} for index in torch.arange(40).split(2)]
    seen = []

    def read():
        for batch in batches(Faulty(act), addresses, CPU, timeout=1):
            seen.extend(batch["index"].tolist())

    assert said in message(read)
    assert seen == list(range(len(seen))) and 10 <= len(seen) <= 16 and time.monotonic() - began < 10


def test_a_worker_outlives_the_signals_that_are_for_the_main_process():
    addresses = [{"index": index} for index in torch.arange(30).split(2)]
    group = lambda: [os.kill(os.getpid(), signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    assert len(list(batches(Faulty(group), addresses, CPU, timeout=5))) == 15


# --- text


def manual(**keys) -> zoo.data.Data:
    return zoo.data.manual(**{"seed": 0, "root": "/nowhere", **keys})


def test_the_manual_has_the_same_vocabulary_everywhere():
    data = manual()
    assert data.facts == {"vocab_size": 97} and len(data.digest) == 64
    total = sum(len(split.tokens) for split in (data.train, data.valid, data.test))
    assert 300_000 < total < 900_000 and abs(len(data.train.tokens) / total - 0.9) < 1e-4
    assert data.decode(data.encode("if x:\n  y — z")[None]) == ["if x:\n  y \ufffd z"]
    unknown = (torch.cat([split.tokens for split in (data.train, data.valid, data.test)]) == 96).double().mean()
    assert unknown < 0.005
    assert manual(splits=[0.8, 0.2, 0]).test is None


def test_columns_are_zarembas():
    tokens = torch.arange(100, 203)  # 103 tokens
    split = Stream(tokens, window=6)
    plan = split.plan(4)  # columns of 25, four windows of 6 each
    assert plan.batches_per_epoch == 4
    for number in range(9):
        batch, window = split.fetch(plan.batch(number)), number % 4
        expected = torch.stack([tokens[c * 25 + window * 6 :][:7] for c in range(4)])
        assert batch["tokens"].equal(expected[:, :-1]) and batch["targets"].equal(expected[:, 1:])
        assert batch["reset"].tolist() == [window == 0] * 4 and batch["tokens"].dtype == torch.int64
    assert Columns(929_589, 35, 20).batches_per_epoch == 1327


def test_shuffled_windows_cover_the_stream_in_another_order_each_epoch():
    tokens = torch.arange(203)
    split = Stream(tokens, window=10, order="shuffled")
    plan = split.plan(19)
    assert plan.batches_per_epoch == 1.0
    phases = set()
    for number in range(30):
        batch = split.fetch(plan.batch(number))
        assert batch["reset"].all() and batch["targets"].equal(batch["tokens"] + 1) and batch["targets"].max() < 203
        starts = batch["tokens"][:, 0]
        phases.add(int(starts.min()))
        assert starts.sort().values.equal(torch.arange(19) * 10 + starts.min())  # no token twice
    assert phases == set(range(10))
    for tokens_, window, batch_size in ((20, 10, 1), (21, 10, 3), (8, 1, 2)):  # the shortest that work
        stream_ = Stream(torch.arange(tokens_), window, "shuffled")
        for number in range(40):
            batch = stream_.fetch(stream_.plan(batch_size).batch(number))
            assert batch["targets"].equal(batch["tokens"] + 1)


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 50])
def test_evaluation_counts_every_target_once_and_carries_on(columns):
    for length, window, size, ranks in itertools.product((2, 3, 17, 40), (1, 4, 64), (1, 2, 100), (1, 2)):
        split = Stream(torch.arange(length), window, eval_columns=columns)
        seen = []
        for rank in range(ranks):
            last = None
            for _, step, batch in sweep(split, size, CPU, rank, ranks):
                real = batch["targets"] != IGNORED
                assert real.any() and batch["tokens"].shape[1] == window and len(batch["tokens"]) <= size
                assert (batch["reset"] == (step == 0)).all()
                assert (batch["tokens"][real] + 1).equal(batch["targets"][real])
                if step:  # each row goes on with the token that was its last target
                    rows = real[:, 0]
                    assert batch["tokens"][rows, 0].equal(last[rows])
                last = batch["targets"][:, -1]
                seen += batch["targets"][real].tolist()
        assert sorted(seen) == list(range(1, length))
        assert len(split) == -(-(length - 1) // window)


def test_resuming_and_ranks_of_a_text():
    split = manual().train
    plan = split.plan(6)
    straight = list(itertools.islice(stream(split, plan, 0, ALL, CPU), 8))
    for rank in range(3):
        part = slice(2 * rank, 2 * rank + 2)
        for number, batch in zip(range(5, 8), stream(split, plan, 5, part, CPU)):
            assert all(batch[name].equal(straight[number][name][part]) for name in batch)


def test_characters():
    characters = Characters("hello\n")
    assert characters.symbols == ["\n", "e", "h", "l", "o"] and characters.size == 5
    assert characters.decode(characters.encode("hello\nhole")[None]) == ["hello\nhole"]
    assert characters.encode("").tolist() == []
    assert "the character 'x' is not among the 5" in message(lambda: characters.encode("hex"))
    assert "'\U0001f600'" in message(lambda: characters.encode("\U0001f600"))
    assert Characters("ab", unknown=True).encode("a\U0001f600bz").tolist() == [0, 2, 1, 2]


def test_words():
    words = Words(" the cat \n the dog <unk> \n")
    assert words.words == ["<eos>", "the", "<unk>", "cat", "dog"]
    ids = words.encode("the cat \n a dog\n\n")
    assert ids.tolist() == [1, 3, 0, 2, 4, 0, 0]
    assert words.decode(ids[None]) == ["the cat\n<unk> dog\n\n"]
    assert "the word 'a' is not in the training text" in message(lambda: Words("the cat").encode("a cat"))


def test_byte_pairs_are_learnt_once_and_encode_anything(tmp_path, monkeypatch):
    training = "the cat sat on the mat, the dog sat on the log\n" * 50
    one = BytePairs.trained(training, 270, tmp_path / "tokenizers")
    (path,) = (tmp_path / "tokenizers").iterdir()
    assert one.size == 270 and len(one.encode(training)) < len(training) / 2
    for text_ in (training, "Ünknown — \U0001f600\n\ttabs  and   spaces ", ""):
        assert one.decode(one.encode(text_)[None]) == [text_]
    content = path.read_bytes()
    kept = path.stat().st_mtime_ns
    assert BytePairs.trained(training, 270, path.parent).encode(training).equal(one.encode(training)) and path.stat().st_mtime_ns == kept
    for damage in (content[:-10], content.replace(b"the", b"teh"), b"", b"\xff\xfe"):
        path.write_bytes(damage)
        again = BytePairs.trained(training, 270, path.parent)
        assert again.encode(training).equal(one.encode(training)) and path.read_bytes() == content  # training is deterministic, too
    BytePairs.trained(training, 271, path.parent)
    BytePairs.trained(training + "x", 270, path.parent)
    assert len(list(path.parent.iterdir())) == 3
    (tmp_path / "file").write_text("")
    assert BytePairs.trained(training, 270, tmp_path / "file" / "below").size == 270  # a folder that can't be written to costs time only


def test_byte_pairs_learn_from_the_training_part_alone(tmp_path):
    (tmp_path / "book.txt").write_text("abab " * 400 + "xyxy " * 100)
    keys = {"tokenizer": "bpe", "vocab_size": 258, "splits": [0.8, 0.1, 0.1]}
    data = zoo.data.text_file(seed=0, path=str(tmp_path / "book.txt"), root=str(tmp_path), **keys)
    assert data.facts == {"vocab_size": 258}
    assert len(data.train.tokens) < 1300 and len(data.test.tokens) == 250


def test_text_file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(("abc\r\n" * 99 + "abcd\r\n").encode())
    data = zoo.data.text_file(seed=0, path=str(path), root=str(tmp_path))
    assert data.facts == {"vocab_size": 6} and data.decode(data.train.tokens[None, :5]) == ["abc\r\n"]  # the file, byte for byte
    assert "the character 'z'" in message(lambda: data.encode("z"))


WRONG_TEXTS = [(None, "No such file"), (b"", "is empty"), (b"\xff\xfe\xfd", "UTF-8"), ("folder", "Is a directory")]


@pytest.mark.parametrize("content, said", WRONG_TEXTS)
def test_wrong_text_files_are_named(tmp_path, content, said):
    path = tmp_path / "book.txt"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    found = message(lambda: zoo.data.text_file(seed=0, path=str(path), root=str(tmp_path)))
    assert said in found and str(path) in found


@pytest.mark.parametrize(
    "keys, said",
    [
        ({"tokenizer": "words"}, "data.tokenizer must be one of char, bpe, not 'words'"),
        ({"tokenizer": "bpe"}, "data.vocab_size must be a whole number from 1, not None"),
        ({"tokenizer": "bpe", "vocab_size": 255}, "data.vocab_size must be at least 256, the number of bytes, not 255"),
        ({"order": "random"}, "data.order must be one of columns, shuffled, not 'random'"),
        ({"window": 0}, "data.window must be a whole number from 1, not 0"),
        ({"eval_columns": 0}, "data.eval_columns must be a whole number from 1, not 0"),
        ({"splits": [0.9, 0.1]}, "data.splits must be the shares of train, valid and test, such as"),
        ({"splits": [0.9, 0.2, -0.1]}, "data.splits must be"),
        ({"splits": [0, 0.5, 0.5]}, "data.splits must be"),
        ({"splits": [0.9, 0.1, 0.1]}, "data.splits must be"),
    ],
)
def test_wrong_text_keys_are_named(keys, said):
    assert said in message(lambda: manual(**keys), ConfigError)


def test_a_text_that_is_too_short_is_named():
    assert "a split of 1 tokens has nothing to predict" in message(lambda: Stream(torch.zeros(1, dtype=torch.int64), 1))
    for tokens, window, size in ((10, 5, 2), (10, 10, 1), (3, 1, 2), (2, 1, 5)):
        said = message(lambda: Columns(tokens, window, size), ConfigError)  # noqa: B023
        assert said == f"{tokens} training tokens are too few for data.batch_size {size} columns with data.window {window}"
    said = message(lambda: ShuffledWindows(11, 6, 1, 0), ConfigError)
    assert said == "data.window 6 is too long: 11 training tokens allow 5 at most"


def test_ptb_reads_its_three_files(tmp_path, monkeypatch):
    (tmp_path / "ptb").mkdir()
    for name, content in (("train", " a b <unk> \n a \n"), ("valid", " a c \n"), ("test", " b \n")):
        path = tmp_path / "ptb" / f"ptb.{name}.txt"
        path.write_text(content)
        file = text.Published(path.name, len(content), hashlib.sha256(content.encode()).hexdigest(), ())
        monkeypatch.setitem(text.PTB, name, file)
    data = zoo.data.ptb(seed=0, root=str(tmp_path), window=2)
    assert data.facts == {"vocab_size": 4} and [len(s.tokens) for s in (data.train, data.valid, data.test)] == [6, 3, 2]
    assert data.decode(data.valid.tokens[None]) == ["a <unk>\n"]
    (tmp_path / "ptb" / "ptb.test.txt").write_text(" other \n")
    assert "ptb.test.txt is not the published file" in message(lambda: zoo.data.ptb(seed=0, root=str(tmp_path)))


# --- configurations


def test_every_configuration_fits_its_function():
    for name in ("digits", "mnist", "fashion_mnist", "cifar10", "images", "imagenet", "manual", "tiny_shakespeare", "text_file", "ptb"):
        path = CONFIGS / f"{name}.yaml"
        keys = yaml.safe_load(path.read_text())
        accepted = parameters(keys["_target_"])
        own = {"_target_", "batch_size", "workers", "num_classes", "image_size", "channels", "vocab_size", "root"}
        assert set(keys) - own <= set(accepted), path.name
        assert {"batch_size", "workers"} <= set(keys), path.name
        required = {name for name, parameter in accepted.items() if parameter.required} - {"seed"}
        assert required <= set(keys), path.name
        assert "root" not in keys or keys["root"] == "${oc.env:ZOO_DATA,'~/.cache/paper-zoo'}", path.name


@pytest.mark.parametrize("name", ["digits", "manual"])
def test_the_facts_of_the_embedded_sets(name, tmp_path):
    keys = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    check_facts(keys, str(tmp_path))


def check_facts(keys: dict, root: str) -> zoo.data.Data:
    function = getattr(zoo.data, keys["_target_"].rpartition(".")[2])
    accepted = parameters(keys["_target_"])
    given = {"seed": 0, "root": root} | {key: value for key, value in keys.items() if key != "root"}
    data = function(**{key: value for key, value in given.items() if key in accepted})
    for fact, value in data.facts.items():
        assert keys[fact] == value
    return data


REAL = Path(os.environ.get("ZOO_DATA", "~/.cache/paper-zoo")).expanduser()


@pytest.mark.parametrize(
    "name, place, sizes",
    [
        ("mnist", "MNIST/raw", (60_000, None, 10_000)),
        ("fashion_mnist", "FashionMNIST/raw", (60_000, None, 10_000)),
        ("cifar10", "cifar-10-batches-bin", (45_000, 5_000, 10_000)),
        ("tiny_shakespeare", "tinyshakespeare/input.txt", (1_003_854, None, 111_540)),
        ("ptb", "ptb", (929_589, 73_760, 82_430)),
    ],
)
def test_the_real_sets(name, place, sizes):
    if not (REAL / place).exists():
        pytest.skip(f"{name} is not in {REAL}")
    data = check_facts(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), str(REAL))
    splits = (data.train, data.valid, data.test)
    assert tuple(split and len(getattr(split, "tokens", split)) for split in splits) == sizes
    assert len(data.train.fetch(data.train.plan(16).batch(0))["reset" if data.decode else "label"]) == 16
    if name == "mnist":  # the constants that everybody uses
        unit = pixels.Normaliser.of("standard", data.train.images)
        assert abs(unit.mean.item() - 0.1307) < 1e-4 and abs(unit.std.item() - 0.3081) < 1e-4
    if name == "tiny_shakespeare":
        assert data.decode(data.train.tokens[None, :14]) == ["First Citizen:"]
