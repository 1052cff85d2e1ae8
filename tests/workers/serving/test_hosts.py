"""Which models stay loaded: within the memory, the one used longest ago goes, and nobody's answer is cut off."""

import asyncio
from pathlib import Path

import pytest

from service.inference.wire import Failed
from workers.serving import hosts as module
from workers.serving import memory
from workers.serving.hosted import Host
from workers.serving.hosts import Hosts
from workers.serving.identity import Identity, ModelUnavailableError
from workers.serving.lines import Options, Ready


class Loaded:
    """What hosts do instead of starting processes. A model takes 40 of 100 bytes."""

    def __init__(self, patch: pytest.MonkeyPatch, failing: str | None = None) -> None:
        self.now: set[str] = set()
        self.starts = 0

        async def start(host: Host) -> Ready:
            await asyncio.sleep(0.01)
            self.starts += 1
            if host.identity.model_path == failing:
                raise ModelUnavailableError(Failed(status=400, code="invalid_model", message="no"))
            self.now.add(host.identity.model_path)
            host.ready = Ready(used_bytes=40, total_bytes=100)
            return host.ready

        async def close(host: Host) -> None:
            self.now.discard(host.identity.model_path)

        patch.setattr(Host, "start", start)
        patch.setattr(Host, "close", close)
        patch.setattr(memory, "weights", lambda folder: 40)


async def follow(host: Host) -> None:
    await asyncio.sleep(0)


async def get(hosts: Hosts, model: str, user: str, changed: int = 0) -> Host:
    options = Options(model_path=model, engine="transformers", memory_share=1)
    return await hosts.get(Identity(model, changed), options, user)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    return Loaded(monkeypatch)


def test_a_model_is_loaded_once_for_all_who_want_it(loaded: Loaded) -> None:
    async def main() -> None:
        hosts = Hosts(0.9, 60, follow)
        first, second = await asyncio.gather(get(hosts, "a", "u1"), get(hosts, "a", "u2"))
        assert first is second
        assert loaded.starts == 1

    asyncio.run(main())


def test_the_model_used_longest_ago_makes_room(loaded: Loaded) -> None:
    async def main() -> None:
        hosts = Hosts(0.9, 60, follow)
        for name in "ab":
            hosts.leave(await get(hosts, name, "u"), "u")
            await asyncio.sleep(0.001)
        hosts.leave(await get(hosts, "a", "u"), "u")
        await get(hosts, "c", "u")
        assert loaded.now == {"a", "c"}

    asyncio.run(main())


def test_a_model_at_work_is_waited_for(loaded: Loaded) -> None:
    async def main() -> None:
        hosts = Hosts(0.5, 60, follow)
        first = await get(hosts, "a", "u1")
        second = asyncio.create_task(get(hosts, "b", "u2"))
        await asyncio.sleep(0.1)
        assert loaded.now == {"a"}
        hosts.leave(first, "u1")
        await second
        assert loaded.now == {"b"}

    asyncio.run(main())


def test_while_one_waits_for_room_another_that_fits_is_loaded(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "weights", lambda folder: 10 if folder.name == "small" else 60)

    async def main() -> None:
        hosts = Hosts(0.9, 60, follow)
        busy = await get(hosts, "busy", "u1")
        large = asyncio.create_task(get(hosts, "large", "u2"))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            small = await get(hosts, "small", "u3")
        assert loaded.now == {"busy", "small"}
        hosts.leave(busy, "u1")
        hosts.leave(small, "u3")
        await large
        assert loaded.now == {"large"}

    asyncio.run(main())


def test_what_waits_to_be_unloaded_ends_with_the_worker(loaded: Loaded) -> None:
    async def main() -> None:
        hosts = Hosts(0.5, 60, follow)
        await get(hosts, "a", "u1")
        waiting = asyncio.create_task(get(hosts, "b", "u2"))
        await asyncio.sleep(0.05)
        await hosts.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert loaded.now == set()

    asyncio.run(main())


def test_a_model_larger_than_its_share_is_loaded_alone(loaded: Loaded) -> None:
    async def main() -> None:
        await get(Hosts(0.1, 60, follow), "a", "u")
        assert loaded.now == {"a"}

    asyncio.run(main())


def test_a_model_that_nobody_uses_is_unloaded(loaded: Loaded) -> None:
    async def main() -> None:
        hosts = Hosts(0.9, 0.05, follow)
        idle, used = await get(hosts, "a", "u1"), await get(hosts, "b", "u2")
        hosts.leave(idle, "u1")
        await asyncio.sleep(0.1)
        hosts.close_idle()
        await asyncio.sleep(0.01)
        assert loaded.now == {"b"}
        assert used.users == {"u2"}

    asyncio.run(main())


def test_a_folder_that_does_not_load_is_told_to_all_and_tried_again_when_it_has_changed_or_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = Loaded(monkeypatch, failing="a")

    async def main() -> None:
        hosts = Hosts(0.9, 60, follow)
        told = await asyncio.gather(get(hosts, "a", "u1"), get(hosts, "a", "u2"), return_exceptions=True)
        assert [type(each) for each in told] == [ModelUnavailableError, ModelUnavailableError]
        for changed, starts in ((0, 1), (1, 2), (1, 2)):
            with pytest.raises(ModelUnavailableError):
                await get(hosts, "a", "u3", changed)
            assert loaded.starts == starts
        monkeypatch.setattr(module, "REFUSED_SECONDS", -1.0)
        for starts in (3, 4):
            with pytest.raises(ModelUnavailableError):
                await get(hosts, "a", "u4", changed=2)
            assert loaded.starts == starts

    asyncio.run(main())


def test_weights_are_counted_by_their_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 10)
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    assert memory.weights(tmp_path) == 10
