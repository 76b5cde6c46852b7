"""Captions and WUPS against values computed by hand, and errors about missing packages and data."""

import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.programs import run_program

from vila_core.errors import ConfigError, MissingDependencyError
from vila_eval.fixtures.lexicon import MiniatureLexicon
from vila_eval.metric import Scored
from vila_eval.metrics.captions import CaptionMetric, Corpus, score_corpora, tokenize
from vila_eval.metrics.wups import content_words, lexicon_named, nextqa_score, wups
from vila_eval.task import Question

WORDS = (
    MiniatureLexicon()
)  # entity > thing > shape > circle, square, triangle; thing > animal > dog, cat; entity > act > move > run, walk
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")


def test_bleu_counts_over_the_corpus() -> None:
    pytest.importorskip("pycocoevalcap")
    corpus = Corpus(["the cat sat on the mat", "add the salt"], [["the cat is on the mat"], ["add salt and pepper"]])
    scores = score_corpora([corpus], ("bleu_1", "bleu_2"))
    # Words: 5 of 6 and 2 of 3. Pairs: 3 of 5 (the cat, on the, the mat) and 0 of 2. Lengths: 9 for 10.
    penalty = math.exp(1 - 10 / 9)
    assert scores["bleu_1"] == pytest.approx([7 / 9 * penalty])
    assert scores["bleu_2"] == pytest.approx([math.sqrt(7 / 9 * 3 / 7) * penalty])


def test_rouge_l_uses_the_longest_common_subsequence() -> None:
    pytest.importorskip("pycocoevalcap")
    corpus = Corpus(["the cat sat on the mat", "add the salt"], [["the cat is on the mat"], ["add salt and pepper"]])
    # "the cat on the mat": 5 of 6 both ways. "add salt": precision 2/3, recall 2/4, with beta 1.2.
    second = 2.44 * (2 / 3) * (1 / 2) / (1 / 2 + 1.44 * 2 / 3)
    assert score_corpora([corpus], ("rouge_l",)) == {"rouge_l": pytest.approx([(5 / 6 + second) / 2])}


def test_cider_weights_words_by_rarity_in_the_corpus() -> None:
    pytest.importorskip("pycocoevalcap")
    references = [["a b"], ["c d"]]
    # Every word and pair is in one of two references. Equal texts: cosine 1 for words and pairs, 0 for longer: 10 *
    # 2/4.
    assert score_corpora([Corpus(["a b", "c d"], references)], ("cider",)) == {"cider": pytest.approx([5.0])}
    # "a c" for "a b": cosine 1/2 for words, 0 for pairs: 10 * 1/8.
    assert score_corpora([Corpus(["a c", "c d"], references)], ("cider",)) == {"cider": pytest.approx([(1.25 + 5) / 2])}
    # "a b x" is one pair longer: cosines 2/sqrt(6) and 1/sqrt(2), times exp(-1 / (2 * 36)).
    longer = 10 * (2 / math.sqrt(6) + 1 / math.sqrt(2)) / 4 * math.exp(-1 / 72)
    assert score_corpora([Corpus(["a b x", "c d"], references)], ("cider",)) == {
        "cider": pytest.approx([(longer + 5) / 2])
    }
    # In a corpus of one caption, every word is in every document, so all weights are 0.
    assert score_corpora([Corpus(["a b"], [["a b"]])], ("cider",)) == {"cider": [0.0]}


@needs_java
def test_tokens_are_lower_case_without_punctuation() -> None:
    pytest.importorskip("pycocoevalcap")
    texts = ["Add the salt, and stir.", "", "He doesn't\r\nstir!", "crème", ""]
    assert tokenize(texts) == ["add the salt and stir", "", "he does n't stir", "cr me", ""]


