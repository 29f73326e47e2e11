"""The join modes of a model are those of episodes."""

from asyncthink.episode.options import JoinMode
from asyncthink.model.joins import JOIN_MODES


def test_a_decoder_knows_the_join_modes_of_an_episode() -> None:
    assert tuple(JoinMode) == JOIN_MODES
