"""`properties.models` of the loaders in workflows: what the table of published files says of the files they name.

    python tests/workflows/model_entries.py      writes them into every workflow and blueprint
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from pixart.downloads.catalogue import FILES  # noqa: E402

OF_FILE = {file.saved_as: file.page_entry() for file in FILES}
FILE_INPUTS = ("file", "vae_name", "lora_name")
NODE_LINE = re.compile(r'^(\s*)(\{"id": .*\})(,?)$')


def entries(node: dict) -> list[dict[str, str]]:
    """Of a page form's node, one a published file that its widgets name."""
    values = node.get("widgets_values") or []
    return [OF_FILE[value] for value in values if isinstance(value, str) and value in OF_FILE]


def with_entries(node: dict) -> dict:
    properties = {key: value for key, value in node.get("properties", {}).items() if key != "models"}
    found = entries(node)
    return {**node, "properties": {**properties, "models": found} if found else properties}


def rewritten(line: str) -> str:
    """Workflow files keep a node on a line, so that a change of one is a change of one line."""
    match = NODE_LINE.match(line)
    node = json.loads(match[2]) if match else {}
    if "properties" not in node:
        return line
    return f"{match[1]}{json.dumps(with_entries(node), ensure_ascii=False)}{match[3]}"


def main() -> None:
    for path in sorted([*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")]):
        text = path.read_text(encoding="utf-8")
        changed = "\n".join(map(rewritten, text.split("\n")))
        if changed != text:
            path.write_text(changed, encoding="utf-8")
            print(path.name)


if __name__ == "__main__":
    main()