@needs_java
def test_each_video_counts_once_whatever_its_number_of_captions() -> None:
    pytest.importorskip("pycocoevalcap")
    metric = CaptionMetric("captions", ("bleu_1",), per_cluster=True)
    asked = [("Stir the soup.", "stir the soup", "a"), ("", "cut bread", "a"), ("cut bread", "cut bread", "b")]
    samples = []
    for number, (answer, reference, video) in enumerate(asked):
        question = Question(str(number), (), [reference], cluster=video)
        samples.append(Scored(question, answer, metric.score(answer, question)))
    (measure,) = metric.summarize(samples)
    # Video a: 3 of 3 words, 3 words for 5. Video b: 1.
    assert measure.estimate.mean == pytest.approx(100 * (math.exp(1 - 5 / 3) + 1) / 2)
    assert (measure.estimate.n, measure.unit) == (2, "points")
    (whole,) = CaptionMetric("captions", ("bleu_1",)).summarize(samples)
    assert (whole.estimate.mean, whole.estimate.n) == (pytest.approx(100 * math.exp(1 - 7 / 5)), 3)


@needs_java
@pytest.mark.slow  # starts a Java program
def test_meteor_matches_other_forms_of_a_word() -> None:
    pytest.importorskip("pycocoevalcap")
    corpora = [
        Corpus(["stir the hot soup"], [["stir the hot soup"]]),
        Corpus(["stirs the hot soup"], [["stir the hot soup"]]),
        Corpus([""], [["stir the hot soup"]]),
    ]
    equal, stemmed, empty = score_corpora(corpora, ("meteor",))["meteor"]
    assert equal == pytest.approx(1.0)
    assert 0.5 < stemmed < 1.0
    assert empty == 0.0


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(["a b"], [["a b"]])
    with pytest.raises(ConfigError, match="Got 1 captions and references for 0"):
        score_corpora([Corpus(["a"], [])], ("cider",))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="METEOR needs Java"):
        score_corpora([corpus], ("meteor",))
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vila-eval\[captions\]'"):
        score_corpora([corpus], ("cider",))


def test_similarity_depends_on_depth() -> None:
    assert WORDS.similarity("circle", "square") == 2 * 3 / (4 + 4)  # entity, thing, shape
    assert WORDS.similarity("circle", "shape") == 2 * 3 / (4 + 3)
    assert WORDS.similarity("dog", "run") == 2 * 1 / (4 + 4)
    assert WORDS.similarity("dog", "unheard") == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "threshold", "expected"),
    [
        ("dog", "dog", 0.9, 1.0),
        ("dog", "cat", 0.0, 0.75),
        ("dog", "cat", 0.9, 0.075),  # below the threshold: divided by ten
        ("dog cat", "dog", 0.0, 0.75),  # cat and dog: 0.75, dog and dog: 1; the smaller direction counts
        ("dog unheard", "dog", 0.0, 1.0),  # a word without similar words is left out of the product
        ("unheard", "dog", 0.0, 0.0),
        ("", "dog", 0.0, 0.0),
        ("dog run", "cat walk", 0.0, 0.75 * 0.75),
        ("unheard", "unheard", 0.0, 1.0),  # equal words need not be in the lexicon
    ],
)
def test_wups(prediction: str, reference: str, threshold: float, expected: float) -> None:
    assert wups(prediction, reference, threshold, WORDS) == pytest.approx(expected)


def test_stop_words_are_dropped_except_no_and_not() -> None:
    assert content_words("The dogs did not run to the cat", WORDS) == "dog not run cat"


def test_both_thresholds_apply_to_a_second_reference() -> None:
    question = Question("1", (), ["circle", "a shape"], groups={"type": "DO"}, fields={"lexicon": "miniature"})
    # lmms-eval uses threshold 0 for the second reference in both, which gives 6/7 twice.
    assert nextqa_score("square", question).values == {"wups": pytest.approx(6 / 7), "wups_0.9": pytest.approx(0.6 / 7)}


def test_counting_and_yes_or_no_questions_are_exact() -> None:
    question = Question("1", (), ["two", "a pair"], groups={"type": "DC"}, fields={"lexicon": "miniature"})
    assert nextqa_score("The two", question).values == {"wups": 1.0, "wups_0.9": 1.0}
    assert nextqa_score("two dogs", question).values == {"wups": 0.0, "wups_0.9": 0.0}


