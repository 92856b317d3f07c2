"""Pre-training text for masked language models: documents -> examples of two segments or of full sentences -> hidden tokens.

Which texts make an example is settled once; where it is cut, what follows it and which of its tokens are hidden is a pure function of (seed, epoch,
item) (zoo/data/hashing.py). The tokens live on the device, and a batch is made there, without a loop.

B examples of a batch, T tokens of an example (data.length), S sentences, N tokens of all of them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import Address, Batch, Data, Plan, Shuffled, choice, send, whole
from zoo.data.documents import Document, Reading, shares
from zoo.data.hashing import PHASE, uniform
from zoo.data.wordpiece import ByteLevel, WordPiece, vocabulary
from zoo.errors import ConfigError, ZooError

IGNORED = -100  # what the loss leaves out
Form = Literal["segment_pairs", "full_sentences", "doc_sentences"]
Spans = tuple[Tensor, Tensor]  # first tokens and those behind the last ones, (B,) each
PAIR_DRAWS = 6  # random numbers that a pair takes, before those of its tokens


@dataclass
class Corpus:
    """Sentences end to end, on the device.

    Args:
        tokens: (N,) int32.
        sentences: (S + 1,) int64, where each begins, and N.
        documents: (D + 1,) int64, the number of each one's first sentence, and S.
    """

    tokens: Tensor
    sentences: Tensor
    documents: Tensor

    def to(self, device: torch.device) -> None:
        self.tokens, self.sentences, self.documents = (t.to(device) for t in (self.tokens, self.sentences, self.documents))


@dataclass(frozen=True)
class Hiding:
    """Which tokens of an example are to be predicted (BERT, section 3.1 and appendix A.1).

    Args:
        share: of all tokens; 1 at least, `most` at most.
        replace: shares of them that become [MASK], any token of the vocabulary, and stay as they are.
        copies: epochs after which the same tokens are hidden again; None: never.
    """

    share: float
    most: int
    replace: tuple[float, float, float]
    copies: int | None

    def __call__(self, tokens: Tensor, attend: Tensor, pieces: WordPiece | ByteLevel, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) -> what the model sees, and the targets; `drawn` (B, 3 T) in [0, 1)."""
        order, kind, other = drawn.chunk(3, 1)
        words = ~pieces.is_special(tokens)
        rank = order.masked_fill(~words, 2.0).argsort(1).argsort(1)
        count = (attend.sum(1) * self.share).round().clamp(1, self.most)
        hidden = (rank < count[:, None]) & words
        masked, random, _ = self.replace
        shown = torch.where(kind < masked + random, (other * pieces.size).long(), tokens).masked_fill(kind < masked, pieces.mask)
        return torch.where(hidden, shown, tokens), tokens.masked_fill(~hidden, IGNORED)


