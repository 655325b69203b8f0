"""Requests of many students in, answers out: rows that join and leave while others go on, in one pass a step.

The numbers of a row belong to the row. Its adapter, its cache, its random numbers and its stop strings are its own;
in float32 on a CPU its answer is the same, token by token, whoever is answered beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from punnett.serving.requests import Answer, AnswerRequest, ScoreRequest, TokenLogProbability, choose_token, generator_of, log_probability_of
from punnett.serving.rows import NewRow, Opening, ReadingAttention, RowCache, capacity_for, chosen_rows, order_of, with_new_rows
from punnett.shared_base.adapter import Adapter
from punnett.shared_base.attention import borders
from punnett.shared_base.linear import AdapterStack, Piece, ReadingAdapters, StackedAdapters
from punnett.shared_base.passes import FEWEST_TOKENS, hidden_states, logits_of
from punnett.shared_base.share import SharedBase

# Prompt tokens that one pass reads, and continuations' tokens whose logits are made at once.
TOKENS_PER_READING, LABELS_AT_ONCE = 1024, 256
# Openings shorter than this are not worth a reading of their own; so many tokens of openings are kept.
SHORTEST_OPENING, OPENING_TOKENS = 8, 8192


@dataclass
class Ticket:
    """A request on its way: who is to answer it, and where the answer goes. `settle` and `is_wanted` come from who asked."""

    adapter: Adapter | None
    request: AnswerRequest | ScoreRequest
    settle: Callable[[Answer], None]
    is_wanted: Callable[[], bool] = lambda: True

    @property
    def tokens_at_most(self) -> int:
        """Positions that the request may come to take."""
        match self.request:
            case AnswerRequest(ids=ids, max_tokens=max_tokens):
                return len(ids) + max_tokens
            case ScoreRequest(ids=ids, continuation_ids=continuation):
                return len(ids) + len(continuation)


@dataclass
class _Row:
    """A request while it is being answered."""

    ticket: Ticket
    request: AnswerRequest
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    told: list[TokenLogProbability] = field(default_factory=list)
    alive: bool = True


@dataclass(frozen=True)
class _Sequence:
    """Ids to be read once, and everyone who asked for them."""

    adapter: Adapter | None
    ids: tuple[int, ...]
    n_opening: int
    tickets: list[Ticket]

    @property
    def opening(self) -> Any:
        """Names the opening by its reader and its ids; None where there is none."""
        return (self.adapter, self.ids[: self.n_opening]) if self.n_opening else None


class RunningBatch:
    """Rows that are answered together on one thread."""

    def __init__(self, shared: SharedBase, stop_ids: tuple[int, ...], text_of: Callable[[list[int]], str]) -> None:
        self._shared, self._stop_ids, self._text_of = shared, set(stop_ids), text_of
        self._rows: list[_Row] = []
        self._cache: RowCache | None = None
        self._stacked_adapters: list[Adapter] = []
        self._stack: AdapterStack | None = None
        self._openings: dict[Any, Opening] = {}

    @property
    def n_alive(self) -> int:
        """Rows that still grow."""
        return sum(row.alive for row in self._rows)

    @property
    def tickets(self) -> list[Ticket]:
        """What is being answered."""
        return [row.ticket for row in self._rows if row.alive]

    @property
    def adapters(self) -> list[Adapter]:
        """Students with a row in the batch."""
        return sorted({id(t.adapter): t.adapter for t in self.tickets if t.adapter is not None}.values(), key=id)

    @torch.inference_mode()
    def admit(self, tickets: list[Ticket]) -> None:
        """Read new prompts, each once however many draws are asked of it, and take their first tokens."""
        sequences = _sequences(tickets)
        wanted = {s.opening: s for s in sequences if s.opening and s.opening not in self._openings}
        self._read_openings(list(wanted.values()), {s.opening for s in sequences})
        rows: list[_Row] = []
        sources: list[NewRow] = []
        for group in _readings(sequences):
            opened = [self._openings[s.opening] if s.opening else None for s in group]
            reading, hidden, spans = self._read([(s.adapter, s.ids[s.n_opening :]) for s in group], opened)
            new: list[_Row] = []
            asked: list[int] = []
            for number, (sequence, opening, (start, stop)) in enumerate(zip(group, opened, spans, strict=True)):
                self._score(sequence, hidden[start:stop])
                own = [_Row(t, t.request, generator_of(t.request)) for t in sequence.tickets if isinstance(t.request, AnswerRequest)]
                new += own
                asked += [number] * len(own)
                sources += [NewRow(reading, start, stop, opening)] * len(own)
            self._choose(hidden[[stop - 1 for _, stop in spans]], new, asked)
            rows += new
        self._join(rows, sources)

    def _read_openings(self, sequences: list[_Sequence], needed: set[Any]) -> None:
        """Read openings by themselves and keep them: the next batch of a task opens alike. The oldest go, but none that is `needed` now."""
        for group in _readings(sequences):
            reading, _, spans = self._read([(s.adapter, s.ids[: s.n_opening]) for s in group], [None] * len(group))
            for sequence, span in zip(group, spans, strict=True):
                self._openings[sequence.opening] = reading.opening_of(*span)
        for old in [opening for opening in self._openings if opening not in needed]:
            if sum(o.n_tokens for o in self._openings.values()) > OPENING_TOKENS:
                del self._openings[old]

    def _read(
        self, asked: list[tuple[Adapter | None, tuple[int, ...]]], openings: list[Opening | None]
    ) -> tuple[ReadingAttention, torch.Tensor, list[tuple[int, int]]]:
        """One pass over sequences that lie student by student; their keys and values, hidden states and places."""
        reading = ReadingAttention([len(ids) for _, ids in asked], openings)
        spans = borders([len(ids) for _, ids in asked])
        starts = [opening.n_tokens if opening else 0 for opening in openings]
        positions = [start + place for start, (_, ids) in zip(starts, asked, strict=True) for place in range(len(ids))]
        pieces: list[Piece] = []
        for (adapter, _), (start, stop) in zip(asked, spans, strict=True):
            if pieces and pieces[-1].adapter is adapter and pieces[-1].stop == start:
                pieces[-1] = Piece(pieces[-1].adapter, pieces[-1].start, stop)
            elif adapter is not None:
                pieces.append(Piece(adapter, start, stop))
        ids = [i for _, each in asked for i in each]
        return reading, hidden_states(self._shared.model, ids, positions, reading, ReadingAdapters(pieces)), spans

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every row."""
        self._compact()
        if self._cache is None:
            return
        for row in self._rows:
            row.alive = row.alive and row.ticket.is_wanted()
        self._cache.begin_step()
        # a row that has ended stays until many have, and is fed a token that nobody reads
        ids = [row.ids[-1] if row.ids else 0 for row in self._rows]
        hidden = hidden_states(self._shared.model, ids, list(self._cache.lengths), self._cache, self._stacked())
        self._cache.lengths = [n + 1 if row.alive else n for n, row in zip(self._cache.lengths, self._rows, strict=True)]
        self._choose(hidden, self._rows, list(range(len(self._rows))))

    def _stacked(self) -> StackedAdapters | None:
        """The adapters of the rows; stacked anew when a student has come or gone."""
        if [id(a) for a in self.adapters] != [id(a) for a in self._stacked_adapters]:
            self._stacked_adapters = self.adapters
            self._stack = AdapterStack(self._stacked_adapters, self._shared.device) if self._stacked_adapters else None
        if self._stack is None:
            return None
        number = {id(adapter): i for i, adapter in enumerate(self._stacked_adapters)}
        return StackedAdapters(self._stack, [number.get(id(row.ticket.adapter), -1) for row in self._rows])

    def _choose(self, hidden: torch.Tensor, rows: list[_Row], at: list[int]) -> None:
        """Give each living row its next token, from the hidden state (n, width) that `at` names for it."""
        if not any(row.alive for row in rows):
            return
        logits = logits_of(self._shared.model, hidden)
        likeliest = logits.argmax(dim=-1).tolist()
        for row, place in zip(rows, at, strict=True):
            if row.alive:
                warm = row.request.temperature > 0
                token = choose_token(logits[place], row.request, row.generator) if warm else likeliest[place]
                self._extend(row, token, logits[place])

    def _extend(self, row: _Row, token: int, logits: torch.Tensor) -> None:
        """Add a token to a row, or end the row and settle its answer."""
        request = row.request
        if token in self._stop_ids:
            self._settle(row, "stop")
            return
        row.ids.append(token)
        if request.top_log_probabilities is not None:
            row.told.append(log_probability_of(torch.log_softmax(logits, dim=-1), token, request.top_log_probabilities))
        if request.stop_strings and any(stop in self._text_of(row.ids) for stop in request.stop_strings):
            self._settle(row, "stop")
        elif len(row.ids) >= request.max_tokens:
            self._settle(row, "length")

    @staticmethod
    def _settle(row: _Row, reason: str) -> None:
        row.alive = False
        row.ticket.settle(Answer(tuple(row.ids), reason, tuple(row.told)))

    def _score(self, sequence: _Sequence, hidden: torch.Tensor) -> None:
        """Log-probabilities of given continuations; `hidden` (n_tokens, width) is that of the sequence after its opening."""
        for ticket in sequence.tickets:
            if isinstance(ticket.request, ScoreRequest):
                aimed = ticket.request.continuation_ids
                first = len(ticket.request.ids) - 1 - sequence.n_opening
                rows = hidden[first : first + len(aimed)]
                told: list[TokenLogProbability] = []
                for part, tokens in zip(rows.split(LABELS_AT_ONCE), torch.tensor(aimed).split(LABELS_AT_ONCE), strict=True):
                    chosen = torch.log_softmax(logits_of(self._shared.model, part), dim=-1).cpu().gather(1, tokens[:, None])[:, 0]
                    told += [TokenLogProbability(t, p) for t, p in zip(tokens.tolist(), chosen.tolist(), strict=True)]
                ticket.settle(Answer(aimed, "scored", tuple(told)))

    def _join(self, rows: list[_Row], sources: list[NewRow]) -> None:
        """Put new rows among those that go on, all in the order of their lengths."""
        new = [(row, source) for row, source in zip(rows, sources, strict=True) if row.alive]  # one token may have been all
        if not new:
            return
        kept = [i for i, row in enumerate(self._rows) if row.alive]
        joined = [self._rows[i] for i in kept] + [row for row, _ in new]
        room = capacity_for(max(len(row.request.ids) + row.request.max_tokens for row in joined))
        order = order_of(self._cache, kept, [source for _, source in new])
        self._cache = with_new_rows(self._cache, kept, [source for _, source in new], room)
        self._rows = [joined[i] for i in order]

    def _compact(self) -> None:
        """Let the rows go that have ended, once they are a quarter; a batch too small for that pays for no copy either."""
        living = [i for i, row in enumerate(self._rows) if row.alive]
        if not living:
            self._rows, self._cache = [], None
        elif self._cache and len(self._rows) > FEWEST_TOKENS and 4 * len(living) <= 3 * len(self._rows):
            self._rows, self._cache = [self._rows[i] for i in living], chosen_rows(self._cache, living)


