"""What BERT learns: hidden tokens and whether B follows A (section 3.1), then sentences, spans and tags (sections 3.2, 4 and 5.3).

B batch, T tokens, P hidden tokens of a sequence, V vocabulary, K classes or tags. All batches have

    tokens (B, T) int64, segments (B, T) int64 (0 for A, 1 for B; may be missing), attend (B, T) bool (false at padding).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORED = -100  # a target that doesn't count

Batch = dict[str, Tensor]


def text_of(batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return batch["tokens"], batch.get("segments"), batch.get("attend")


def precise(logits: Tensor) -> Tensor:
    """In float32 at least: a sum over a batch needs more than bf16 has."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def check_text(model: nn.Module, facts: dict[str, int]) -> None:
    """ValueError where the model doesn't take the data's tokens or their lengths."""
    size, length = facts.get("vocab_size", model.vocab_size), facts.get("length", 1)
    if size != model.vocab_size:
        raise ValueError(f"the model has {model.vocab_size} tokens and the data {size}: set model.vocab_size={size}")
    if length > model.max_length:
        raise ValueError(f"the data have texts of up to {length} tokens, the model {model.max_length} positions: "
                         f"lower data.length, or raise model.max_length")  # fmt: skip


def check_output(model: nn.Module, shape: tuple[int, ...], wanted: str, remedy: str) -> None:
    """ValueError where the model makes something of another shape of a text of one token."""
    training = model.training
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad():
        found = model.eval()(token)
    model.train(training)
    if not isinstance(found, Tensor) or found.shape != shape:
        told = f"is {tuple(found.shape)}" if isinstance(found, Tensor) else "is not one tensor"
        raise ValueError(f"the model's output {told} and {wanted}: set {remedy}")


class MaskedLanguageModel(nn.Module):
    """L = mean over the hidden tokens of -log p(token) + mean over the pairs of -log p(B follows A) (section 3.1, appendix A.2).

    A batch also has targets (B, T), the token that was hidden or -100, and, for pairs, next (B,), 0 where B follows A and 1 where it is any text.
    Without `next` there is the first term alone (table 5, No NSP; RoBERTa).

    Only the hidden places go through the head, as many of each sequence as `predictions` says: their number is not asked for, which would have to
    wait for a GPU.

    Args:
        model: (tokens, segments, attend, places (B, P)) -> logits (B, P, V), and with `next` also logits (B, 2).
        predictions: P, at least the most tokens that the data hide in a sequence; None: all places go through the head, and most of them in vain.
    """

    turns = ("model",)

    def __init__(self, model: nn.Module, predictions: int | None = None):
        super().__init__()
        if predictions is not None and predictions < 1:
            raise ValueError(f"predictions must be at least 1, not {predictions}")
        self.model = model
        self.predictions = predictions

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits (B, P, V), targets (B, P), and the logits (B, 2) of what follows."""
        targets, places = batch["targets"], None
        if self.predictions is not None and self.predictions < targets.shape[1]:
            places = (targets != IGNORED).byte().topk(self.predictions, dim=1).indices  # the hidden ones first
            targets = targets.gather(1, places)
        found = self.model(*text_of(batch), places)
        logits, following = found if isinstance(found, tuple) else (found, None)
        return precise(logits), targets, following

    def forward(self, batch: Batch, turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        logits, targets, following = self.logits(batch)
        terms = {"masked": F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")}
        if "next" in batch:
            terms["next"] = F.cross_entropy(precise(following), batch["next"], reduction="sum")
        return terms, {}

    def count(self, batch: Batch, turn: str) -> dict[str, int | Tensor]:
        counts = {"masked": (batch["targets"] != IGNORED).sum()}
        return counts | {"next": len(batch["next"])} if "next" in batch else counts

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        logits, targets, following = self.logits(batch)
        hidden = targets != IGNORED
        statistics = {
            "nats": F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"),
            "hidden": hidden,
            "found": (logits.argmax(-1) == targets) & hidden,
        }
        if "next" in batch:
            statistics["next_nats"] = F.cross_entropy(precise(following), batch["next"], reduction="none")
            statistics["next_right"] = following.argmax(-1) == batch["next"]
            statistics["pairs"] = torch.ones_like(batch["next"])
        return {name: value.double().sum() for name, value in statistics.items()}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """`masked_loss` (nats a hidden token), `perplexity` = e^masked_loss, `masked_accuracy` and `next_accuracy` in percent, `next_loss`; `loss`,
        the sum of both."""
        loss = statistics["nats"] / statistics["hidden"]
        metrics = {
            "loss": loss,
            "masked_loss": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,  # beyond 709, math.exp raises
            "masked_accuracy": 100 * statistics["found"] / statistics["hidden"],
        }
        if "pairs" in statistics:
            metrics["next_loss"] = statistics["next_nats"] / statistics["pairs"]
            metrics["next_accuracy"] = 100 * statistics["next_right"] / statistics["pairs"]
            metrics["loss"] += metrics["next_loss"]
        return metrics

    def check(self, facts: dict[str, int]) -> None:
        """ValueError where the model or the number of predictions don't go with the data."""
        check_text(self.model, facts)
        most, kind = facts.get("predictions", 0), getattr(self.model, "kind", None)
        if self.predictions is not None and self.predictions < most:
            raise ValueError(f"the data hide up to {most} tokens of a sequence, more than objective.predictions={self.predictions}: set it to {most}")
        wanted = "pretraining" if facts.get("next") else "masked"
        if "next" in facts and kind != wanted:
            pairs = "pairs of sentences" if facts["next"] else "no pairs of sentences"
            raise ValueError(f"the data have {pairs} (data.form), which model.head={kind} does not go with: set model.head={wanted}")


