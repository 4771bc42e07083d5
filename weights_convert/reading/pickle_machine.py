"""Reads pickles as data: a stack machine that imports nothing, calls nothing and builds no object of any class.

A pickle is a program for a small stack machine. Python's own machine runs it: it imports the names it meets and calls
them, so a file can do whatever its author likes. This one keeps names as text. A name that the file calls gives a
``Record`` of the name and its arguments, or what the caller's own ``Meaning`` makes of it. On the stack there are only
None, bool, int, float, str, bytes, list, tuple, dict, Record, and what ``Meaning`` returns.

A hostile file must not cost much either. What it allocates is bounded by the bytes it has (a promised length is
compared with what is left before anything is read), by MOST_OPERATIONS, and by keys that hash in constant time.

Protocols 2 to 5, and of them what ``torch.save`` writes. Sources: PEP 307, PEP 3154, PEP 574, and the description of
every operation in Python's own ``pickletools``.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass

from weights_convert.reading.errors import CheckpointError, kind, quoted
from weights_convert.reading.pickle_source import MOST_NAME_BYTES, Source

MOST_OPERATIONS = 500_000  # a Stable Diffusion XL checkpoint needs about 60,000
MOST_MARKS = 1_000
MOST_INT_KEY = 1 << 53  # larger integers can be made to share hashes
STOP = ord(".")
MARK = object()


@dataclass(eq=False, slots=True)
class Record:
    """A name in a pickle (``args`` None), or a call of it that nobody makes, with the state set on the result.

    Equal only to itself, so that hashing and comparing never look inside.
    """

    name: str
    args: tuple | None = None
    state: object = None


@dataclass(frozen=True)
class Meaning:
    """What the reader of one file format makes of the three places where a pickle reaches outside itself."""

    admit: Callable[[str], None]  # is "module.name" to be expected? CheckpointError if not
    call: Callable[[Record, tuple], object]  # what calling the name with these arguments stands for
    load: Callable[[object], object]  # what a persistent id stands for


class Machine:
    """The stack, the marks that divide it, and the memo of values by number."""

    def __init__(self, source: Source, meaning: Meaning):
        self.source, self.meaning = source, meaning
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def push(self, value: object) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def pop(self) -> object:
        """Takes the top value, which must lie above the last mark."""
        self.top()
        return self.stack.pop()

    def top(self) -> object:
        """The top value, left where it is."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise CheckpointError("the pickle takes a value from an empty stack")
        return self.stack[-1]

    def pop_mark(self) -> list:
        """Takes every value above the last mark, and the mark."""
        if not self.marks:
            raise CheckpointError("the pickle takes values down to a mark that is not there")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def run(self) -> object:
        """Obeys the pickle up to its STOP and returns the one value left on the stack."""
        for _ in range(MOST_OPERATIONS):
            code = self.source.take(1)[0]
            if code == STOP:
                return self.result()
            operation = OPERATIONS.get(code)
            if operation is None:
                raise CheckpointError(f"the pickle has the operation {operation_name(code)}, which no checkpoint needs")
            operation(self)
        raise CheckpointError(
            f"the pickle has more than {MOST_OPERATIONS} operations: no table of tensors is that long"
        )

    def result(self) -> object:
        """The value that the pickle leaves: exactly one, and no open mark."""
        if len(self.stack) != 1 or self.marks:
            raise CheckpointError(f"the pickle stops with {len(self.stack)} values on its stack instead of one")
        return self.stack[0]


def operation_name(code: int) -> str:
    """The name of an operation as ``pickletools`` has it."""
    known = pickletools.code2op.get(chr(code))
    return known.name if known else f"0x{code:02x}"


def check_protocol(machine: Machine) -> None:
    """PROTO: the version of the language."""
    version = machine.source.number(1)
    if not 2 <= version <= 5:
        raise CheckpointError(f"the pickle has protocol {version}; read are 2 to 5")


def check_frame(machine: Machine) -> None:
    """FRAME: a promise about length, which is not needed, and must not be a lie."""
    length = machine.source.number(8)
    if length > machine.source.left:
        raise CheckpointError(f"truncated: its pickle promises {length} bytes more, {machine.source.left} are there")


def mark(machine: Machine) -> None:
    """MARK: remembers the height of the stack."""
    if len(machine.marks) >= MOST_MARKS:
        raise CheckpointError(f"the pickle nests values more than {MOST_MARKS} deep")
    machine.marks.append(len(machine.stack))


def put(machine: Machine, index: int) -> None:
    """PUT, MEMOIZE: gives the top value a number."""
    machine.memo[index] = machine.top()


def get(machine: Machine, index: int) -> None:
    """GET: pushes the value that has the number."""
    if index not in machine.memo:
        raise CheckpointError(f"the pickle recalls value number {index}, which it never stored")
    machine.push(machine.memo[index])


def long_integer(machine: Machine) -> None:
    """LONG1: a signed little-endian integer of up to 255 bytes."""
    machine.push(int.from_bytes(machine.source.take(machine.source.number(1)), "little", signed=True))


