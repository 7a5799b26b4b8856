"""Which images of a comparison may be taken from before, and their files as one IMAGE."""
import copy

import pytest
import torch

from pixart.files.images import save_image

GRAPH = {"1": {"class_type": "PixArtLoader", "inputs": {"file": "a"}, "is_changed": ["5-17"]},
         "2": {"class_type": "VAELoader", "inputs": {"vae_name": "v"}},
         "3": {"class_type": "PixArtSteps", "inputs": {"model": ["1", 0], "steps": 4}},
         "8": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "x"}},
         "9": {"class_type": "PixArtCompare", "inputs": {"model": ["3", 0], "vae": ["2", 0], "seed": 1}}}


@pytest.fixture
def origin(extension):
    from pixart_extension.nodes.host.compare import origin_of
    return lambda graph, node="9": origin_of(graph, node, ("model", "vae"))


def changed(node: str, **entries: object) -> dict:
    graph = copy.deepcopy(GRAPH)
    graph[node].update(entries)
    return graph


def test_only_what_stands_before_the_networks_counts(origin):
    same = origin(GRAPH)
    assert origin(copy.deepcopy(GRAPH)) == same
    assert origin(changed("8", inputs={"images": ["9", 0], "filename_prefix": "y"})) == same
    assert origin(changed("9", inputs={**GRAPH["9"]["inputs"], "seed": 2})) == same
    assert origin(changed("1", inputs={"file": "b"})) != same
    assert origin(changed("1", is_changed=["5-18"])) != same            # the file was replaced
    assert origin(changed("3", inputs={"model": ["1", 0], "steps": 5})) != same
    assert origin(changed("9", inputs={"model": ["1", 0], "vae": ["2", 0]})) != same


@pytest.mark.parametrize("graph, node", ((changed("1", is_changed=[float("nan")]), "9"), (GRAPH, "7"), (None, "9"),
                                         (changed("3", inputs={"model": ["1.0.1", 0]}), "9")),
                         ids=("changes always", "node unknown", "no prompt", "made while it runs"))
def test_what_cannot_be_known_is_never_taken_for_the_same(origin, graph, node):
    assert origin(graph, node) != origin(graph, node)


def test_files_become_one_image(extension, tmp_path):
    from pixart_extension.nodes.host.compare import images_batch
    images = (torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(1)) * 255).round() / 255
    paths = [save_image(tmp_path / f"{number}.png", image) for number, image in enumerate(images)]
    assert torch.equal(images_batch(paths), images.movedim(1, -1))