class Examples:
    """A split. A batch is {"tokens", "segments", "targets" (B, T) int64, "attend" (B, T) bool}, with pairs also "next" (B,): 0 where B follows A.

    Args:
        form: see `masked`.
        short: share of examples of random length.
    """

    workers = 0

    def __init__(self, corpus: Corpus, pieces: WordPiece | ByteLevel, form: Form, length: int, short: float, hiding: Hiding, seed: int):
        self.corpus, self.vocabulary, self.form, self.length, self.hiding, self.seed = corpus, pieces, form, length, hiding, seed
        self.room = length - special(form)  # tokens of text
        if form == "segment_pairs":
            self.chunks = chunks_of_pairs(corpus, self.room, short, seed)
        else:
            self.chunks = chunks(corpus, self.room, across=form == "full_sentences")

    def __len__(self) -> int:
        return len(self.chunks)

    def to(self, device: torch.device) -> "Examples":
        self.corpus.to(device)
        self.chunks = self.chunks.to(device)
        return self

    def plan(self, batch_size: int) -> Plan:
        return Shuffled(len(self), batch_size, self.seed)

    def sweeps(self, batch_size: int) -> list[list[Address]]:
        """Each example once, as in epoch 0."""
        return [[{"index": index, "epoch": torch.zeros_like(index)}] for index in torch.arange(len(self)).split(batch_size)]

    def fetch(self, address: Address) -> Batch:
        index, epoch = send(torch.stack([address["index"], address["epoch"]]), self.chunks.device)
        epoch = epoch % self.hiding.copies if self.hiding.copies else epoch
        drawn = uniform(self.seed, epoch, index, PAIR_DRAWS + 3 * self.length)
        if self.form == "segment_pairs":
            a, b, following = self.pairs(index, drawn)
            batch = {**self.laid_out(a, b), "next": following}
        else:
            first, last, _, _ = self.chunks[index].unbind(1)
            batch = self.laid_out((self.corpus.sentences[first], self.corpus.sentences[last]))
        batch["tokens"], batch["targets"] = self.hiding(batch["tokens"], batch["attend"], self.vocabulary, drawn[:, PAIR_DRAWS:])
        return batch

    def pairs(self, index: Tensor, drawn: Tensor) -> tuple[Spans, Spans, Tensor]:
        """A is the beginning of a chunk, B the rest of it or, in half of the cases, as much of another document (BERT, appendix A.2).

        Returns:
            A and B, cut where they are too long, and 1 where B does not follow A, (B,).
        """
        starts, documents = self.corpus.sentences, self.corpus.documents
        first, last, document, target = self.chunks[index].unbind(1)
        cut = first + 1 + (drawn[:, 0] * (last - first - 1)).long()  # sentence with which B begins
        a = starts[first], starts[cut]
        foreign = (drawn[:, 1] < 0.5) | (cut == last)  # a chunk of one sentence has no rest
        other = (drawn[:, 2] * (len(documents) - 2)).long()
        other += other >= document
        begin, end = documents[other], documents[other + 1]
        begin += (drawn[:, 3] * (end - begin)).long()
        wanted = starts[begin] + (target - (a[1] - a[0])).clamp(min=1)
        end = torch.minimum(torch.searchsorted(starts, wanted), end)  # whole sentences, the last of which reaches as far as wanted
        b = torch.where(foreign, starts[begin], a[1]), torch.where(foreign, starts[end], starts[last])
        return *self.cut(a, b, drawn[:, 4:6]), foreign.long()

    def cut(self, a: Spans, b: Spans, drawn: Tensor) -> tuple[Spans, Spans]:
        """Shortens the longer one until there is room for both, at its beginning, its end, or some of both."""
        half = (self.room + 1) // 2
        lengths = a[1] - a[0], b[1] - b[0]
        keep_a = torch.minimum(lengths[0], (self.room - lengths[1]).clamp(min=half))
        keep_b = torch.minimum(lengths[1], self.room - keep_a)
        found = []
        for (start, _), length, keep, u in zip((a, b), lengths, (keep_a, keep_b), drawn.unbind(1)):
            start = start + (u * (length - keep + 1)).long()
            found.append((start, start + keep))
        return found[0], found[1]

    def laid_out(self, a: Spans, b: Spans | None = None) -> Batch:
        """[CLS] A [SEP], or [CLS] A [SEP] B [SEP], and padding: (B, T) each."""
        pieces, column = self.vocabulary, torch.arange(self.length, device=self.chunks.device)
        start, length = a[0][:, None], (a[1] - a[0])[:, None]
        place, end = start + column - 1, length + 1  # `end` is the place of the last [SEP]
        second = torch.zeros_like(place, dtype=torch.bool)
        if b is not None:
            second = column > end
            place = torch.where(second, b[0][:, None] + column - end - 1, place)
            end = end + (b[1] - b[0])[:, None] + 1
        tokens = self.corpus.tokens[place.clamp(0, len(self.corpus.tokens) - 1)].long()
        tokens = tokens.masked_fill((column == length + 1) | (column == end), pieces.sep).masked_fill(column == 0, pieces.cls)
        attend = column <= end
        return {"tokens": tokens.masked_fill(~attend, pieces.pad), "segments": (second & attend).long(), "attend": attend}


def special(form: Form) -> int:
    """Special tokens of an example."""
    return 3 if form == "segment_pairs" else 2


