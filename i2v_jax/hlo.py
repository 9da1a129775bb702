"""What a compiled program does, read from its HLO text: what it sends between devices, and what loops repeat.

XLA's own cost analysis counts the body of a loop once; `cost` adds the other rounds. Form of the text: openxla.org.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

SENDING = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all")
_ARRAY = re.compile(r"\b(pred|[a-z]+[0-9]+[a-z0-9]*)\[([\d,]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = type opcode(operands), rest`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str  # the operands' text
    rest: str

    def called(self, role: str) -> str | None:
        """Returns the name of the computation that plays a role: `body`, `condition`, `calls`, `to_apply`."""
        match = re.search(rf"\b{role}=%([\w.\-]+)", self.rest)
        return match and match[1]


Computation = dict[str, Instruction]


class Sent(NamedTuple):
    """A collective, all its rounds together."""

    kind: str
    operand_bytes: float  # what each device puts in
    link_bytes: float  # what each device sends, if the others stand in a ring
    devices: int  # that take part together


class Cost(NamedTuple):
    """What a device does."""

    flops: float  # of products and convolutions
    bytes: float  # read and written by instructions
    sent: tuple[Sent, ...]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations by name, and the name of the one that is run."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if line.endswith("{") and line[:1] in "%E":
            name = _NAME.search(line)[1]
            current = computations.setdefault(name, {})
            entry = name if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    type_end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    opening = right.index("(", type_end)
    closing = _closing(right, opening)
    return Instruction(
        _NAME.search(left)[1],
        right[:type_end],
        right[type_end:opening].strip(),
        tuple(_NAME.findall(right[opening:closing])),
        right[opening + 1 : closing],
        right[closing:],
    )


def _closing(text: str, opening: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"no closing parenthesis in {text[:200]!r}")


def arrays(type_: str) -> list[tuple[int, tuple[int, ...]]]:
    """Returns (bits of an element, shape) of each array in a type."""
    return [
        (8 if kind == "pred" else int(_BITS.match(kind)[1]), tuple(int(n) for n in dims.split(",") if n))
        for kind, dims in _ARRAY.findall(type_)
    ]


def size(type_: str) -> int:
    """Returns the bytes of all arrays in a type, without padding."""
    return sum(bits * math.prod(shape) // 8 for bits, shape in arrays(type_))


def cost(text: str) -> tuple[Cost, Cost]:
    """Returns the cost of a program, and that of the program with every loop run once."""
    computations, entry = parse(text)
    known: dict[tuple[str, bool], Cost] = {}

    def total(name: str, looping: bool) -> Cost:
        if (name, looping) not in known:
            known[name, looping] = _add(_cost(i, computations[name], looping) for i in computations[name].values())
        return known[name, looping]

    def _cost(instruction: Instruction, computation: Computation, looping: bool) -> Cost:
        rounds, inside = 1, []
        if instruction.opcode == "while":
            rounds = trips(computations[instruction.called("condition")]) if looping else 1
            inside = [instruction.called("body")]
        elif instruction.opcode in ("fusion", "call", "async-start"):
            inside = [instruction.called("calls") or instruction.called("to_apply")]
        within = _add(total(name, looping) for name in inside if name)
        if instruction.opcode in ("fusion", "async-start"):  # what is fused is neither read nor written
            within = within._replace(bytes=0.0)
        moved = 0 if instruction.opcode in FREE else size(instruction.type) + _operand_bytes(instruction, computation)
        kind = instruction.opcode.removesuffix("-start")
        sent = (_sent(kind, instruction, computation),) if kind in SENDING else ()
        return _times(_add([within, Cost(_flops(instruction, computation), moved, sent)]), rounds)

    return total(entry, True), total(entry, False)


def trips(condition: Mapping[str, Instruction]) -> int:
    """Returns how often a loop runs whose condition compares a counter, from 0, with a constant; 1 if it has none."""
    bounds = [int(it.arguments) for it in condition.values() if it.opcode == "constant" and it.arguments.isdigit()]
    return max(bounds, default=1)


def _operand_bytes(instruction: Instruction, computation: Computation) -> int:
    return sum(size(computation[name].type) for name in instruction.operands if name in computation)


def _flops(instruction: Instruction, computation: Computation) -> float:
    """2 x outputs x what each sums over; padding counts as work."""
    if instruction.opcode not in ("convolution", "dot"):
        return 0.0
    ((_, out),) = arrays(instruction.type)
    kernel = arrays(computation[instruction.operands[1]].type)[0][1]
    if instruction.opcode == "dot":
        contracted = re.search(r"rhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[1]
        return 2.0 * math.prod(out) * math.prod(kernel[int(i)] for i in contracted.split(",") if i)
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.rest)[1]
    return 2.0 * math.prod(out) * math.prod(kernel) / kernel[labels.index("o")]


def _sent(kind: str, instruction: Instruction, computation: Computation) -> Sent:
    given = _operand_bytes(instruction, computation)
    devices = group_size(instruction.rest)
    others = devices - 1
    link = {  # of rings
        "all-reduce": 2 * given * others / devices,
        "all-gather": given * others,
        "reduce-scatter": given * others / devices,
        "all-to-all": given * others / devices,
        "ragged-all-to-all": given * others / devices,
        "collective-permute": given,
    }[kind]
    return Sent(kind, given, link, devices)


def group_size(attributes: str) -> int:
    """Returns how many devices a collective joins: `{{0,1},{2,3}}`, `[groups,size]<=...`, or axes of a named mesh."""
    if "source_target_pairs=" in attributes:
        return 2
    groups = attributes.partition("replica_groups=")[2]
    if match := re.match(r"\{\{([\d,]*)\}", groups):
        return len(match[1].split(","))
    if match := re.match(r"\[\d+,(\d+)\]<=", groups):
        return int(match[1])
    if match := re.match(r"mesh\[([^\]]*)\]\s*\{([^}]*)\}", groups):
        sizes = dict(re.findall(r"'?([\w.\-]+)'?=(\d+)", match[1]))
        return math.prod(int(sizes[axis.strip(" '")]) for axis in match[2].split(",") if axis.strip())
    raise ValueError(f"replica groups of an unknown form: {attributes[:200]!r}")


def _add(costs) -> Cost:
    costs = list(costs)
    return Cost(
        math.fsum(c.flops for c in costs), math.fsum(c.bytes for c in costs), tuple(s for c in costs for s in c.sent)
    )


def _times(cost: Cost, rounds: int) -> Cost:
    if rounds == 1:
        return cost
    sent = (s._replace(operand_bytes=s.operand_bytes * rounds, link_bytes=s.link_bytes * rounds) for s in cost.sent)
    return Cost(cost.flops * rounds, cost.bytes * rounds, tuple(sent))