def name_of(machine: Machine, module: object, name: object) -> None:
    """GLOBAL, STACK_GLOBAL: pushes a name as a Record. Nothing is imported."""
    if not (isinstance(module, str) and isinstance(name, str)):
        raise CheckpointError(f"the pickle names something by {kind(module)} and {kind(name)} instead of two texts")
    if len(module) + len(name) > MOST_NAME_BYTES:
        raise CheckpointError(f"a name in the pickle is longer than {MOST_NAME_BYTES} bytes")
    machine.meaning.admit(f"{module}.{name}")
    machine.push(Record(f"{module}.{name}"))


def stack_name(machine: Machine) -> None:
    """STACK_GLOBAL: the module and the name are on the stack."""
    name, module = machine.pop(), machine.pop()
    name_of(machine, module, name)


def call(machine: Machine) -> None:
    """REDUCE, NEWOBJ: what a call of a name stands for. Nothing is called but our own ``Meaning``."""
    args, function = machine.pop(), machine.pop()
    if not isinstance(function, Record) or function.args is not None:
        raise CheckpointError(f"the pickle calls {kind(function)}; only names can be called")
    if not isinstance(args, tuple):
        raise CheckpointError(f"the pickle calls {quoted(function.name)} with {kind(args)} instead of a tuple")
    machine.push(machine.meaning.call(function, args))


def build(machine: Machine) -> None:
    """BUILD: keeps the state of a called name; drops the attributes of a dict (``_metadata`` of a state dict)."""
    state, target = machine.pop(), machine.top()
    if isinstance(target, Record) and target.args is not None:
        target.state = state
    elif not isinstance(target, dict):
        raise CheckpointError(f"the pickle sets attributes of {kind(target)}")


def set_items(target: object, values: list) -> None:
    """``target[key] = value`` for key, value in turn: only on a dict, only keys that hash in constant time."""
    if not isinstance(target, dict) or len(values) % 2:
        raise CheckpointError(f"the pickle sets items of {kind(target)} from {len(values)} keys and values")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not (key is None or isinstance(key, str | bytes | float | Record | int)):
            raise CheckpointError(f"the pickle uses {kind(key)} as a key")
        if isinstance(key, int) and abs(key) >= MOST_INT_KEY:
            raise CheckpointError(f"the pickle uses an integer of more than {MOST_INT_KEY.bit_length()} bits as a key")
        target[key] = value


def set_one(machine: Machine) -> None:
    """SETITEM: one key and value from the stack."""
    value, key = machine.pop(), machine.pop()
    set_items(machine.top(), [key, value])


def set_many(machine: Machine) -> None:
    """SETITEMS: keys and values down to the mark."""
    values = machine.pop_mark()
    set_items(machine.top(), values)


def add(machine: Machine, values: list) -> None:
    """APPEND, APPENDS, ADDITEMS: lengthens a list (sets are kept as lists: nothing is hashed)."""
    target = machine.top()
    if not isinstance(target, list):
        raise CheckpointError(f"the pickle appends to {kind(target)}")
    target.extend(values)


def gather(machine: Machine, count: int) -> None:
    """TUPLE1, TUPLE2, TUPLE3: a tuple of the top values."""
    machine.push(tuple([machine.pop() for _ in range(count)][::-1]))


OPERATIONS: dict[int, Callable[[Machine], None]] = {
    0x80: check_protocol,
    0x95: check_frame,
    ord("("): mark,
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.source.number(1)),
    ord("M"): lambda m: m.push(m.source.number(2)),
    ord("J"): lambda m: m.push(int.from_bytes(m.source.take(4), "little", signed=True)),
    0x8A: long_integer,
    ord("G"): lambda m: m.push(struct.unpack(">d", m.source.take(8))[0]),
    ord("X"): lambda m: m.push(m.source.text(m.source.number(4))),
    0x8C: lambda m: m.push(m.source.text(m.source.number(1))),
    0x8D: lambda m: m.push(m.source.text(m.source.number(8))),
    ord("U"): lambda m: m.push(m.source.text(m.source.number(1))),
    ord("T"): lambda m: m.push(m.source.text(m.source.number(4))),
    ord("B"): lambda m: m.push(m.source.take(m.source.number(4))),
    ord("C"): lambda m: m.push(m.source.take(m.source.number(1))),
    0x8E: lambda m: m.push(m.source.take(m.source.number(8))),
    0x96: lambda m: m.push(m.source.take(m.source.number(8))),
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    ord(")"): lambda m: m.push(()),
    0x8F: lambda m: m.push([]),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    0x91: lambda m: m.push(m.pop_mark()),
    0x85: lambda m: gather(m, 1),
    0x86: lambda m: gather(m, 2),
    0x87: lambda m: gather(m, 3),
    ord("a"): lambda m: add(m, [m.pop()]),
    ord("e"): lambda m: add(m, m.pop_mark()),
    0x90: lambda m: add(m, m.pop_mark()),
    ord("s"): set_one,
    ord("u"): set_many,
    ord("q"): lambda m: put(m, m.source.number(1)),
    ord("r"): lambda m: put(m, m.source.number(4)),
    0x94: lambda m: put(m, len(m.memo)),
    ord("h"): lambda m: get(m, m.source.number(1)),
    ord("j"): lambda m: get(m, m.source.number(4)),
    ord("c"): lambda m: name_of(m, m.source.line(), m.source.line()),
    0x93: stack_name,
    ord("R"): call,
    0x81: call,
    ord("b"): build,
    ord("Q"): lambda m: m.push(m.meaning.load(m.pop())),
}
