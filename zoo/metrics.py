"""What the zoo's metrics mean: one line each, in which unit, and which way is better; those that say most come first."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    about: str
    unit: str
    better: str  # "higher", "lower"; "" where neither is
    shown: bool = True  # in tables that have no room for all


PERCENT, NATS, DISTANCE = "%", "nats an item", "Euclidean, of pixels in [0, 1]"
METRICS = {
    "accuracy": Metric("items answered right; of the tasks of 1997, sequences", PERCENT, "higher"),
    "bits_per_char": Metric("cross-entropy of text, whatever the tokenizer", "bits a character", "lower"),
    "bleu": Metric("sacrebleu of the generated texts", "0 to 100", "higher"),
    "perplexity": Metric("of text: e to the nats a token; of VQ-VAE: codes in use, weighted by how often", "", "lower; of codes, higher"),
    "mse": Metric("mean squared error", "", "lower"),
    "bound": Metric("lower bound on the log-likelihood, one draw of z", NATS, "higher"),
    "marginal_log_likelihood": Metric("log-likelihood, by importance sampling", NATS, "higher"),
    "posterior_sampled_log_likelihood": Metric("log-likelihood, by the VAE paper's appendix D", NATS, "higher"),
    "fid": Metric("Frechet distance of samples and training items in features of Inception, or of the run that its name ends with", "", "lower"),
    "frechet": Metric("Frechet distance in features of a small classifier of the pixels; comparable on one data set only", "", "lower"),
    "frechet_gaussian": Metric("`frechet` of a Gaussian with the mean and the covariance of the pixels, which a model should beat", "", ""),
    "frechet_test": Metric("`frechet` of the test items themselves", "", "", shown=False),
    "classes": Metric("classes that at least 1 % of the samples each are taken for", "", "higher"),
    "nearest": Metric("from a sample to the nearest training item; much below `nearest_test` it would be a copy", DISTANCE, ""),
    "nearest_test": Metric("`nearest` of the test items", DISTANCE, ""),
    "inception": Metric("inception score under the classifier of `frechet`", "1 to the number of classes", "higher", shown=False),
    "inception_test": Metric("`inception` of the test items", "1 to the number of classes", "", shown=False),
    "inception_score": Metric("inception score under the net of `fid`", "1 to the number of classes", "higher", shown=False),
    "precision": Metric("samples within the manifold of real items, in the features of `fid`; of tags: those found that are right",
                        "0 to 1; of tags, %", "higher", shown=False),
    "recall": Metric("real items within the manifold of samples, in the features of `fid`; of tags: those there that are found",
                     "0 to 1; of tags, %", "higher", shown=False),
    "log_likelihood": Metric("of an item, given a draw of its z: the bound without its KL term", NATS, "higher", shown=False),
    "kl": Metric("from the posterior of z to its prior", NATS, "", shown=False),
    "parzen_log_likelihood": Metric("log-likelihood under Gaussian windows on the samples", NATS, "higher"),
    "bits_per_dim": Metric("code length of the pixels, or a bound on it", "bits a channel of a pixel", "lower"),
    "unexplained": Metric("squared error as a share of the pixels' variance", "0 to 1", "lower"),
    "modes": Metric("modes of a mixture that get at least half their share of the samples", "", "higher"),
    "near": Metric("samples within three standard deviations of a mode", PERCENT, "higher"),
    "exact": Metric("generated texts that equal a reference", PERCENT, "higher"),
    "word_perplexity": Metric("e to the nats a word, whatever the tokenizer", "", "lower"),
    "error_free": Metric("symbols foreseen before the first error, the mean of the streams", "symbols", "higher"),
    "symbol_accuracy": Metric("symbols foreseen", PERCENT, "higher"),
    "far_accuracy": Metric("of the symbols that hang on one long ago; guesses have 50", PERCENT, "higher", shown=False),
    "gap_accuracy": Metric("words of a gap filled in right, both sides seen", PERCENT, "higher"),
    "gap_left_accuracy": Metric("words of a gap filled in right, only the left side seen", PERCENT, "higher"),
    "masked_accuracy": Metric("masked tokens foretold", PERCENT, "higher"),
    "next_accuracy": Metric("pairs of sentences rightly told to follow one another or not", PERCENT, "higher"),
    "f1": Metric("harmonic mean of precision and recall", PERCENT, "higher"),
    "matthews": Metric("Matthews' correlation of labels and answers", "-100 to 100", "higher"),
    "knn_accuracy": Metric("nearest neighbours in the features", PERCENT, "higher"),
    "linear_probe_accuracy": Metric("logistic regression on the features", PERCENT, "higher"),
    "error": Metric("items answered wrong", PERCENT, "lower", shown=False),
    "ten_crop_error": Metric("items answered wrong by the mean answer to ten crops", PERCENT, "lower", shown=False),
    "top5_accuracy": Metric("items whose label is among the five likeliest", PERCENT, "higher", shown=False),
    "pearson": Metric("correlation of scores and answers", "-100 to 100", "higher", shown=False),
    "spearman": Metric("correlation of the ranks of scores and answers", "-100 to 100", "higher", shown=False),
    "squad_f1": Metric("words shared by answers and references, SQuAD's F1", PERCENT, "higher", shown=False),
    "loss": Metric("cross-entropy", "nats a token or item", "lower", shown=False),
}  # fmt: skip


def meaning(name: str) -> Metric | None:
    """What a name in metrics.json means: `fid_by_resnet_mnist_resnet20` is the `fid` in features of the run resnet/mnist_resnet20."""
    return METRICS.get(name.split("_by_")[0])


def importance(name: str) -> int:
    """Sort by this: those that tables always show first, most telling ones before others."""
    found = meaning(name)
    return list(METRICS.values()).index(found) if found and found.shown else len(METRICS)
