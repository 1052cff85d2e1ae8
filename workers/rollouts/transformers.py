"""Rollouts by a transformers model: the one that is being trained, or a copy of it.

The trained model itself needs no second copy of the weights and nothing to push; a copy can sample while the other is
trained.

Each unique prompt is read once; its cache is then repeated for the group. Rows whose answer has ended leave the batch
once they are half of it. Every row has its own random numbers, so that what one row samples does not depend on which
others are in the batch. Prompts are padded on the left, but for models that read the padding (rwkv's recurrent state
takes in whatever it is shown): of them only prompts of one length are read together.

P prompts, R rows (prompts times samples), L padded prompt length, V vocabulary.
"""

import copy
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.errors import RunError
from workers.modeling.decoder import Decoder
from workers.modeling.policy import Policy
from workers.modeling.precision import autocast, dtype_on
from workers.rollouts import probe
from workers.rollouts.engine import Begun, EngineRequest, NonFiniteLogitsError, Rollout, RolloutEngine, Sampling
from workers.rollouts.gathered import gathered
from workers.rollouts.grammar import Constraints, Grammar
from workers.rollouts.top_log_probs import TopLogProbs

CACHE_BYTES = 4 << 30
LOGITS_PER_BATCH = 1 << 26
MAX_ROWS = 1024
READ_TOKENS = 1 << 15
"""Tokens of prompts, padding included, that are read at once: reading takes far more memory than what is kept of it."""
TOP_BYTES = 8
"""Of one of the most likely tokens of a position, its id and its log-probability."""
PROBE_LENGTHS = 8, 24
PROBE_ANSWER = 8
PADDING_SEEN = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Nats by which padding may move a log-probability where a model leaves it out, by the dtype it computes in."""


class TransformersEngine(RolloutEngine):
    """A ``RolloutEngine`` over any causal language model of transformers.

    Args:
        stop_ids: tokens that end an answer.
        context_length: an answer ends where prompt and answer together reach it.
    """

    def __init__(
        self, model: PreTrainedModel, stop_ids: Sequence[int], context_length: int, top_log_probs: int = 0
    ) -> None:
        self._model = model
        self.top_log_probs = top_log_probs
        self._stop_ids = torch.tensor(sorted(stop_ids), device=model.device)
        self._context_length = context_length
        self._sampling = False
        self._pads: bool | None = None  # not known until there is something to pad
        self._joins: bool | None = None  # nor this until there is something to join
        self.version = 0

    @classmethod
    def of_job(cls, request: EngineRequest) -> Self:
        policy = request.policy
        # The trained model itself, but where it samples while it is trained.
        model = _copy_of(policy.model) if request.hyperparameters.max_staleness else policy.model
        return cls(model, policy.stop_ids, policy.context_length, request.top_log_probs)

    def push(self, policy: Policy, probes: Sequence[Sequence[int]]) -> None:
        self.sync(policy.model.named_parameters())

    def check_sampling(self, policy: Policy, probes: Sequence[Sequence[int]]) -> None:
        if not probes:
            return
        answers = [group[0] for group in self.generate(probes, 1, Sampling(1.0, PROBE_ANSWER, seed=0))]
        scores = policy.score([[*prompt, *answer.token_ids] for prompt, answer in zip(probes, answers, strict=True)])
        trained = [score[len(prompt) - 1 :] for prompt, score in zip(probes, scores, strict=True)]
        tolerance = probe.tolerance_for(dtype_on(policy.device), policy.model.config.model_type)
        try:
            probe.compare([answer.log_probs for answer in answers], trained, tolerance)
        except probe.WeightsOutOfSyncError as error:
            raise RunError(
                "weights_out_of_sync",
                "The model gives its tokens other probabilities where it samples them than where it is trained on "
                f"them: {error.difference.mean:.3g} nats apart on average, {error.difference.worst:.3g} at worst. "
                "Training would learn from answers of another model. Use a model of another family, and report this "
                "one's with the version of transformers.",
            ) from error

    @torch.no_grad()
    def sync(self, named_weights: Iterable[tuple[str, Tensor]]) -> int:
        """Take over the weights that are named like the model's own; those that are its own stay. The new version."""
        if self._sampling:
            raise RuntimeError("Weights were pushed while the engine sampled: its answers would be of two policies.")
        ours = dict(self._model.named_parameters())
        for name, weight in named_weights:
            if ours[name] is not weight:
                ours[name].copy_(weight)
        self.version += 1
        return self.version

    @torch.no_grad()
    def stream(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling
    ) -> Generator[tuple[int, list[Rollout]]]:
        self._sampling = True
        try:
            with gathered(self._model):
                for chunk in self._chunks(prompts, samples, sampling.max_tokens):
                    draws = torch.cat([_draws(samples, sampling, i) for i in chunk])
                    for position, group in self._stream([prompts[i] for i in chunk], samples, sampling, draws):
                        yield chunk[position], group
        finally:
            self._sampling = False

    @torch.no_grad()
    def extend(
        self, begun: Sequence[Begun], temperature: float, grammar: Grammar | None = None
    ) -> Generator[tuple[int, Rollout]]:
        self._sampling = True
        try:
            with gathered(self._model):
                for samples, groups in _with_one_context(begun):
                    contexts = [begun[group[0]].context for group in groups]
                    for chunk in self._chunks(contexts, samples, max(each.max_tokens for each in begun)):
                        numbers = [number for place in chunk for number in groups[place]]
                        limits = torch.tensor([begun[number].max_tokens for number in numbers])
                        sampling = Sampling(temperature, int(limits.max()), seed=0, grammar=grammar)
                        draws = torch.zeros(len(numbers), sampling.max_tokens, dtype=torch.float64)
                        for row, number in enumerate(numbers):
                            random = np.random.default_rng(begun[number].seed).random(begun[number].max_tokens)
                            draws[row, : len(random)] = torch.from_numpy(random)
                        read = [contexts[place] for place in chunk]
                        for position, group in self._stream(read, samples, sampling, draws, limits):
                            yield from zip(numbers[position * samples :], group, strict=False)
        finally:
            self._sampling = False

    def _chunks(self, prompts: Sequence[Sequence[int]], samples: int, max_tokens: int) -> Iterator[list[int]]:
        """Indices of prompts of similar length that fit into memory together."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        per_token, room = _cache_bytes_per_token(self._model), _cache_room(self._model.device)
        per_answered = per_token + self.top_log_probs * TOP_BYTES
        most_rows = min(MAX_ROWS, LOGITS_PER_BATCH // self._model.config.get_text_config().vocab_size)
        one_length = len({len(prompt) for prompt in prompts}) > 1 and not self._leaves_out_padding()
        chunk: list[int] = []
        for i in order:
            rows = (len(chunk) + 1) * samples
            too_many = rows > most_rows or rows * (len(prompts[i]) * per_token + max_tokens * per_answered) > room
            too_long = (len(chunk) + 1) * len(prompts[i]) > READ_TOKENS and not self._joins_batches()
            if chunk and (too_many or too_long or (one_length and len(prompts[i]) != len(prompts[chunk[0]]))):
                yield chunk
                chunk = []
            chunk.append(i)
        if chunk:
            yield chunk

    def _leaves_out_padding(self) -> bool:
        """Whether a prompt's next token is as likely behind padding as without it."""
        if self._pads is None:
            size = self._model.config.get_text_config().vocab_size
            short, long = (torch.arange(length).remainder(size).tolist() for length in PROBE_LENGTHS)
            alone, padded = (self._read(prompts)[1][0].float() for prompts in ([short], [short, long]))
            apart = (alone.log_softmax(-1) - padded.log_softmax(-1)).abs().max()
            narrow = self._model.device.type == "cuda"
            self._pads = float(apart) <= PADDING_SEEN[torch.bfloat16 if narrow else torch.float32]
        return self._pads

    def _joins_batches(self) -> bool:
        """Whether prompts that were read one after the other can be answered together."""
        if self._joins is None:
            self._joins = self._read([[0]])[0].joinable
        return self._joins

    def _stream(
        self,
        prompts: Sequence[Sequence[int]],
        samples: int,
        sampling: Sampling,
        draws: Tensor,
        limits: Tensor | None = None,
    ) -> Iterator[tuple[int, list[Rollout]]]:
        """The groups of some prompts, in one batch. ``limits`` ``[R]``: most tokens of a row, where they differ."""
        device = self._model.device
        rooms = torch.tensor([self._context_length - len(prompt) for prompt in prompts]).repeat_interleave(samples)
        limits = rooms.clamp(max=sampling.max_tokens) if limits is None else rooms.minimum(limits)
        limits = limits.to(device)
        decoder, logits = self._prefill(prompts, samples)
        draws = draws.to(device)
        top = self.top_log_probs if sampling.top else 0
        answer = _Answers(len(prompts), samples, sampling.max_tokens, self.version, device, top)
        grammar = sampling.grammar
        held = grammar and Constraints([grammar.start(prompt) for prompt in prompts for _ in range(samples)], grammar)
        rows = torch.arange(len(limits), device=device)  # which answer each row of the batch is
        done = torch.zeros_like(rows, dtype=torch.bool)
        finished = 0
        for position in range(sampling.max_tokens):
            if held:
                logits = held.mask(logits, rows, done)
            log_probs = (logits.float() / (sampling.temperature or 1.0)).log_softmax(-1)  # [R, V]
            tokens = _choose(log_probs, sampling, draws[rows, position])
            answer.add(rows[~done], position, tokens[~done], log_probs[~done])
            if held:
                held.advance(rows[~done], tokens[~done])
            stopped = torch.isin(tokens, self._stop_ids)
            answer.stopped[rows[stopped & ~done]] = True
            done = done | stopped | (position + 1 >= limits[rows])
            before, finished = finished, int(done.sum())
            if finished == len(done) or position + 1 == sampling.max_tokens:
                break
            if finished > before:
                yield from answer.groups(open_rows=rows[~done])
            if 2 * finished >= len(done):
                left = (~done).nonzero().squeeze(-1)
                decoder.keep(left)
                rows, tokens, done, finished = rows[left], tokens[left], done[left], 0
            with autocast(device):
                logits = decoder.step(tokens)
        yield from answer.groups(open_rows=rows[:0])

    def _prefill(self, prompts: Sequence[Sequence[int]], samples: int) -> tuple[Decoder, Tensor]:
        """A decoder that has read the prompts, its rows repeated for the samples, and the next logits ``[R, V]``."""
        decoder: Decoder | None = None
        logits = []
        for part in _read_together(prompts):
            read, its_logits = self._read(part)
            logits.append(its_logits)
            if decoder is None:
                decoder = read
            else:
                decoder.join(read)
        assert decoder is not None, "nothing to answer"
        repeated = torch.arange(len(prompts), device=self._model.device).repeat_interleave(samples)
        decoder.keep(repeated)
        return decoder, torch.cat(logits)[repeated]

    def _read(self, prompts: Sequence[Sequence[int]]) -> tuple[Decoder, Tensor]:
        """A decoder that has read the prompts, and the next logits of each."""
        decoder = Decoder(self._model, last_position=self._context_length - 1)
        with autocast(self._model.device):
            return decoder, decoder.read(prompts)


