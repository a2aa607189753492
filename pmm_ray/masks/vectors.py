"""Vector instructions for the CRF engine: what the compiler does not find by itself in loops over arrays.

Everything here runs while numba compiles: Python code over `Vector` builds straight-line instructions on all lanes at
once, so that a loop over lattice coordinates costs nothing later, and a pixel's update stays in registers. Loops that
LLVM must first prove free of overlap it leaves scalar, or guards by tests that cost more than the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


class Vector:
    """Equal numbers of float32, int32 or int64 values, one a lane, with the arithmetic of their type."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value
        self.count, self.element = value.type.count, value.type.element
        self.floating = self.element == F32

    def _like(self, other: Vector | float) -> Any:
        """The other operand's instruction; a Python number becomes a constant in every lane."""
        return other.value if isinstance(other, Vector) else ir.Constant(self.value.type, [other] * self.count)

    def constant(self, number: float) -> Vector:
        """The number in every lane."""
        return self._with(self._like(number))

    def _with(self, value: Any) -> Vector:
        return Vector(self.builder, value)

    def __add__(self, other: Vector | float) -> Vector:
        operation = self.builder.fadd if self.floating else self.builder.add
        return self._with(operation(self.value, self._like(other)))

    def __sub__(self, other: Vector | float) -> Vector:
        operation = self.builder.fsub if self.floating else self.builder.sub
        return self._with(operation(self.value, self._like(other)))

    def __mul__(self, other: Vector | float) -> Vector:
        operation = self.builder.fmul if self.floating else self.builder.mul
        return self._with(operation(self.value, self._like(other)))

    def __truediv__(self, other: Vector) -> Vector:
        return self._with(self.builder.fdiv(self.value, other.value))

    def plus_product(self, a: Vector | float, b: Vector | float) -> Vector:
        """self + a b, with one rounding where the processor can."""
        product = self.builder.fmul(self._like(a), self._like(b), flags=("contract",))
        return self._with(self.builder.fadd(self.value, product, flags=("contract",)))

    def fold(self, operation: Callable[[Vector, Vector], Vector], group: int) -> Vector:
        """The lanes of each group brought together by an operation; the result is in every lane of the group.

        `group` is a power of two that divides the lanes, or all of them.
        """
        if group & (group - 1):
            count = self.count & -self.count
            parts = [self.reorder(range(start, start + count)) for start in range(0, self.count, count)]
            folded = parts[0]
            for part in parts[1:]:
                folded = operation(folded, part)
            return folded.fold(operation, count).reorder([0] * self.count)
        folded, step = self, group // 2
        while step:
            folded = operation(folded, folded.reorder([lane ^ step for lane in range(self.count)]))
            step //= 2
        return folded

    def reorder(self, lanes: Sequence[int]) -> Vector:
        """The lanes in another order; some of them, or some repeated."""
        order = ir.Constant(ir.VectorType(I32, len(lanes)), [*lanes])
        return self._with(self.builder.shuffle_vector(self.value, ir.Constant(self.value.type, ir.Undefined), order))

    def __lshift__(self, places: int) -> Vector:
        return self._with(self.builder.shl(self.value, self._like(places)))

    def __lt__(self, other: Vector | float) -> Any:
        """A condition for `choose` and `plus_if`, not a truth value."""
        compare = self.builder.fcmp_ordered if self.floating else self.builder.icmp_signed
        return compare("<", self.value, self._like(other))

    def __gt__(self, other: Vector | float) -> Any:
        compare = self.builder.fcmp_ordered if self.floating else self.builder.icmp_signed
        return compare(">", self.value, self._like(other))

    def any_above(self, other: Vector) -> Any:
        """Whether any lane is greater, as a truth value."""
        lanes = self.builder.bitcast(self > other, ir.IntType(self.count))
        return self.builder.icmp_unsigned("!=", lanes, ir.Constant(lanes.type, 0))

    def choose(self, condition: Any, other: Vector | float) -> Vector:
        """This where the condition holds, else the other."""
        return self._with(self.builder.select(condition, self.value, self._like(other)))

    def plus_if(self, condition: Any, amount: float) -> Vector:
        """This, plus the amount in the lanes where the condition holds."""
        return (self + amount).choose(condition, self)

    def to(self, element: Any) -> Vector:
        """Whole numbers in a type of whole numbers, no narrower."""
        convert = self.builder.fptosi if self.floating else self.builder.sext
        return self._with(convert(self.value, ir.VectorType(element, self.count)))


