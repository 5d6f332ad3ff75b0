from posegen.data.mannequin.captions import VOCABULARY, Description, PersonCaption
from posegen.data.mannequin.world import World


def test_vocabulary_has_44_words_and_no_twins():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 44


def test_captions_use_the_whole_vocabulary():
    world, seen = World(), set()
    for index in range(1500):
        description = world.describe("train", index)
        words = str(description).split(" ")
        assert len(words) <= 44
        seen.update(words)
    assert seen == set(VOCABULARY)


def test_a_caption_reads_like_a_sentence():
    people = (PersonCaption("running", "red", "blue"), PersonCaption("sitting", "green", "black"))
    assert str(Description("photo", "beach", people)) == (
        "photo of two people at the beach : one running in red shirt and blue trousers , "
        "one sitting in green shirt and black trousers"
    )
    assert str(Description("sketch", "night", (PersonCaption("lying"),))) == "sketch of one person at night : one lying"