def chunks_of_pairs(corpus: Corpus, room: int, short: float, seed: int) -> Tensor:
    """Sentences of a document until they fill the room or, in a share `short` of the cases, a random part of it: (n, 4) first and last sentence (the
    latter not included), document, and tokens wanted."""
    index = torch.arange(len(corpus.sentences) - 1)
    drawn = uniform(seed, torch.zeros_like(index), index, 2, PHASE)  # for a chunk that begins with this sentence
    target = torch.where(drawn[:, 0] < short, 2 + (drawn[:, 1] * (room - 1)).long(), room).tolist()
    starts, documents, found = corpus.sentences.tolist(), corpus.documents.tolist(), []
    for document, (first, end) in enumerate(pairwise(documents)):
        while first < end:
            last = bisect_left(starts, starts[first] + target[first], first + 1, end)
            found.append((first, last, document, target[first]))
            first = last
    return torch.tensor(found)


def chunks(corpus: Corpus, room: int, across: bool) -> Tensor:
    """As many full sentences as there is room for, over the borders of documents where `across`: (n, 4) as above."""
    starts, documents, found = corpus.sentences.tolist(), corpus.documents.tolist(), []
    borders = [documents[0], documents[-1]] if across else documents
    for document, (first, end) in enumerate(pairwise(borders)):
        while first < end:
            last = bisect_right(starts, starts[first] + room, first, end + 1) - 1  # no sentence is longer than the room
            found.append((first, last, document, room))
            first = last
    return torch.tensor(found)


def masked(
    seed: int,
    root: str,
    source: str,
    tokenizer: Literal["wordpiece", "bpe"] = "wordpiece",
    vocab: str | None = "bert-base-uncased",
    vocab_size: int | None = None,
    lowercase: bool = True,
    documents: Literal["blank_lines", "files"] = "blank_lines",
    form: Literal["segment_pairs", "full_sentences", "doc_sentences"] = "segment_pairs",
    length: int = 128,
    short: float = 0.1,
    share: float = 0.15,
    predictions: int | None = None,
    replace: Sequence[float] = (0.8, 0.1, 0.1),
    copies: int | None = 10,
    splits: Sequence[float] = (0.9, 0.05, 0.05),
) -> Data:
    """Examples for pre-training, made of plain text.

    Validation and test are other documents, cut and hidden the same way for every seed.

    Args:
        source: a text file in UTF-8, or a folder with such files (*.txt, also further down); "manual", the Python manual that every CPython carries;
            "nltk", 17 MB of prose from <root>/nltk (see zoo.data.documents.NLTK). A sentence ends with its line, or after . ! ? before a capital.
        tokenizer, vocab, vocab_size, lowercase: see zoo.data.wordpiece.vocabulary; what is trained is trained on the training documents.
        documents: what parts them within a file: blank lines, as in the authors' format, or nothing: each file is one.
        form: "segment_pairs": two segments of several sentences, of which the second follows the first or not (BERT). "full_sentences": as many
            sentences as fit, documents parted by a [SEP]; "doc_sentences": the same within one document (RoBERTa, section 4.2).
        length: T.
        short: share of pairs of random length, from 2 tokens on.
        share, predictions, replace, copies: what is hidden, see `Hiding`; predictions: at most so many of an example, None: share x length.
        splits: shares of the documents for training, validation, test.

    Raises:
        ConfigError: for an argument out of range.
        ZooError: if the text cannot be read, or has too few documents.
    """
    choice("data.form", form, get_args(Form))
    hiding = _hiding(share, predictions, replace, copies, whole("data.length", length, 8))
    if not 0 <= short <= 1:
        raise ConfigError(f"data.short must be a share from 0 to 1, not {short}")
    reading = Reading(source, root, choice("data.documents", documents, ("blank_lines", "files")), shares(splits))
    pieces = vocabulary(tokenizer, vocab, vocab_size, lowercase, root, reading)
    room = length - special(form)
    corpora, broken = tokenised(reading, pieces, room, pieces.sep if form == "full_sentences" else None)
    found = {}
    for name in corpora:
        if form == "segment_pairs" and len(corpora[name].documents) < 3:
            raise ZooError(f"{source}: the {name} part has one document, and pairs need text of others: give more documents, or other data.splits")
        found[name] = Examples(corpora[name], pieces, form, length, short, hiding, seed if name == "train" else 0)
    size = corpora["train"]
    told = [f"train: {len(size.documents) - 1:,} documents, {len(size.sentences) - 1:,} sentences, {len(size.tokens):,} tokens"]
    if broken:
        told.append(f"broke {broken:,} sentences of more than {room} tokens (data.length) into several")
    if kept := getattr(pieces, "kept_in", None):
        told.append(f"vocabulary: {kept} (for data.vocab, where the model learns something else)")
    return Data(
        train=found["train"],
        valid=found.get("valid"),
        test=found.get("test"),
        facts={"vocab_size": pieces.size, "length": length, "predictions": hiding.most, "next": int(form == "segment_pairs")},
        decode=pieces.decode,
        encode=pieces.encode,
        digest=reading.digest,
        notes=tuple(told),
    )