def _sequences(tickets: list[Ticket]) -> list[_Sequence]:
    """What has to be read, student by student: equal ids under one adapter once; of a continuation all but its last token."""
    found: dict[Any, _Sequence] = {}
    for ticket in tickets:
        ids, n_opening = ticket.request.ids, ticket.request.n_opening
        if isinstance(ticket.request, ScoreRequest):
            ids += ticket.request.continuation_ids[:-1]
        n_opening = n_opening if n_opening >= SHORTEST_OPENING and n_opening < len(ticket.request.ids) else 0
        found.setdefault((id(ticket.adapter), n_opening, ids), _Sequence(ticket.adapter, ids, n_opening, [])).tickets.append(ticket)
    came = {adapter: n for n, adapter in enumerate(dict.fromkeys(id(s.adapter) for s in found.values()))}
    # neighbours of one length are attended to in one go
    return sorted(found.values(), key=lambda s: (came[id(s.adapter)], s.n_opening, len(s.ids)))


def _readings(sequences: list[_Sequence]) -> list[list[_Sequence]]:
    """Sequences in groups that one pass reads."""
    groups: list[list[_Sequence]] = []
    for sequence in sequences:
        if groups and sum(len(s.ids) - s.n_opening for s in (*groups[-1], sequence)) <= TOKENS_PER_READING:
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    return groups
