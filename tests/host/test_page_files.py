"""What the page asks the server for besides nodes: texts in two languages, help pages."""
import json

import pytest
from host.harness import PACK, ROOT
from node_texts import LANGUAGES, LOCALES


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_host_serves_the_texts_of_every_node(server, language):
    served = server.get("/i18n")[language]
    nodes = {name for name, node in server.get("/object_info").items() if node["category"].startswith("PixArt")}
    for name in ("nodeDefs", "main"):
        given = json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))
        where = served["nodeDefs"] if name == "nodeDefs" else served
        assert given.items() <= where.items()
    assert nodes and nodes <= served["nodeDefs"].keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_host_serves_a_help_page_of_every_node(server, language):
    for name, node in server.get("/object_info").items():
        if node["category"].startswith("PixArt"):
            page = (ROOT / "web" / "docs" / name / f"{language}.md").read_bytes()
            assert server.get(f"/extensions/{PACK}/docs/{name}/{language}.md") == page


def test_the_host_lists_every_blueprint(server):
    try:
        listed = server.get("/global_subgraphs")
    except OSError:
        pytest.skip(f"ComfyUI {server.host.version} has no blueprints")
    ours = {entry["name"]: key for key, entry in listed.items() if entry["info"]["node_pack"] == f"custom_nodes.{PACK}"}
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "subgraphs").glob("*.json")}
    assert ours.keys() == files.keys()
    for name, key in ours.items():
        assert server.get(f"/global_subgraphs/{key}")["data"] == files[name]
