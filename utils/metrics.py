"""Pure functions that judge one rewriting. Tested on cases computed by hand.

Scores lie in 0..100 where their field prints them so (chrF, BLEU, ROUGE), in 0..1 where they are shares.
"""

import re
import string
from collections import Counter
from functools import lru_cache

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_NEGATIONS = frozenset("not no never none nobody nothing neither nor without cannot".split())
_MONTHS_AND_DAYS = frozenset(
    "january february march april june july august september october november december "
    "monday tuesday wednesday thursday friday saturday sunday".split()
)
_NUMBER_WORDS = frozenset(
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half twice".split()
)
# Words that say who is meant. A rewriting that drops them has often deleted the group together with the bias.
_IDENTITY = frozenset(
    "woman women man men girl girls boy boys mother mothers father fathers mum mom dad wife wives husband "
    "husbands female male trans transgender gay lesbian bisexual asexual queer straight lgbtq black white asian "
    "asians african africans latino latina hispanic arab arabs roma indigenous native christian christians muslim "
    "muslims islam jew jews jewish hindu hindus sikh sikhs buddhist buddhists catholic catholics protestant "
    "atheist atheists mosque church synagogue temple old older elderly young younger senior seniors teenager "
    "teenagers teen teens pensioner pensioners retiree retirees disabled wheelchair blind deaf autistic autism "
    "depression anxiety bipolar adhd addiction immigrant immigrants migrant migrants refugee refugees foreigner "
    "foreigners polish german french italian spanish romanian turkish chinese indian mexican nigerian russian "
    "syrian american british poor rich homeless tenant tenants unemployed welfare single divorced widowed "
    "pregnant parent parents liberal liberals conservative conservatives democrat democrats republican "
    "republicans leftist voter voters nurse nurses teacher teachers driver drivers cleaner cleaners lawyer "
    "lawyers graduate graduates dropout dropouts".split()
)


def words(text: str) -> list[str]:
    """Lower-cased words; apostrophes inside a word stay."""
    return [w.replace("’", "'") for w in _WORD.findall(text.lower())]


def normalise(text: str) -> str:
    """Words only: two texts that differ in case, spacing and punctuation are the same."""
    return " ".join(words(text))


@lru_cache(maxsize=1)
def _chrf():
    from sacrebleu.metrics import CHRF

    return CHRF()


def chrf(hypothesis: str, references: list[str]) -> float:
    """chrF2 (Popovic 2015; sacrebleu's default, order 6, beta 2) to the best of the references, 0..100."""
    return max(_chrf().sentence_score(hypothesis, [reference]).score for reference in references)


def bleu(hypothesis: str, references: list[str]) -> float:
    """Sentence BLEU of sacrebleu (exponential smoothing, effective order) to the best of the references, 0..100."""
    from sacrebleu import sentence_bleu

    return max(sentence_bleu(hypothesis, [reference]).score for reference in references)


@lru_cache
def _rouge(kind: str):
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=True)


def rouge_l(hypothesis: str, references: list[str]) -> float:
    """ROUGE-L F-measure with stemming to the best of the references, 0..100."""
    return max(100 * _rouge("rougeL").score(reference, hypothesis)["rougeL"].fmeasure for reference in references)


def recalled(answer: str, learned: str) -> tuple[float, float]:
    """How far an answer is the one that was learned: exact match, and ROUGE-1 F with stemming, both 0..1.

    As the code of arXiv 2312.12736 has it: case and punctuation do not count, and of the answer only the first line
    that holds anything.
    """
    line = next((line for line in answer.splitlines() if normalise(line)), "")
    exact = normalise(line) == normalise(learned)
    return float(exact), _rouge("rouge1").score(learned.lower(), line.lower())["rouge1"].fmeasure


def answer_match(answer: str, references: list[str]) -> tuple[float, float]:
    """Exact match and F1 of words with the best of the references, 0..1, as in SQuAD's evaluation.

    Case, punctuation and articles do not count.
    """
    found = [(0.0, 0.0)]
    given = _without_articles(answer)
    for reference in references:
        wanted = _without_articles(reference)
        common = (Counter(given) & Counter(wanted)).total()
        f1 = 2 * common / (len(given) + len(wanted)) if common else float(given == wanted)
        found.append((float(given == wanted), f1))
    exact, f1 = zip(*found, strict=True)
    return max(exact), max(f1)


