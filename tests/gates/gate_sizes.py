"""How long files, functions and signatures may be: the rules of the size gate, as functions of source text."""

import ast

FILE, FUNCTION, CONSTRUCTOR = 300, 50, 13
Function = ast.FunctionDef | ast.AsyncFunctionDef


def size_faults(source: str, path: str, keywords_allowed: frozenset[str] = frozenset()) -> list[str]:
    """What is too big in ``source``. ``keywords_allowed`` names functions that may take ``**``, as ``path::name``."""
    lines = len(source.splitlines())
    faults = [f"{path}: {lines} lines, at most {FILE}"] if lines > FILE else []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if not isinstance(node, Function):
            continue
        if length_without_docstring(node) > FUNCTION:
            faults.append(
                f"{path}:{node.lineno}: {node.name} has {length_without_docstring(node)} lines, at most {FUNCTION}"
            )
        # A reward function takes the other columns of the data, whatever they are called.
        if node.args.kwarg and node.args.kwarg.arg != "columns" and f"{path}::{node.name}" not in keywords_allowed:
            faults.append(f"{path}:{node.lineno}: {node.name} takes **{node.args.kwarg.arg}; name its arguments")
        count = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs) - 1
        if node.name == "__init__" and count > CONSTRUCTOR:
            faults.append(f"{path}:{node.lineno}: constructor with {count} arguments, at most {CONSTRUCTOR}")
    return faults


def length_without_docstring(node: Function) -> int:
    """Lines of a function from ``def`` to its end, less those of its docstring."""
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length
