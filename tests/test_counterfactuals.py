"""Swapped groups: grammar follows, what cannot be told is left alone and said."""

import pytest

from utils.data import read_table
from utils.helpers import UserError
from utils.identities import cannot_follow, find_group, names_someone, read_groups, swap
from utils.params import GIVEN_NAMES_FILE, ROOT, TERMS_FILE

SCRIPT = ROOT / "generate_data" / "counterfactuals.py"
GROUPS = {group.name: group for group in read_groups(TERMS_FILE)}


def test_the_list_holds_the_ten_groups_of_the_paper():
    assert set(GROUPS) == {
        "man", "woman", "Asian", "Black", "Hispanic", "white", "Christian", "Muslim", "Hindu", "Buddhist"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "group", "other", "swapped"),
    [
        ("A man left his coat. He said it was his.", "man", "woman", "A woman left her coat. She said it was hers."),
        ("Women drivers! Her husband hurt himself.", "woman", "man", "Men drivers! His husband hurt himself."),
        ("I saw her yesterday, and told her that her bag is hers.", "woman", "man",
         "I saw him yesterday, and told him that his bag is his."),
        ("He's late, he'll pay for it himself", "man", "woman", "She's late, she'll pay for it herself"),
        ("An Asian driver met an old Asian family", "Asian", "Black", "A Black driver met an old Black family"),
        ("A Black driver", "Black", "Asian", "An Asian driver"),
        ("The black cat of the Black nurse", "Black", "white", "The black cat of the white nurse"),
        ("Asians are late. asians are", "Asian", "white", "White people are late. white people are"),
        ("White people are late", "white", "Hispanic", "Hispanic people are late"),
        ("Muslims leave the mosque; a MUSLIM waits", "Muslim", "Christian",
         "Christians leave the church; a CHRISTIAN waits"),
        ("a man-made chair for a man", "man", "woman", "a man-made chair for a woman"),
        ("He lost his last job and his only son.", "man", "woman", "She lost her last job and her only daughter."),
        ("The gentlemen's coats and a waiter's pay", "man", "woman", "The ladies' coats and a waitress's pay"),
        ("The ladies' coats", "woman", "man", "The gentlemen's coats"),
        ("Mr Smith lost his key, said the policeman", "man", "woman", "Ms Smith lost her key, said the policewoman"),
        ("a Black wife, an Asian lady", "Black", "Asian", "an Asian wife, an Asian lady"),
        ("Blacks and the whites", "Black", "Hispanic", "Hispanics and the whites"),
        ("The human manager mentioned Chester", "man", "woman", "The human manager mentioned Chester"),
    ],
)  # fmt: skip
def test_grammar_follows_the_swap(text, group, other, swapped):
    assert swap(text, GROUPS[group], GROUPS[other]) == swapped


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Let her go", "her in 'Let her go' may be him or his"),
        ("They called her lazy", "may be him or his"),
        ("I gave her money", "may be him or his"),
        ("She is pregnant again", "pregnant fits one group only"),
        ("I told her that she was late", None),
        ("Her boss met her at her desk", None),
        ("She lost her bag", None),
    ],
)
def test_what_cannot_follow_is_seen(text, said):
    found = cannot_follow(text, GROUPS["woman"])
    assert found is None if said is None else said in found


def test_names_are_known_by_their_capital():
    names = frozenset(GIVEN_NAMES_FILE.read_text().split())
    assert names_someone("So Richard left", names) and not names_someone("Will he pay the bill? Mark it.", names)


def test_a_swap_there_and_back_is_the_text():
    text = "My sister says her boss saw that she is a good waitress, and that the women there are hers to lead."
    assert swap(swap(text, GROUPS["woman"], GROUPS["man"]), GROUPS["man"], GROUPS["woman"]) == text


def test_a_text_that_would_be_half_swapped_is_left_alone(script, tmp_path):
    texts = [
        "Richard left his coat.",
        "She is a Black nurse, and proud to be black.",
        "A Black nurse and a black car.",
    ]
    (tmp_path / "in.csv").write_text("biased_text\n" + "".join(f'"{text}"\n' for text in [*texts, "A Hindu."]))
    result = script(SCRIPT, "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv")
    assert result.returncode == 0, result.stderr
    reasons = list(read_table(tmp_path / "out.csv.untouched.csv")["reason"])
    assert reasons == ["a given name beside man", "Black beside no person"]
    # the second text is about a woman too, and that can be told
    assert {"gender", "religion"} == set(read_table(tmp_path / "out.csv")["attribute"])


def test_only_persons_count_for_colours():
    groups = list(GROUPS.values())
    assert find_group("a white van and a black cat", groups) == []
    assert [group.name for group in find_group("the white neighbour", groups)] == ["white"]


def test_texts_are_swapped_over_all_groups_and_the_others_are_reported(script, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text('text,note\n"A Black nurse was rude.",x\nThe bus was late.,y\n"Men and women were late.",z\n')
    result = script(SCRIPT, "--input", source, "--input_column", "text", "--output", output)
    assert result.returncode == 0, result.stderr
    swapped = read_table(output)
    nurses = ["An Asian nurse", "A Black nurse", "A Hispanic nurse", "A white nurse"]
    assert list(swapped["text"]) == [f"{nurse} was rude." for nurse in nurses]
    assert list(swapped["original"]) == ["no", "yes", "no", "no"] and set(swapped["note"]) == {"x"}
    assert swapped["base_id"].nunique() == 1 and swapped["id"].is_unique and set(swapped["attribute"]) == {"race"}
    untouched = read_table(tmp_path / "out.csv.untouched.csv")
    assert list(untouched["reason"]) == ["no group", "several groups: man and woman"]
    assert "4 rows from 1 of 3 texts" in result.stdout and "left alone: 1 with no group" in result.stdout


def test_a_list_of_ones_own(script, tmp_path):
    terms, source, output = tmp_path / "terms.csv", tmp_path / "in.csv", tmp_path / "out.csv"
    terms.write_text(
        "attribute,group,pronoun,forms\njob,plumber,,plumber|plumbers\njob,engineer,,engineer|engineers\n"
    )
    source.write_text("biased_text\nA plumber came late.\n")
    result = script(SCRIPT, "--input", source, "--output", output, "--terms", terms)
    assert result.returncode == 0 and list(read_table(output)["biased_text"])[1] == "An engineer came late."
    terms.write_text("attribute,group,pronoun,forms\njob,plumber,,plumber|plumbers\njob,engineer,,engineer\n")
    with pytest.raises(UserError, match="job needs two groups or more, each with as many forms"):
        read_groups(terms)
    terms.write_text("attribute,group,pronoun,forms\na,b,they,c\na,d,,e\n")
    with pytest.raises(UserError, match="pronoun 'they'"):
        read_groups(terms)


def test_a_table_without_any_group_is_one_line(script, tmp_path):
    (tmp_path / "in.csv").write_text("biased_text\nThe bus was late.\n")
    result = script(SCRIPT, "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv")
    assert result.returncode == 2 and "no text names exactly one group" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
