"""A real browser without a window, driven by the DevTools protocol."""

import contextlib
import itertools
import shutil
import subprocess
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.proxy import PATIENCE, wait_until

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is missing (Debian package chromium)"
)


class Tab:
    """One page, what it logged, and what its Content-Security-Policy forbade."""

    def __init__(self, channel: aiohttp.ClientWebSocketResponse) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method. What the page says meanwhile is kept."""
        number = next(self._numbers)
        await self._channel.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._channel.receive_json(timeout=PATIENCE)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
                self.complaints.append(str(message["params"]))

    async def open(self, url: str) -> None:
        for domain in ("Page", "Log", "Runtime"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def value_of(self, expression: str) -> Any:
        """What an expression is in the page; a promise is awaited."""
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def wait_for(self, condition: str) -> None:
        """Until an expression holds in the page."""
        look = f"""new Promise((holds, fails) => {{
            const look = () => {{
                let is = false;
                try {{ is = Boolean({condition}); }} catch {{ /* not yet */ }}
                if (is) holds(true);
            }};
            setInterval(look, 20);
            setTimeout(() => fails(new Error("never")), {int(PATIENCE * 1000)});
        }})"""
        await self.value_of(look)

    async def press(self, key: str, text: str = "") -> None:
        """One key, as from a keyboard."""
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text, **_codes(key))
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, **_codes(key))

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def resize(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 800
        )

    async def prefer(self, scheme: str) -> None:
        """A dark or a light page."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def screenshot(self, path: Path) -> None:
        """All of the page, not only what fits the window."""
        told = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(b64decode(told["data"]))


def _codes(key: str) -> dict[str, int]:
    return {"windowsVirtualKeyCode": {"Tab": 9, "Enter": 13}[key]}


@contextlib.asynccontextmanager
async def new_tab(home: Path) -> AsyncIterator[Tab]:
    """A tab of a browser that knows nothing, cannot leave this machine, and is stopped by its pid at the end."""
    profile = home / "chromium"
    told = profile / "DevToolsActivePort"
    command = [
        "chromium",
        "--headless=new",
        "--no-sandbox",  # it may run as root in a container, and sees nothing but our page
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    with (home / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: told.exists() and len(told.read_text().splitlines()) == 2, "a browser")
        port = told.read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                (page,) = [it for it in await answer.json(content_type=None) if it["type"] == "page"]
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=1 << 26) as channel:
                yield Tab(channel)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)
