"""A FlexDiT over HTTP: PixArt-mini's teacher, converted, samples with guidance, wide and high."""
from host import harness
from host.test_server import ksampler, node, png_size, run


def drawn(seed: int = 1, width: int = 128, height: int = 128, **changed: object) -> dict[str, dict]:
    graph = ksampler(4, seed=seed, cfg=2.5, **changed)
    graph["model"]["inputs"]["file"] = "mini-flexdit.safetensors"
    graph["clip"]["inputs"]["file"] = "pixart-mini/t5"
    graph["vae"]["inputs"]["vae_name"] = "pixart-mini/vae.safetensors"
    graph["empty"] = node("EmptyLatentImage", width=width, height=height, batch_size=2)
    graph["positive"]["inputs"].update(width=width, height=height)
    return graph


def first(server: harness.Server, outcome: harness.Outcome) -> bytes:
    assert outcome.end == "execution_success", f"{outcome.messages[-1]}\n{server.log[-3000:]}"
    entry = outcome.images("save")[0]
    return server.get(f"/view?filename={entry['filename']}&subfolder={entry['subfolder']}&type={entry['type']}")


def test_it_is_found_and_generates(server):
    wide, square, again = run(server, drawn(3, 192, 96), drawn(3), drawn(4))
    assert png_size(first(server, wide)) == (192, 96) and png_size(first(server, square)) == (128, 128)
    assert first(server, square) != first(server, again)
    assert any("FlexDiT of 1 pooling" in text for text in harness.texts(wide, "model"))


def test_a_cache_on_it_is_one_clear_error(server):
    graph = drawn(5, model=["cache", 0])
    graph["cache"] = node("PixArtCache", model=["model", 0], method="steps", budget=2.0, start=0.0, end=1.0)
    (outcome,) = run(server, graph)
    (error,) = [data for kind, data in outcome.messages if kind == "execution_error"]
    assert outcome.end == "execution_error" and "a FlexDiT takes no cache" in error["exception_message"]