class _Answers:
    """The answers to ``prompts`` prompts, ``samples`` to each, while they grow."""

    def __init__(
        self, prompts: int, samples: int, max_tokens: int, version: int, device: torch.device, top: int
    ) -> None:
        rows = prompts * samples
        self._samples, self._version = samples, version
        self._waiting = torch.ones(prompts, dtype=torch.bool, device=device)  # groups not handed over yet
        self._tokens = torch.zeros(rows, max_tokens, dtype=torch.long, device=device)
        self._log_probs = torch.zeros(rows, max_tokens, device=device)
        self._top = torch.zeros(rows, max_tokens, top, device=device)
        self._top_ids = torch.zeros(rows, max_tokens, top, dtype=torch.int32, device=device)
        self._lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=device)

    def add(self, rows: Tensor, position: int, tokens: Tensor, log_probs: Tensor) -> None:
        """``rows`` have ``tokens`` at ``position``, sampled from ``log_probs`` ``[rows, V]``."""
        self._tokens[rows, position] = tokens
        self._log_probs[rows, position] = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        if number := self._top.shape[-1]:
            likely = log_probs.topk(number, dim=-1)
            self._top[rows, position], self._top_ids[rows, position] = likely.values, likely.indices.int()
        self._lengths[rows] = position + 1

    def groups(self, open_rows: Tensor) -> Iterator[tuple[int, list[Rollout]]]:
        """The groups, by number, that were not handed over yet and have no row among ``open_rows``."""
        whole = self._waiting.clone()
        whole[open_rows // self._samples] = False
        self._waiting &= ~whole
        for number in whole.nonzero().squeeze(-1).tolist():
            yield number, self._group(slice(number * self._samples, (number + 1) * self._samples))

    def _group(self, rows: slice) -> list[Rollout]:
        if not bool(self._log_probs[rows].isfinite().all()):
            raise NonFiniteLogitsError("The model's logits are NaN or infinite.")
        columns = [column[rows].tolist() for column in (self._tokens, self._log_probs, self._lengths, self.stopped)]
        top_ids, top = self._top_ids[rows].cpu().numpy(), self._top[rows].cpu().numpy()
        return [
            Rollout(
                ids[:n],
                log_probs[:n],
                "stop" if stopped else "length",
                TopLogProbs(top_ids[row, :n], top[row, :n]) if top.shape[-1] else None,
                self._version,
            )
            for row, (ids, log_probs, n, stopped) in enumerate(zip(*columns, strict=True))
        ]


def _copy_of(model: PreTrainedModel) -> PreTrainedModel:
    """A model of its own weights, but for those that are not trained, which both share."""
    frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, frozen)