def transpose(vectors: Sequence[Vector]) -> list[Vector]:
    """Lane k of vector i becomes lane i of vector k; as many vectors as lanes, a power of two."""
    rows = list(vectors)
    builder, count = rows[0].builder, rows[0].count
    half = count // 2
    while half:
        # swap one binary digit of the vector's number with that of the lane's
        for i in range(count):
            if not i & half:
                a, b = rows[i].value, rows[i + half].value
                low = [k if not k & half else count + k - half for k in range(count)]
                high = [k + half if not k & half else count + k for k in range(count)]
                rows[i], rows[i + half] = (
                    Vector(builder, builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, count), order)))
                    for order in (low, high)
                )
        half //= 2
    return rows


Which = int | tuple[int, int]
"""An argument by its number, or one entry of an argument that is a tuple."""


class Arguments:
    """The arguments of an intrinsic function, by number. Arrays are C-ordered, taken as flat; nothing checks places."""

    def __init__(self, context: Any, builder: Any, signature: Any, values: Sequence[Any]) -> None:
        self.context, self.builder, self.types, self.values = context, builder, signature.args, values

    def length(self, which: int) -> int:
        """Of a tuple."""
        return int(self.types[which].count)

    def place(self, which: int, *, times: int = 1, plus: int = 0) -> Any:
        """An integer argument as a place in an array, `argument * times + plus`."""
        return self.shift(self.values[which], times=times, plus=plus)

    def shift(self, place: Any, *, times: int = 1, plus: int = 0) -> Any:
        """place * times + plus, for any integer."""
        if place.type != I64:
            place = self.builder.zext(place, I64)
        return self.builder.add(self.builder.mul(place, I64(times)), I64(plus))

    def element(self, which: Which, place: Any) -> Any:
        """One element of an array."""
        return self.builder.load(self.pointer(which, place))

    def spread(self, which: Which, place: Any, count: int) -> Vector:
        """One element of an array, in every lane."""
        return self._everywhere(self.element(which, place), count)

    def number(self, which: int, count: int) -> Vector:
        """A number, in every lane."""
        return self._everywhere(self.values[which], count)

    def _everywhere(self, scalar: Any, count: int) -> Vector:
        nothing = ir.Constant(ir.VectorType(scalar.type, count), ir.Undefined)
        return Vector(self.builder, self.builder.insert_element(nothing, scalar, I32(0))).reorder([0] * count)

    def load(self, which: Which, place: Any, count: int) -> Vector:
        """Elements that follow each other."""
        return Vector(self.builder, self.builder.load(self._vector(which, place, count), align=4))

    def store(self, which: Which, place: Any, vector: Vector) -> None:
        """Elements that follow each other."""
        self.builder.store(vector.value, self._vector(which, place, vector.count), align=4)

    def pointer(self, which: Which, place: Any) -> Any:
        """To one element of an array."""
        kind, array = self._array(which)
        return self.builder.gep(self.context.make_array(kind)(self.context, self.builder, array).data, [place])

    def _vector(self, which: Which, place: Any, count: int) -> Any:
        kind = ir.VectorType(self.context.get_data_type(self._array(which)[0].dtype), count)
        return self.builder.bitcast(self.pointer(which, place), kind.as_pointer())

    def _array(self, which: Which) -> tuple[Any, Any]:
        """Type and value."""
        if isinstance(which, int):
            return self.types[which], self.values[which]
        argument, entry = which
        return self.types[argument][entry], self.builder.extract_value(self.values[argument], entry)


def instructions(signature: Any, build: Callable[[Arguments], None]) -> tuple[Any, Callable[..., Any]]:
    """What an intrinsic returns: its signature, and the code that `build` makes of its arguments."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        build(Arguments(context, builder, signature, values))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def prefetch(typingctx, array, place):
    """Ask for array[place] (one-dimensional) ahead of its use; a hint, without any effect on results."""

    def build(a: Arguments) -> None:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(a.builder.module, kind, "llvm.prefetch.p0")
        place = a.builder.bitcast(a.pointer(0, a.place(1)), byte)
        a.builder.call(function, [place, I32(0), I32(3), I32(1)])

    return instructions(types.void(array, types.intp), build)
