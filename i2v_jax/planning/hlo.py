"""What a compiled program does, read from its HLO text (openxla.org): products, memory traffic, what devices send.

XLA's own cost analysis counts the body of a loop once, and reading on-chip memory as traffic; this does neither.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

SENDING = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all")
_ARRAY = re.compile(r"\b(pred|[a-z]+[0-9]+[a-z0-9]*)\[([\d,]*)\](?:\{([\d,]*)(?::T\(([\d,]+)\))?([^}]*)\})?")
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
    root: bool = False  # whose value the computation returns

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

    flops: float  # of products, convolutions and kernels
    bytes: float  # read from and written to memory, padding to whole tiles included
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
        left.lstrip().startswith("ROOT"),
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
    return [(_bits(kind), _numbers(shape)) for kind, shape, *_ in _ARRAY.findall(type_)]


def size(type_: str) -> int:
    """Returns the bytes of all arrays in a type, without padding."""
    return sum(bits * math.prod(shape) // 8 for bits, shape in arrays(type_))


def traffic(type_: str) -> int:
    """Returns the bytes of the arrays in a type that lie in main memory, with the padding of their layouts."""
    total = 0
    for kind, shape, order, tile, rest in _ARRAY.findall(type_):
        if re.search(r"S\([1-9]", rest):
            continue
        sides = [_numbers(shape)[axis] for axis in reversed(_numbers(order))] or list(_numbers(shape))
        for axis, unit in zip(range(-1, -len(sides) - 1, -1), reversed(_numbers(tile))):
            sides[axis] += -sides[axis] % unit
        total += _bits(kind) * math.prod(sides) // 8
    return total


def _bits(kind: str) -> int:
    return 8 if kind == "pred" else int(_BITS.match(kind)[1])


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def cost(text: str) -> Cost:
    """Returns what each device does in a program, every round of its loops counted."""
    computations, entry = parse(text)

    @functools.cache
    def total(name: str) -> Cost:
        return _add(of(instruction, computations[name]) for instruction in computations[name].values())

    def of(instruction: Instruction, computation: Computation) -> Cost:
        kind = instruction.opcode.removesuffix("-start")
        sent = (_sent(kind, instruction, computation),) if kind in SENDING else ()
        fused = computations[instruction.called("calls")] if instruction.opcode == "fusion" else None
        own = Cost(_flops(instruction, computation), _traffic(instruction, computation, fused), sent)
        if instruction.opcode == "while":
            return _times(total(instruction.called("body")), trips(computations[instruction.called("condition")]))
        inside = instruction.called("calls") or instruction.called("to_apply")
        if instruction.opcode == "call":
            return total(inside)
        if instruction.opcode in ("fusion", "async-start"):  # what is fused passes through no memory
            return _add([own, total(inside)._replace(bytes=0.0)])
        return own

    return total(entry)


def trips(condition: Mapping[str, Instruction]) -> int:
    """Returns how often a loop runs whose condition compares a counter, from 0, with a constant; 1 if it has none."""
    constants = [step.arguments for step in condition.values() if step.opcode == "constant"]
    bounds = [int(number) for number in constants if number.isdigit()]
    return max(bounds, default=1)


def _traffic(instruction: Instruction, computation: Computation, fused: Computation | None = None) -> int:
    if instruction.opcode in FREE or instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode == "copy-start":  # its type holds both ends
        return traffic(instruction.type)
    if instruction.opcode in ("slice-start", "dynamic-slice-start"):  # a part of its operand, from or to memory
        bits, shape = arrays(instruction.type)[-2]
        return bits * math.prod(shape) // 8
    operands = [computation[name].type for name in instruction.operands if name in computation]
    if instruction.opcode == "dynamic-slice":
        return 2 * min(traffic(instruction.type), traffic(operands[0]))
    if instruction.opcode == "dynamic-update-slice":  # in place
        return 2 * min(traffic(operands[1]), traffic(operands[0]))
    if fused:
        return _written(instruction, fused) + sum(_read(number, type_, fused) for number, type_ in enumerate(operands))
    return traffic(instruction.type) + sum(map(traffic, operands))


def _read(number: int, type_: str, fused: Computation) -> int:
    """Bytes that a fusion reads of an operand: of one that is only cut into, as loops do with what they go over, the
    slices; nothing of one whose slices are written in place."""
    whole = traffic(type_)
    names = {step.name for step in fused.values() if step.opcode == "parameter" and step.arguments == str(number)}
    parts = 0
    for step in fused.values():
        if not names & set(step.operands):
            continue
        if step.opcode == "bitcast":
            names.add(step.name)
        elif step.opcode == "dynamic-slice":
            parts += size(step.type)
        elif step.opcode != "dynamic-update-slice" or names & set(step.operands[1:]):
            return whole
    return min(whole, parts)


def _written(fusion: Instruction, fused: Computation) -> int:
    """Bytes that a fusion writes: of an array that is updated in place, the slice."""
    root = next(step for step in fused.values() if step.root)
    roots = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    types = [match[0] for match in _ARRAY.finditer(fusion.type)]
    if len(types) != len(roots):  # a part is a tuple itself
        return traffic(fusion.type)
    total = 0
    for type_, step in zip(types, roots):
        while step.opcode == "bitcast":
            step = fused[step.operands[0]]
        updated = step.opcode == "dynamic-update-slice"
        total += min(traffic(type_), size(fused[step.operands[1]].type)) if updated else traffic(type_)
    return total


def _operand_bytes(instruction: Instruction, computation: Computation) -> int:
    return sum(size(computation[name].type) for name in instruction.operands if name in computation)


def _flops(instruction: Instruction, computation: Computation) -> float:
    """Multiplications and additions of products, without those by padding; of kernels, what they say of themselves."""
    if instruction.opcode == "custom-call":
        stated = re.search(r'"cost_estimate":\{"flops":"(\d+)"', instruction.rest)
        return float(stated[1]) if stated else 0.0
    if instruction.opcode not in ("convolution", "dot"):
        return 0.0
    out = arrays(instruction.type)[0][1]
    given, kernel = (arrays(computation[name].type)[0][1] for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = _numbers(re.search(r"rhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[1])
        return 2.0 * math.prod(out) * math.prod(kernel[axis] for axis in contracted)
    of_given, of_kernel, of_out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest).groups()
    window = dict(re.findall(r"(\w+)=(\S+)", (re.search(r"window=\{([^}]*)\}", instruction.rest) or [0, ""])[1]))
    total = 2.0 * out[of_out.index("b")] * out[of_out.index("f")] * kernel[of_kernel.index("i")]
    for number, label in enumerate(sorted(label for label in of_out if label.isdigit())):
        side = {key: value.split("x")[number] for key, value in window.items()}
        total *= _meetings(
            given[of_given.index(label)],
            kernel[of_kernel.index(label)],
            out[of_out.index(label)],
            stride=int(side.get("stride", 1)),
            before=int(side.get("pad", "0_0").split("_")[0]),
            spread=int(side.get("lhs_dilate", 1)),
            spacing=int(side.get("rhs_dilate", 1)),
        )
    return total


def _meetings(given: int, kernel: int, out: int, stride: int, before: int, spread: int, spacing: int) -> int:
    """How often along one axis a place of the kernel meets one of the input, not padding or what is spread between."""
    places = np.arange(out)[:, None] * stride + np.arange(kernel) * spacing - before
    return int(np.sum((places >= 0) & (places < (given - 1) * spread + 1) & (places % spread == 0)))


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
    if match := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\([^)]*\)[^{]*)?\s*\{([^}]*)\}", groups):
        sizes = dict(re.findall(r"'?([\w.\-]+)'?=(\d+)", match[1]))
        axes = re.findall(r"'?([\w.\-]+)'?(?::\(\d+\)(\d+))?", match[2])  # an axis, or a part of one of that size
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
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
