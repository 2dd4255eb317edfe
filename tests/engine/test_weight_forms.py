"""One model in several forms, each under a name of its own, in a real worker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mlx_serving.config.schema import Config
from mlx_serving.core.kv_form import KvForm
from mlx_serving.core.weight_options import WeightOptions
from mlx_serving.engine.engine_core import EngineCore
from mlx_serving.errors import InvalidRequest

from ..tiny_models import make_adapter, make_llama
from .harness import complete, request, running, serving

NAMES = ("tiny", "first", "second", "packed")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(folder / name, tiny_model, seed=seed) for seed, name in enumerate(("first", "second"))]


def _config(model: Path, adapters: list[Path]) -> Config:
    served: list[dict[str, object]] = [
        {"model": str(model), "name": "tiny"},
        *({"model": str(model), "name": path.name, "adapter": str(path)} for path in adapters),
        {"model": str(model), "name": "packed", "quantization": "4bit"},
    ]
    plain = serving(model)
    return plain.model_copy(update={"models": Config.model_validate({"models": {"served": served}}).models})


async def _texts(core: EngineCore) -> list[str]:
    answers = await asyncio.gather(*(complete(core, request(name, model=name)) for name in NAMES))
    return ["".join(delta.text for delta in deltas) for deltas in answers]


async def test_requests_choose_the_form_by_its_name(tiny_model: Path, adapters: list[Path]) -> None:
    """All at once, they say what each says alone."""
    async with running(_config(tiny_model, adapters)) as core:
        alone = ["".join(delta.text for delta in await complete(core, request(model=name))) for name in NAMES]
        assert len(set(alone)) == len(NAMES)
        assert await _texts(core) == alone
        weights = (await core.runtime_info()).memory.weights
        facts = core.models.loaded()
        own = sum(facts[name].memory_bytes - facts["tiny"].memory_bytes for name in ("first", "second"))
        assert weights == facts["tiny"].memory_bytes + own + facts["packed"].memory_bytes
        await core.unload_served("tiny", force=False)  # the weights stay: two others have them
        assert (await core.runtime_info()).memory.weights == weights
        assert await complete(core, request(model="first"))


async def test_names_of_one_model_differ_in_their_kv_caches_and_share_the_weights(tmp_path: Path) -> None:
    wide = make_llama(tmp_path / "wide", head_dim=32)
    async with running(serving(wide)) as core:
        await complete(core, request())
        for name, kv in (("eight", KvForm(8, 32)), ("four", KvForm(4, 32))):
            await core.load_served(str(wide), name=name, revision=None, weights=WeightOptions(kv=kv))
        with pytest.raises(InvalidRequest, match=r"eight is the name of .* in 8 bits in groups of 32, already"):
            await core.load_served(str(wide), name="eight", revision=None, weights=WeightOptions())
        with pytest.raises(InvalidRequest, match="are 32 wide"):
            await core.load_served(str(wide), name="wrong", revision=None, weights=WeightOptions(kv=KvForm(8)))
        facts = core.models.loaded()
        assert {name: facts[name].kv_bits for name in ("tiny", "eight", "four")} == {
            "tiny": None,
            "eight": 8,
            "four": 4,
        }
        assert (await core.runtime_info()).memory.weights == facts["tiny"].memory_bytes
        for name in ("tiny", "eight", "four"):
            assert await complete(core, request(model=name))
        assert {model.name: model.kv_bits for model in core.served_models()} == {
            "tiny": None, "eight": 8, "four": 4
        }  # fmt: skip


async def test_a_form_is_chosen_and_changed_while_it_serves(tiny_model: Path, adapters: list[Path]) -> None:
    async with running(serving(tiny_model)) as core:
        fused = WeightOptions(adapter=str(adapters[0]), fuse_adapter=True)
        served = await core.load_served(str(tiny_model), name=None, revision=None, weights=fused)
        assert served.name == f"{tiny_model.name}:first"
        await core.load_served(str(tiny_model), name="form", revision=None)
        with pytest.raises(InvalidRequest, match=r"form is the name of .*, as it is on disk, already"):
            await core.load_served(str(tiny_model), name="form", revision=None, weights=WeightOptions("8bit"))
        packed = WeightOptions("8bit")
        await core.load_served(str(tiny_model), name="form", revision=None, replace=True, weights=packed)
        assert core.models.loaded()["form"].quantization == "8-bit, group 64"
        await core.load_served(str(tiny_model), name="form", revision=None, replace=True)
        assert core.models.loaded()["form"].quantization == "8-bit, group 64"  # as configured for the name
