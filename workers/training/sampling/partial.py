"""A step's answers that are sampled ahead of it, in several pieces perhaps, between which weights are pushed.

Long answers then hold up no push: each window between two pushes samples one piece of every answer that is not over,
those of all steps ahead in one batch, and the last window before a step samples its answers to the end (partial
rollouts, as in Kimi k1.5, arXiv 2501.12599). How long a piece is follows from the settings and never from the clock, so
that a run is the same every time, and resumes with the answers as they were.
"""

from collections.abc import Sequence
from contextlib import closing, suppress

from workers.answers import AnswerReader
from workers.modeling import distributed, seeds
from workers.rollouts.engine import UNBEGUN, Begun, Rollout, RolloutEngine
from workers.rollouts.grammar import Grammar
from workers.training.sampling.collection import Collection
from workers.training.sampling.patience import GraderAwayError
from workers.training.sampling.prefetched import Kept, samples_of


class PartialRollouts:
    """The answers to a step's prompts while they are sampled: this rank's share, ``samples`` to each prompt.

    Args:
        collection: where they are graded.
        rooms: most tokens that answers to each of its prompts may have.
        seed: what their random numbers follow from.
    """

    def __init__(self, collection: Collection, samples: int, rooms: Sequence[int], seed: int) -> None:
        self.collection = collection
        self._rooms, self._seed = rooms, seed
        self._rollouts = [[UNBEGUN] * samples for _ in collection.prompts]
        self._sampled_to_the_end = False

    def restore(self, kept: Sequence[Sequence[Kept]], reader: AnswerReader) -> None:
        """Go on from answers as they were kept, those to each of the collection's prompts; all ranks do so together."""
        for place, group in enumerate(kept):
            self._rollouts[place] = [each.rollout for each in group]
            if all(each.grade is not None for each in group):
                (self.collection.graded[place],) = samples_of([self.collection.prompts[place]], [group], reader)
            elif self._is_over(place):
                self.collection.add(place, self._rollouts[place])
        open_ones = not all(map(self._is_over, range(len(kept))))
        # All ranks ask for the grades of whole collections together.
        if not distributed.any_rank(open_ones):
            self.end()

    def unfinished(self, most: int | None) -> list[tuple[int, int, Begun]]:
        """Prompt and number of each answer that is not over, with what to sample next: ``most`` tokens, or the rest."""
        found = []
        for place, group in enumerate(self._rollouts):
            for number, rollout in enumerate(group):
                if (room := self._room(place, rollout)) == 0:
                    continue
                purpose = f"answer {number} to {self.collection.number(place)}"
                own = seeds.derive(self._seed, purpose, len(rollout.token_ids))
                tokens = room if most is None else min(most, room)
                prompt_ids = self.collection.prompts[place].token_ids
                found.append((place, number, Begun(prompt_ids, rollout.token_ids, tokens, own)))
        return found

    def add(self, place: int, number: int, piece: Rollout) -> None:
        """Take a piece of an answer to the prompt at ``place``; the prompt's are graded as soon as all are over."""
        group = self._rollouts[place]
        group[number] = group[number].extended(piece)
        if self._is_over(place):
            self.collection.add(place, group)

    def end(self) -> None:
        """All answers of all ranks are over."""
        self._sampled_to_the_end = True
        self.collection.complete()

    def kept(self) -> list[list[Kept]]:
        """The answers of all ranks as they are, those that are graded with their grades.

        Where all are over it waits for the grades, and raises as ``Collection.result`` does unless the grader is away.
        """
        if self._sampled_to_the_end:
            # Who goes on from answers without grades has them graded when the grader is back.
            with suppress(GraderAwayError):
                return [[Kept(each.rollout, each.grade) for each in group] for group in self.collection.result()]
        own = []
        for place, group in enumerate(self._rollouts):
            graded = self.collection.graded.get(place)
            own.append([Kept(each.rollout, each.grade) for each in graded or ()] or [Kept(each) for each in group])
        return distributed.gather_strided(own)

    def _is_over(self, place: int) -> bool:
        return all(self._room(place, rollout) == 0 for rollout in self._rollouts[place])

    def _room(self, place: int, rollout: Rollout) -> int:
        """How many tokens an answer may still have."""
        return 0 if rollout.finish_reason == "stop" else self._rooms[place] - len(rollout.token_ids)


def sample(
    engine: RolloutEngine,
    asked: Sequence[tuple[PartialRollouts, int | None]],
    temperature: float,
    grammar: Grammar | None,
) -> None:
    """Sample the answers that are not over on: by so many tokens, or where that is None to the end.

    Raises as the engine does.
    """
    open_ones = [(partial, *each) for partial, most in asked for each in partial.unfinished(most)]
    try:
        with closing(engine.extend([begun for *_, begun in open_ones], temperature, grammar)) as pieces:
            for index, piece in pieces:
                partial, place, number, _ = open_ones[index]
                partial.add(place, number, piece)
    except BaseException:
        for partial, _ in asked:
            partial.collection.give_up()
        raise
    for partial, most in asked:
        if most is None:
            partial.end()