def _read_together(prompts: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """Prompts in the order of their lengths, as many at a time as have ``READ_TOKENS``."""
    start = 0
    for end in range(1, len(prompts)):
        if (end + 1 - start) * len(prompts[end]) > READ_TOKENS:
            yield prompts[start:end]
            start = end
    yield prompts[start:]


def _with_one_context(begun: Sequence[Begun]) -> list[tuple[int, list[list[int]]]]:
    """Indices of those that go on from the same tokens, which are read once: groups by their size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, each in enumerate(begun):
        groups.setdefault(tuple(each.context), []).append(number)
    sizes: dict[int, list[list[int]]] = {}
    for group in groups.values():
        sizes.setdefault(len(group), []).append(group)
    return list(sizes.items())


def _draws(samples: int, sampling: Sampling, prompt: int) -> Tensor:
    """Uniform numbers ``[samples, max_tokens]`` for the answers to a prompt, the same in whatever company it is."""
    generator = np.random.default_rng((sampling.seed, sampling.number(prompt)))
    return torch.from_numpy(generator.random((samples, sampling.max_tokens)))


def _choose(log_probs: Tensor, sampling: Sampling, draws: Tensor) -> Tensor:
    """Tokens ``[R]`` sampled from ``log_probs`` ``[R, V]``: the distribution inverted at ``draws`` ``[R]``."""
    if sampling.temperature == 0:
        return log_probs.argmax(-1)
    if sampling.top_p < 1:
        return _choose_among_likely(log_probs.exp(), sampling.top_p, draws)
    # In float32 the running sum of a large vocabulary would lose its unlikely tokens.
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
    threshold = (draws * cumulative[:, -1]).unsqueeze(-1)
    tokens: Tensor = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
    return tokens.clamp(max=log_probs.shape[-1] - 1)


def _choose_among_likely(probabilities: Tensor, top_p: float, draws: Tensor) -> Tensor:
    """Tokens ``[R]`` of ``[R, V]`` by ``draws`` ``[R]``, from the fewest most likely ones that have ``top_p``."""
    likely, order = probabilities.double().sort(dim=-1, descending=True, stable=True)
    cumulative = likely.cumsum(-1)
    kept = cumulative - likely < top_p * cumulative[:, -1:]
    threshold = draws.unsqueeze(-1) * (likely * kept).sum(-1, keepdim=True)
    place = torch.searchsorted(cumulative, threshold, right=True).minimum(kept.sum(-1, keepdim=True) - 1)
    tokens: Tensor = order.gather(-1, place).squeeze(-1)
    return tokens


def _cache_bytes_per_token(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    all_heads = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    width = 2 if model.device.type == "cuda" else 4
    return 2 * int(config.num_hidden_layers) * int(heads) * int(size) * width


def _cache_room(device: torch.device) -> int:
    if device.type != "cuda":
        return CACHE_BYTES
    # What torch holds in reserve is as good as free.
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + spare) // 2
