"""Dirty extents against plain bytes: what is dirty, what flies, what a landing leaves."""

from hypothesis import given
from hypothesis import strategies as st

from ibpfs.cache.dirty import DirtyFile, Flight, RecordMemory
from ibpfs.cache.spool_file import Record

SIZE = 60


def record(file: DirtyFile, offset: int, length: int) -> Record:
    file.version += 1
    return Record(None, 0, 0, 1, 1, offset, length, file.version, 0)  # type: ignore[arg-type]


class Model:
    """The same as an array: who owns each byte, and which bytes have landed."""

    def __init__(self) -> None:
        self.file = DirtyFile(1, 1, 1, 0)
        self.owner: dict[int, Record] = {}
        self.freed: set[Record] = set()
        self.records: set[Record] = set()
        self.flights: list[tuple[Flight, dict[int, Record]]] = []
        self.written: dict[int, list[int]] = {}  # of each byte, the seqs since the take-off of what landed last

    def write(self, offset: int, length: int) -> None:
        new = record(self.file, offset, length)
        self.records.add(new)
        self.freed |= set(self.file.add(new, offset, offset + length))
        self.owner |= dict.fromkeys(range(offset, offset + length), new)
        for at in range(offset, offset + length):
            self.written.setdefault(at, []).append(new.seq)

    def truncate(self, size: int) -> None:
        self.freed |= set(self.file.truncate(size))
        self.owner = {at: one for at, one in self.owner.items() if at < size}
        self.written = {at: seqs for at, seqs in self.written.items() if at < size}

    def fly(self, limit: int) -> None:
        for run in self.file.ready(limit, SIZE):
            assert run[-1].stop - run[0].start <= limit
            flight = self.file.take_off(run)
            flown = {at: piece.source for piece in run for at in range(piece.start, piece.stop)}
            assert all(self.owner[at] is one for at, one in flown.items())
            assert not any(flown.keys() & other.keys() for _, other in self.flights)
            self.flights.append((flight, flown))

    def land(self) -> None:
        if not self.flights:
            return
        flight, flown = self.flights.pop(0)
        cleaned = self.file.cleaned_by([flight])
        self.freed |= set(self.file.landed(flight))
        self.owner = {at: one for at, one in self.owner.items() if flown.get(at) is not one}
        for at in flown.keys() & self.written.keys():
            self.written[at] = [seq for seq in self.written[at] if seq > flight.covers]
        assert cleaned == (not self.owner and not self.flights)

    def store(self) -> None:
        """Depots acknowledge the first flight that they have not yet."""
        for flight, _ in self.flights:
            if not flight.is_stored:
                flight.is_stored = True
                self.file.note_stored()
                return

    def check_stored(self) -> None:
        """Whatever counts as stored flies so, as it is."""
        for at, one in self.owner.items():
            if one.seq <= self.file.stored_seq:
                assert any(flight.is_stored and flown.get(at) is one for flight, flown in self.flights)

    def ground(self) -> None:
        """The first flight failed, or its commit did."""
        if self.flights:
            flight, _ = self.flights.pop(0)
            if flight.is_stored:
                flight.is_stored, self.file.stored_seq = False, -1
            self.file.grounded(flight)

    def check_held(self) -> None:
        """Who waits for what was there at some seq waits for that or for what has taken its place."""
        owed = {seq for seqs in self.written.values() for seq in seqs[:1]}
        for seq in range(self.file.version + 1):
            assert self.file.holds_up_to(seq) or not any(one <= seq for one in owed)
        assert self.owner or not self.file.holds_up_to(self.file.version)

    def check(self) -> None:
        self.check_stored()
        self.check_held()
        held = {at: piece.source for piece in self.file.extents for at in range(piece.start, piece.stop)}
        assert held == self.owner
        assert self.file.dirty == len(self.owner)
        assert self.records - self.freed == set(self.owner.values())
        assert set(self.file.held) == set(self.owner.values())


STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, SIZE - 1), st.integers(1, 20)),
    st.tuples(st.just("truncate"), st.integers(0, SIZE)),
    st.tuples(st.just("fly"), st.integers(1, 30)),
    st.tuples(st.just("store")),
    st.tuples(st.just("land")),
    st.tuples(st.just("ground")),
)


@given(st.lists(STEPS, max_size=40))
def test_every_dirty_byte_is_in_one_place(steps: list[tuple[str, int]]) -> None:
    model = Model()
    for name, *arguments in steps:
        getattr(model, name)(*arguments)
        model.check()


def test_a_truncation_cuts_what_flies() -> None:
    model = Model()
    model.write(0, 30)
    model.fly(30)
    model.truncate(10)
    ((flight, _),) = model.flights
    assert flight.limit == 10


def test_what_is_overwritten_is_waited_for_until_newer_bytes_have_landed() -> None:
    model = Model()
    model.write(0, 10)
    waits_for = model.file.version
    model.write(0, 10)  # on the ground
    assert model.file.holds_up_to(waits_for)
    for in_vain in (True, False):
        model.fly(10)
        model.write(0, 10)  # in the air
        assert model.file.holds_up_to(waits_for)
        (model.ground if in_vain else model.land)()
        assert model.file.holds_up_to(waits_for) == in_vain
    assert model.file.holds_up_to(model.file.version)


def test_record_memory_keeps_to_its_limit_and_serves_parts() -> None:
    memory, file = RecordMemory(100), DirtyFile(1, 1, 1, 0)
    records = [record(file, 0, 40) for _ in range(3)]
    for number, one in enumerate(records):
        memory.keep(one, bytes([number]) * 40)
    assert memory._size <= 100
    file.add(records[2], 0, 40)
    (piece,) = file.extents.find(5, 10)
    assert bytes(memory.read(piece)) == b"\2" * 5
