"""Small image sets, read into memory: scikit-learn's digits, MNIST, Fashion-MNIST, CIFAR-10. `options` are those of `in_memory`."""

import gzip
import hashlib
import io
import pickle
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data.base import Data, home, one_line
from zoo.data.download import Published, provide, unpack
from zoo.data.pixels import Arrays, in_memory
from zoo.errors import ZooError


def digits(seed: int, **options) -> Data:
    """scikit-learn's handwritten digits: 1,437 / 360 images of 8x8 pixels, always at hand. Their 17 grey levels become bytes."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)[:, None]
    x, x_test, y, y_test = train_test_split(images, bunch.target, test_size=360, stratify=bunch.target, random_state=0)
    return in_memory(((x, y), None, (x_test, y_test)), [str(i) for i in range(10)], seed, **options)


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


def mnist(seed: int, root: str, **options) -> Data:
    """MNIST (LeCun et al., 1998): 60,000 / 10,000 digits of 28x28 pixels, from <root>/MNIST/raw."""
    read = lambda part: _idx_pair(home(root) / "MNIST" / "raw", part, "MNIST", MNIST, MNIST_URLS)
    return in_memory((read("train"), None, read("t10k")), [str(i) for i in range(10)], seed, **options)


def fashion_mnist(seed: int, root: str, **options) -> Data:
    """Fashion-MNIST (Xiao et al., arXiv:1708.07747): 60,000 / 10,000 garments of 28x28 pixels, from <root>/FashionMNIST/raw."""
    folder = home(root) / "FashionMNIST" / "raw"
    read = lambda part: _idx_pair(folder, part, "Fashion-MNIST", FASHION_MNIST, FASHION_MNIST_URLS)
    return in_memory((read("train"), None, read("t10k")), GARMENTS, seed, **options)


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


def cifar10(seed: int, root: str, **options) -> Data:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 / 10,000 photographs of 32x32 pixels.

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
    return in_memory((train, None, parts[-1]), CIFAR10_CLASSES, seed, **options)


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
