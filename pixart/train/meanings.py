"""What every setting means, for `--help` and the documentation: the comment behind the field that holds it."""
import ast
import inspect
import io
import textwrap
import tokenize
from dataclasses import fields
from functools import lru_cache


@lru_cache(maxsize=64)
def meanings(settings: type) -> dict[str, str]:
    """Field name -> the comment on its line, of a dataclass and those it inherits from.

    A field without a comment has none here. Where Python comes without sources nothing is found.
    """
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if "__dataclass_fields__" in vars(kind):
            found |= _written(kind)
    return {field.name: found[field.name] for field in fields(settings) if field.name in found}


def _written(kind: type) -> dict[str, str]:
    """The comments in the body of one class."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except OSError:
        return {}
    comments = {token.start[0]: token.string.lstrip("# ").strip()
                for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT}
    definition = ast.parse(source).body[0]
    lines = {node.target.id: node.end_lineno for node in ast.walk(definition)
             if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    return {name: comments[line] for name, line in lines.items() if line in comments}