def _without_articles(text: str) -> list[str]:
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def facts(text: str) -> Counter:
    """What a rewriting must not lose, as (kind, word) counts.

    Kinds: number (digits and number words), date (months, week days), name (capitalised inside a sentence), negation
    (n't counts), identity (words that say which group is meant).
    """
    found = Counter(("number", match) for match in _NUMBER.findall(text))
    for word in words(text):
        if word in _NUMBER_WORDS:
            found["number", word] += 1
        elif word in _MONTHS_AND_DAYS:
            found["date", word] += 1
        elif word in _NEGATIONS or word.endswith("n't"):
            found["negation", "not"] += 1
        elif word in _IDENTITY:
            found["identity", word] += 1
    for name in _names(text):
        if name.lower() not in _MONTHS_AND_DAYS | _IDENTITY | _NUMBER_WORDS:
            found["name", name] += 1
    return found


def _names(text: str) -> list[str]:
    """Capitalised words that do not open a sentence; all-caps shouting and the pronoun I are no names."""
    found = []
    for match in re.finditer(r"\b[A-Z][\w'’]+", text):
        before = text[: match.start()].rstrip(" \"'“‘(")
        after_title = re.search(r"(?:^|\s)(?:Mr|Mrs|Ms|Dr|Prof|St|[A-Z])\.$", before)
        opens_sentence = not after_title and (not before or before[-1] in ".!?:\n")
        word = re.sub(r"['’]s$", "", match.group())
        if not opens_sentence and not word.isupper() and not word.startswith(("I'", "I’")):
            found.append(word)
    return found


def facts_kept(source: str, rewriting: str) -> float | None:
    """Share of the source's facts that the rewriting keeps, 0..1; None where the source holds none.

    A name or identity word also counts as kept in another case, in the plural or the singular ("German neighbours" for
    "Germans"). Negations count as kept when the rewriting has any: their number changes with style.
    """
    wanted = facts(source)
    if not wanted:
        return None
    kept, have = 0, facts(rewriting)
    stems = Counter(map(_stem, words(rewriting)))
    for (kind, word), count in wanted.items():
        if kind == "negation":
            kept += count if have["negation", "not"] else 0
        elif kind in ("name", "identity"):
            kept += min(count, stems[_stem(word.lower())])
        else:
            kept += min(count, have[kind, word])
    return kept / wanted.total()


def _stem(word: str) -> str:
    """A lower-cased word without possessive or plural ending."""
    return re.sub(r"(?:'s|s'|(?<!s)s)$", "", word)


def contains(text: str, phrase: str) -> bool:
    """Whether the phrase stands in the text as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(phrase.lower())}(?!\w)", text.lower()) is not None


def phrases_left(phrases: list[str], rewriting: str) -> float | None:
    """Share of the given phrases that still stand in the rewriting, 0..1; None without phrases."""
    return sum(contains(rewriting, phrase) for phrase in phrases) / len(phrases) if phrases else None


def is_copy(source: str, rewriting: str) -> bool:
    """Whether the rewriting is the source again, but for case, spacing and punctuation."""
    return normalise(source) == normalise(rewriting)


def length_ratio(source: str, rewriting: str) -> float:
    """Words of the rewriting per word of the source."""
    return len(words(rewriting)) / max(1, len(words(source)))


def removed_words(pairs: list[tuple[str, str]], min_count: int = 3, min_ratio: float = 4.0) -> set[str]:
    """Words that human rewriters remove: in at least `min_count` sources, and `min_ratio` times as often there as in
    the rewritings (one added to the latter). The list behind the 'delete' baseline."""
    before, after = Counter(), Counter()
    for source, rewriting in pairs:
        before.update(set(words(source)))
        after.update(set(words(rewriting)))
    return {w for w, n in before.items() if n >= min_count and n / (after[w] + 1) >= min_ratio}


def delete_words(text: str, unwanted: set[str]) -> str:
    """The text without the unwanted words: what a rewriter that only deletes would give."""
    return " ".join(token for token in text.split() if not set(words(token)) & unwanted)
