"""Small image sets that live on the device as a whole: scikit-learn's digits, MNIST, Fashion-MNIST, CIFAR-10.

Batches are cut, cropped, flipped and normalised on the device; no worker processes, no copy but that of a few integers an item.
B batch, C channels, H height, W width.
"""

import gzip
import hashlib
import io
import pickle
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.data.base import Address, Batch, Data, Shuffled, choice, home, one_line, send, whole
from zoo.data.download import Published, provide, unpack
from zoo.data.hashing import uniform
from zoo.errors import ConfigError, ZooError

Normalise = Literal["unit", "symmetric", "standard", "pixel_mean"]
AUGMENTATIONS = ("pad_crop", "flip")
Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (N, C, H, W), labels (N,)


class Normaliser:
    """Bytes -> (x / 255 - mean) / std.

    unit: [0, 1]; symmetric: [-1, 1]; standard: mean 0 and standard deviation 1 of each channel over the training images; pixel_mean:
    [0, 1] less the mean of the training images at each pixel.
    """

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std

    @classmethod
    def of(cls, name: Normalise, images: Tensor) -> "Normaliser":
        """With the statistics of uint8 images (N, C, H, W)."""
        choice("data.normalise", name, get_args(Normalise))
        zero, one = torch.zeros(1, 1, 1, dtype=torch.double), torch.ones(1, 1, 1, dtype=torch.double)
        if name == "symmetric":
            return cls(one / 2, one / 2)
        if name == "standard":
            values = torch.arange(256, dtype=torch.double) / 255
            shares = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
            shares /= shares.sum(1, keepdim=True)
            mean = (shares @ values)[:, None]
            variance = (shares * (values - mean).square()).sum(1, keepdim=True)
            return cls(mean[..., None], variance.sqrt()[..., None])
        return cls(images.sum(0, dtype=torch.int64).double() / (255 * len(images)) if name == "pixel_mean" else zero, one)

    def to(self, device: torch.device) -> "Normaliser":
        dtype = torch.float if device.type == "mps" else torch.double  # Metal has no double
        return Normaliser(self.mean.to(device, dtype), self.std.to(device, dtype))

    def __call__(self, images: Tensor) -> Tensor:
        dtype = torch.get_default_dtype()
        return images.to(dtype).div_(255).sub_(self.mean.to(dtype)).div_(self.std.to(dtype))


class Images:
    """A split of labelled images on the device.

    Args:
        images: uint8 (N, C, H, W).
        augment: any of pad_crop (`pad` pixels of zeros around the normalised image, then a crop of the old size at a random place) and
            flip (left-right, half of the time); in training only.
    """

    workers = 0

    def __init__(self, images: Tensor, labels: Tensor, normaliser: Normaliser, augment: Sequence[str] = (), pad: int = 0, seed: int = 0):
        self.images, self.labels, self.normaliser = images, labels.long(), normaliser
        self.augment, self.pad, self.seed = tuple(augment), pad if "pad_crop" in augment else 0, seed

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Images":
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        self.normaliser = self.normaliser.to(device)
        return self

    def plan(self, batch_size: int) -> Shuffled:
        return Shuffled(len(self), batch_size, self.seed)

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        return image_sweeps(len(self), batch_size)

    def fetch(self, address: Address) -> Batch:
        if self.augment and "epoch" in address:
            return self._augmented(address)
        index = send(address["index"], self.images.device)
        return {"image": self.normaliser(self.images[index]), "label": self.labels[index], "index": index}

    def _augmented(self, address: Address) -> Batch:
        """One uniform number an item each for the row and the column of the crop and for the flip, whichever of them are asked for."""
        row, column, coin = uniform(self.seed, address["epoch"], address["index"], 3).unbind(1)
        places = 2 * self.pad + 1
        flip = (coin < 0.5) & ("flip" in self.augment)
        numbers = torch.stack([address["index"], (row * places).long(), (column * places).long(), flip.long()])
        index, top, left, flip = send(numbers, self.images.device)
        image = crop(self.normaliser(self.images[index]), top, left, flip.bool(), self.pad)
        return {"image": image, "label": self.labels[index], "index": index}


def crop(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, pad: int) -> Tensor:
    """(B, C, H, W) images, each padded by `pad` zeros on all sides, cut at its own (top, left) and mirrored where `flip`: one gather."""
    B, C, H, W = images.shape
    columns = torch.arange(W, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], W - 1 - columns, columns)
    rows = top[:, None] + torch.arange(H, device=images.device)
    places = rows[:, :, None] * (W + 2 * pad) + columns[:, None, :]
    padded = F.pad(images, [pad] * 4).flatten(2)
    return padded.gather(2, places.view(B, 1, H * W).expand(B, C, H * W)).view(B, C, H, W)