def _hiding(share: float, predictions: int | None, replace: Sequence[float], copies: int | None, length: int) -> Hiding:
    if not 0 < share <= 1:
        raise ConfigError(f"data.share must be a share above 0, of the tokens to hide, not {share}")
    if len(replace) != 3 or min(replace) < 0 or abs(sum(replace) - 1) > 1e-6:
        raise ConfigError(f"data.replace must be the shares of masks, random and unchanged tokens, such as [0.8, 0.1, 0.1], not {list(replace)}")
    if copies is not None:
        whole("data.copies", copies, 1)
    most = max(round(share * length), 1) if predictions is None else whole("data.predictions", predictions, 1)
    return Hiding(share, most, tuple(replace), copies)


def tokenised(reading: Reading, pieces: WordPiece | ByteLevel, room: int, sep: int | None) -> tuple[dict[str, Corpus], int]:
    """The corpora of train, valid and test, and how many sentences had to be broken for want of room.

    Args:
        sep: a token to put behind each document.
    """
    rows: dict[str, list[np.ndarray]] = {name: [] for name in reading.shares}
    documents: dict[str, list[int]] = {name: [0] for name in reading.shares}
    broken, most = 0, room - (sep is not None)
    for name, encoded in _encoded(reading.parts(), pieces):
        for row in encoded:
            broken += len(row) > most
            rows[name] += [row[start : start + most] for start in range(0, len(row), most)]
        if sep is not None and len(rows[name]) > documents[name][-1]:
            rows[name][-1] = np.append(rows[name][-1], np.int32(sep))
        if len(rows[name]) > documents[name][-1]:
            documents[name].append(len(rows[name]))
    for name, found in rows.items():
        if not found:
            remedy = "give more documents (data.documents says what parts them), or other data.splits"
            raise ZooError(f"{reading.source}: no document is left for the {name} part: {remedy}")
    corpora = {}
    for name, found in rows.items():
        starts = np.cumsum([0, *map(len, found)])
        corpora[name] = Corpus(torch.from_numpy(np.concatenate(found)), torch.from_numpy(starts), torch.tensor(documents[name]))
    return corpora, broken


def _encoded(parts: Iterable[tuple[str, Document]], pieces: WordPiece | ByteLevel) -> Iterator[tuple[str, list[np.ndarray]]]:
    """(part, ids of each sentence) of each document; some thousand sentences are encoded at a time."""
    waiting: list[tuple[str, Document]] = []
    sentences = 0
    for part in parts:
        waiting.append(part)
        sentences += len(part[1])
        if sentences > 10_000:
            yield from _flushed(waiting, pieces)
            waiting, sentences = [], 0
    yield from _flushed(waiting, pieces)


def _flushed(waiting: list[tuple[str, Document]], pieces: WordPiece | ByteLevel) -> Iterator[tuple[str, list[np.ndarray]]]:
    rows = iter(pieces.rows([sentence for _, document in waiting for sentence in document]))
    for name, document in waiting:
        yield name, [row for row in (next(rows) for _ in document) if len(row)]