class LeftToRight(nn.Module):
    """-log p(x_t | x_1 .. x_t-1), summed over all tokens but [CLS]: what BERT is compared with in table 5 (LTR & No NSP), on the same batches.

    Args:
        model: as for MaskedLanguageModel, with `causal` set.

    Raises:
        ValueError: if the model sees what it shall predict.
    """

    turns = ("model",)

    def __init__(self, model: nn.Module):
        super().__init__()
        if not getattr(model, "causal", False):
            raise ValueError("a model that reads in both directions sees what it shall predict: set model.causal=true")
        self.model = model

    def nats(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of each token but the first, (B, T - 1), 0 at padding; and whether it counts."""
        whole, counts = unmasked(batch), batch["attend"][:, 1:]
        logits = precise(self.model(whole, batch["segments"], batch["attend"]))[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), whole[:, 1:].flatten(), reduction="none").view(counts.shape) * counts, counts

    def forward(self, batch: Batch, turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"loss": self.nats(batch)[0].sum()}, {}

    def count(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        return {"loss": batch["attend"][:, 1:].sum()}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        nats, counts = self.nats(batch)
        return {"nats": nats.double().sum(), "tokens": counts.double().sum()}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """`loss` (nats a token), `perplexity` = e^loss."""
        loss = statistics["nats"] / statistics["tokens"]
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}

    def check(self, facts: dict[str, int]) -> None:
        check_text(self.model, facts)
        if self.model.kind != "masked":
            raise ValueError(f"model.head={self.model.kind} does not go with left-to-right prediction: set model.head=masked")


def unmasked(batch: Batch) -> Tensor:
    """The text (B, T) as it was before tokens were hidden."""
    return torch.where(batch["targets"] == IGNORED, batch["tokens"], batch["targets"])


class SentenceClassification(nn.Module):
    """-log p(label | C), p = softmax(C W^T) (section 4.1), summed over the items. A batch also has label (B,).

    Args:
        model: (tokens, segments, attend) -> logits (B, K).
    """

    turns = ("model",)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def logits(self, batch: Batch) -> Tensor:
        return precise(self.model(*text_of(batch)))

    def forward(self, batch: Batch, turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        logits, label = self.logits(batch), batch["label"]
        loss = F.cross_entropy(logits, label, reduction="sum")
        return {"loss": loss}, {"accuracy": 100 * (logits.detach().argmax(-1) == label).sum()}  # percent, once divided by the items

    def predict(self, batch: Batch) -> Tensor:  # -> (B, K), probabilities
        return self.logits(batch).softmax(-1)

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        logits, label = self.logits(batch), batch["label"]
        guess = logits.argmax(-1)
        statistics = {"nats": F.cross_entropy(logits, label, reduction="none"), "items": torch.ones_like(label), "right": guess == label}
        if logits.shape[-1] == 2:
            statistics |= {f"{a}{b}": (label == a) & (guess == b) for a in (0, 1) for b in (0, 1)}
        return {name: value.double().sum() for name, value in statistics.items()}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """In percent: accuracy, error; of two classes also f1, of class 1, and matthews, the correlation of labels and answers (0 where all
        answers are the same). loss: mean nats."""
        items = statistics["items"]
        metrics = {"accuracy": 100 * statistics["right"] / items, "loss": statistics["nats"] / items}
        metrics["error"] = 100 - metrics["accuracy"]
        if "11" in statistics:
            tn, fp, fn, tp = (statistics[key] for key in ("00", "01", "10", "11"))
            metrics["f1"] = 100 * 2 * tp / max(2 * tp + fp + fn, 1)
            norm = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
            metrics["matthews"] = 100 * (tp * tn - fp * fn) / norm if norm else 0.0
        return metrics

    def check(self, facts: dict[str, int]) -> None:
        """ValueError where the model tells another number of classes apart, or doesn't take the texts."""
        check_text(self.model, facts)
        classes = facts.get("num_classes")
        if classes == 1:
            raise ValueError("the data's labels are numbers, not classes: set objective._target_=zoo.papers.bert.SentenceRegression")
        if classes is not None:
            check_output(self.model, (1, classes), f"the data have {classes} classes", f"model.head=classification and model.outputs={classes}")


class SentenceRegression(nn.Module):
    """(y - label)^2, y the only output of the head (STS-B in section 4.1). A batch also has label (B,), floating point.

    Args:
        model: (tokens, segments, attend) -> (B, 1).
    """

    turns = ("model",)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def answers(self, batch: Batch) -> Tensor:  # -> (B,)
        return precise(self.model(*text_of(batch)))[:, 0]

    def forward(self, batch: Batch, turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"loss": (self.answers(batch) - batch["label"]).square().sum()}, {}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums of x, y, x^2, y^2, x y, with y what the model says and x the label."""
        x, y = batch["label"].double(), self.answers(batch).double()
        products = {"items": torch.ones_like(x), "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}
        return {name: value.sum() for name, value in products.items()}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """mse, and pearson, the correlation in percent (0 where all answers are the same). That of ranks, Spearman's, does not add up over batches:
        see zoo.evaluation.ranks."""
        n, x, y, xx, yy, xy = (statistics[key] for key in ("items", "x", "y", "xx", "yy", "xy"))
        norm = math.sqrt(max(n * xx - x * x, 0.0) * max(n * yy - y * y, 0.0))
        mse = (xx - 2 * xy + yy) / n
        return {"loss": mse, "mse": mse, "pearson": 100 * (n * xy - x * y) / norm if norm else 0.0}

    def check(self, facts: dict[str, int]) -> None:
        """ValueError where the labels are classes, the model makes more than one number, or doesn't take the texts."""
        check_text(self.model, facts)
        if facts.get("num_classes", 1) > 1:
            raise ValueError("the data's labels are classes, not numbers: set objective._target_=zoo.papers.bert.SentenceClassification")
        check_output(self.model, (1, 1), "the label is one number", "model.head=classification and model.outputs=1")


class SpanPrediction(nn.Module):
    """-1/2 (log p_start + log p_end), each a softmax over the tokens of the text (section 4.2; the half is the authors' code's).

    A batch also has start and end (B,), the answer's first and last token; both 0, at [CLS], where there is no answer (section 4.3).

    Args:
        model: (tokens, segments, attend) -> logits (B, T, 2).
        longest: the most tokens of an answer.
    """

    turns = ("model",)
    weights = {"start": 0.5, "end": 0.5}

    def __init__(self, model: nn.Module, longest: int = 30):
        super().__init__()
        if longest < 1:
            raise ValueError(f"longest must be at least 1, not {longest}")
        self.model = model
        self.longest = longest

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the first and of the last token, (B, T) each, padding included, as in the authors' code."""
        return precise(self.model(*text_of(batch))).unbind(-1)

    def forward(self, batch: Batch, turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        start, end = self.logits(batch)
        losses = F.cross_entropy(start, batch["start"], reduction="sum"), F.cross_entropy(end, batch["end"], reduction="sum")
        return dict(zip(("start", "end"), losses)), {}

    def spans(self, batch: Batch, within: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """First and last token of the span i <= j with the largest score S T_i + E T_j, and that score, (B,) each; never in the padding.

        Args:
            within: (B, T) bool, where a span may lie; everywhere without it.
        """
        start, end = self.logits(batch)
        length = start.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool, device=start.device).triu().tril(self.longest - 1)
        for places in (batch.get("attend"), within):
            if places is not None:
                allowed = allowed & places[:, :, None] & places[:, None, :]
        scores = (start[:, :, None] + end[:, None, :]).masked_fill(~allowed, -math.inf)
        score, best = scores.flatten(1).max(-1)
        return best // length, best % length, score

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums over the items: exact, items, and f1, that of the tokens in the span found and in the right one."""
        first, last, _ = self.spans(batch)
        start, end = batch["start"], batch["end"]
        common = (torch.minimum(last, end) - torch.maximum(first, start) + 1).clamp(min=0)
        f1 = 2 * common / ((last - first + 1) + (end - start + 1))
        statistics = {"exact": (first == start) & (last == end), "f1": f1, "items": torch.ones_like(start)}
        return {name: value.double().sum() for name, value in statistics.items()}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """exact and f1 in percent. Of tokens and of windows: SQuAD's own figures, of questions, see zoo.evaluation.spans."""
        return {name: 100 * statistics[name] / statistics["items"] for name in ("exact", "f1")}

    def check(self, facts: dict[str, int]) -> None:
        """ValueError where the model doesn't make two numbers of a token, or doesn't take the texts."""
        check_text(self.model, facts)
        check_output(self.model, (1, 1, 2), "a span has a first and a last token", "model.head=spans")


class Tagging(nn.Module):
    """-log p(tag of token i | T_i), summed over the tokens that have one (section 5.3). A batch also has tags (B, T), -100 where there is none, such
    as at [CLS] and at all but the first piece of a word.

    Args:
        model: (tokens, segments, attend) -> logits (B, T, K).
        chunks: the tags mark chunks of words, such as names: 0 outside of them, 2 k + 1 at the first word of one of kind k, 2 k + 2 within it (IOB).
    """

    turns = ("model",)

    def __init__(self, model: nn.Module, chunks: bool = False):
        super().__init__()
        self.model = model
        self.chunks = chunks

    def logits(self, batch: Batch) -> Tensor:
        return precise(self.model(*text_of(batch)))

    def forward(self, batch: Batch, turn: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"loss": F.cross_entropy(self.logits(batch).flatten(0, 1), batch["tags"].flatten(), ignore_index=IGNORED, reduction="sum")}, {}

    def count(self, batch: Batch, turn: str) -> dict[str, Tensor]:
        return {"loss": (batch["tags"] != IGNORED).sum()}

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        logits, tags = self.logits(batch), batch["tags"]
        guess, tagged = logits.argmax(-1), tags != IGNORED
        statistics = {
            "nats": F.cross_entropy(logits.flatten(0, 1), tags.flatten(), ignore_index=IGNORED, reduction="none"),
            "tokens": tagged,
            "right": (guess == tags) & tagged,
        }
        if self.chunks:
            words = (~tagged).byte().argsort(dim=1, stable=True)  # tagged tokens first, in their order
            tags, guess = tags.gather(1, words), guess.gather(1, words)
            (first, kind, last), (our_first, our_kind, our_last) = chunks_of(tags), chunks_of(guess.masked_fill(tags == IGNORED, 0))
            statistics |= {"chunks": first, "answers": our_first, "hits": first & our_first & (kind == our_kind) & (last == our_last)}
        return {name: value.double().sum() for name, value in statistics.items()}

    def summarise(self, statistics: dict[str, float]) -> dict[str, float]:
        """accuracy in percent, loss: mean nats. With `chunks` also precision, recall and f1 in percent: a chunk is right if kind, first and last
        word are (CoNLL's measure)."""
        metrics = {"accuracy": 100 * statistics["right"] / statistics["tokens"], "loss": statistics["nats"] / statistics["tokens"]}
        if self.chunks:
            chunks, answers, hits = (statistics[key] for key in ("chunks", "answers", "hits"))
            metrics |= {"precision": 100 * hits / max(answers, 1), "recall": 100 * hits / max(chunks, 1), "f1": 200 * hits / max(chunks + answers, 1)}
        return metrics

    def check(self, facts: dict[str, int]) -> None:
        """ValueError where the model has another number of tags, or doesn't take the texts."""
        check_text(self.model, facts)
        if (tags := facts.get("num_classes")) is not None:
            check_output(self.model, (1, 1, tags), f"the data have {tags} tags", f"model.head=tagging and model.outputs={tags}")


def chunks_of(tags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether a chunk begins at a word, its kind (-1: outside), and the last word of the chunk that the word is in, (B, W) each, as CoNLL's script
    reads tags: within a chunk after something else begins one, too.

    Args:
        tags: (B, W), numbered as in `Tagging`; negative ones are outside.
    """
    kind = torch.where(tags > 0, (tags - 1) // 2, -1)
    before, after = F.pad(kind[:, :-1], (1, 0), value=-1), F.pad(kind[:, 1:], (0, 1), value=-1)
    first = (kind >= 0) & ((tags % 2 == 1) | (kind != before))
    ends = (kind >= 0) & ((kind != after) | F.pad(first[:, 1:], (0, 1), value=True))
    place = torch.arange(tags.shape[1], device=tags.device).expand_as(tags)
    last = place.masked_fill(~ends, tags.shape[1]).flip(1).cummin(1).values.flip(1)
    return first, kind, last
