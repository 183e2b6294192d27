"""A chat template's own loops, `~`, lists and mappings, led through the environment that bounds its work."""

from __future__ import annotations

from jinja2 import nodes
from jinja2.visitor import NodeTransformer


class Led(NodeTransformer):
    """Leads a template's loops, `~`, lists and mappings through the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - Jinja's way
        """Count each turn, and each item that a condition leaves out."""
        self.generic_visit(node)
        turn = nodes.EnvironmentAttribute("turned").set_lineno(node.lineno)
        node.body.insert(0, nodes.ExprStmt(turn).set_lineno(node.lineno))
        if node.test is not None:
            node.test = nodes.And(turn, node.test).set_lineno(node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Foresee the text."""
        self.generic_visit(node)
        return _call("concatenated", node.nodes, node)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        """Weigh what is built of more than constants."""
        self.generic_visit(node)
        return node if _is_constant(node) else _call("built", [node], node)

    visit_Dict = visit_List  # noqa: N815

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        """The same, of those that are not the names that something is set to."""
        self.generic_visit(node)
        return node if node.ctx != "load" or _is_constant(node) else _call("built", [node], node)


def _call(name: str, values: list[nodes.Expr], at: nodes.Node) -> nodes.Expr:
    """A call of one of the environment's own."""
    call = nodes.Call(nodes.EnvironmentAttribute(name), values, [], None, None)
    call.set_lineno(at.lineno)
    return call


def _is_constant(node: nodes.Node) -> bool:
    plain = (nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair)
    parts = node.iter_child_nodes()
    return all(isinstance(part, nodes.Const) or (isinstance(part, plain) and _is_constant(part)) for part in parts)
