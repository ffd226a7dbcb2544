"""A real browser for tests: headless Chromium, driven by its DevTools protocol."""

import base64
import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--remote-debugging-port=0",
)
START_SECONDS = 150.0
PAGE_SECONDS = 150.0


class Browser:
    """One tab, 1400 pixels wide; a context manager."""

    def __init__(self, profile: Path, *more: str) -> None:
        """``more``: further switches."""
        assert CHROMIUM is not None
        command = [CHROMIUM, *SWITCHES, *more, f"--user-data-dir={profile}", "--window-size=1400,1000", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._numbers = itertools.count(1)
        try:
            self._socket = self._connect(profile / "DevToolsActivePort")
            target = self._ask("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
            attached = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True}, None)
            self._session: str = attached["sessionId"]
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def open(self, address: str, *texts: str) -> str:
        """The text of the page as soon as it shows all ``texts``."""
        self._ask("Page.navigate", {"url": address}, self._session)
        return self.wait(*texts)

    def wait(self, *texts: str) -> str:
        """The text of the page as soon as it shows all ``texts``; an error after ``PAGE_SECONDS``."""
        deadline = time.monotonic() + PAGE_SECONDS
        while not all(text in (shown := self.text()) for text in texts):
            if time.monotonic() > deadline:
                missing = [text for text in texts if text not in shown]
                raise AssertionError(f"the page does not show {missing}:\n{shown}")
            time.sleep(0.2)
        return shown

    def sign_in(self, ui: str, secret: str) -> None:
        """Give Prefect's UI its password, as a person does."""
        self.open(f"{ui}/login", "Login")
        typed = "Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call"
        field = "document.querySelector('form input')"
        self.run(
            f"{typed}({field}, {json.dumps(secret)}); {field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )
        self.run("document.querySelector('form button').click()")
        deadline = time.monotonic() + PAGE_SECONDS
        while str(self.run("location.pathname")) == "/login":
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.2)

    def text(self) -> str:
        """What a reader of the page reads."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def click(self, text: str) -> None:
        """Click what says ``text``, and nothing else, as soon as it is there."""
        found = "[...document.querySelectorAll('button, a, li, [role=tab], [role=menuitem]')]"
        one = f"{found}.find(one => one.innerText.trim() === {json.dumps(text)})"
        deadline = time.monotonic() + PAGE_SECONDS
        while not self.run(f"(one => one ? (one.click(), true) : false)({one})"):
            assert time.monotonic() < deadline, f"nothing says {text}"
            time.sleep(0.2)

    def press(self, selector: str) -> None:
        """Press the mouse on the first visible element of a CSS selector, as soon as it is there."""
        shown = f"[...document.querySelectorAll({json.dumps(selector)})].find(one => one.getClientRects().length)"
        middle = "const box = one.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]"
        deadline = time.monotonic() + PAGE_SECONDS
        while (place := self.run(f"(one => {{ if (!one) return null; {middle} }})({shown})")) is None:
            assert time.monotonic() < deadline, f"nothing is {selector}"
            time.sleep(0.2)
        for kind in ("mousePressed", "mouseReleased"):
            told = {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self._ask("Input.dispatchMouseEvent", told, self._session)

    def run(self, script: str) -> Any:
        """The value of an expression of the page's own language."""
        result = self._ask("Runtime.evaluate", {"expression": script, "returnByValue": True}, self._session)
        return result["result"].get("value")

    def resize(self, width: int, height: int = 1000) -> None:
        """Give the page another size, in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._ask("Emulation.setDeviceMetricsOverride", size, self._session)

    def fill(self, label: str, value: str) -> None:
        """Choose, or type, what belongs to the label that begins with ``label``."""
        labelled = f"one.innerText.startsWith({json.dumps(label)}) && one.querySelector('select, textarea, input')"
        found = f"[...document.querySelectorAll('label, .p-label')].find(one => {labelled})"
        field = f"{found}?.querySelector('select, textarea, input')"
        deadline = time.monotonic() + PAGE_SECONDS
        while self.run(f"({field}) ? 1 : 0") != 1:
            assert time.monotonic() < deadline, f"no field is labelled {label}"
            time.sleep(0.2)
        setter = f"Object.getOwnPropertyDescriptor(Object.getPrototypeOf({field}), 'value').set"
        self.run(f"{setter}.call({field}, {json.dumps(value)})")
        for event in ("input", "change"):
            self.run(f"{field}.dispatchEvent(new Event('{event}', {{bubbles: true}}))")

    def dress(self, scheme: str) -> None:
        """Have the next pages ``light`` or ``dark``: as the system says, and as Prefect's settings keep it."""
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self._ask("Emulation.setEmulatedMedia", {"features": wanted}, self._session)
        kept = json.dumps(json.dumps(scheme))
        self.run(f"localStorage.setItem('color-scheme', {kept})")

    def overflow(self) -> int:
        """How many pixels the page is wider than the window."""
        return int(self.run("document.documentElement.scrollWidth - window.innerWidth"))

    def picture(self, file: Path, height: int = 1000, width: int = 1400) -> Path:
        """A PNG of the page's first ``height`` pixels."""
        self.resize(width, height)
        time.sleep(0.5)
        shot = self._ask("Page.captureScreenshot", {"format": "png"}, self._session)
        file.write_bytes(base64.b64decode(shot["data"]))
        return file

    def _connect(self, told: Path) -> ClientConnection:
        deadline = time.monotonic() + START_SECONDS
        while not (told.is_file() and len(lines := told.read_text().splitlines()) == 2):
            assert self._process.poll() is None and time.monotonic() < deadline, "Chromium did not start"
            time.sleep(0.05)
        port, path = lines
        return connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None)

    def _ask(self, method: str, params: dict[str, Any], session: str | None) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        self._socket.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PAGE_SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
