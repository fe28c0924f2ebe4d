"""Generates mutants of a module with Cosmic Ray: its source with one comparison, sign, number or flag changed."""

from __future__ import annotations

import ast
import difflib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators import number_replacer
from cosmic_ray.operators.provider import OperatorProvider

_NAMES = [
    # A limit moved by one, and inverted.
    *("ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_Lt_GtE"),
    *("ReplaceComparisonOperator_LtE_Lt", "ReplaceComparisonOperator_LtE_Gt"),
    *("ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_Gt_LtE"),
    *("ReplaceComparisonOperator_GtE_Gt", "ReplaceComparisonOperator_GtE_Lt"),
    *("ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq"),
    *("ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is"),
    *("ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add"),
    *("ReplaceBinaryOperator_Mul_Div", "ReplaceBinaryOperator_Div_Mul"),
    *("ReplaceBinaryOperator_FloorDiv_Div", "ReplaceBinaryOperator_Mod_Mul", "ReplaceBinaryOperator_Pow_Mul"),
    *("ReplaceBinaryOperator_BitAnd_BitOr", "ReplaceBinaryOperator_BitOr_BitAnd"),
    *("ReplaceBinaryOperator_LShift_RShift", "ReplaceBinaryOperator_RShift_LShift"),
    *("ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub", "AddNot"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
]


class _NumberReplacer(number_replacer.NumberReplacer):
    """Preserves whitespace before the number, or a line break would be lost."""

    def mutate(self, node: Any, index: int) -> Any:
        mutated = super().mutate(node, index)
        mutated.value, mutated.prefix = mutated.value.strip(), node.prefix
        return mutated


_OPERATORS = [*(OperatorProvider()[name]() for name in _NAMES), _NumberReplacer()]


@dataclass(frozen=True)
class Mutant:
    """A module's changed source.

    Attributes:
        line: first line that differs.
        was, now: the lines that differ.
    """

    module: str
    source: str
    line: int
    was: str
    now: str


def mutants(module: str, source: str, seed: int | None = None) -> Iterator[Mutant]:
    """Yield the mutants of a module; in random order if there is a seed. Skips invalid, unchanged and repeated ones."""
    tree = get_ast(source)
    positions = [(operator, number) for operator in _OPERATORS for number in range(_count(operator, tree))]
    if seed is not None:
        random.Random(f"{seed} {module}").shuffle(positions)
    seen = {_normalised(source), None}
    for operator, number in positions:
        mutated = mutate_code(source, operator, number)
        code = _normalised(mutated)
        if code not in seen:
            seen.add(code)
            yield _compared(module, source, mutated)


class _Counter(Visitor):
    def __init__(self, operator: Any) -> None:
        self.operator = operator
        self.count = 0

    def visit(self, node: Any) -> Any:
        self.count += sum(1 for _ in self.operator.mutation_positions(node))
        return node


def _count(operator: Any, tree: Any) -> int:
    counter = _Counter(operator)
    counter.walk(tree)
    return counter.count


_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


class _Normaliser(ast.NodeTransformer):
    """Removes parts without an effect at run time: annotations, and a dataclass's `frozen` and `slots`.

    Inverts negated comparisons and removes `not not`, because different operators may give equivalent code.
    """

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        inner = node.operand
        if isinstance(node.op, ast.Not) and isinstance(inner, ast.UnaryOp) and isinstance(inner.op, ast.Not):
            return self.visit(inner.operand)
        if isinstance(node.op, ast.Not) and isinstance(inner, ast.Compare) and len(inner.ops) == 1:
            inner.ops = [_OPPOSITE[type(inner.ops[0])]()]
            return self.generic_visit(inner)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        """Remove a bare `*`."""
        node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.defaults += [each for each in node.kw_defaults if each is not None]
        node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "dataclass":
            node.keywords = [each for each in node.keywords if each.arg not in ("frozen", "slots")]
        return self.generic_visit(node)


def _normalised(source: str) -> str | None:
    """Return the normalised syntax tree; None if it does not parse, such as another operator in `case A | B`."""
    try:
        return ast.dump(_Normaliser().visit(ast.parse(source)))
    except SyntaxError:
        return None


def _compared(module: str, source: str, mutated: str) -> Mutant:
    was, now = source.splitlines(), mutated.splitlines()
    line = next(n for n, (one, other) in enumerate(itertools.zip_longest(was, now), 1) if one != other)
    changes = [each for each in difflib.ndiff(was, now) if each[0] in "-+"]
    lines = {sign: "\n".join(each[2:].strip() for each in changes if each[0] == sign) for sign in "-+"}
    return Mutant(module, mutated, line, lines["-"], lines["+"])