def test_a_missing_nltk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    lexicon_named.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"pip install 'vila-eval\[wups\]'"):
        lexicon_named("wordnet")


LOOK_UP = """
import json
from vila_core.errors import VilaError
from vila_eval.metrics.wups import content_words, lexicon_named
try:
    words = lexicon_named("wordnet")
    print(json.dumps([
        words.lemmas("They were Running. The dogs shrugged"), content_words("The dogs are running", words),
        words.similarity("dog", "cat"), words.similarity("dog", "run"), words.similarity("dog", "unheard"),
    ]))
except VilaError as error:
    print(json.dumps(str(error)))
"""


def look_up(data: Path) -> Any:
    environment = os.environ | {"NLTK_DATA": str(data), "HOME": str(data)}
    run = run_program([sys.executable, "-W", "ignore", "-c", LOOK_UP], env=environment, check=True)
    return json.loads(run.stdout)


def test_nltk_lexicon_looks_words_up(tmp_path: Path) -> None:
    pytest.importorskip("nltk")
    write_nltk_data(tmp_path)
    lemmas, content, dog_cat, dog_run, unknown = look_up(tmp_path)
    # "Running" is tagged a verb, "dogs" a noun, "were" is an exception of "be"; "shrugged" is unknown, its stem "shrug"
    # is a noun.
    assert lemmas == ["they", "be", "run", ".", "the", "dog", "shrug"]
    assert content == "dog run"
    assert dog_cat == pytest.approx(2 * 2 / (3 + 3))  # entity > animal > dog, cat
    assert dog_run == pytest.approx(
        2 * 1 / (4 + 3)
    )  # nouns and verbs meet in a root above both: 1 > entity > animal > dog, 1 > move > run
    assert unknown == 0.0


def test_missing_nltk_data_says_how_to_get_it(tmp_path: Path) -> None:
    pytest.importorskip("nltk")
    assert "python -m nltk.downloader wordnet punkt_tab averaged_perceptron_tagger_eng" in look_up(tmp_path)


def write_nltk_data(folder: Path) -> None:
    """Write made-up data in the formats of WordNet 3, of NLTK's sentence splitter and of its tagger."""
    nouns = {"entity": "", "animal": "entity", "dog": "animal", "cat": "animal", "shrug": "entity"}
    verbs = {"be": "", "move": "", "run": "move"}
    wordnet = folder / "corpora/wordnet"
    wordnet.mkdir(parents=True)
    for suffix, letter, parents in (("noun", "n", nouns), ("verb", "v", verbs), ("adj", "a", {}), ("adv", "r", {})):
        text, offsets, index = "  1 made up for a test\n", dict[str, int](), ""
        for word, parent in parents.items():
            offsets[word] = len(text)
            pointers = f"001 @ {offsets[parent]:08d} {letter} 0000" if parent else "000"
            text += f"{offsets[word]:08d} 00 {letter} 01 {word} 0 {pointers} | {word}  \n"
            index += f"{word} {letter} 1 0 1 0 {offsets[word]:08d}  \n"
        (wordnet / f"data.{suffix}").write_text(text)
        (wordnet / f"index.{suffix}").write_text(index)
        (wordnet / f"{suffix}.exc").write_text("were be\n" if suffix == "verb" else "")
    (wordnet / "lexnames").write_text("00\tall\t1\n")
    (wordnet / "index.sense").write_text("")
    (wordnet / "cntlist.rev").write_text("")
    punkt = folder / "tokenizers/punkt_tab/english"
    punkt.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (punkt / name).write_text("")
    tagger = folder / "taggers/averaged_perceptron_tagger_eng"
    tagger.mkdir(parents=True)
    for name, content in (
        ("weights", {}),
        ("tagdict", {"were": "VBD", "Running": "VBG", "running": "VBG"}),
        ("classes", ["NN"]),
    ):
        (tagger / f"averaged_perceptron_tagger_eng.{name}.json").write_text(json.dumps(content))