def image_sweeps(items: int, batch_size: int) -> list[list[Address]]:
    """One address a sequence, since images carry no state; the last one may be shorter."""
    return [[{"index": index}] for index in torch.arange(items).split(whole("data.batch_size", batch_size, 1))]


def hold_out(labels: np.ndarray, valid: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and the validation items: stratified, in ascending order, the same for every seed of a run."""
    items, classes = np.arange(len(labels)), len(np.unique(labels))
    if whole("data.valid", valid, 0) == 0:
        return items, items[:0]
    if not classes <= valid <= len(labels) - classes:
        raise ConfigError(f"data.valid must be 0, or from {classes} to {len(labels) - classes} of the {len(labels)} items, not {valid}")
    from sklearn.model_selection import train_test_split

    train, held = train_test_split(items, test_size=valid, stratify=labels, random_state=0)
    return np.sort(train), np.sort(held)


def in_memory(
    train: Arrays,
    test: Arrays,
    classes: list[str],
    seed: int,
    normalise: Normalise,
    augment: Sequence[str] | None,
    pad: int,
    valid: int,
    held: Arrays | None = None,
) -> Data:
    """The data set of these arrays; its validation split is `held`, or else `valid` of the training items."""
    augment = augmentations(augment, AUGMENTATIONS)
    whole("data.pad", pad, 1 if "pad_crop" in augment else 0)
    if not held:
        kept, out = hold_out(train[1], valid)
        train, held = [tuple(array[index] for array in train) for index in (kept, out)]
    train, held, test = [tuple(torch.tensor(array) for array in part) for part in (train, held, test)]
    normaliser = Normaliser.of(normalise, train[0])
    return Data(
        train=Images(*train, normaliser, augment, pad, seed),
        valid=Images(*held, normaliser) if len(held[0]) else None,
        test=Images(*test, normaliser),
        facts={"num_classes": len(classes), "image_size": train[0].shape[-1], "channels": train[0].shape[1]},
        classes=classes,
    )


def augmentations(names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The names of `data.augment`, checked."""
    if isinstance(names, str):
        raise ConfigError(f"data.augment must be a list such as [{names}], not {names!r}")
    return tuple(choice("data.augment", name, known) for name in names or ())


def digits(seed: int, normalise: Normalise = "unit", augment: Sequence[str] | None = None, pad: int = 1, valid: int = 0) -> Data:
    """scikit-learn's handwritten digits: 1,437 / 360 images of 8x8 pixels, always at hand. Their 17 grey levels become bytes."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    x, x_test, y, y_test = train_test_split(images, bunch.target, test_size=360, stratify=bunch.target, random_state=0)
    return in_memory((x, y), (x_test, y_test), [str(i) for i in range(10)], seed, normalise, augment, pad, valid)


MNIST_URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
MNIST = {  # size, sha256 of the original .gz files (the same in TensorFlow Datasets; their md5 are those of torchvision)
    "train-images-idx3-ubyte.gz": (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels-idx1-ubyte.gz": (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels-idx1-ubyte.gz": (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}
FASHION_MNIST_URLS = ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",)
FASHION_MNIST = {
    "train-images-idx3-ubyte.gz": (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
    "train-labels-idx1-ubyte.gz": (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
    "t10k-images-idx3-ubyte.gz": (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
    "t10k-labels-idx1-ubyte.gz": (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
}
GARMENTS = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def mnist(seed: int, root: str, normalise: Normalise = "unit", augment: Sequence[str] | None = None, pad: int = 2, valid: int = 0) -> Data:
    """MNIST (LeCun et al., 1998): 60,000 / 10,000 digits of 28x28 pixels, from <root>/MNIST/raw."""
    read = lambda part: _idx_pair(home(root) / "MNIST" / "raw", part, "MNIST", MNIST, MNIST_URLS)
    return in_memory(read("train"), read("t10k"), [str(i) for i in range(10)], seed, normalise, augment, pad, valid)


def fashion_mnist(
    seed: int, root: str, normalise: Normalise = "unit", augment: Sequence[str] | None = None, pad: int = 2, valid: int = 0
) -> Data:
    """Fashion-MNIST (Xiao et al., arXiv:1708.07747): 60,000 / 10,000 garments of 28x28 pixels, from <root>/FashionMNIST/raw."""
    folder = home(root) / "FashionMNIST" / "raw"
    read = lambda part: _idx_pair(folder, part, "Fashion-MNIST", FASHION_MNIST, FASHION_MNIST_URLS)
    return in_memory(read("train"), read("t10k"), GARMENTS, seed, normalise, augment, pad, valid)


def _idx_pair(folder: Path, part: str, title: str, files: dict, urls: Sequence[str]) -> Arrays:
    """Images (N, 1, H, W) and labels (N,). Unpacked files are used where there are any; packed ones are read as they are."""
    arrays = []
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{part}-{kind}-ubyte.gz"
        path = folder / name.removesuffix(".gz")
        if not path.is_file():
            path = provide(Published(name, *files[name], tuple(url + name for url in urls)), folder, title)
        arrays.append(read_idx(path))
    images, labels = arrays
    if images.ndim != 3 or labels.shape != images.shape[:1] or not len(labels) or labels.max() > 9:
        raise ZooError(f"{title}: the {part} images {images.shape} and labels {labels.shape} in {folder} do not belong together")
    return images[:, None], labels


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the idx format: 0, 0, 8, number of axes, their lengths (big-endian, 4 bytes each), the bytes."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if data[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like an idx file of bytes")
        shape = struct.unpack_from(f">{data[3]}I", data, 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, struct.error, zlib.error) as error:
        raise ZooError(f"{path} is damaged ({one_line(error)}): move it away and it will be downloaded again") from error


# sha256 as TensorFlow Datasets and others have it; the md5 on the authors' page is c32a1d4ab5d03f1284b67883e8d87530.
CIFAR10 = Published(
    "cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
)
CIFAR10_ITEMS = 10_000  # in each file
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_PYTHON = {  # md5 of the files of the Python version, from torchvision's source; no sha256 of them is known
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def cifar10(
    seed: int, root: str, normalise: Normalise = "standard", augment: Sequence[str] | None = None, pad: int = 4, valid: int = 5000
) -> Data:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 / 10,000 photographs of 32x32 pixels, 5,000 of the former held out.

    Read from <root>/cifar-10-batches-bin, the authors' binary version, which is also what is downloaded; or from
    <root>/cifar-10-batches-py, the Python version that torchvision uses, where only that is there.
    """
    root = home(root)
    binary, python = root / "cifar-10-batches-bin", root / "cifar-10-batches-py"
    if python.is_dir() and not binary.is_dir():
        parts = [_cifar_python(python / name) for name in CIFAR10_PYTHON]
    else:
        if not binary.is_dir():
            unpack(provide(CIFAR10, root, "CIFAR-10"), binary.name)
        parts = [_cifar_binary(binary / f"{name}.bin") for name in CIFAR10_PYTHON]
    train = tuple(np.concatenate(arrays) for arrays in zip(*parts[:-1]))
    return in_memory(train, parts[-1], CIFAR10_CLASSES, seed, normalise, augment, pad, valid)


def _cifar_binary(path: Path) -> Arrays:
    """Records of one byte for the label and 3 x 32 x 32 for the image."""
    try:
        records = np.fromfile(path, np.uint8).reshape(CIFAR10_ITEMS, 1 + 3 * 32 * 32)
    except (OSError, ValueError) as error:
        raise ZooError(f"CIFAR-10: {path} is missing or damaged: move its folder away and it will be downloaded again") from error
    return _cifar_checked(records[:, 1:], records[:, 0], path)


def _cifar_python(path: Path) -> Arrays:
    """A pickle, and a pickle can run code; so its bytes must be the published ones, and only arrays are built from it."""
    try:
        data = path.read_bytes()
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != CIFAR10_PYTHON[path.name]:
            raise ValueError("its md5 is not the published one")
    except (OSError, ValueError) as error:
        raise ZooError(f"CIFAR-10: {path} cannot be used ({one_line(error)}): without its folder the binary one is downloaded") from error
    content = unpickle_arrays(data)
    return _cifar_checked(content[b"data"], np.array(content[b"labels"]), path)


def unpickle_arrays(data: bytes) -> dict:
    """Unpickles plain values and numpy arrays; a name of anything else in the pickle is refused, and so nothing else can be called.

    Raises:
        pickle.UnpicklingError
    """
    return _ArraysOnly(io.BytesIO(data), encoding="bytes").load()


class _ArraysOnly(pickle.Unpickler):
    KNOWN = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module, name):
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")
        return self.KNOWN[module, name]


def _cifar_checked(images: np.ndarray, labels: np.ndarray, path: Path) -> Arrays:
    if images.shape != (CIFAR10_ITEMS, 3 * 32 * 32) or labels.shape != (CIFAR10_ITEMS,) or labels.max() > 9:
        raise ZooError(f"CIFAR-10: {path} is damaged: images {images.shape}, labels {labels.shape} up to {labels.max()}")
    return images.reshape(-1, 3, 32, 32), labels
