import pytest

from posegen.data.mannequin.captions import EXAMPLE, VOCABULARY, Description, PersonCaption, parse
from posegen.data.mannequin.world import World


def test_vocabulary_has_44_words_and_no_twins():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 44


def test_captions_use_the_vocabulary_and_can_be_parsed_back():
    world, seen = World(), set()
    for index in range(1500):
        description = world.describe("train", index)
        words = str(description).split(" ")
        assert len(words) <= 44
        assert parse(str(description)) == description
        seen.update(words)
    assert seen == set(VOCABULARY)


def test_a_caption_reads_like_a_sentence():
    people = (PersonCaption("running", "red", "blue"), PersonCaption("sitting", "green", "black"))
    assert str(Description("photo", "beach", people)) == (
        "photo of two people at the beach : one running in red shirt and blue trousers , one sitting in green shirt and black trousers"
    )
    assert str(Description("sketch", "night", (PersonCaption("lying"),))) == "sketch of one person at night : one lying"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "must begin with a style"),
        ("a dog on a skateboard", "must begin with a style"),
        (EXAMPLE.replace("one person", "four people"), "'four people' is not one of"),
        (EXAMPLE.replace("in the park", "on the moon"), "'on the moon' is not one of"),
        (EXAMPLE.replace("running", "swimming"), "'swimming' is not one of the actions"),
        (EXAMPLE.replace("blue", "beige"), "'beige' is not one of the colours"),
        (EXAMPLE.replace("one person", "two people"), "announces two people and describes 1"),
        (EXAMPLE.replace("photo", "sketch"), "does not read 'one ACTION'"),
        (EXAMPLE.removesuffix(" trousers"), "does not read 'one ACTION in COLOUR shirt"),
        (EXAMPLE + " , best quality", "does not read"),
    ],
)
def test_foreign_prompts_are_refused_with_a_reason(prompt, reason):
    with pytest.raises(ValueError, match="not a caption of the mannequin world") as caught:
        parse(prompt)
    assert reason in str(caught.value)
